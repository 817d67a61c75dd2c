"""The table of supported operators is what the importers' tables say."""

from __future__ import annotations

import torch
from torch import nn

import sparseflow
from tools.operators import PAGE, onnx_rows, page, torch_rows


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make operators`"


def test_operators_that_this_project_translates_are_told_from_those_of_tvm() -> None:
    own = {name for name, _, mine in torch_rows() if mine}
    assert {"layer_norm", "elu", "adaptive_max_pool2d"} <= own
    assert not {"relu", "conv2d", "add"} & own
    assert dict(onnx_rows())["Resize"]
    assert not dict(onnx_rows())["Conv"]


def test_what_the_page_lists_is_what_compiles() -> None:
    listed = {name for name, _, _ in torch_rows()}
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ELU(), nn.AdaptiveMaxPool2d(2), nn.Flatten()).eval()
    x = torch.randn(1, 1, 7, 7)
    assert {"conv2d", "elu", "adaptive_max_pool2d"} <= listed
    y = sparseflow.compile(net, (x,), measure=False)(x)
    torch.testing.assert_close(y, net(x), rtol=1e-4, atol=1e-5)
