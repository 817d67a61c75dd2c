"""The quick start: what sparsity buys on this machine, from training to machine code, in a few minutes.

On embedded data a dense network is trained, pruned with ADMM to several structures at equal sparsity,
retrained and compiled; every engine is checked against torch on the whole test set and timed,
interleaved with others.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import sparseflow
from sparseflow.core.codec import decode, encode
from sparseflow.core.files import write_json
from sparseflow.core.plan import Measurement, Plan
from sparseflow.core.storage import storage_table
from sparseflow.data import ImageData, load_data
from sparseflow.engine.measure.bench import interleave, max_relative_error, pinned
from sparseflow.engine.measure.peers import Subject, accepted, float_peers, prepared
from sparseflow.engine.runtime.engine import Engine
from sparseflow.engine.runtime.threads import checked_threads
from sparseflow.engine.target.machine import machine_name
from sparseflow.errors import InputError, SparseflowError
from sparseflow.studies.results import (
    DENSE,
    OURS,
    Environment,
    FormatBytes,
    MaskPicture,
    QuickstartResult,
    Timing,
    Variant,
)
from sparseflow.studies.stages import StageEvent, Stages
from sparseflow.studies.sweep_engine import checked, test_arrays
from sparseflow.train.checkpoint import load_weights
from sparseflow.train.models import MODELS
from sparseflow.train.progress import TrainEvent
from sparseflow.train.quickstart import TITLES, quickstart_recipe
from sparseflow.train.recipe.recipe import Recipe, parse_recipe
from sparseflow.train.recipe.run import run_recipe
from sparseflow.train.rules import weight_of

Array = np.ndarray[Any, Any]
Progress = Callable[[StageEvent | TrainEvent], None]

BUSY = 1.5
"""A 90th percentile of so many medians is not the engine's doing."""

TOLERANCE = 1e-4
"""Largest relative difference of an engine's outputs from torch's that is accepted."""


@dataclass(frozen=True)
class QuickstartSettings:
    """What is compared, and how thoroughly; the defaults are the study.

    Attributes
    ----------
    structures : tuple of str
        Of free density, as `parse_structure` reads them.
    against : tuple of str
        Peers to time beside ours, by default those in float32; those that are not installed are left out, with a note.
    max_epochs : int or None
        Cuts every training stage short; None leaves the recipes as they are.
    measure : bool
        Choose kernels by measurement; False: by the cost model.
    rounds : int
        Turns of each engine when latency is measured.
    """

    structures: tuple[str, ...] = tuple(TITLES)
    against: tuple[str, ...] = float_peers()
    max_epochs: int | None = None
    measure: bool = True
    rounds: int = 9


def run(
    out_dir: str | Path,
    *,
    threads: int = 1,
    seed: int = 0,
    settings: QuickstartSettings | None = None,
    progress: Progress | None = None,
) -> QuickstartResult:
    """Run the study; the same call goes on where a stopped one was.

    Parameters
    ----------
    out_dir : path
        Receives ``results.json``, ``networks/NAME`` (weights), ``engines/NAME`` and ``stages/``.
    threads : int
        Threads of every engine that is timed; training uses torch's own number.
    seed : int
        Of initial weights and batches.
    settings : QuickstartSettings, optional
    progress : callable, optional
        Told of stages (`StageEvent`) and of training (`TrainEvent`).

    Raises
    ------
    SparseflowError
        If an output differs from torch's by more than `TOLERANCE`, or the folder cannot be written or holds a
        run with other settings.
    """
    threads = checked_threads(threads, measured=True, error=InputError)
    return _Quickstart(Path(out_dir), threads, seed, settings or QuickstartSettings(), progress).run()


def variant_name(structure: str) -> str:
    """A structure as part of a file name: ``block-4x1`` of ``block:4x1``."""
    return re.sub(r"[^a-z0-9]+", "-", structure.lower())


