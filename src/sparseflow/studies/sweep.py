"""A sweep: cells of method x structure x sparsity, trained independently, then compiled and measured together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib

from sparseflow.core.checks import whole_number
from sparseflow.core.codec import encode
from sparseflow.core.files import write_json
from sparseflow.core.plan import Measurement
from sparseflow.engine.measure.bench import interleave, pinned
from sparseflow.engine.runtime.engine import Engine
from sparseflow.engine.runtime.threads import checked_threads
from sparseflow.engine.target.machine import machine_name
from sparseflow.errors import InputError, SparseflowError, first_line, needs
from sparseflow.studies.quickstart import environment, now, versions
from sparseflow.studies.results import DENSE
from sparseflow.studies.stages import StageEvent, Stages
from sparseflow.studies.sweep_engine import compile_and_check, test_arrays
from sparseflow.studies.sweep_plan import Cell, Sweep
from sparseflow.studies.sweep_results import CellResult, EngineFigures, SweepResult
from sparseflow.train.progress import LogProgress, TrainEvent
from sparseflow.train.recipe.recipe import Recipe, parse_recipe
from sparseflow.train.recipe.run import run_recipe

Progress = Callable[[StageEvent | TrainEvent], None]


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is run; nothing here changes what a cell's training gives.

    Attributes
    ----------
    jobs : int
        Cells trained at a time.
    ray : str or None
        Address of a Ray cluster to train on (``auto``: the one at hand); None: processes on this machine.
    minutes : float or None
        No epoch is begun after so many; the same call goes on.
    train, measure : bool
        Whether cells are trained, and whether trained ones are compiled and timed.
    threads : int
        Of the engines that are timed.
    rounds : int
        Turns of each engine.
    kernels_measured : bool
        Whether kernels are chosen by measurement; False: by the cost model.
    """

    jobs: int = 1
    ray: str | None = None
    minutes: float | None = None
    train: bool = True
    measure: bool = True
    threads: int = 1
    rounds: int = 9
    kernels_measured: bool = True

    def __post_init__(self) -> None:
        whole_number("sweep: jobs", self.jobs, 1, None, InputError)
        whole_number("sweep: rounds", self.rounds, 1, None, InputError)
        checked_threads(self.threads, self.measure, InputError)


@dataclass(frozen=True)
class Task:
    """A training that can run in any process that sees the same files; ``recipe`` is plain, for the way there."""

    name: str
    recipe: dict[str, Any]
    out: Path
    reuse: tuple[Path, ...]
    deadline: float | None


@dataclass(frozen=True)
class Outcome:
    """How a task ended: ``done``, ``kept`` (of an earlier run), ``stopped`` (out of time) or ``failed``."""

    name: str
    status: str
    seconds: float = 0.0
    message: str = ""


class _OutOfTimeError(Exception):
    """Raised inside a training whose deadline has passed."""


