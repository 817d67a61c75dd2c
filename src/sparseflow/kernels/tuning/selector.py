"""Choosing a kernel by measurement on the target, kept on disk; or by the cost model."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import platformdirs
import tvm

import sparseflow
from sparseflow.core.codec import decode, encode
from sparseflow.core.element_type import FLOAT32, ElementType
from sparseflow.core.files import write_json
from sparseflow.core.plan import CandidateTime, Rejection
from sparseflow.errors import CompileError, FormatError, SparseflowError
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.rescale import rescale_size
from sparseflow.kernels.target.base import Target
from sparseflow.kernels.template import TEMPLATES, Candidate, KernelTemplate
from sparseflow.kernels.tuning.cold_weights import ColdWeights
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Array, Layouts, Workload, natural_layouts

BEFORE = "sparseflow.before_a_timed_call"
COLD_CALLS = 5  # timed in one turn of a candidate whose weights have to be made cold before each
MEASURED = 10  # candidates measured for a workload, the cost model's best of each template among them


@dataclass(frozen=True)
class Choice:
    """The outcome for one workload: candidates fastest first, and the templates that do not apply."""

    times: tuple[CandidateTime, ...]
    rejected: tuple[Rejection, ...]

    @property
    def best(self) -> Candidate:
        """The fastest."""
        return Candidate(self.times[0].template, self.times[0].parameters)


def cache_folder() -> Path:
    """Where measured choices are kept, one JSON file each; delete it to measure anew."""
    return Path(os.environ.get("SPARSEFLOW_CACHE") or platformdirs.user_cache_dir("sparseflow")) / "choices"


@functools.cache
def code_fingerprint() -> str:
    """A hash of the source of all that decides a kernel: changed code invalidates what was measured with the old.

    That is `sparseflow.kernels` with its folders, the index formats that templates pack, and the code of activations.
    """
    digest, package = hashlib.sha256(), Path(sparseflow.__file__).parent
    for folder in (package / "kernels", package / "core" / "formats", package / "core" / "activations"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass
class Selector:
    """Finds the fastest candidate of each workload, once.

    Parameters
    ----------
    target : Target
    machine : str
        Name of the machine, part of the cache's key.
    measure : bool
        False ranks by the cost model alone.
    exact : bool
        Leaves out the templates whose rounding error is larger than that of adding up the products.
    between : int
        Bytes of weights that a call of the network reads between two calls of one layer, see `cold.rounded`: they
        decide the cache that a layer's own come from. The planner sets it; 0: always from the nearest.
    progress : callable, optional
        Told the name of each workload before it is measured.
    """

    target: Target
    machine: str
    measure: bool = True
    progress: Callable[[str], None] | None = None
    exact: bool = False
    between: int = 0
    folder: Path = field(default_factory=cache_folder)
    _seen: dict[str, Choice] = field(default_factory=dict)

    def choose(self, workload: Workload, weight: LayerWeight, label: str = "") -> Choice:
        """The candidates of ``workload`` with their times, from memory, from disk or measured with ``weight``.

        Raises
        ------
        CompileError
            If no template accepts the workload.
        """
        plain = replace(workload, map_density=1.0)
        found = self._among(tuple(TEMPLATES), plain, weight, label)
        if workload.map_density < 1.0:
            skips = tuple(n for n, t in TEMPLATES.items() if t.refusal(workload) != t.refusal(plain))
            found = _joined(found, self._among(skips, workload, weight, label))
        if not found.times:
            reasons = "; ".join(f"{r.template}: {r.reason}" for r in found.rejected)
            raise CompileError(f"no kernel for {workload.op} {workload.weight_shape}: {reasons}")
        return found

    def predicted_s(self, workload: Workload) -> float:
        """Seconds of the candidate that the cost model ranks first; infinite if there is none."""
        candidates, _ = self._candidates(tuple(TEMPLATES), workload)
        return min((t.time_s for t in self._predicted(workload, candidates)), default=math.inf)

    def _among(
        self, templates: tuple[str, ...], workload: Workload, weight: LayerWeight, label: str
    ) -> Choice:
        """The candidates of some templates: those that no density of the map changes are measured once for all."""
        key = self._key(workload)
        if key not in self._seen:
            found = self._load(key) if self.measure else None
            if found is None:
                candidates, rejected = self._candidates(templates, workload)
                if self.measure and candidates and (len(candidates) > 1 or workload.map_density < 1.0):
                    if self.progress is not None:
                        self.progress(label)
                    found = Choice(self._measured(workload, candidates, weight), rejected)
                    self._store(key, found)
                else:
                    found = Choice(tuple(self._predicted(workload, candidates)), rejected)
            self._seen[key] = found
        return self._seen[key]

    def _key(self, workload: Workload) -> str:
        return self.key_of(workload.key())

    def key_of(self, what: str) -> str:
        """``what`` with all else that a time depends on: equal keys, equal times."""
        return json.dumps(
            {
                "workload": what,
                "between": self.between,
                "target": str(self.target),
                "machine": self.machine,
                "exact": self.exact,
                "tvm": tvm.__version__,
                "sparseflow": sparseflow.__version__,
                "code": code_fingerprint(),
            },
            sort_keys=True,
        )

    def _candidates(
        self, templates: tuple[str, ...], workload: Workload
    ) -> tuple[list[Candidate], tuple[Rejection, ...]]:
        """The most promising candidates, best predicted first: those of each template, then the rest by prediction."""
        rejected, lists = [], []
        for name in templates:
            template = TEMPLATES[name]
            reason = template.refusal(workload)
            if reason is None and self.exact and not template.exact:
                reason = "left out by --exact"
            if reason is not None:
                rejected.append(Rejection(name, reason))
                continue
            found = template.candidates(workload)
            if found:
                lists.append(found)
        first = [c for found in lists for c in found[:2]]
        rest = [c for found in lists for c in found[2:]]
        rest.sort(key=lambda c: TEMPLATES[c.template].predict_cycles(workload, c))
        chosen = first + rest[: max(0, MEASURED - len(first))]
        chosen.sort(key=lambda c: TEMPLATES[c.template].predict_cycles(workload, c))
        return chosen, tuple(rejected)

    def _predicted(self, workload: Workload, candidates: Iterable[Candidate]) -> list[CandidateTime]:
        return [
            CandidateTime(
                c.template,
                dict(c.parameters),
                TEMPLATES[c.template].predict_cycles(workload, c) / self.target.clock_hz,
                False,
            )
            for c in candidates
        ]

    def _measured(
        self, workload: Workload, candidates: list[Candidate], weight: LayerWeight
    ) -> tuple[CandidateTime, ...]:
        calls = trials(self.target, workload, candidates, weight, self.between)
        times = time_interleaved(calls)
        found = [
            CandidateTime(c.template, dict(c.parameters), t, True)
            for c, t in zip(candidates, times, strict=True)
        ]
        return tuple(sorted(found, key=lambda t: t.time_s))

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def kept(self, key: str) -> dict[str, Any] | None:
        """What `keep` put on disk for ``key``; None if there is nothing, or nothing whole."""
        try:
            data = json.loads(self._path(key).read_text())
            return dict(data) if data["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, key: str, data: dict[str, Any]) -> None:
        """Writes what `kept` reads; a read-only or full disk costs the next run its time, not this one its result."""
        with suppress(SparseflowError):
            write_json(self._path(key), {"key": key, **data})

    def _load(self, key: str) -> Choice | None:
        """The choice on disk, if its templates are still known."""
        data = self.kept(key)
        if data is None:
            return None
        try:
            choice = decode(Choice, data, partial=True)  # beside it stands its key
        except FormatError:
            return None
        known = choice.times and all(t.template in TEMPLATES for t in choice.times)
        return choice if known else None

    def _store(self, key: str, choice: Choice) -> None:
        self.keep(key, encode(choice))


def _joined(plain: Choice, skipping: Choice) -> Choice:
    """Both together, fastest first; what the second says of a template replaces what the first said."""
    said = {t.template for t in skipping.times} | {r.template for r in skipping.rejected}
    times = sorted((*plain.times, *skipping.times), key=lambda t: t.time_s)
    return Choice(tuple(times), (*(r for r in plain.rejected if r.template not in said), *skipping.rejected))


def layouts_for(template: KernelTemplate, workload: Workload) -> Layouts:
    """The layouts in which a template is measured alone."""
    if template.layout == "pixels":
        return workload.pixel_layouts()
    return natural_layouts(workload) if template.layout == "lanes" else Layouts()


class Trial:
    """A compiled candidate with operands of the right shapes, ready to be timed.

    With ``between`` each timed call comes after so many bytes of other data, see `ColdWeights`.
    """

    def __init__(
        self,
        module: Any,
        name: str,
        workload: Workload,
        candidate: Candidate,
        weight: LayerWeight,
        between: int = 0,
    ) -> None:
        template = TEMPLATES[candidate.template]
        layouts = layouts_for(template, workload)
        random = np.random.default_rng(0)

        def tensor(array: Array) -> Any:
            out = tvm.runtime.empty(array.shape, str(array.dtype))
            out.copyfrom(array)
            return out

        def filled(shape: tuple[int, ...], element: ElementType) -> Any:
            return tensor(element.encode(random.random(shape, dtype=np.float32)))

        inputs, outputs = ([tensor(m) for m in maps] for maps in self._maps(layouts, workload, random))
        packed = template.pack(workload, candidate, weight, layouts)
        extra = [filled((workload.padded,), workload.sums)] if workload.bias else []
        if workload.quantised:
            extra.append(filled((rescale_size(workload),), FLOAT32))
        if workload.residual_channels:
            picks = np.arange(workload.padded, dtype=np.int32) % workload.residual_channels
            extra.append(tensor(picks))
        if workload.residual:
            rest = layouts.residual
            shape = outputs[0].shape if rest is None else (workload.batch, rest.size)
            extra.append(tensor(_slots(random, shape, workload.result)))
        self.arguments = [*inputs, *map(tensor, packed.values()), *extra, *outputs]
        maps = [*outputs, *(extra[-1:] if workload.residual else ()), *inputs]
        self.module, self.name, self.device = module, name, workload.target.device
        self.before = ColdWeights(between, maps) if between else None

    @staticmethod
    def _maps(
        layouts: Layouts, workload: Workload, random: np.random.Generator
    ) -> tuple[list[Array], list[Array]]:
        """The tensors of the input map, random and as dense as calibrated, and of the output."""
        batch = workload.batch
        if isinstance(layouts.input, PixelLayout) and isinstance(layouts.output, PixelLayout):
            shape = (batch, workload.channels, workload.height, workload.width)
            x = random.random(shape, dtype=np.float32) + np.float32(0.5)
            x *= random.random(shape, dtype=np.float32) < workload.map_density
            return list(layouts.input.pack(x)[:2]), [np.zeros(*t) for t in layouts.output.tensors(batch)]
        if layouts.input is not None and layouts.output is not None:
            shapes = (batch, layouts.input.size), (batch, layouts.output.size)
        else:
            shapes = (workload.width, workload.channels), (workload.width, workload.filters)
        kinds = (workload.maps if layouts.input else FLOAT32), workload.result
        x, y = (_slots(random, shape, kind) for shape, kind in zip(shapes, kinds, strict=True))
        if workload.map_density < 1.0:
            x *= random.random(x.shape) < workload.map_density
        return [x], [y]

    def seconds(self, number: int) -> float:
        """Mean time of ``number`` calls in a row; the median of at most `COLD_CALLS` if each comes after other data."""
        if self.before is not None:
            tvm.register_global_func(BEFORE, self.before, override=True)
            calls = min(number, COLD_CALLS)
            timer = self.module.mod.time_evaluator(
                self.name, self.device, number=1, repeat=calls, f_preproc=BEFORE
            )
            return float(np.median(timer(*self.arguments).results))
        timer = self.module.mod.time_evaluator(self.name, self.device, number=number, repeat=1)
        return float(timer(*self.arguments).mean)


def trials(
    target: Target, workload: Workload, candidates: Sequence[Candidate], weight: LayerWeight, between: int = 0
) -> list[Trial]:
    """The candidates compiled into one module, each with its operands."""
    functions = {}
    for i, c in enumerate(candidates):
        template = TEMPLATES[c.template]
        functions[f"kernel{i}"] = template.build(workload, c, layouts_for(template, workload), f"kernel{i}")
    module = tvm.compile(tvm.IRModule(functions), target=target.tvm)
    return [Trial(module, f"kernel{i}", workload, c, weight, between) for i, c in enumerate(candidates)]


def _slots(random: np.random.Generator, shape: tuple[int, ...], element: ElementType) -> Array:
    """Random slots of a map."""
    return element.joined(random.random((*shape, element.per_slot), dtype=np.float32), -1)[..., 0]


class Timed(Protocol):
    """What can be timed: a `Trial`, or a kernel that probes the machine."""

    def seconds(self, number: int) -> float:
        """Mean time of ``number`` calls in a row."""


def time_interleaved(trials: Sequence[Timed], rounds: int = 7, sample_s: float = 1e-3) -> list[float]:
    """Median seconds of each trial over ``rounds`` rounds in turn, so that a slow spell hits all alike."""
    numbers = []
    for trial in trials:
        trial.seconds(1)
        numbers.append(max(1, round(sample_s / max(trial.seconds(1), 1e-9))))
    samples = [[t.seconds(n) for t, n in zip(trials, numbers, strict=True)] for _ in range(rounds)]
    return [float(np.median(column)) for column in zip(*samples, strict=True)]