class _Quickstart:
    def __init__(
        self, out: Path, threads: int, seed: int, settings: QuickstartSettings, progress: Progress | None
    ) -> None:
        if not settings.structures:
            raise InputError("quick start: no structures given; at least one is needed, such as block:4x1")
        self.out, self.threads, self.seed, self.settings = out, threads, seed, settings
        self.progress = progress or (lambda event: None)
        self.structures = {DENSE: None, **{variant_name(s): s for s in settings.structures}}
        self.recipes = {name: self._recipe(structure) for name, structure in self.structures.items()}
        key = {
            "threads": threads,
            "seed": seed,
            "settings": encode(settings),
            "versions": versions(),
            "machine": machine_name(),
            "recipes": {name: recipe.model_dump(mode="json") for name, recipe in self.recipes.items()},
        }
        self.stages = Stages(out, key, self.progress)

    def run(self) -> QuickstartResult:
        data = load_data("mnist5k")
        trained = {name: self._train(name) for name in self.structures}
        layers = self._pruned_layers(trained)
        stored = {name: self._store(name, layers, data) for name in self.structures}
        compiled = {name: self._compile(name, data) for name in self.structures}
        timed = self.stages.do(
            "measure", lambda: self._measure(data), after=tuple(f"compile-{n}" for n in self.structures)
        )
        variants = tuple(
            Variant(
                name=name,
                structure=structure or DENSE,
                weights_total=stored[name]["total"],
                weights_kept=stored[name]["kept"],
                accuracy_torch=trained[name]["accuracy"],
                accuracy_engine=compiled[name]["accuracy"],
                max_relative_error=compiled[name]["max_relative_error"],
                storage=decode(tuple[FormatBytes, ...], stored[name]["storage"]),
                plan=decode(Plan, compiled[name]["plan"]),
            )
            for name, structure in self.structures.items()
        )
        result = QuickstartResult(
            variants=variants,
            timings=decode(tuple[Timing, ...], timed["timings"]),
            masks=tuple(decode(MaskPicture, stored[name]["mask"]) for name in self.structures),
            environment=self._environment(timed["created"]),
            data="MNIST-5k",
            train_images=len(data.train_images),
            test_images=len(data.test_images),
            stage_seconds=dict(self.stages.seconds),
            notes=tuple(timed["notes"]),
        )
        write_json(self.out / "results.json", encode(result))
        return result

    # ------------------------------------------------------------------ training
    def _recipe(self, structure: str | None) -> Recipe:
        content = quickstart_recipe(structure).model_dump(mode="json", exclude_none=True)
        content["seed"] = self.seed
        limit = self.settings.max_epochs
        if limit is not None:
            for stage in content["stages"]:
                stage["epochs"] = min(stage["epochs"], limit)
        return parse_recipe(content, f"quick start, {structure or DENSE}")

    def _network(self, name: str) -> Path:
        return self.out / "networks" / name

    def _train(self, name: str) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            reuse = () if name == DENSE else (self._network(DENSE),)
            result = run_recipe(self.recipes[name], self._network(name), reuse=reuse, progress=self.progress)
            pruned = [layer.name for layer in result.layers if layer.structure != DENSE]
            return {"accuracy": result.pruned_accuracy, "pruned": pruned}

        after = () if name == DENSE else (f"train-{DENSE}",)
        files = (self._network(name) / "model.pt",)
        return self.stages.do(f"train-{name}", work, after=after, files=files)

    def _pruned_layers(self, trained: dict[str, dict[str, Any]]) -> list[str]:
        pruned: list[str] = next((t["pruned"] for name, t in trained.items() if name != DENSE), [])
        if not pruned or any(t["pruned"] != pruned for name, t in trained.items() if name != DENSE):
            raise SparseflowError(
                f"quick start: structures {', '.join(self.settings.structures)} prune different layers, or "
                "none; choose structures that fit every 3x3 convolution"
            )
        return pruned

    def _model(self, name: str, data: ImageData) -> nn.Module:
        model = MODELS["mnist_cnn"](data)
        load_weights(model, self._network(name) / "model.pt")
        return model.eval()

    # ------------------------------------------------------------------ storage and masks
    def _store(self, name: str, layers: list[str], data: ImageData) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            model = self._model(name, data)
            weights = {x: np.asarray(weight_of(model, x).detach()) for x in layers}
            largest = max(layers, key=lambda x: weights[x].size)
            return {
                "total": sum(w.size for w in weights.values()),
                "kept": sum(int(np.count_nonzero(w)) for w in weights.values()),
                "storage": encode(stored_bytes(list(weights.values()))),
                "mask": encode(MaskPicture.of(largest, name, weights[largest] != 0)),
            }

        return self.stages.do(f"store-{name}", work, after=(f"train-{name}",))

    # ------------------------------------------------------------------ compiling
    def _compile(self, name: str, data: ImageData) -> dict[str, Any]:
        path = self.out / "engines" / name

        def say(text: str) -> None:
            self.progress(StageEvent(f"compile-{name}", "running", detail=text))

        def work() -> dict[str, Any]:
            model = self._model(name, data)
            images, labels = test_arrays(self.recipes[DENSE])
            with pinned(self.threads):
                engine = sparseflow.compile(
                    model,
                    (torch.from_numpy(images[0]),),
                    threads=self.threads,
                    measure=self.settings.measure,
                    progress=say,
                )
                say("check every test image")
                outputs = np.concatenate([engine(image) for image in images])
            accuracy, error = checked(outputs, model, (images, labels), f"quick start, {name}", TOLERANCE)
            engine.save(path)
            return {"plan": encode(engine.plan), "accuracy": accuracy, "max_relative_error": error}

        return self.stages.do(f"compile-{name}", work, after=(f"train-{name}",), files=(path,))

    # ------------------------------------------------------------------ latency
    def _measure(self, data: ImageData) -> dict[str, Any]:
        """Times of all our engines and of the peers on the dense network, one image at a time."""

        def say(text: str) -> None:
            self.progress(StageEvent("measure", "running", detail=text))

        images, _ = test_arrays(self.recipes[DENSE])
        notes: list[str] = []
        runs: dict[tuple[str, str], Callable[[], object]] = {}
        with pinned(self.threads) as cores:
            for name in self.structures:
                engine = Engine.load(self.out / "engines" / name)
                runs[OURS, name] = partial(engine, images[0])
            subject = Subject("the dense network", self._model(DENSE, data), (images[0],))
            for engine_name, peer in self._peers(subject, notes, say):
                runs[engine_name, DENSE] = partial(peer, (images[0],))
            samples = interleave(list(runs.values()), self.settings.rounds, cores, say)
        timings: list[dict[str, Any]] = [
            {
                "engine": engine,
                "variant": variant,
                "measurement": encode(Measurement.of(taken, self.threads, machine_name())),
            }
            for (engine, variant), taken in zip(runs, samples, strict=True)
        ]
        busy = [t for t in timings if t["measurement"]["p90_s"] > BUSY * t["measurement"]["median_s"]]
        if busy:
            notes.append(
                f"The machine was busy while latency was measured: {len(busy)} of {len(timings)} engines have a 90th "
                f"percentile over {BUSY} times the median. For figures to rely on, leave it idle, delete "
                "stages/measure.json and run again."
            )
        return {"timings": timings, "notes": notes, "created": now()}

    def _peers(
        self, subject: Subject, notes: list[str], say: Callable[[str], None]
    ) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Peers whose outputs equal torch's; a note says why one is left out."""
        with torch.inference_mode():
            expected = [np.asarray(subject.model(torch.from_numpy(subject.inputs[0])))]
        folder = self.out / "peers"
        folder.mkdir(parents=True, exist_ok=True)

        def left_out(name: str, reason: str) -> None:
            notes.append(f"{name} was not timed: {reason}")

        for name, peer, _ in prepared(subject, self.settings.against, self.threads, folder, (say, left_out)):
            error = max_relative_error(peer(subject.inputs), expected)
            if accepted(name, error, 10 * TOLERANCE):
                yield name, peer
            else:
                left_out(name, f"its outputs differ from torch's by {error:.2g} relative")

    def _environment(self, created: str) -> Environment:
        command = f"sparseflow quickstart --out {self.out} --threads {self.threads} --seed {self.seed}"
        return environment(command, created, self.threads, self.seed)


def stored_bytes(weights: Sequence[Array]) -> list[FormatBytes]:
    """Bytes of all weights in each format that can hold every one of them; dense first, then by size."""
    tables = [{row.format: row for row in storage_table(weight) if not row.reason} for weight in weights]
    common = [name for name in tables[0] if all(name in table for table in tables)]
    sums = [
        FormatBytes(
            name,
            sum(table[name].value_bytes for table in tables),
            sum(table[name].index_bytes for table in tables),
        )
        for name in common
    ]
    return sorted(sums, key=lambda entry: (entry.format != DENSE, entry.total_bytes))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the results depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in ("sparseflow", "apache-tvm", "torch", "numpy", "onnxruntime", "openvino"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time of day in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def environment(command: str, created: str, threads: int, seed: int) -> Environment:
    """This machine and its packages, for the record."""
    return Environment(machine_name(), versions(), command, created, threads, seed)
