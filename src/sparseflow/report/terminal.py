"""A document's summary on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from sparseflow.report.document import Block, Cards, Document, Ledger, Table, Text


def show(document: Document, console: Console, whole: bool = False) -> None:
    """Print the headline and the summary's tables and lists; all tables of the sections too if ``whole``."""
    console.print(RichText(document.headline, style="bold"))
    console.print(RichText(document.lede, style="dim"))
    _show(document.summary, console)
    for section in document.sections if whole else ():
        _show([block for block in section.blocks if isinstance(block, Table)], console)


def _show(blocks: Iterable[Block], console: Console) -> None:
    for block in blocks:
        match block:
            case Table():
                console.print(drawn(block))
            case Ledger(gained=gained, paid=paid):
                for title, style, items in (("Gained", "green", gained), ("Paid", "red", paid)):
                    console.print(RichText(title, style=f"bold {style}"))
                    for about, item in items:
                        console.print(RichText.assemble("  • ", (about, "bold"), f": {item}"))
            case Text(text=text):
                console.print(RichText(text))
            case Cards(cards=cards):
                for card in cards:
                    console.print(RichText(f"{card.label}: {card.value} {card.note}".rstrip()))
            case _:
                continue


def drawn(table: Table) -> RichTable:
    """A table as the terminal shows it."""
    made = RichTable(
        title=RichText(table.caption, style="dim"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in table.columns:
        made.add_column(RichText(column.title), justify="right" if column.number else "left")
    for row in table.rows:
        made.add_row(*(RichText(cell.text, style="bold" if cell.strong else "") for cell in row))
    return made
