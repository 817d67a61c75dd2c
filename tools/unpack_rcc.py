"""Takes the files out of Qt resource collections (.rcc), into folders named after each.

    python tools/unpack_rcc.py INTO COLLECTION.rcc [COLLECTION.rcc ...]

Format: https://doc.qt.io/qt-6/resources.html; the layout is that of ``qresource.cpp`` (versions 1 to 3).
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_COMPRESSED, _DIRECTORY = 1, 2


def files(data: bytes) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Path and content of each file in a collection.

    Raises
    ------
    ValueError
        If it is none, or a file is packed in a way other than zlib's.
    """
    magic, version, tree, start, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres":
        raise ValueError("found no Qt resource collection; its first bytes have to be 'qres'")
    node_size = 14 if version < 2 else 22

    def walk(node: int, folder: PurePosixPath) -> Iterator[tuple[PurePosixPath, bytes]]:
        at = tree + node * node_size
        name_at, flags = struct.unpack_from(">IH", data, at)
        if node:
            (length,) = struct.unpack_from(">H", data, names + name_at)
            begin = names + name_at + 6  # after the length and a hash
            folder = folder / data[begin : begin + 2 * length].decode("utf-16-be")
        if flags & _DIRECTORY:
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                yield from walk(child, folder)
            return
        (offset,) = struct.unpack_from(">I", data, at + 10)
        (size,) = struct.unpack_from(">I", data, start + offset)
        content = data[start + offset + 4 : start + offset + 4 + size]
        if flags & ~(_COMPRESSED | _DIRECTORY):
            raise ValueError(f"{folder}: packed in an unknown way (flags {flags}); zlib's is allowed")
        yield folder, zlib.decompress(content[4:]) if flags & _COMPRESSED else content

    yield from walk(0, PurePosixPath())


def main(into: str, *collections: str) -> int:
    """Unpack; a file of the same name in two folders of a collection keeps both by its path."""
    for name in collections:
        path = Path(name)
        for inner, content in files(path.read_bytes()):
            target = Path(into) / path.stem / "-".join(p for p in inner.parts if p not in ("..", "/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
