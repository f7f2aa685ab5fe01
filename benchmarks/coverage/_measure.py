"""One row of the results: what fxsplit makes of a model, and what other tracers do."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from benchmarks.coverage._rivals import RIVALS
from tests.zoo.catalogue.entry import Entry, Inputs
from tests.zoo.measure import BATCHES, EXACT, TRACED_AT, Outcome, build, compare_eval, compare_step, measure, say

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How thoroughly a model is looked at.

    Attributes:
        real: With weights and numbers, or on the meta device, where only structure and shapes can be compared.
        cuts: How many block cuts are tried, drawn at random; None means all.
        rivals: Names of other tracers to run on the same model.
    """

    real: bool
    cuts: int | None = 3
    rivals: tuple[str, ...] = ()


def row_of(entry: Entry, plan: Plan) -> Row:
    """Measure one model."""
    row = asdict(measure(entry, real=plan.real, cuts=plan.cuts))
    row["rivals"] = {}
    if row["runs"] and plan.rivals:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, inputs = build(entry, plan.real)
            row["rivals"] = {name: _rival(model, inputs, RIVALS[name], plan.real) for name in plan.rivals}
    return row


def row_of_failure(entry: Entry, plan: Plan, why: str) -> Row:
    """The row of a model that could not be measured."""
    return asdict(Outcome(entry.zoo, entry.name, entry.family, plan.real, runs=True, error=why)) | {"rivals": {}}


def _rival(
    model: nn.Module, inputs: Inputs, trace: Callable[[nn.Module, Any], nn.Module], real: bool
) -> dict[str, str]:
    subject = copy.deepcopy(model)
    start = time.perf_counter()
    try:
        graph = trace(subject, inputs(TRACED_AT))
    except Exception as error:
        return {"traced": say(error)}
    found = {"traced": EXACT, "seconds": f"{time.perf_counter() - start:.2f}"}
    found["eval"] = compare_eval(model, graph, inputs(BATCHES[1]))
    if real:
        found["train"] = _without_raising(lambda: compare_step(subject, graph, inputs(TRACED_AT)))
    return found


def _without_raising(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:
        return say(error)
