"""Masks as pixels and pixels as PNG: a palette picture with transparent gaps, for light and dark pages."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

GAP, ZERO, KEPT, SHADES = 0, 1, 2, 3
LEVELS = 16
"""Shades from zero to kept: the pixels `SHADES`, `SHADES` + 1, …"""

# Mid tones that stand out from white and from near-black alike; the style sheet's series use the same.
COLOURS: dict[str, tuple[int, int, int]] = {
    "neutral": (110, 118, 129),
    "peer": (150, 160, 172),
    "s1": (9, 105, 218),
    "s2": (188, 76, 0),
    "s3": (130, 80, 223),
    "s4": (17, 122, 101),
    "index": (191, 135, 0),
}
_ZERO_RGBA = (128, 136, 147, 46)


def kernels(keep: npt.NDArray[np.bool_], filters: int = 16, channels: int = 16) -> npt.NDArray[np.uint8]:
    """The first kernels of a convolution as a grid: a row a filter, a column a channel, a k×k cell each.

    Parameters
    ----------
    keep : ndarray of bool, (out, in, kh, kw)
    filters, channels : int
        Size of the part that is shown.

    Returns
    -------
    ndarray of uint8, (filters*(kh+1)-1, channels*(kw+1)-1)
        With a gap of one pixel between cells.
    """
    part = keep[:filters, :channels]
    out, in_, height, width = part.shape
    grid = np.full((out, height + 1, in_, width + 1), GAP, dtype=np.uint8)
    grid[:, :height, :, :width] = np.where(part, KEPT, ZERO).transpose(0, 2, 1, 3)
    return grid.reshape(out * (height + 1), in_ * (width + 1))[:-1, :-1]


def shades(density: npt.NDArray[np.floating[Any]], cell: int = 6) -> npt.NDArray[np.uint8]:
    """Densities as squares of the shades between zero and kept.

    Parameters
    ----------
    density : ndarray, (height, width)
        In 0..1.
    cell : int
        Side of the square of each.

    Returns
    -------
    ndarray of uint8, (height*cell, width*cell)
        From `SHADES` on, the denser the higher.
    """
    steps = np.rint(np.clip(density, 0.0, 1.0) * (LEVELS - 1)).astype(np.uint8) + np.uint8(SHADES)
    return np.repeat(np.repeat(steps, cell, axis=0), cell, axis=1)


def matrix(keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The whole weight as a matrix, (out, in·kh·kw): a row a filter.

    Returns
    -------
    ndarray of uint8, (out, in*kh*kw)
    """
    pixels: npt.NDArray[np.uint8] = np.where(keep.reshape(keep.shape[0], -1), KEPT, ZERO).astype(np.uint8)
    return pixels


def png(pixels: npt.NDArray[np.uint8], series: str, scale: int = 1) -> bytes:
    """A PNG file with a palette of gap (transparent), zero (faint), kept (the colour of ``series``) and shades of it.

    Parameters
    ----------
    pixels : ndarray of uint8, (height, width)
    scale : int
        Side of the square that is drawn for a pixel.

    References
    ----------
    PNG specification (third edition), 11.2 (IHDR, PLTE, IDAT), 11.3.1 (tRNS).
    """
    drawn = np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1)
    height, width = drawn.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)  # each row starts with its filter type, 0
    rows[:, 1:] = drawn
    palette = bytes((0, 0, 0, *_ZERO_RGBA[:3], *COLOURS[series], *COLOURS[series] * LEVELS))
    faintest = 20
    shaded = (faintest + (255 - faintest) * level // (LEVELS - 1) for level in range(LEVELS))
    alphas = bytes((0, _ZERO_RGBA[3], 255, *shaded))
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", palette),
        (b"tRNS", alphas),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def data_uri(pixels: npt.NDArray[np.uint8], series: str) -> str:
    """The PNG as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(png(pixels, series)).decode("ascii")
