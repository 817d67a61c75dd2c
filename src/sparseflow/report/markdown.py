"""A document as Markdown: for a repository, an issue or a terminal pager; figures are PNG files."""

from __future__ import annotations

from collections.abc import Iterator

from sparseflow.report.document import Block, Cards, Document, Fold, Ledger, Section, Table, Text


def to_markdown(document: Document, figures: str = "figures") -> str:
    """The whole report; ``figures`` is the folder of the PNG files, relative to the Markdown file."""
    lines = [f"# {_plain(document.headline)}", "", f"{_plain(document.title)}. {_plain(document.lede)}", ""]
    lines.extend(_blocks(document.summary, figures))
    for section in document.sections:
        lines.extend([f"## {_plain(section.title)}", ""])
        lines.extend(_blocks(section.blocks, figures))
    return "\n".join(lines).rstrip() + "\n"


def section_markdown(section: Section, figures: str) -> str:
    """The blocks of one section without its title, for a page written by hand."""
    return "\n".join(_blocks(section.blocks, figures)).strip() + "\n"


def _plain(text: str) -> str:
    """``text`` with what Markdown or HTML would read as markup escaped."""
    for character in "\\`*_<>[]|#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _blocks(blocks: tuple[Block, ...], figures: str) -> Iterator[str]:
    for block in blocks:
        yield from _block(block, figures)
        yield ""


def _block(block: Block, figures: str) -> Iterator[str]:
    match block:
        case Cards(cards=cards):
            for card in cards:
                note = f" ({_plain(card.note)})" if card.note else ""
                yield f"- **{_plain(card.value)}** {_plain(card.label)}{note}"
        case Ledger(gained=gained, paid=paid):
            for title, items in (("Gained", gained), ("Paid", paid)):
                yield f"**{title}**"
                yield ""
                yield from (f"- **{_plain(about)}**: {_plain(item)}" for about, item in items)
                yield ""
        case Text(text=text):
            yield _plain(text)
        case Table():
            yield from _table(block)
        case Fold(title=title, blocks=inner):
            yield f"### {_plain(title)}"
            yield ""
            yield from _blocks(inner, figures)
        case _:  # a figure
            yield f"![{_plain(block.alt)}]({figures}/{block.name}.png)"
            if block.caption:
                yield ""
                yield f"*{_plain(block.caption)}*"


def _table(table: Table) -> Iterator[str]:
    yield f"*{_plain(table.caption)}*"
    yield ""
    yield "| " + " | ".join(_plain(column.title) for column in table.columns) + " |"
    yield "|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|"
    for row in table.rows:
        cells = (f"**{_plain(c.text)}**" if c.strong else _plain(c.text) for c in row)
        yield "| " + " | ".join(cells) + " |"
