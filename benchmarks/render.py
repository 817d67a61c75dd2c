"""Writes the records of the benchmarks into the docs: tables and figures between marks, nothing by hand.

    python benchmarks/render.py

fills each block ``<!-- begin FILE.json SECTION -->`` … ``<!-- end -->`` of README and ``docs/*.md`` from that file in
``benchmarks/results`` and draws its figures into ``docs/figures``. Blocks without records
say which command makes them. Some seconds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import int8
import int8_kernels
import map_networks
import precision
import selection
import weight_types
import whole_networks

from sparseflow.errors import SparseflowError
from sparseflow.report.document import Document, Section
from sparseflow.report.images import to_png
from sparseflow.report.markdown import section_markdown
from sparseflow.report.render import build_document

BLOCK = re.compile(r"(<!-- begin (?P<file>[\w.]+) (?P<section>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURES = "figures"
COMMANDS = {
    "training.json": "sparseflow sweep recipes/sweeps/cifar10.toml -o runs/cifar10-sweep "
    "--json benchmarks/results/training.json"
}
"""What writes a file of records, where it is not the script of its name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the blocks; with ``--check`` the exit code tells how many pages are not up to date."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/render.py", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--results", default="benchmarks/results", help="folder of the records")
    parser.add_argument("--docs", default="docs", help="folder of the pages")
    parser.add_argument("--check", action="store_true", help="write nothing; say which pages would change")
    args = parser.parse_args(arguments)
    stale = 0
    docs = Path(args.docs)
    for page in [*sorted(docs.glob("*.md")), *docs.absolute().parent.glob("README.md")]:
        old = page.read_text(encoding="utf-8")
        sources = Sources(Path(args.results), None if args.check else page.parent / FIGURES)
        new = BLOCK.sub(
            lambda found, s=sources: f"{found[1]}{s.text(found['file'], found['section'])}{found[4]}", old
        )
        if new != old:
            stale += 1
            print(f"{page}: {'out of date' if args.check else 'written'}", file=sys.stderr)
            if not args.check:
                page.write_text(new, encoding="utf-8")
    return stale if args.check else 0


class Sources:
    """The records, read once each, as Markdown by file and section.

    Parameters
    ----------
    results : Path
    figures : Path, optional
        Where figures are drawn; none are without it.
    """

    def __init__(self, results: Path, figures: Path | None) -> None:
        self.results, self.figures = results, figures
        self._read: dict[str, Any] = {}

    def text(self, file: str, section: str) -> str:
        """One block's content.

        Raises
        ------
        SparseflowError
            If the records have no such section.
        """
        path = self.results / file
        if not path.is_file():
            command = COMMANDS.get(file, f"python benchmarks/{Path(file).stem}.py")
            return f"*Not measured yet: `{command}`, then `python benchmarks/render.py`.*\n"
        if file not in self._read:
            self._read[file] = json.loads(path.read_text(encoding="utf-8"))
        data = self._read[file]
        if file == f"{whole_networks.NAME}.json":
            return WHOLE_NETWORKS[section](list(data.values()))
        if file == f"{int8.NAME}.json":
            return int8.markdown(data)
        if file == f"{int8_kernels.NAME}.json":
            return int8_kernels.markdown(data)
        if file == f"{precision.NAME}.json":
            return precision.markdown(data)
        if file == f"{weight_types.NAME}.json":
            return weight_types.markdown(data)
        if file == f"{selection.NAME}.json":
            return selection.markdown(data)
        if file == f"{map_networks.NAME}.json":
            return MAP_NETWORKS[section](list(data["cases"].values()))
        return self._document_section(build_document(data, str(path)), section, path)

    def _document_section(self, document: Document, name: str, path: Path) -> str:
        sections = {section.title.lower(): section for section in document.sections}
        if name not in sections:
            raise SparseflowError(f"{path} has no section {name!r}; known: {', '.join(sections)}")
        section: Section = sections[name]
        if self.figures is not None:
            for figure in Document("", "", "", section.blocks).figures():
                self.figures.mkdir(parents=True, exist_ok=True)
                (self.figures / f"{figure.name}.png").write_bytes(to_png(figure))
        return section_markdown(section, FIGURES)


WHOLE_NETWORKS: dict[str, Callable[[list[Any]], str]] = {
    "table": whole_networks.markdown,
    "summary": whole_networks.summary,
}
MAP_NETWORKS: dict[str, Callable[[list[Any]], str]] = {
    "table": map_networks.table,
    "layers": map_networks.layers,
    "summary": map_networks.summary,
}


if __name__ == "__main__":
    sys.exit(main())
