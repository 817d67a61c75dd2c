"""The documentation site, built by ``make docs`` from the repository's root: links are those that a code host shows.

Nothing is fetched while it is built, and a warning (a broken link, a docstring that cannot be read) is an error.
"""

import re

import sparseflow

project = "sparseflow"
version = release = sparseflow.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/reference/*.rst", "examples/*.md"]
suppress_warnings = ["ref.python"]  # a field that several classes have, named in backticks: no link

myst_heading_anchors = 3
default_role = "py:obj"  # `name` in a docstring links where it resolves
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"sparseflow {release}"
html_extra_path = ["site"]
html_copy_source = False

CONTENTS = """

```{{toctree}}
:hidden:
:caption: {caption}

{pages}
```
"""
PAGES = {
    "Guides": (
        "quickstart",
        "/examples/README",
        "training",
        "loops",
        "allocation",
        "quantisation",
        "feature_maps",
        "compiler",
        "streams",
        "targets",
    ),
    "Results": ("results", "kernels", "cifar10", "training_results"),
    "Reference": ("operators", "reference/compile", "reference/core", "reference/train", "reference/kernels"),
    "Project": ("/CONTRIBUTING", "/CHANGELOG"),
}


def add_contents(_app: object, page: str, source: list[str]) -> None:
    """Appends the site's contents to the README, where a code host would show them as text."""
    if page == root_doc:
        for caption, pages in PAGES.items():
            paths = (p if p.startswith("/") else f"/docs/{p}" for p in pages)
            source[0] += CONTENTS.format(caption=caption, pages="\n".join(paths))


def escape_stars(
    _app: object, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """A shape ``(out, in, *kernel)`` opens no emphasis."""
    lines[:] = [re.sub(r"(?<![\w*`\\])\*(?=\w+[,)])", r"\*", line) for line in lines]


def setup(app: object) -> None:
    app.connect("autodoc-process-docstring", escape_stars)  # type: ignore[attr-defined]
    app.connect("source-read", add_contents)  # type: ignore[attr-defined]
