"""Fenced blocks of the README and the pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Snippet:
    """A block of code: the page and line where it begins, its language, its text."""

    place: str
    language: str
    text: str

    @property
    def page(self) -> str:
        """The page alone."""
        return self.place.split(":")[0]


def snippets(language: str) -> list[Snippet]:
    """All blocks of a language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match[1] == language:
                line = text[: match.start()].count("\n") + 1
                found.append(Snippet(f"{page.relative_to(ROOT)}:{line}", language, match[2]))
    return found


def commands() -> dict[str, str]:
    """Each command of the ``sh`` blocks, without its comment → where it first stands."""
    found: dict[str, str] = {}
    for snippet in snippets("sh"):
        for line in snippet.text.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                command = shlex.join(shlex.split(part, comments=True))
                if command:
                    found.setdefault(command, snippet.place)
    return found
