"""What is measured of one model of a zoo: its trace, how exact it is, its cuts, its fresh heads."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import fxsplit
from fxsplit import TracedModel
from fxsplit._trace._inputs import as_example
from tests.checks import assert_same, seeded, snapshot
from tests.zoo.catalogue.entry import Entry, Inputs
from tests.zoo.tracing import check_step

BATCHES = (1, 4, 7)
BATCHES_ON_META = (4,)
EXACT = "exact"
TRACED_AT = 2


@dataclass
class Outcome:
    """Everything about one model, as plain data. ``'exact'`` and counts are results; other strings say what went wrong.

    Attributes:
        runs: Whether the model itself can be built and run with the inputs made for it.
        eval: By batch size: ``'exact'``, ``'rejected by the model'`` or how it differs.
        train: Outputs, gradients and buffers of one step: ``'exact'``, ``'reported: ...'`` where the report says so.
        cuts: Block cuts of the model; ``tried`` and ``split`` of them, each with three copied heads that are the model.
        fresh: ``'drawn'`` if all parameters of fresh heads differ, or are constant and reported as kept.
    """

    zoo: str
    name: str
    family: str
    real: bool
    runs: bool = False
    parameters: int = 0
    flops: int = 0
    nodes: int = 0
    seconds: float = 0.0
    traced: bool = False
    error: str = ""
    eval: dict[str, str] = field(default_factory=dict)
    train: str = ""
    warnings: list[str] = field(default_factory=list)
    coarse: list[str] = field(default_factory=list)
    cuts: int = 0
    tried: int = 0
    split: int = 0
    cut_errors: list[str] = field(default_factory=list)
    fresh: str = ""


def measure(entry: Entry, *, real: bool, cuts: int | None) -> Outcome:
    """Build a model, trace it, and look at the result.

    Args:
        entry: The model.
        real: With weights and numbers, or on the meta device, where only structure and shapes can be compared.
        cuts: How many block cuts are tried, drawn at random; None means all.
    """
    outcome = Outcome(entry.zoo, entry.name, entry.family, real)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, inputs = build(entry, real)
        except Exception as error:
            outcome.error = say(error)
            return outcome
        outcome.runs = True
        outcome.parameters = sum(p.numel() for p in model.parameters())
        traced = _trace(outcome, model, inputs)
        if traced is not None:
            _look_at(outcome, model, traced, inputs, cuts)
    return outcome


def build(entry: Entry, real: bool) -> tuple[nn.Module, Inputs]:
    """The model, from a fixed seed, and its inputs; real ones have been run once, and do run."""
    torch.manual_seed(0)
    with torch.device("cpu" if real else "meta"):
        model = entry.build().eval()
    inputs = entry.inputs(model)
    if real:
        with torch.no_grad():
            call(model, inputs(TRACED_AT))
    return model, inputs


def _trace(outcome: Outcome, model: nn.Module, inputs: Inputs) -> TracedModel | None:
    example = inputs(TRACED_AT)
    before = snapshot(model)
    start = time.perf_counter()
    try:
        traced = fxsplit.trace(model, example)
    except Exception as error:
        outcome.error = say(error)
        return None
    outcome.seconds = time.perf_counter() - start
    after = snapshot(model)
    # RWKV rescales its own weights in forward; putting them back counts as a write.
    changed = [key for key in before if key != "writes" and before[key] != after[key]]
    if changed:
        outcome.error = f"the model is another one afterwards: {', '.join(changed[:3])}"
        return None
    report = traced.report
    outcome.traced = True
    outcome.warnings = list(report.warnings)
    outcome.coarse = [path for path, _ in report.coarse_leaves]
    outcome.nodes = len(traced.graph.nodes)
    outcome.flops = sum(node.meta.get("flops", 0) for node in traced.graph.nodes)
    return traced


def _look_at(outcome: Outcome, model: nn.Module, traced: TracedModel, inputs: Inputs, cuts: int | None) -> None:
    batches = BATCHES if outcome.real else BATCHES_ON_META
    outcome.eval = {str(batch): compare_eval(model, traced, inputs(batch)) for batch in batches}
    if outcome.real:
        outcome.train = compare_step(model, traced, inputs(TRACED_AT))
        if outcome.train != EXACT and (traced.report.warnings or traced.report.dropped):
            outcome.train = f"reported: {outcome.train}"
    model.eval()
    traced.eval()
    try:
        found = fxsplit.find_cuts(traced)
    except Exception as error:
        outcome.cut_errors = [say(error)]
        return
    outcome.cuts = len(found)
    chosen = list(found)
    if cuts is not None and len(chosen) > cuts:
        chosen = random.Random(outcome.name).sample(chosen, cuts)
    example = inputs(TRACED_AT)
    with torch.no_grad():
        expected = seeded(lambda: call(model, example))
    for cut in chosen:
        problem = compare_split(expected, traced, example, cut)
        outcome.tried += 1
        outcome.split += problem == EXACT
        if problem != EXACT:
            outcome.cut_errors.append(f"{cut.path}: {problem}")
    if outcome.real and chosen:
        outcome.fresh = fresh_heads(traced, chosen[len(chosen) // 2])


def call(model: Callable[..., Any], example: Any) -> Any:
    """Call a model with an example as `fxsplit.trace` takes it."""
    args, kwargs = as_example(example)
    return model(*args, **kwargs)


def compare_eval(model: nn.Module, other: Callable[..., Any], example: Any) -> str:
    """``'exact'`` if ``other`` returns what the model returns in eval mode, bit for bit."""
    with torch.no_grad():
        try:
            expected = seeded(lambda: call(model, example))
        except Exception:
            return "rejected by the model"
        try:
            assert_same(seeded(lambda: call(other, example)), expected)
        except Exception as error:
            return say(error)
    return EXACT


def compare_step(model: nn.Module, other: nn.Module, example: Any) -> str:
    """``'exact'`` if outputs, gradients and buffers are those of the model after a train step from the same seed.

    ``other`` shares the parameters of the model.
    """
    try:
        check_step(model, other, example)
    except Exception as error:
        return say(error) if _trains(model, example) else "the model raises in train mode"
    finally:
        model.zero_grad()
        model.eval()
        other.eval()
    return EXACT


def _trains(model: nn.Module, example: Any) -> bool:
    model.train()
    try:
        seeded(lambda: call(model, example))
    except Exception:
        return False
    return True


def compare_split(expected: Any, traced: TracedModel, example: Any, cut: Any) -> str:
    """``'exact'`` if a split at ``cut`` works and each of its three copied heads returns what is ``expected``."""
    try:
        net = fxsplit.split(traced, cut, heads=3, init="copy")
        with torch.no_grad():
            outputs = seeded(lambda: call(net.head_outputs, example))
        for output in outputs:
            assert_same(output, expected)
    except Exception as error:
        return say(error)
    return EXACT


def fresh_heads(traced: TracedModel, cut: Any) -> str:
    """``'drawn'`` if no parameter is equal in two fresh heads unless the report says that it is kept."""
    try:
        net = fxsplit.split(traced, cut, heads=2, init="fresh")
    except Exception as error:
        return say(error)
    first, second = (dict(head.named_parameters(remove_duplicate=False)) for head in net.heads)
    equal = [name for name in first if first[name].numel() > 1 and torch.equal(first[name], second[name])]
    unexplained = [name for name in equal if not net.report.init.get(name, "kept").startswith("kept")]
    return "drawn" if not unexplained else f"equal in both heads: {', '.join(unexplained[:3])}"


def say(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
