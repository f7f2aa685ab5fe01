"""The surgery: from a traced model to a trunk, M heads and a vote."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from fxsplit._cuts._find import Cut
from fxsplit._cuts._locate import At, locate
from fxsplit._cuts._survey import Survey
from fxsplit._errors import FxSplitWarning, SplitError
from fxsplit._exclusive import exclusive
from fxsplit._graph import require_traced
from fxsplit._io._spec import describe_example
from fxsplit._split._copying import Memo, assemble, copy_values
from fxsplit._split._emission import head_graph, trunk_graph
from fxsplit._split._joining import join
from fxsplit._split._model import SplitModel
from fxsplit._split._partition import Partition, divide
from fxsplit._split._report import SplitReport
from fxsplit._split._ties import instances, modules_on_both_sides, owned_paths, shared_targets, tied_weights
from fxsplit._vote import Vote, make_vote

Init = str | Callable[[], nn.Module]


def split(
    graph: fx.GraphModule,
    at: At,
    heads: int = 3,
    init: Init = "fresh",
    vote: Vote = "mean",
    *,
    share: Sequence[str] = (),
    tied: str = "untie",
    seed: int = 0,
) -> SplitModel:
    """Split a traced model into one trunk and ``heads`` copies of the rest (NeuroTrails, section 3).

    The result replaces the original: it takes the same arguments and returns the same structure, voted over the heads.
    It shares no memory with the original. Tensors computed before the cut and read behind it (masks, position
    encodings) are handed to every head; outputs of the trunk are returned as they are.

    Args:
        graph: From `fxsplit.trace`.
        at: The last module of the trunk by path (``'layer3.2'``), the number of blocks in the trunk (0: empty trunk, a
            full ensemble), the share of the blocks in the trunk (``1/3``), ``'auto'`` for the block with which the
            trunk's share of the FLOPs is nearest to a third (section 5.1), or a `Cut`, which may be any.
        heads: Number of heads M.
        init: ``'fresh'`` draws every head anew, from the distribution of the original's initialisation; ``'copy'``
            copies the original's weights into every head; a function without arguments that returns a new model draws
            the heads from such models. The trunk keeps the original's weights.
        vote: ``'mean'`` averages outputs, ``'prob'`` gives the logarithm of the mean softmax, a function maps stacked
            scores ``[M, ...]`` to ``[...]``.
        share: Paths of modules behind the cut of which one instance serves all heads. A shared BatchNorm updates its
            statistics once per head.
        tied: A weight used on both sides of the cut becomes a parameter of its own in every head (``'untie'``) or stays
            the trunk's (``'share'``).
        seed: Of the fresh heads.

    Raises:
        CutError: ``at`` is no legal cut.
        SplitError: Another argument is not acceptable, or the model is split already.

    Example:
        >>> import torch, fxsplit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> net = fxsplit.split(fxsplit.trace(model, torch.zeros(1, 4)), "1", heads=5)
        >>> net(torch.zeros(2, 4)).shape, net.num_heads
        (torch.Size([2, 3]), 5)
    """
    check_arguments(heads, init, vote, tied)
    with exclusive():
        net = _operate(graph, at, heads, init, vote, share, tied, seed)
    if heads > 1:
        warn_of_equal_heads(net.report, dict(graph.named_parameters(remove_duplicate=False)))
    return net


def _operate(
    graph: fx.GraphModule, at: At, heads: int, init: Init, vote: Vote, share: Sequence[str], tied: str, seed: int
) -> SplitModel:
    survey = Survey(require_traced(graph))
    place = locate(survey, at)
    flow = survey.flow
    parts = divide(flow, place.moment, [c.name for c in place.cut.crossing if c.main])
    voting = make_vote(vote, list(parts.leaves))
    ties = tied_weights(graph, parts)
    shared = shared_targets(graph, parts, share)

    trunk_memo: Memo = {}
    trunk = assemble("Trunk", trunk_graph(flow, parts), copy_values(graph, parts.trunk, trunk_memo), graph)
    kept: Memo = {key: trunk_memo[key] for key in ties} if tied == "share" else {}
    rules: dict[str, str] = {}
    built: list[fx.GraphModule] = []
    for drawn in draw_heads(graph, parts, heads, init, seed, kept, shared, rules):
        memo = {**drawn, **kept}
        built.append(assemble("Head", head_graph(flow, parts), copy_values(graph, parts.head, memo), graph))
        if len(built) == 1:
            kept |= instances(graph, shared, memo)
    report = SplitReport(
        side_inputs=tuple(c for c in place.cut.crossing if not c.main),
        cloned=tuple(n.name for n in flow.nodes if n in parts.cloned),
        tied=tuple(ties.values()),
        tied_rule=tied,
        both_sides=modules_on_both_sides(parts),
        shared=tuple(share),
        passed=tuple(parts.passed),
        init=rules,
        trace=getattr(graph, "report", None),
    )
    spec = make_spec(graph, place.cut, heads, init, vote, share, tied, seed)
    return join(SplitModel, flow, parts, trunk, built, voting, place.cut, report, spec)


def check_arguments(heads: object, init: object, vote: object, tied: object = "untie") -> None:
    """Reject what no model could be split with.

    Raises:
        SplitError: Naming the argument.
    """
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise SplitError(f"heads must be a whole number of at least 1, got {heads!r}.")
    if init not in ("fresh", "copy") and not callable(init):
        raise SplitError(f"init must be 'fresh', 'copy' or a function that returns a new model, got {init!r}.")
    if isinstance(init, nn.Module):
        raise SplitError("init must be a function that returns a new model at every call, got a model.")
    if tied not in ("untie", "share"):
        raise SplitError(f"tied must be 'untie' or 'share', got {tied!r}.")
    make_vote(vote, ())  # type: ignore[arg-type]


def draw_heads(
    graph: fx.GraphModule,
    parts: Partition,
    heads: int,
    init: Init,
    seed: int,
    kept: Memo,
    shared: Sequence[str],
    rules: dict[str, str],
) -> Iterator[Memo]:
    """Yield, one head at a time, the new tensors of a head by the identity of the originals that they replace.

    ``kept`` names tensors that need no drawing. It grows by the shared ones once the first head is built, but those
    are drawn with the others, which the first head needs. ``rules`` is filled.
    """
    if init == "copy":
        yield from ({} for _ in range(heads))
        return
    from fxsplit._init._fresh import fresh_heads

    source = cast(nn.Module, getattr(graph, "source", graph))
    known = [
        name
        for name, _ in (*source.named_parameters(remove_duplicate=False), *source.named_buffers(remove_duplicate=False))
    ]
    owned = owned_paths(graph, parts.head, known, kept)
    for draw in fresh_heads(source, list(owned), heads, seed, None if init == "fresh" else init):  # type: ignore[arg-type]
        rules.update(draw.rule)
        yield {id(original): _like(original, draw.values[path]) for path, original in owned.items()}


def _like(original: Tensor, value: Tensor) -> Tensor:
    if isinstance(original, nn.Parameter):
        return nn.Parameter(value.detach(), requires_grad=original.requires_grad)
    return value.detach()


def warn_of_equal_heads(report: SplitReport, parameters: Mapping[str, Tensor]) -> None:
    """Single numbers are in the report only: nobody can tell a scale of 1 from a draw."""
    equal = {
        path: rule for path, rule in report.not_redrawn.items() if path in parameters and parameters[path].numel() > 1
    }
    if equal:
        listed = ", ".join(f"{path} ({rule})" for path, rule in list(equal.items())[:5])
        warnings.warn(
            f"{len(equal)} parameters could not be drawn anew and start equal in all heads: {listed}. "
            "Give init= a function that returns a new model.",
            FxSplitWarning,
            stacklevel=3,
        )


def make_spec(
    graph: fx.GraphModule,
    cut: Cut,
    heads: int,
    init: Init,
    vote: Vote,
    share: Sequence[str] = (),
    tied: str = "untie",
    seed: int = 0,
) -> dict[str, Any]:
    """Plain data that replays the surgery on another instance of the model."""
    return {
        "versions": {"fxsplit": _version(), "torch": torch.__version__},
        "split": cut.path or 0,
        "node": cut.node,
        "heads": heads,
        "init": init if isinstance(init, str) else "factory",
        "vote": vote if isinstance(vote, str) else "callable",
        "share": list(share),
        "tied": tied,
        "seed": seed,
        "nodes": [node.name for node in graph.graph.nodes],
        "example": describe_example(getattr(graph, "example", None)),
    }


def _version() -> str:
    try:
        return metadata.version("fxsplit")
    except metadata.PackageNotFoundError:
        return "unknown"
