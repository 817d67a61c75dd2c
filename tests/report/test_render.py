import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from sparseflow.core.codec import encode
from sparseflow.errors import SparseflowError
from sparseflow.report import REPORTS, build_document, render_run, show
from sparseflow.report.document import Bars, Lines, Pictures, Scatter
from sparseflow.report.markdown import to_markdown
from sparseflow.studies.results import DENSE, QuickstartResult, Timing

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects tags and complains about tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def save(folder: Path, data: object) -> Path:
    (folder / "results.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def parsed(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


@pytest.fixture(params=["quickstart", "bench", "prune"])
def run_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    data = request.getfixturevalue(request.param)
    return save(tmp_path, encode(data))


def test_html_is_well_formed_and_fetches_nothing(run_dir: Path) -> None:
    html = render_run(run_dir).read_text(encoding="utf-8")
    page = parsed(html)
    assert "://" not in html
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in addresses)
    names = [value for _, name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert not [tag for tag, _, _ in page.attributes if tag in ("script", "link", "iframe")]


def test_every_picture_has_a_text_for_those_who_do_not_see_it(run_dir: Path) -> None:
    page = parsed(render_run(run_dir).read_text(encoding="utf-8"))
    roles = sum(1 for tag, name, value in page.attributes if (tag, name, value) == ("svg", "role", "img"))
    assert roles == sum(1 for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-label") and v)
    assert roles == len(list(build_document(json.loads((run_dir / "results.json").read_text())).figures()))


def test_all_files_are_written_and_agree(run_dir: Path, tmp_path: Path) -> None:
    page = render_run(run_dir, tmp_path / "elsewhere" / "page.html")
    assert page == tmp_path / "elsewhere" / "page.html"
    data = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    assert json.loads(page.with_suffix(".json").read_text(encoding="utf-8")) == data
    markdown = page.with_suffix(".md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\((figures/[\w.-]+)\)", markdown)
    assert shown
    written = sorted(p.relative_to(page.parent).as_posix() for p in page.parent.glob("figures/*"))
    assert sorted([*shown, *(name.replace(".png", ".svg") for name in shown)]) == written
    for name in written:
        wanted = b"\x89PNG" if name.endswith(".png") else b"<?xml"
        assert (page.parent / name).read_bytes().startswith(wanted)
    assert not list(page.parent.rglob("*.part"))


def test_quickstart_shows_what_the_issue_asks_for(quickstart: QuickstartResult, tmp_path: Path) -> None:
    page = parsed(render_run(save(tmp_path, encode(quickstart))).read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).replace("\u00a0", " ").split())
    assert "block:4x1 at 87.7 % sparsity: 3.23× faster than our own dense engine" in text
    assert "−0.60 points" in text
    for wanted in ("98.75 %", "11.8 KiB of index (26 % of its values)", "2,905", "92.2–108", "winograd"):
        assert wanted in text
    document = build_document(encode(quickstart))
    figures = list(document.figures())
    assert [f.name for f in figures if isinstance(f, Bars)] == ["latency", "storage", "work"]
    (plot,) = [f for f in figures if isinstance(f, Scatter)]
    assert len(plot.points) == len(quickstart.timings)
    side_by_side = next(f for f in figures if isinstance(f, Pictures))
    assert len(side_by_side.pictures) == 4


def test_bench_says_how_it_was_pruned_and_who_is_missing(bench: dict[str, object]) -> None:
    document = build_document(bench)
    assert document.headline == "zoo:resnet50 runs 4.09× faster than the best peer"
    assert "one-shot magnitude, not retrained" in document.lede
    markdown = to_markdown(document)
    for wanted in ("seeded random", "openvino, left out", "not installed", "block:4x1@0.9"):
        assert wanted in markdown
    unsparsified = build_document({**bench, "sparsify": None, "sparsify_method": None, "plan": None})
    assert "weights not sparsified" in unsparsified.lede


def test_prune_says_what_was_lost(prune: dict[str, object]) -> None:
    document = build_document(prune)
    assert document.headline.startswith(
        "pattern:4+connectivity: 3.82× fewer convolution weights, −0.25 points"
    )
    (curve,) = document.figures()
    assert isinstance(curve, Lines)
    assert [line.label for line in curve.lines] == ["1-dense", "2-admm", "3-retrain"]
    assert curve.lines[2].xs == (6.0, 7.0)
    magnitude = build_document({**prune, "history": {"1-magnitude": []}})
    assert not list(magnitude.figures())


def test_a_loss_is_called_a_loss(quickstart: QuickstartResult) -> None:
    slow = [
        dataclasses.replace(t, measurement=dataclasses.replace(t.measurement, median_s=1.0))
        if t.variant != DENSE
        else t
        for t in quickstart.timings
    ]
    document = build_document(encode(dataclasses.replace(quickstart, timings=tuple(slow))))
    assert "slower than our own dense engine" in document.headline
    ledger = document.summary[1]
    assert not [text for _, text in getattr(ledger, "gained", ()) if "× faster than dense" in text]
    assert [about for about, text in getattr(ledger, "paid", ()) if "slower than dense" in text] == [
        "unstructured",
        "block:4x1",
        "pattern:4+connectivity",
    ]


def test_without_peers_and_timings_it_still_renders(quickstart: QuickstartResult, tmp_path: Path) -> None:
    ours: tuple[Timing, ...] = tuple(t for t in quickstart.timings if t.engine == "sparseflow")
    for timings in (ours, ours[:1]):
        bare = dataclasses.replace(quickstart, timings=timings, masks=(), notes=())
        parsed(render_run(save(tmp_path, encode(bare))).read_text(encoding="utf-8"))


def test_names_are_escaped_everywhere(quickstart: QuickstartResult, tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>|`*'
    layer = dataclasses.replace(quickstart.variants[0].plan.layers[0], name=evil, note=evil)
    plan = dataclasses.replace(quickstart.variants[0].plan, layers=(layer,), notes=(evil,))
    named = dataclasses.replace(quickstart.variants[1], structure=evil, plan=plan)
    mask = dataclasses.replace(quickstart.masks[0], layer=evil)
    result = dataclasses.replace(
        quickstart,
        data=evil,
        variants=(quickstart.variants[0], named, *quickstart.variants[2:]),
        masks=(mask,),
        notes=(evil,),
    )
    page = render_run(save(tmp_path, encode(result)))
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    parsed(html)
    markdown = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "<script" not in markdown.replace("\\<", "")
    assert '"x")</script>|' not in markdown


def test_terminal_prints_the_summary(run_dir: Path) -> None:
    console = Console(record=True, width=200, file=None, quiet=False)
    data = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    with console.capture() as captured:
        show(build_document(data), console)
    for name in build_document(data).headline.split()[:3]:
        assert name in captured.get()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not readable JSON"),
        ("[1]", "holds a list"),
        ("{}", "kind is None; known: "),
        ('{"kind": "poem"}', "kind is 'poem'; known: "),
        ('{"kind": ["quickstart"]}', "known: "),
        ('{"kind": "quickstart"}', "variants: missing; found: kind"),
        ('{"kind": "bench", "results": [{"engine": "a"}]}', r"results\[0\]\.latency_ms: missing"),
    ],
)
def test_damaged_results_are_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(SparseflowError, match=message) as caught:
        render_run(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_missing_results_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SparseflowError, match=r"holds no results\.json"):
        render_run(tmp_path)
    with pytest.raises(SparseflowError, match="no such file or folder"):
        render_run(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written_is_one_line(quickstart: QuickstartResult, tmp_path: Path) -> None:
    save(tmp_path, encode(quickstart))
    (tmp_path / "file").write_text("")
    with pytest.raises(SparseflowError, match="cannot be written"):
        render_run(tmp_path, tmp_path / "file" / "page.html")


def test_every_kind_is_covered() -> None:
    here = {"quickstart", "bench", "prune", "kernels", "break-even", "published"}
    by_their_commands = {"feature-maps", "maps", "streams", "sweep"}
    assert set(REPORTS) == here | by_their_commands


def test_a_results_file_by_another_name_is_left_as_it_is(bench: dict[str, object], tmp_path: Path) -> None:
    source = tmp_path / "resnet50.json"
    source.write_text(json.dumps(bench), encoding="utf-8")
    before = source.read_bytes()
    assert render_run(source, tmp_path / "resnet50.html") == tmp_path / "resnet50.html"
    assert source.read_bytes() == before
    assert render_run(source) == tmp_path / "report.html"
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == bench


def test_a_pattern_library_is_counted_not_spelled_out(quickstart: QuickstartResult) -> None:
    dense, *rest = quickstart.variants
    layer = dataclasses.replace(rest[-1].plan.layers[1], structure="pattern:4:=0124/2458+connectivity")
    plan = dataclasses.replace(rest[-1].plan, layers=(layer,))
    variants = (dense, *rest[:-1], dataclasses.replace(rest[-1], plan=plan))
    markdown = to_markdown(build_document(encode(dataclasses.replace(quickstart, variants=variants))))
    assert "pattern:4+connectivity, 2 patterns" in markdown
    assert "Pattern libraries" in markdown
    assert markdown.count("0124/2458") == 1