def run_sweep(
    sweep: Sweep,
    out_dir: str | Path,
    *,
    reuse: Sequence[str | Path] = (),
    options: SweepOptions | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Train all cells, then compile and time those that are finished; the same call goes on where one stopped.

    Parameters
    ----------
    sweep : Sweep
    out_dir : path
        Gets ``dense``, ``cells/NAME`` (a recipe's folder each, with ``log.txt``) and ``results.json``. On a
        cluster it has to be on a file system that all machines share.
    reuse : sequence of path
        Folders of runs whose equal dense stages are taken over.
    options : SweepOptions, optional
    progress : callable, optional

    Raises
    ------
    SparseflowError
        If the dense network is not finished (its time ran out, or its training failed), or an engine's outputs
        differ from torch's.
    """
    options, tell = options or SweepOptions(), progress or (lambda event: None)
    out = Path(out_dir).resolve()
    end = None if options.minutes is None else time.time() + 60 * options.minutes
    folders = {cell.name: out / "cells" / cell.name for cell in sweep.cells}
    if options.train:
        others = tuple(Path(r).resolve() for r in reuse)
        dense = Task(DENSE, sweep.dense.model_dump(mode="json"), out / DENSE, others, end)
        _train([dense], dataclasses.replace(options, jobs=1, ray=None), tell)
        tasks = [
            Task(c.name, c.recipe.model_dump(mode="json"), folders[c.name], (out / DENSE,), end)
            for c in sweep.cells
        ]
        if finished(sweep.dense, out / DENSE):
            _train(tasks, options, tell)
    if not finished(sweep.dense, out / DENSE):
        raise SparseflowError(
            f"sweep: the dense network in {out / DENSE} is not finished; run the same command again"
        )
    done = [cell for cell in sweep.cells if finished(cell.recipe, folders[cell.name])]
    engines: dict[str, EngineFigures] = {}
    if options.measure:
        recipes = {DENSE: (sweep.dense, out / DENSE)}
        recipes |= {cell.name: (cell.recipe, folders[cell.name]) for cell in done}
        engines = _measure(recipes, options, tell)
    result = _result(sweep, out, done, engines, options)
    write_json(out / "results.json", encode(result))
    return result


def finished(recipe: Recipe, folder: Path) -> bool:
    """Whether ``folder`` holds the finished run of exactly this recipe."""
    try:
        record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(record.get("recipe_text") == recipe.model_dump(mode="json"))


# ---------------------------------------------------------------------- training
def _train(tasks: list[Task], options: SweepOptions, tell: Progress) -> None:
    """Runs the tasks; a failed one leaves the others alone."""
    with _executor(options):
        order = "generator_unordered" if options.ray is None else "list"  # Ray's back end has the latter only
        run = joblib.Parallel(n_jobs=options.jobs, return_as=order)
        for outcome in run(joblib.delayed(train_task)(task) for task in tasks):
            status = outcome.status if outcome.status in ("done", "kept") else "running"
            detail = "" if status != "running" else f"{outcome.status}: {outcome.message}"
            tell(StageEvent(outcome.name, status, outcome.seconds, detail))


def _executor(options: SweepOptions) -> Any:
    """joblib's processes on this machine, or its back end on a Ray cluster."""
    if options.ray is None:
        return joblib.parallel_config(backend="loky" if options.jobs > 1 else "sequential")
    with needs("ray", "sweep: --ray", InputError):
        import ray
        from ray.util.joblib import register_ray
    try:
        ray.init(address=options.ray, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"sweep: no Ray cluster at {options.ray!r} ({reason}); start one first") from error
    register_ray()
    return joblib.parallel_config(backend="ray")


def train_task(task: Task) -> Outcome:
    """Trains one cell as far as the deadline lets it; errors become an `Outcome`."""
    start = time.monotonic()
    recipe = parse_recipe(task.recipe, task.name)
    if finished(recipe, task.out):
        return Outcome(task.name, "kept")
    if task.deadline is not None and time.time() >= task.deadline:
        return Outcome(task.name, "stopped", message="no time left to begin")
    task.out.mkdir(parents=True, exist_ok=True)
    with (task.out / "log.txt").open("a", encoding="utf-8") as stream:
        log = LogProgress(stream)

        def progress(event: TrainEvent) -> None:
            log(event)
            epoch_saved = event.step == 0
            if epoch_saved and task.deadline is not None and time.time() >= task.deadline:
                raise _OutOfTimeError(f"{event.stage} {event.epoch}/{event.epochs}")

        try:
            run_recipe(recipe, task.out, reuse=task.reuse, progress=progress)
        except _OutOfTimeError as stop:
            return Outcome(task.name, "stopped", time.monotonic() - start, f"out of time after {stop}")
        except SparseflowError as error:
            return Outcome(task.name, "failed", time.monotonic() - start, str(error))
    return Outcome(task.name, "done", time.monotonic() - start)


# ---------------------------------------------------------------------- engines
def _measure(
    recipes: dict[str, tuple[Recipe, Path]], options: SweepOptions, tell: Progress
) -> dict[str, EngineFigures]:
    """Compiles what has no engine yet, then times all engines in turns."""
    first = next(iter(recipes.values()))[0]
    images, labels = test_arrays(first)
    records: dict[str, dict[str, Any]] = {}
    for name, (_, folder) in recipes.items():
        stages = Stages(folder, _compile_key(folder, options), partial(_named, tell, name))
        records[name] = stages.do(
            "compile",
            partial(compile_and_check, folder, images, labels, options.threads, options.kernels_measured),
            files=(folder / "model.engine",),
        )
    tell(StageEvent("measure", "running", detail=f"{len(recipes)} engines in turns"))
    with pinned(options.threads) as cores:
        runs = [partial(Engine.load(folder / "model.engine"), images[0]) for _, folder in recipes.values()]
        samples = interleave(runs, options.rounds, cores)
    return {
        name: EngineFigures(
            record["accuracy"],
            record["max_relative_error"],
            Measurement.of(taken, options.threads, machine_name()),
            record["macs"],
        )
        for (name, record), taken in zip(records.items(), samples, strict=True)
    }


def _compile_key(folder: Path, options: SweepOptions) -> dict[str, Any]:
    return {
        "model": hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest(),
        "threads": options.threads,
        "kernels_measured": options.kernels_measured,
        "versions": versions(),
        "machine": machine_name(),
    }


def _named(tell: Progress, name: str, event: StageEvent) -> None:
    tell(dataclasses.replace(event, name=f"{name}: {event.name}"))


# ---------------------------------------------------------------------- results
def _result(
    sweep: Sweep, out: Path, done: list[Cell], engines: dict[str, EngineFigures], options: SweepOptions
) -> SweepResult:
    names = {cell.name for cell in done}
    return SweepResult(
        sweep=sweep.name,
        dense=_cell_result(DENSE, DENSE, DENSE, None, out / DENSE, engines),
        cells=tuple(
            _cell_result(c.name, c.method, c.structure, c.aim, out / "cells" / c.name, engines) for c in done
        ),
        pending=tuple(cell.name for cell in sweep.cells if cell.name not in names),
        environment=environment(
            f"sparseflow sweep ... --threads {options.threads}", now(), options.threads, sweep.dense.seed
        ),
    )


def _cell_result(
    name: str, method: str, structure: str, aim: float | None, folder: Path, engines: dict[str, EngineFigures]
) -> CellResult:
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    own = list(_own_epochs(record["history"], name == DENSE))
    return CellResult(
        name=name,
        method=method,
        structure=structure,
        accuracy=record["pruned_accuracy"],
        epochs=len(own),
        seconds=sum(epoch["seconds"] for epoch in own),
        conv_compression=record["conv_compression"],
        aim=aim,
        engine=engines.get(name),
    )


def _own_epochs(history: dict[str, list[dict[str, float]]], dense: bool) -> Iterator[dict[str, float]]:
    """The epochs that the cell itself trained; those of the dense stages are the dense network's."""
    for stage, epochs in history.items():
        if dense or not stage.endswith(f"-{DENSE}"):
            yield from epochs
