"""The colours of figures; a page replaces each by its own variable of that name, so that dark pages can differ."""

from __future__ import annotations

COLOURS = {
    "neutral": "#6e7681",
    "peer": "#96a0ac",
    "s1": "#0969da",
    "s2": "#bc4c00",
    "s3": "#8250df",
    "s4": "#117a65",
    "index": "#bf8700",
}
"""Colour of each role in `document.SERIES`: mid tones that stand out from white and from near-black alike."""

INK, QUIET, LINE, PAGE = "#1b2027", "#58616d", "#dfe3e8", "#ffffff"
VARIABLES = {**COLOURS, "ink": INK, "quiet": QUIET, "line": LINE, "page": PAGE}
"""Name of the style sheet's variable → colour in a figure."""
