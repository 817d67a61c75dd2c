"""Every zoo network, dense and sparsified, compiled: equal to torch within 1e-4."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparseflow
from sparseflow.core import parse_sparsify
from sparseflow.engine.measure.bench import max_relative_error
from sparseflow.engine.sparsify import sparsify
from sparseflow.zoo import ZOO, build

SIZES = {"bert_base": {"layers": 2, "tokens": 17}}
SPECS = ["", "unstructured@0.9", "block:4x1@0.9", "pattern:4+connectivity@0.877"]


def fits(name: str, spec: str) -> bool:
    return not spec.startswith("pattern") or name in ("resnet18", "resnet50", "vgg16")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "spec"), [(n, s) for n in ZOO for s in SPECS if fits(n, s)])
def test_engine_equals_torch(name: str, spec: str) -> None:
    module, inputs = build(name, **SIZES.get(name, {"image_size": 64}))
    if spec:
        sparsify(module, parse_sparsify(spec))
    with torch.inference_mode():
        wanted = module(*inputs)
    engine = sparseflow.compile(module, inputs, measure=False)
    got = engine(*[t.numpy() for t in inputs])
    got = got if isinstance(got, tuple) else (got,)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert max_relative_error([np.asarray(g) for g in got], [w.numpy() for w in wanted]) <= 1e-4
