"""Files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparseflow.core.files import atomic_write, complete_file, complete_folder, write_json
from sparseflow.errors import SparseflowError


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"x": [1, 2]})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": [1, 2]}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(SparseflowError, match="cannot be written") as caught:
        write_json(tmp_path / "file" / "b.json", {})
    assert "\n" not in str(caught.value)


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    atomic_write(path, b"old")

    def write() -> None:
        with complete_file(path) as partial:
            assert partial.suffix == path.suffix  # some writers go by it
            partial.write_bytes(b"ne")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole_or_stands_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "net.engine"

    def write(name: str, error: type[Exception] | None = None) -> None:
        with complete_folder(path) as partial:
            (partial / name).write_text("")
            if error is not None:
                raise error

    for name in ("old", "new"):
        write(name)
        assert [p.name for p in path.iterdir()] == [name]
    with pytest.raises(KeyError):
        write("broken", KeyError)
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(path.parent.iterdir()) == [path]


def test_text_is_utf8(tmp_path: Path) -> None:
    atomic_write(tmp_path / "page", "3×3")
    assert (tmp_path / "page").read_bytes() == "3×3".encode()
