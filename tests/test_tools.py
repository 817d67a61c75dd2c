"""The scripts in tools/ that have logic of their own."""

from __future__ import annotations

import importlib
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def unpack_rcc() -> Iterator[ModuleType]:
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("unpack_rcc")
    finally:
        sys.path.remove(str(TOOLS))


def collection(version: int, flags: int = 1) -> bytes:
    """A folder ``a`` with the files ``b`` (plain: "hello") and ``c`` (with ``flags``: 100 bytes x)."""
    names, at = b"", []
    for name in ("a", "b", "c"):
        at.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    packed = struct.pack(">I", 100) + zlib.compress(b"x" * 100)
    data = struct.pack(">I", 5) + b"hello" + struct.pack(">I", len(packed)) + packed
    stamp = b"" if version < 2 else bytes(8)
    nodes = [
        struct.pack(">IHII", 0, 2, 1, 1),
        struct.pack(">IHII", at[0], 2, 2, 2),
        struct.pack(">IHHHI", at[1], 0, 0, 0, 0),
        struct.pack(">IHHHI", at[2], flags, 0, 0, 9),
    ]
    tree = b"".join(node + stamp for node in nodes)
    header = 20 if version < 3 else 24
    places = (header, header + len(tree), header + len(tree) + len(data))
    return struct.pack(">4s4I", b"qres", version, *places).ljust(header, b"\0") + tree + data + names


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_resource_collection_is_unpacked(unpack_rcc: ModuleType, version: int, tmp_path: Path) -> None:
    (tmp_path / "some.rcc").write_bytes(collection(version))
    assert unpack_rcc.main(str(tmp_path / "out"), str(tmp_path / "some.rcc")) == 0
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "some").iterdir()}
    assert found == {"a-b": b"hello", "a-c": b"x" * 100}


def test_what_cannot_be_unpacked_is_refused(unpack_rcc: ModuleType) -> None:
    with pytest.raises(ValueError, match="have to be 'qres'"):
        list(unpack_rcc.files(bytes(24)))
    with pytest.raises(ValueError, match=r"a/c: packed in an unknown way \(flags 4\)"):
        list(unpack_rcc.files(collection(3, flags=4)))
