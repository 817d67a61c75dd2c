from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparseflow.errors import SparseflowError
from sparseflow.studies.stages import StageEvent, Stages


class Counter:
    """Work that counts how often it is done."""

    def __init__(self, result: Any, file: Path | None = None) -> None:
        self.result, self.file, self.calls = result, file, 0

    def __call__(self) -> Any:
        self.calls += 1
        if self.file is not None:
            self.file.write_text("model")
        return self.result


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    work = Counter({"accuracy": 0.9})
    events: list[StageEvent] = []
    for _ in range(3):
        assert Stages(tmp_path, {"seed": 0}, events.append).do("train", work) == {"accuracy": 0.9}
    assert work.calls == 1
    assert [e.status for e in events] == ["running", "done", "kept", "kept"]
    assert events[-1].seconds == events[1].seconds


def test_other_settings_do_it_again(tmp_path: Path) -> None:
    work = Counter(1)
    Stages(tmp_path, {"seed": 0}).do("train", work)
    Stages(tmp_path, {"seed": 1}).do("train", work)
    assert work.calls == 2


def test_what_follows_a_changed_result_is_done_again(tmp_path: Path) -> None:
    first, second, apart = Counter(1), Counter(2), Counter(3)

    def study() -> None:
        stages = Stages(tmp_path, {})
        stages.do("train", first)
        stages.do("compile", second, after=("train",))
        stages.do("apart", apart)

    study()
    study()
    assert (first.calls, second.calls, apart.calls) == (1, 1, 1)
    (tmp_path / "stages" / "train.json").unlink()
    first.result = 7
    study()
    assert (first.calls, second.calls, apart.calls) == (2, 2, 1)


def _lose(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_text("mod")


@pytest.mark.parametrize("damage", [_lose, _cut])
def test_a_lost_or_cut_file_is_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    file = tmp_path / "model.pt"
    work = Counter(None, file)
    Stages(tmp_path, {}).do("train", work, files=(file,))
    damage(file)
    Stages(tmp_path, {}).do("train", work, files=(file,))
    assert work.calls == 2
    assert file.read_text() == "model"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}'])
def test_a_damaged_record_is_done_again(tmp_path: Path, content: str) -> None:
    work = Counter(5)
    Stages(tmp_path, {}).do("train", work)
    (tmp_path / "stages" / "train.json").write_text(content)
    assert Stages(tmp_path, {}).do("train", work) == 5
    assert work.calls == 2


def test_a_stage_that_fails_leaves_no_record(tmp_path: Path) -> None:
    def fail() -> None:
        raise SparseflowError("no luck")

    with pytest.raises(SparseflowError, match="no luck"):
        Stages(tmp_path, {}).do("train", fail)
    assert not (tmp_path / "stages").exists()
