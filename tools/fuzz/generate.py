"""Random cases: a network, how its weights are pruned, how it is compiled. The same seed gives the same case."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sparseflow.core.codec import decode, encode

from .network import Module, Network, Step, example

Shape = tuple[int, ...]
Drawn = tuple[str, tuple[Any, ...], dict[str, Any]] | None
"""A module's class, its arguments and its options; None if the shape does not allow one."""

ACTIVATIONS: list[tuple[str, tuple[Any, ...]]] = [
    ("ReLU", ()), ("ReLU", ()), ("ReLU", ()), ("ReLU6", ()), ("LeakyReLU", (0.1,)), ("ELU", ()), ("SELU", ()),
    ("CELU", (1.5,)), ("GELU", ()), ("SiLU", ()), ("Mish", ()), ("Hardswish", ()), ("Hardsigmoid", ()), ("Sigmoid", ()),
    ("Tanh", ()), ("Softplus", ()), ("Hardtanh", (-0.7, 1.3)), ("Softsign", ()), ("PReLU", ()),
    ("Threshold", (0.2, 0.2)), ("LogSigmoid", ()), ("Tanhshrink", ()),
]  # fmt: skip
STRUCTURES = (
    "unstructured", "nm:2:4", "block:4x1", "block:2x2", "filter", "channel", "column", "pattern:4", "connectivity",
    "pattern:4+connectivity", "block-punched:8x4", "dense-blocks:8x8:filter", "nm:1:4",
)  # fmt: skip
MOST = 40_000
"""Most elements of a value, so that a case takes seconds."""


def activation(rng: random.Random, _shape: Shape) -> Drawn:
    name, args = rng.choice(ACTIVATIONS)
    return name, args, {}


