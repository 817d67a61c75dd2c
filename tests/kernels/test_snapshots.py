"""Generated code is as reviewed: after a change of code generation run `make snapshots` and read the difference."""

from __future__ import annotations

import pytest

from tests.kernels.snapshots import FOLDER, SNAPSHOTS, text_of


@pytest.mark.parametrize("name", list(SNAPSHOTS))
def test_the_kernel_is_the_one_reviewed(name: str) -> None:
    text = text_of(name)
    assert text == (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), "run `make snapshots`, read git diff"
    assert text.count("\n") < 200


def test_every_file_has_its_kernel() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(SNAPSHOTS)
