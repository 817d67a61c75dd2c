"""What the room shows and what it needs."""

from __future__ import annotations

import subprocess
import sys

from sparseflow import core
from sparseflow.core import FORMATS, STRUCTURES


def test_every_public_name_is_there_and_every_registered_class_is_public() -> None:
    assert len(set(core.__all__)) == len(core.__all__)
    assert all(hasattr(core, name) for name in core.__all__)
    registered = {cls.__name__ for cls in (*STRUCTURES.values(), *FORMATS.values())}
    assert registered <= set(core.__all__)


def test_registered_names_are_those_of_the_classes() -> None:
    for registry in (STRUCTURES, FORMATS, core.FEATURE_MAP_FORMATS):
        assert [cls.name for cls in registry.values()] == list(registry)


def test_neither_torch_nor_tvm_is_imported() -> None:
    code = "import sys, sparseflow.core; print(sorted({'torch', 'tvm', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