def conv2d(rng: random.Random, shape: Shape) -> Drawn:
    c, h, w = shape[1:]
    out = rng.choice([1, 3, 4, 7, 8, 12, 16, 17, 32])
    size = tuple(rng.choice([1, 1, 2, 3, 3, 3, 5, 7]) for _ in range(2)) if rng.random() < 0.25 else None
    k = rng.choice([1, 1, 3, 3, 3, 5, 7])
    kernel = size or (k, k)
    stride, dilation = rng.choice([1, 1, 1, 2, 3]), rng.choice([1, 1, 1, 2])
    groups = rng.choice([1, 1, 1, *(g for g in (2, 4, c) if c % g == 0)])
    out = out if groups == 1 else groups * rng.choice([1, 1, 2])
    mode = rng.choice(["zeros"] * 4 + ["reflect", "replicate", "circular"])
    padding = tuple(
        rng.choice([d * (n - 1) // 2, 0, 1]) for n, d in zip(kernel, (dilation,) * 2, strict=True)
    )
    if any(
        n + 2 * p < dilation * (m - 1) + 1 or p >= n for n, p, m in zip((h, w), padding, kernel, strict=True)
    ):
        return None
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": rng.random() < 0.7,
    }
    return "Conv2d", (c, out, kernel), {**options, "padding_mode": mode}


def conv1d(rng: random.Random, shape: Shape) -> Drawn:
    c, n = shape[1:]
    k, dilation = rng.choice([1, 3, 5]), rng.choice([1, 1, 2])
    padding = rng.choice([0, dilation * (k - 1) // 2])
    if n + 2 * padding < dilation * (k - 1) + 1:
        return None
    groups = rng.choice([1, 1, *(g for g in (2, c) if c % g == 0)])
    out = groups * rng.choice([1, 2, 4]) if groups > 1 else rng.choice([3, 8, 16])
    return (
        "Conv1d",
        (c, out, k),
        {"stride": rng.choice([1, 1, 2]), "padding": padding, "dilation": dilation, "groups": groups},
    )


def transposed(rng: random.Random, shape: Shape) -> Drawn:
    stride = rng.choice([1, 2, 2])
    k = rng.choice([2, 3, 4])
    return (
        "ConvTranspose2d",
        (shape[1], rng.choice([3, 8]), k),
        {"stride": stride, "padding": rng.choice([0, 1]) if k > 2 else 0},
    )


def linear(rng: random.Random, shape: Shape) -> Drawn:
    return "Linear", (shape[-1], rng.choice([1, 5, 8, 16, 31, 64])), {"bias": rng.random() < 0.8}


def norm(rng: random.Random, shape: Shape) -> Drawn:
    if len(shape) == 4 and rng.random() < 0.6:
        return "BatchNorm2d", (shape[1],), {}
    if len(shape) == 2 or (len(shape) == 3 and rng.random() < 0.3):
        return "BatchNorm1d", (shape[1],), {}
    if len(shape) == 3:
        return "LayerNorm", (shape[-1],), {}
    groups = rng.choice([g for g in (1, 2, 4, 8) if shape[1] % g == 0])
    return ("GroupNorm", (groups, shape[1]), {}) if shape[1] // groups * shape[2] * shape[3] > 1 else None


def pool(rng: random.Random, shape: Shape) -> Drawn:
    rank = len(shape) - 2
    kind = rng.choice(["MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool"])
    if kind.startswith("Adaptive"):
        return f"{kind}{rank}d", (tuple(rng.choice([1, 1, 2, 3, 5, 7]) for _ in range(rank)),), {}
    k = rng.choice([2, 2, 3, 3, 4])
    padding = rng.choice([0, k // 2])
    if any(n + 2 * padding < k for n in shape[2:]):
        return None
    options: dict[str, Any] = {"padding": padding, "ceil_mode": rng.random() < 0.3}
    if kind == "AvgPool":
        options["count_include_pad"] = rng.random() < 0.5
    return f"{kind}{rank}d", (k, rng.choice([1, 2, 2, 3])), options


def resize(rng: random.Random, shape: Shape) -> Drawn:
    rank = len(shape) - 2
    modes = (
        ["nearest", "nearest", "nearest-exact", "linear"]
        if rank == 1
        else ["nearest", "nearest", "nearest-exact", "bilinear", "bicubic"]
    )
    mode = rng.choice(modes)
    options: dict[str, Any] = {"mode": mode}
    if rng.random() < 0.5:
        options["size"] = tuple(rng.randint(1, 16) for _ in range(rank))
    else:
        options["scale_factor"] = rng.choice([2, 2, 2.0, 1.5, 0.5, 1.7, 3])
        if any(int(n * options["scale_factor"]) < 1 for n in shape[2:]):
            return None
    if not mode.startswith("nearest"):
        options["align_corners"] = rng.random() < 0.3
        if rank == 2 and min(shape[2:]) > 1 and rng.random() < 0.2 and min(options.get("size", (2, 2))) > 1:
            options.update(antialias=True, align_corners=False)
    return "Interpolate", (), options


def pad(rng: random.Random, shape: Shape) -> Drawn:
    widths = tuple(rng.randint(0, 3) for _ in range(2 * (len(shape) - 2)))
    mode = rng.choice(["constant", "reflect", "replicate", "circular"])
    if any(w >= shape[-1 - i // 2] for i, w in enumerate(widths)):
        return None
    return "Pad", (widths, mode), {}


def rearrange(rng: random.Random, shape: Shape) -> Drawn:
    axis = rng.randrange(1, len(shape))
    choices: list[Drawn] = [("Call", ("softmax", axis), {}), ("Call", ("flip", axis), {})]
    if shape[axis] >= 2:
        choices += [
            ("Slice", (axis, rng.randint(0, 1), rng.choice([1, 2, 3])), {}),
            ("Chunk", (2, 0, axis), {}),
        ]
    if len(shape) > 2:
        choices.append(("Call", (rng.choice(["mean", "sum", "amax"]), axis), {"keepdim": rng.random() < 0.5}))
    if len(shape) == 4:
        choices += [("Tokens", (), {}), ("Call", ("mean", (2, 3)), {}), ("Call", ("flatten", 1), {})]
        choices += [("Shuffle", (g,), {}) for g in (2, 4) if shape[1] % g == 0]
        choices += [("PixelShuffle", (2,), {})] if shape[1] % 4 == 0 else []
        choices.append(("Excite", (shape[1], rng.choice([2, 8])), {}))
    if len(shape) == 3:
        choices.append(("Call", ("transpose", 1, 2), {}))
        choices += [
            ("Attention", (shape[2], h, rng.random() < 0.3), {})
            for h in (1, 2, 4)
            if shape[2] % h == 0 and shape[2] > h
        ]
    return rng.choice(choices)


BY_RANK: dict[int, list[Callable[[random.Random, Shape], Drawn]]] = {
    4: [conv2d] * 7
    + [activation] * 4
    + [norm] * 2
    + [pool] * 2
    + [resize, pad, transposed]
    + [rearrange] * 2,
    3: [linear] * 5 + [activation] * 3 + [norm, conv1d, conv1d, pool, resize] + [rearrange] * 3,
    2: [linear] * 5 + [activation] * 3 + [norm, rearrange],
}


def _tuples(data: Any) -> Any:
    """``data`` with tuples for its lists."""
    if isinstance(data, dict):
        return {key: _tuples(value) for key, value in data.items()}
    return tuple(map(_tuples, data)) if isinstance(data, list | tuple) else data


@dataclass(frozen=True)
class Case:
    """A network, how it is pruned and how it is compiled; plain data.

    Attributes
    ----------
    seed : int
        Draws the weights and the inputs.
    sparsify : str
        ``STRUCTURE@SPARSITY``; empty for dense weights.
    route : str
        ``module``, ``pt2`` or ``onnx``: how the model comes in.
    """

    seed: int
    network: Network
    sparsify: str = ""
    route: str = "module"
    target: str = "native"
    threads: int = 1
    measure: bool = False
    exact: bool = False
    calibrate: bool = False
    reload: bool = False

    @classmethod
    def read(cls, data: Any) -> Case:
        """The inverse of `codec.encode`; a step's arguments, which may be anything, are tuples again."""
        return decode(cls, _tuples(data))

    def code(self) -> str:
        """A few lines that say what the case is."""
        options = {k: v for k, v in encode(self).items() if k != "network"}
        return f"{options}\n{self.network.code()}"


def draw(seed: int) -> Case:
    """The case of a seed; its results in torch are finite."""
    attempt = 0
    while True:
        rng = random.Random(f"{seed}.{attempt}")
        network = _network(rng, seed)
        if network is not None:
            break
        attempt += 1
    sparsify = ""
    if rng.random() < 0.8:
        structure = rng.choice(STRUCTURES)
        fixed = structure.startswith("nm") or structure == "pattern:4"
        level = (
            rng.choice([0.95, 0.8, 0.9])
            if structure == "pattern:4+connectivity"
            else rng.choice([0, 0.3, 0.5, 0.75, 0.9, 1.0])
        )
        sparsify = structure if fixed else f"{structure}@{level}"
    route = rng.choice(["module"] * 5 + ["pt2", "onnx", "onnx"])
    if any(dict(s.options).get("scale_factor") == 1.7 for s in network.steps):
        route = (
            "module"  # torch rounds such scales to float32, ONNX's reference computes with them in float64
        )
    return Case(
        seed,
        network,
        sparsify,
        route=route,
        target=rng.choice(["native"] * 5 + ["avx2", "avx512"]),
        threads=rng.choice([1, 1, 2]),
        measure=rng.random() < 0.1,
        exact=rng.random() < 0.3,
        calibrate=rng.random() < 0.25,
        reload=rng.random() < 0.15,
    )


def _network(rng: random.Random, seed: int) -> Network | None:
    batch = rng.choice([1, 1, 1, 2, 3, 4])
    vocabulary = 0
    kind = rng.choice(["map"] * 6 + ["tokens"] * 2 + ["rows", "words"])
    shape: Shape = {
        "map": (batch, rng.choice([1, 3, 4, 8, 16]), rng.randint(1, 20), rng.randint(1, 20)),
        "tokens": (batch, rng.randint(1, 20), rng.choice([4, 7, 16, 32])),
        "rows": (batch, rng.choice([1, 5, 16, 64])),
        "words": (batch, rng.randint(1, 12)),
    }[kind]
    steps: list[Step] = []
    inputs = [shape]
    if kind == "words":
        vocabulary = 50
        steps.append(Step("Embedding", (vocabulary, 16)))
    elif rng.random() < 0.15:
        inputs.append(shape)
    values = _values(Network(tuple(inputs), tuple(steps), (0,), vocabulary), seed)
    for _ in range(rng.randint(2, 9)):
        step = _step(rng, values, steps, len(inputs))
        if step is None:
            continue
        try:
            part = (steps[step.shared] if step.shared >= 0 else step).make().eval()
            with torch.no_grad():
                made = part(*(values[k] for k in step.inputs))
        except (RuntimeError, ValueError):
            continue
        if 0 < made.numel() <= MOST and made.ndim in (2, 3, 4) and bool(made.isfinite().all()):
            steps.append(step)
            values.append(made)
    read = {k for s in steps for k in s.inputs}
    ends = [k for k in range(len(inputs), len(values)) if k not in read]
    if len(steps) < 2 or any(k not in read for k in range(len(inputs))):
        return None
    network = Network(tuple(inputs), tuple(steps), tuple(ends), vocabulary)
    with torch.no_grad():
        out = Module(network, seed)(*example(network, seed))
    finite = all(bool(y.isfinite().all()) for y in (out if isinstance(out, tuple) else (out,)))
    return network if finite else None


def _values(network: Network, seed: int) -> list[Any]:
    values = list(example(network, seed))
    for step in network.steps:
        values.append(step.make()(*(values[k] for k in step.inputs)).detach())
    return values


def _step(rng: random.Random, values: list[Any], steps: list[Step], first: int) -> Step | None:
    """A call that reads the last value, or now and then an earlier one."""
    floats = [k for k, v in enumerate(values) if v.is_floating_point()]
    x = floats[-1] if rng.random() < 0.85 else rng.choice(floats)
    shape = tuple(values[x].shape)
    partners = [k for k in floats if k != x and values[k].ndim == len(shape)]
    same = [k for k in partners if tuple(values[k].shape) == shape]
    if same and rng.random() < 0.35:
        how = rng.choice(["add", "add", "add", "sub", "mul", "maximum", "minimum"])
        return Step("Join", (how,), (), (x, rng.choice(same)))
    beside = [k for k in partners if values[k].shape[0] == shape[0] and values[k].shape[2:] == shape[2:]]
    if beside and rng.random() < 0.15:
        return Step("Concat", (), (), (x, rng.choice(beside)))
    again = [
        i for i, s in enumerate(steps)
        if s.shared < 0 and s.module in ("Conv2d", "Linear") and values[s.inputs[0]].shape == values[x].shape
    ]  # fmt: skip
    if again and rng.random() < 0.15:
        return Step(steps[again[0]].module, (), (), (x,), again[0])
    drawn = rng.choice(BY_RANK[len(shape)])(rng, shape)
    return None if drawn is None else Step(drawn[0], drawn[1], tuple(drawn[2].items()), (x,))
