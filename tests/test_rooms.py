"""The rooms of the house: what each may import, that training needs no TVM and an engine needs no torch."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

import sparseflow

ROOT = Path(sparseflow.__file__).parent
EVERYWHERE = {"errors", "registry", ""}

MAY_IMPORT = {
    "core": set(),
    "data": {"core"},
    "train": {"core", "data"},
    "zoo": {"core"},
    "kernels": {"core"},
    "ops": {"core", "kernels"},
    "passes": {"core", "kernels", "ops"},
    "engine": {"core", "kernels", "ops", "passes"},
    "studies": {"core", "data", "train", "zoo", "engine"},
    "report": {"core", "studies", "train"},
    "cli": {"core", "data", "train", "zoo", "engine", "studies", "report"},
}
"""Room → rooms that it may import, itself, `errors`, `registry` and the package's own names excepted."""

MAY_NOT_USE = {
    "core": {"torch", "tvm", "rich", "pydantic", "typer"},
    "data": {"tvm"},
    "train": {"tvm"},
    "zoo": {"tvm"},
    "kernels": {"torch"},
    "ops": {"torch"},
    "passes": {"torch"},
    "engine": {"typer", "jinja2"},
    "studies": {"tvm", "typer"},
    "report": {"torch", "tvm", "typer"},
    "cli": {"tvm"},
}
"""Room → packages of others that it does not touch, not even inside of a function."""

FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = ("sparseflow", *path.relative_to(ROOT).parts)[: -node.level]
                module = ".".join((*package, module)).rstrip(".")
            if module == "sparseflow":
                yield from ((node.lineno, f"sparseflow.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


def target_room(name: str) -> str:
    """The room of ``sparseflow.x.y``, or ``""`` for what the package itself offers (`compile`, `Engine`)."""
    part = name.split(".")[1] if "." in name else ""
    return part if (ROOT / part).is_dir() or part in EVERYWHERE else ""


def test_every_room_is_in_the_table() -> None:
    rooms = {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").is_file()}
    assert rooms == set(MAY_IMPORT) == set(MAY_NOT_USE)


def test_no_room_sees_itself_through_another() -> None:
    for room, below in MAY_IMPORT.items():
        assert room not in {deeper for b in below for deeper in MAY_IMPORT[b]}


def modules() -> dict[str, Path]:
    """Dotted name of each module → its file."""
    names = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(("sparseflow", *parts)).removesuffix(".__init__")] = path
    return names


def arrows() -> networkx.DiGraph:
    """An arrow from each module to those that it imports, anywhere in it but for its types alone.

    Packages' own files are left out.
    """
    known, graph = modules(), networkx.DiGraph()
    for name, path in known.items():
        if path.name == "__init__.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [
            n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
        ]
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            package = name.rsplit(".", node.level)[0] + "." if node.level else ""
            for alias in node.names:
                whole = f"{package}{node.module}.{alias.name}"
                found = whole if whole in known else f"{package}{node.module}"
                if found in known and known[found].name != "__init__.py":
                    graph.add_edge(name, found)
    return graph


def test_no_file_is_too_long_to_read() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES
    }
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_element_types_and_targets_are_named_where_they_live() -> None:
    """Elsewhere code asks an `ElementType` or a `Target`."""
    allowed = {
        "float32": ("core/element_type.py", "engine/frontends/", "zoo/"),
        "AVX512": ("kernels/target/cpu.py",),
    }
    patterns = {"float32": re.compile("[\"']float32"), "AVX512": re.compile(r"\bAVX512\b")}
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for name, pattern in patterns.items()
        if pattern.search(line) and not path.relative_to(ROOT).as_posix().startswith(allowed[name])
    ]
    assert found == []


def test_templates_are_named_among_the_kernels_only() -> None:
    """Other rooms ask a template for its properties; core, which sees no kernel, has such words of its own."""
    from sparseflow.kernels.template import TEMPLATES

    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for path in FILES
        if room_of(path) not in ("kernels", "core")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in TEMPLATES
    ]
    assert found == []


def test_no_module_imports_itself_through_others() -> None:
    assert [c for c in networkx.strongly_connected_components(arrows()) if len(c) > 1] == []


def test_the_folders_of_a_room_import_each_other_in_one_direction() -> None:
    folders = networkx.DiGraph()
    for source, found in arrows().edges:
        ends = [tuple(name.split(".")[1:-1])[:2] for name in (source, found)]
        if all(len(end) == 2 for end in ends) and ends[0][0] == ends[1][0] and ends[0] != ends[1]:
            folders.add_edge(*ends)
    assert folders.number_of_edges()
    assert [c for c in networkx.strongly_connected_components(folders) if len(c) > 1] == []


@pytest.mark.parametrize("room", list(MAY_IMPORT))
def test_rooms_import_only_what_the_table_allows(room: str) -> None:
    allowed = MAY_IMPORT[room] | EVERYWHERE | {room}
    wrong = []
    for path in FILES:
        if room_of(path) != room:
            continue
        for line, name in imports(path):
            if name.split(".")[0] == "sparseflow":
                if target_room(name) not in allowed:
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: {name}")
            elif name.split(".")[0] in MAY_NOT_USE[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert not wrong


def test_core_uses_numpy_and_the_standard_library_only() -> None:
    used = {name.split(".")[0] for p in FILES if room_of(p) == "core" for _, name in imports(p)}
    assert used <= {*sys.stdlib_module_names, "numpy", "sparseflow", "__future__"}


def python(code: str, *absent: str) -> str:
    """Standard output of ``code`` in a fresh interpreter that cannot import the packages ``absent``."""
    block = "".join(f"sys.modules[{name!r}] = None; " for name in absent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {block}{code}"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_works_without_tvm() -> None:
    code = (
        "import torch, sparseflow.train, sparseflow.data, sparseflow.zoo; "
        "from sparseflow.core import parse_sparsify; "
        "module, x = sparseflow.zoo.build('resnet18', image_size=32); print(module(*x).shape[1])"
    )
    assert python(code, "tvm", "tvm_ffi").strip() == "1000"


def test_core_works_without_torch_and_tvm() -> None:
    assert python("from sparseflow.core import detect; print('fine')", "tvm", "torch").strip() == "fine"


def test_help_loads_neither_torch_nor_tvm() -> None:
    code = "import sparseflow.cli.main; print({'torch', 'tvm', 'onnx', 'matplotlib'} & set(sys.modules))"
    assert python(code).strip() == "set()"


def test_a_saved_engine_runs_without_torch_and_without_the_compiler(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    x = torch.ones(1, 3, 6, 6)
    with torch.inference_mode():
        wanted = float(module(x).sum())
    sparseflow.compile(module, (x,), measure=False).save(tmp_path / "small.engine")
    code = (
        "import numpy; from sparseflow import Engine; "
        f"engine = Engine.load({str(tmp_path / 'small.engine')!r}); "
        "print(float(engine(numpy.ones((1, 3, 6, 6), 'float32')).sum()), 'sparseflow.passes' in sys.modules)"
    )
    total, compiler = python(code, "torch", "onnx", "sparseflow.engine.compile").split()
    assert float(total) == pytest.approx(wanted, rel=1e-4)
    assert compiler == "False"
