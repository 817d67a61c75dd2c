"""The pass that gives every PrimFunc without a schedule vectorised, parallel loops."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import tirx

from sparseflow.kernels.cpu_rules import RULES, Resources, Rule, Unsuitable
from sparseflow.kernels.target.base import Target

SCHEDULED = "tirx.is_scheduled"
"""TVM's mark of a function that schedule passes leave alone."""


def schedule(
    func: tirx.PrimFunc, cpu: Resources, rules: Sequence[Rule] = RULES
) -> tuple[tirx.PrimFunc, tuple[str, ...]]:
    """The first rule's schedule that fits, and why the rules before it did not.

    Returns
    -------
    func : tvm.tirx.PrimFunc
        Unchanged if no rule fits.
    reasons : tuple of str
        One for each rule that was tried in vain.
    """
    reasons: list[str] = []
    for rule in rules:
        try:
            return rule.apply(func, cpu), tuple(reasons)
        except Unsuitable as reason:
            reasons.append(f"{type(rule).__name__}: {reason}")
    return func, tuple(reasons)


@tvm.transform.module_pass(opt_level=0, name="ScheduleRest")
class ScheduleRest:
    """Schedules each PrimFunc that is not marked as scheduled; a function no rule fits stays a scalar loop.

    Parameters
    ----------
    target : Target
    threads : int
        Threads the engine will run with.
    """

    def __init__(self, target: Target, threads: int = 1) -> None:
        self.cpu = Resources(target.vectors.lanes, threads)

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """A new module with the schedules."""
        done = {}
        for name, func in mod.functions_items():
            is_open = isinstance(func, tirx.PrimFunc) and not func.attrs.get(SCHEDULED, False)
            done[name] = schedule(func, self.cpu)[0].with_attr(SCHEDULED, True) if is_open else func
        return tvm.IRModule(done, attrs=mod.attrs, global_infos=mod.global_infos)
