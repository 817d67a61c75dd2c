"""From a model to an engine: import, the phases of the pipeline, machine code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

import sparseflow
from sparseflow.core.plan import Cut, cut_summary
from sparseflow.engine.importer import Imported, import_model
from sparseflow.engine.machine import machine_name
from sparseflow.engine.runtime import Engine, Manifest, Signature
from sparseflow.engine.targets import architecture, instruction_sets, not_here, resolve
from sparseflow.errors import CompileError, SparseflowError
from sparseflow.kernels.select import Selector
from sparseflow.passes import pipeline
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.hoist import call_labels, hoist_constants
from sparseflow.passes.plan import plan_of
from sparseflow.passes.propagate import Propagate, cuts_of

Progress = Callable[[str], None]


def compile(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    threads: int = 1,
    measure: bool = True,
    exact: bool = False,
    target: str | Mapping[str, Any] = "native",
    shapes: Mapping[str, Sequence[int]] | None = None,
    sparsify: str = "",
    dump: Path | None = None,
    progress: Progress | None = None,
) -> Engine:
    """The engine of ``model`` for this machine, or for another.

    Parameters
    ----------
    model : nn.Module, ExportedProgram, ModelProto, path or Imported
        A module needs ``example_inputs``.
    example_inputs : sequence of tensors, optional
    threads : int
        Threads of one call.
    measure : bool
        Choose kernels by measurement on this machine (kept on disk); False, or a target that this machine cannot
        run: by the cost model.
    exact : bool
        Leave out kernels whose rounding error is larger than that of adding up the products (Winograd).
    target : str or mapping
        ``native`` (this machine), ``avx512``, ``avx2``, ``neon``, or TVM's target as a dictionary,
        ``{"kind": "llvm", "mcpu": "znver4"}``.
    shapes : mapping, optional
        Shapes of an ONNX model's inputs, to bind free dimensions.
    sparsify : str
        Label of how the weights were pruned, noted in the plan.
    dump : Path, optional
        Folder that receives the IR after each phase, constants left out.
    progress : callable, optional
        Told what is being done.

    Raises
    ------
    ImportModelError
        If the model cannot be read.
    CompileError
        If a layer or the target cannot be compiled.
    """
    if threads < 1:
        raise CompileError(f"threads={threads}: at least one thread is needed")
    say = progress or (lambda _text: None)
    built = resolve(target)
    say("import")
    imported = (
        model
        if isinstance(model, Imported)
        else import_model(model, None if example_inputs is None else tuple(example_inputs), shapes)
    )
    family, flags = architecture(built), instruction_sets(built)
    foreign = not_here(family, flags)
    if foreign and measure:
        say(f"the cost model chooses: {foreign}")
        measure = False
    selector = Selector(built, machine_name(), measure, lambda name: say(f"measure {name}"), exact)

    def observe(phase: str, mod: tvm.IRModule) -> None:
        say(phase)
        if dump is not None:
            dump.mkdir(parents=True, exist_ok=True)
            (dump / f"{phase}.py").write_text(mod.script(show_meta=False))

    with _inside_tvm("lowering"):
        mod = pipeline.run(imported.mod, selector, threads, observe)
    cuts = cuts_of(mod)
    plan = replace(plan_of(mod), sparsify=sparsify, cuts=cuts, notes=(cut_summary(cuts),) if cuts else ())
    calls = call_labels(mod)
    mod, constants = hoist_constants(mod)
    say("generate code")
    with _inside_tvm("generating code"):
        executable = relax.build(mod, target=built)
    manifest = Manifest(
        inputs=tuple(Signature(s.name, tuple(s.shape), s.dtype) for s in imported.inputs),
        outputs=tuple(Signature(s.name, tuple(s.shape), s.dtype) for s in imported.outputs),
        plan=plan,
        calls=tuple(calls),
        target=str(built),
        machine=machine_name(),
        flags=flags,
        architecture=family,
        threads=threads,
        tvm_version=str(tvm.__version__),
        sparseflow_version=sparseflow.__version__,
    )
    return Engine(executable, constants, manifest)


def cuts(imported: Imported) -> tuple[Cut, ...]:
    """What propagation takes from each layer of a model, without compiling it.

    Raises
    ------
    CompileError
        If the model's graph cannot be read.
    """
    with _inside_tvm("propagation"):
        return cuts_of(tvm.transform.Sequential([Canonicalise(), Propagate()])(imported.mod))


@contextmanager
def _inside_tvm(doing: str) -> Iterator[None]:
    """Makes one line of an error inside TVM; ours pass as they are."""
    try:
        yield
    except SparseflowError:
        raise
    except (RuntimeError, ValueError) as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise CompileError(
            f"{doing}: TVM cannot compile this model ({last}); --traceback shows where"
        ) from error
