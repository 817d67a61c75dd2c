"""Reports: results in, HTML, Markdown, JSON, PNG and SVG out. Nothing is measured or derived here."""

from sparseflow.report.document import REPORTS, Document
from sparseflow.report.render import build_document, read_results, render_run
from sparseflow.report.terminal import show

__all__ = ["REPORTS", "Document", "build_document", "read_results", "render_run", "show"]
