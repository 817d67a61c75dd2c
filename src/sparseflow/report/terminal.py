"""A document's summary on a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from sparseflow.report.document import Cards, Document, Ledger, Table, Text


def show(document: Document, console: Console) -> None:
    """Print the headline and the summary's tables and lists."""
    console.print(RichText(document.headline, style="bold"))
    console.print(RichText(document.lede, style="dim"))
    for block in document.summary:
        match block:
            case Table():
                console.print(_table(block))
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


def _table(table: Table) -> RichTable:
    drawn = RichTable(
        title=RichText(table.caption, style="dim"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in table.columns:
        drawn.add_column(RichText(column.title), justify="right" if column.number else "left")
    for row in table.rows:
        drawn.add_row(*(RichText(cell.text, style="bold" if cell.strong else "") for cell in row))
    return drawn
