import pytest

from sparseflow.report import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234.5, "1,234"),
        (12.345, "12.3"),
        (0.0123, "0.0123"),
        (9.996, "10.00"),
        (3.2e-7, "3.20e-07"),
    ],
)
def test_digits(value: float, text: str) -> None:
    assert words.digits(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(2.5, "2.50 s"), (3.1e-3, "3.10 ms"), (42e-6, "42.0 µs")])
def test_duration_keeps_number_and_unit_together(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text.replace(" ", "\u00a0")


@pytest.mark.parametrize(
    ("ratio", "text"), [(2.0, "2.00× faster"), (0.5, "2.00× slower"), (1.01, "as fast"), (0.99, "as fast")]
)
def test_faster_says_slower_when_it_is(ratio: float, text: str) -> None:
    assert words.faster(ratio) == text


@pytest.mark.parametrize(("lost", "text"), [(0.3, "−0.30"), (-0.1, "+0.10"), (0.001, "±0.00")])
def test_points(lost: float, text: str) -> None:
    assert words.points(lost) == text


def test_a_unit_suits_the_largest_value() -> None:
    assert words.time_unit([3e-6, 4e-3]) == (1e-3, "ms")
    assert words.byte_unit([10, 3000]) == (1024.0, "KiB")
    assert words.nbytes(0) == "0\u00a0B"


def test_span_is_in_minutes_when_one_waits_long() -> None:
    assert words.span(28.3) == "28\u00a0s"
    assert words.span(744) == "12.4\u00a0min"
