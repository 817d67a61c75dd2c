"""Running a recipe: dense training, sparsity training, masked retraining; resumable; exports the result."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from sparseflow.core.codec import decode, encode
from sparseflow.core.files import complete_file, write_json
from sparseflow.core.map_ranges import MapRanges
from sparseflow.core.mask import Mask
from sparseflow.core.prune_result import LayerSparsity, PruneResult
from sparseflow.errors import CheckpointError, RecipeError, first_line
from sparseflow.train import parallel
from sparseflow.train.activations import Activation, MapHooks, fit_thresholds, map_densities
from sparseflow.train.aids import recalibrate_batch_norm
from sparseflow.train.allocation import allocate, record, recorded, resolved, slots_of
from sparseflow.train.checkpoint import (
    export_model,
    load_checkpoint,
    load_weights,
    masks_of,
    masks_state,
    save_checkpoint,
    save_weights,
)
from sparseflow.train.coupled import CoupledChannels, coupled_rules
from sparseflow.train.methods import InTraining, MaskedWeights, Method, OneShot
from sparseflow.train.methods.observe import take
from sparseflow.train.progress import ProgressCallback
from sparseflow.train.quantise import LearnedQuantisation, round_network, rounded_maps
from sparseflow.train.quantise.network import planned
from sparseflow.train.recipe.recipe import Recipe
from sparseflow.train.recipe.sources import Sources, Workspace
from sparseflow.train.recipe.stages import (
    ActivationsStage,
    LevelsStage,
    MethodStage,
    PostTrainingStage,
    QuantiseStage,
    RetrainStage,
    ThresholdsStage,
    TrainedStage,
)
from sparseflow.train.rules import Rule, layers_of, select_targets, weight_of
from sparseflow.train.trainer import Hook, Session, Trainer, evaluate, frozen

_MAP_SAMPLES = 1000  # test samples over which the result's map densities are averaged
_SEED_STRIDE = 1_000_003


def run_recipe(
    recipe: Recipe,
    out_dir: str | Path,
    *,
    workspace: Workspace | None = None,
    reuse: Iterable[str | Path] = (),
    progress: ProgressCallback | None = None,
) -> PruneResult:
    """Run all stages of a recipe and export the result; the same call goes on where a killed one was.

    Parameters
    ----------
    recipe : Recipe
    out_dir : path
        Receives ``dense.pt`` and ``model.pt`` (state dictionaries), ``model.pt2`` (exported, batch 1), with coupled
        rules also ``small.pt2`` (the same without the removed channels), where a stage quantises
        ``quantisation.json`` (`MapRanges`), ``results.json``, and a file for each finished stage.
    workspace : Workspace, optional
        A model and loaders of one's own.
    reuse : iterable of path
        Folders of other runs; stages that are equal up to there are taken over instead of trained again.
    progress : callable, optional
        Called with `TrainEvent`.

    Returns
    -------
    PruneResult

    Raises
    ------
    CheckpointError
        If ``out_dir`` holds the run of another recipe, or a truncated file.
    DataError, RecipeError, StructureError
        If the data are missing, or model, data and rules do not fit together.
    """
    return _Run(recipe, Path(out_dir), workspace or Workspace(), [Path(r) for r in reuse], progress).run()


@dataclass
class _Run:
    recipe: Recipe
    out: Path
    workspace: Workspace
    reuse: list[Path]
    progress: ProgressCallback | None
    masks: dict[str, Mask] = field(default_factory=dict)
    activations: dict[str, Activation] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    teacher: nn.Module | None = None
    ranges: MapRanges | None = None
    dense_validation: float | None = None

    def run(self) -> PruneResult:
        with parallel.process_group():
            if parallel.rank() > 0:
                self.progress = None
            return self._with_threads()

    def _with_threads(self) -> PruneResult:
        if self.recipe.threads is None:
            return self._run()
        before = torch.get_num_threads()
        torch.set_num_threads(self.recipe.threads)
        try:
            return self._run()
        finally:
            torch.set_num_threads(before)

    def _run(self) -> PruneResult:
        self._check_folder()
        self.sources = Sources(self.recipe, self.workspace)
        self.test, self.validation = self.sources.test(), self.sources.validation()
        torch.manual_seed(self.recipe.seed)
        model = self.sources.model()
        if self.workspace.model is None and self.recipe.model is not None and self.recipe.model.weights:
            load_weights(model, self.recipe.model.weights)
        self._check_early(model)
        self.origin = _weights_hash(model) + self.sources.content
        if torch.cuda.is_available():
            model.to(f"cuda:{parallel.rank() % torch.cuda.device_count()}")
        self.out.mkdir(parents=True, exist_ok=True)
        dense_accuracy: float | None = None
        for index, stage in enumerate(self.recipe.stages):
            if dense_accuracy is None and stage.kind != "dense":
                dense_accuracy = self._keep_dense(model)
            self._stage(index, model)
        if dense_accuracy is None:
            dense_accuracy = self._keep_dense(model)
        return self._finish(model, dense_accuracy)

    # ------------------------------------------------------------------ one stage
    def _stage(self, index: int, model: nn.Module) -> None:
        stage = self.recipe.stages[index]
        name = self._name(index)
        done = self.out / f"stage-{name}.ckpt"
        if isinstance(stage, ActivationsStage | ThresholdsStage):
            self.activations |= stage.prepare(model)
        if parallel.rank() == 0:
            self._take_over(done, index)
        parallel.barrier()
        if done.exists():
            self._restore(done, index, name, model)
            return
        rules = self._allocated(index, model)
        torch.manual_seed(self.recipe.seed + index)
        method: Method | None = None
        if isinstance(stage, MethodStage):
            method = stage.method_class(model, rules, stage.method_settings())
        self.history[name] = []
        if isinstance(method, OneShot):
            method.calibrate(self.sources.train(index, shared=False))
        if isinstance(stage, TrainedStage):
            self._train(index, stage, method, model)
        if isinstance(stage, ThresholdsStage):
            calibration = list(take(self.sources.calibration(), stage.samples))
            fit_thresholds(model, stage.prepare(model), calibration, stage.budget)
        if isinstance(stage, PostTrainingStage):
            self.ranges = round_network(model, self._inputs(stage), stage)
        if method is not None:
            self._apply(method, rules, model)
        if stage.recalibrate > 0 and (method is not None or not isinstance(stage, TrainedStage)):
            recalibrate_batch_norm(model, self.sources.train(index, shared=False), stage.recalibrate)
        if parallel.rank() == 0:
            self._store(done, index, name, model)
            self._running(index).unlink(missing_ok=True)
        parallel.barrier()

    def _train(self, index: int, stage: TrainedStage, method: Method | None, model: nn.Module) -> None:
        hook: Hook | None = method if isinstance(method, InTraining) else None
        if isinstance(stage, RetrainStage):
            hook = self._masked(model)
        elif isinstance(stage, ActivationsStage):
            hook = MapHooks(stage.hooks(self.activations), self._masked(model) if self.masks else None)
        elif isinstance(stage, QuantiseStage):
            masked = self._masked(model) if self.masks else None
            learned = LearnedQuantisation(model, self._inputs(stage), stage)
            hook = MapHooks([learned], masked)
        earlier = sum(s.kind == stage.kind for s in self.recipe.stages[:index])
        title = f"{stage.kind} {earlier + 1}" if earlier else stage.kind
        if parallel.rank() > 0:  # dropout and mixup differ between processes, methods do not
            torch.manual_seed(self.recipe.seed + index + _SEED_STRIDE * parallel.rank())
        settings = stage.settings()
        if method is not None:  # batch norms are recalibrated after its masks
            settings = settings.model_copy(update={"recalibrate": 0})
        session = Session(title, self._running(index), self._fingerprint(index), self.progress, self.teacher)
        judged_on = self.validation or self.test
        trainer = Trainer(model, self.sources.train(index), judged_on, settings, hook, session)
        self.history[self._name(index)] = trainer.fit()
        if isinstance(stage, QuantiseStage):
            self.ranges = learned.finish()
        if isinstance(hook, MapHooks):
            hook.close()

    def _inputs(self, stage: LevelsStage) -> list[Tensor]:
        return [x for x, _ in take(self.sources.calibration(), stage.samples)]

    def _name(self, index: int) -> str:
        return f"{index + 1}-{self.recipe.stages[index].kind}"

    def _running(self, index: int) -> Path:
        return self.out / f"running-{self._name(index)}.ckpt"

    def _apply(self, method: Method, rules: tuple[Rule, ...], model: nn.Module) -> None:
        """The method's masks, held by the model from here on."""
        self.masks = method.finish()
        if coupled_rules(rules):
            scores = {t.name: found for t in method.targets if (found := method.scores(t)) is not None}
            coupled = CoupledChannels.chosen(model, rules, self._example(), scores)
            self.masks = coupled.joined(model, rules, self.masks)
        self._masked(model)

    def _masked(self, model: nn.Module) -> MaskedWeights:
        """The model with its masks applied; coupled channels are silenced altogether."""
        coupled = self._coupled(model)
        return MaskedWeights(model, self.masks, None if coupled is None else coupled.silent(model))

    def _coupled(self, model: nn.Module) -> CoupledChannels | None:
        """The channels that coupled rules removed; None if there are no such rules."""
        if not coupled_rules(self._rules()):
            return None
        return CoupledChannels.of_masks(model, self._rules(), self.masks, self._example())

    def _example(self) -> tuple[Tensor, ...]:
        return self.workspace.example_inputs or (next(iter(self.test))[0][:1],)

    def _allocated(self, index: int, model: nn.Module) -> tuple[Rule, ...]:
        """The rules of a stage that prunes, an allocation carried out on the model as the stage finds it."""
        rules, strategy = self._rules(), self.recipe.allocation
        if strategy is None or not isinstance(self.recipe.stages[index], MethodStage):
            return rules
        path, fingerprint = self.out / "allocation.json", self._fingerprint(index)
        assigned = recorded(path, fingerprint)
        if assigned is None:
            assigned = allocate(strategy, model, rules, self.sources.train(index, shared=False))
            parallel.barrier()
            if parallel.rank() == 0:
                record(path, fingerprint, strategy.model_dump()["strategy"], assigned)
        return resolved(rules, assigned)

    def _store(self, path: Path, index: int, name: str, model: nn.Module) -> None:
        state = {
            "fingerprint": self._fingerprint(index),
            "stage": name,
            "model": {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()},
            "masks": masks_state(self.masks),
            "history": self.history[name],
            "ranges": encode(self.ranges),
        }
        save_checkpoint(path, state)

    def _restore(self, path: Path, index: int, name: str, model: nn.Module) -> None:
        state = load_checkpoint(path)
        if state.get("fingerprint") != self._fingerprint(index):
            raise CheckpointError(
                f"{path}: stage {name} was run by another recipe, model or data; choose another output "
                "folder or delete it"
            )
        try:
            model.load_state_dict(state["model"])
            self.masks = masks_of(state["masks"])
            self.history[name] = state["history"]
            if state.get("ranges") is not None:  # older files have none
                self.ranges = decode(MapRanges, state["ranges"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path}: does not fit this model ({first_line(error)}); delete it to start again"
            ) from error

    def _take_over(self, done: Path, index: int) -> None:
        for folder in self.reuse:
            other = folder / done.name
            if done.exists() or not other.is_file():
                continue
            if load_checkpoint(other).get("fingerprint") == self._fingerprint(index):
                with complete_file(done) as partial:
                    shutil.copyfile(other, partial)

    def _check_folder(self) -> None:
        for path in sorted(self.out.glob("*.ckpt")):
            load_checkpoint(path)

    def _fingerprint(self, index: int) -> str:
        return f"{self.recipe.fingerprint(index)}:{self.origin}"

    # ------------------------------------------------------------------ checks
    def _check_early(self, model: nn.Module) -> None:
        """What later stages would trip over is said before the first one is trained."""
        trial = copy.deepcopy(model)
        for stage in self.recipe.stages:
            if isinstance(stage, ActivationsStage | ThresholdsStage):
                stage.prepare(trial)
            if isinstance(stage, LevelsStage):
                planned(trial, stage)
        select_targets(model, self._rules())
        for stage in self.recipe.stages:
            if isinstance(stage, MethodStage):
                stage.method_class.targets_of(model, self._rules())
        if self.recipe.allocation is not None:
            slots_of(model, self._rules())
            self.recipe.allocation.identity()
        for index, stage in enumerate(self.recipe.stages):
            if isinstance(stage, TrainedStage):
                frozen(model, stage.freeze, f"{self.recipe.name}: stages[{index}].freeze", RecipeError)

    def _rules(self) -> tuple[Rule, ...]:
        return tuple(config.rule() for config in self.recipe.rules)

    # ------------------------------------------------------------------ results
    def _keep_dense(self, model: nn.Module) -> float:
        if any(isinstance(s, TrainedStage) and s.distill > 0 for s in self.recipe.stages):
            self.teacher = copy.deepcopy(model).eval()
        if parallel.rank() == 0:
            save_weights(model, self.out / "dense.pt")
        self.dense_validation = None if self.validation is None else evaluate(model, self.validation)
        accuracy: float = evaluate(model, self.test)
        return accuracy

    def _finish(self, model: nn.Module, dense_accuracy: float) -> PruneResult:
        model.to("cpu", memory_format=torch.contiguous_format).eval()
        example, coupled = self._example(), self._coupled(model)
        if parallel.rank() == 0:
            save_weights(model, self.out / "model.pt")
            export_model(model, example, self.out / "model.pt2")
            if coupled is not None:
                export_model(coupled.removed(model), example, self.out / "small.pt2")
            if self.ranges is not None:
                self.ranges.save(self.out / "quantisation.json")
        with rounded_maps(model, self.ranges or MapRanges(())):
            validation = None if self.validation is None else evaluate(model, self.validation)
            accuracy = evaluate(model, self.test)
        result = PruneResult(
            recipe=self.recipe.name,
            dense_accuracy=dense_accuracy,
            pruned_accuracy=accuracy,
            dense_validation=self.dense_validation,
            pruned_validation=validation,
            quantised=self.ranges,
            layers=layer_table(model, self.masks),
            maps=tuple(map_densities(model, self.activations, take(self.test, _MAP_SAMPLES)).values()),
            history={k: tuple(v) for k, v in self.history.items()},
            dense_path=str(self.out / "dense.pt"),
            model_path=str(self.out / "model.pt"),
            exported_path=str(self.out / "model.pt2"),
            results_path=str(self.out / "results.json"),
            quantisation_path="" if self.ranges is None else str(self.out / "quantisation.json"),
        )
        content = encode(result)
        content |= {"kind": "prune", "conv_compression": result.conv_compression, "seconds": result.seconds}
        content["map_density"] = result.map_density
        content["recipe_text"] = self.recipe.model_dump(mode="json")
        if parallel.rank() == 0:
            write_json(self.out / "results.json", content)
        parallel.barrier()
        return result


def _weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def layer_table(model: nn.Module, masks: dict[str, Mask]) -> tuple[LayerSparsity, ...]:
    """Every layer with weights; those without a mask are dense."""
    rows = []
    for name, module in layers_of(model).items():
        shape = tuple(weight_of(model, name).shape)
        mask = masks.get(name)
        kept = prod(shape) if mask is None else int(mask.keep.sum())
        kind = "linear" if isinstance(module, nn.Linear) else "conv"
        rows.append(LayerSparsity(name, kind, shape, "dense" if mask is None else str(mask.structure), kept))
    return tuple(rows)
