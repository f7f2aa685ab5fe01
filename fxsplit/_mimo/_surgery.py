"""MIMO: from a traced model to a network with M inputs and M outputs."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxsplit._cuts._find import cut_at
from fxsplit._cuts._flow import Flow
from fxsplit._cuts._survey import Survey
from fxsplit._ensemble._arguments import as_traced, check_members
from fxsplit._ensemble._layers import features_of, shown
from fxsplit._ensemble._rewriting import assemble_head, assemble_trunk, call_after, return_from_heads, unused_name
from fxsplit._errors import SplitError
from fxsplit._exclusive import exclusive
from fxsplit._mimo._entrance import Entrance, find_dim, find_entrance
from fxsplit._mimo._exit import find_exit
from fxsplit._mimo._members import Share, SideBySide
from fxsplit._mimo._model import MembersRule, MimoModel, OneInputRule, with_rule
from fxsplit._mimo._widen import Widening, check_layer, widened_layers
from fxsplit._split._joining import join
from fxsplit._split._partition import divide
from fxsplit._split._report import SplitReport
from fxsplit._split._surgery import Init, check_arguments, make_spec, warn_of_equal_heads
from fxsplit._trace import TracedModel
from fxsplit._trace._guards import InputGuard, attach, guard_of
from fxsplit._vote import Vote, make_vote


def mimo(
    graph: nn.Module, members: int = 3, init: Init = "fresh", vote: Vote = "mean", seed: int = 0, *, example: Any = None
) -> MimoModel:
    """Make a multi-input multi-output network: M members inside of one network (Havasi et al. 2021, 2010.06610).

    The first layer takes M inputs side by side, in M times the features, and the last one gives M predictions. In
    training, each member learns to predict its own sample from all of them; for a prediction, all get the same one.
    The cost is that of one model, up to the two layers. What follows the last layer (a softmax, say) is done for each
    member on its own.

    A training loop has one line more; the paper's loss is the sum over members, M times the mean that `head_loss` is:

        for x, y in loader:
            x, y = fxsplit.mimo_batch(x, y, members=3, batch_repetitions=4)
            loss = 3 * fxsplit.head_loss(net, criterion, x, y)

    Both layers get new weights; the others keep the model's, which are fresh if the model is.

    Args:
        graph: From `fxsplit.trace`, or a model, which is traced first: any with one floating input that enters a
            Linear or Conv1d/2d/3d first, and an output that a Linear or Conv makes.
        members: Number of members M.
        init: ``'fresh'`` draws the two wide layers by the model's own initialisation, run at the new width (what no
            initialiser draws keeps its distribution); ``'copy'`` gives every member the original's weights, so that
            the network predicts like the original at first; a function returns a model in which both layers are that
            wide already, from which they are taken.
        vote: How predictions are averaged: see `split`.
        seed: Of the fresh weights.
        example: Example input to trace a model with.

    Raises:
        SplitError: An argument is not acceptable, or the model has no such first and last layer; the message names
            what was found.
        TraceError: The model cannot be traced.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))
        >>> net = fxsplit.mimo(model, members=3, example=torch.zeros(1, 4))
        >>> net.trunk.get_submodule("0"), net.trunk.get_submodule("2")
        (Linear(in_features=12, out_features=8, bias=True), Linear(in_features=8, out_features=15, bias=True))
        >>> net(torch.zeros(2, 4)).shape
        torch.Size([2, 5])
        >>> [output.shape for output in net.head_outputs(torch.zeros(2, 3, 4))]
        [torch.Size([2, 5]), torch.Size([2, 5]), torch.Size([2, 5])]
    """
    check_members(members)
    check_arguments(members, init, vote)
    with exclusive():
        traced = as_traced(graph, example)
        net = operate(traced, members, init, vote, seed)
    if members > 1:
        warn_of_equal_heads(net.report, dict(traced.named_parameters(remove_duplicate=False)))
    return net


def operate(graph: TracedModel, members: int, init: Init, vote: Vote, seed: int, dim: int | None = None) -> MimoModel:
    """Do the surgery; ``dim`` is the dimension along which inputs are put side by side, found out if None."""
    survey = Survey(graph)
    flow = survey.flow
    entrance, last = find_entrance(flow), find_exit(flow)
    widenings = _widenings(flow, entrance, str(last.target), members)
    dim = find_dim(graph, entrance, members) if dim is None else dim
    moment = flow.moment[last]
    parts = divide(flow, moment, [last.name])
    parts = return_from_heads(flow, parts, [place for place, node in parts.passed.items() if node is last])
    source = entrance.placeholder
    if source in (*parts.inputs, *parts.crossing, *parts.passed.values()):
        raise SplitError(
            f"The input {source.name!r} is used again behind the last layer {shown(graph, last)}, where it would be "
            "the inputs of all members side by side. MIMO needs a model whose output depends on it through its layers."
        )
    voting = make_vote(vote, list(parts.leaves))
    layers, rules = widened_layers(graph, widenings, init, seed)

    trunk, copies = assemble_trunk(flow, parts)
    for path, layer in layers.items():
        trunk.set_submodule(path, layer)
    name = unused_name(trunk, "side_by_side")
    ndim = len(source.meta["shape"])
    trunk.add_submodule(name, SideBySide(members, ndim, dim))
    joined = call_after(trunk, copies[source], name)
    joined.meta["shape"] = _wider(source.meta["shape"], dim, members)
    features = features_of(layers[str(last.target)])
    assert features is not None  # find_exit accepts no others
    copies[last].meta["shape"] = _wider(last.meta["shape"], features.dim, members)
    trunk.recompile()

    heads = []
    for index in range(members):
        head, placeholders = assemble_head(flow, parts)
        name = unused_name(head, "share")
        head.add_submodule(name, Share(index, members, features.dim))
        placeholders[last].meta["shape"] = copies[last].meta["shape"]
        call_after(head, placeholders[last], name).meta = dict(last.meta) | {"flops": 0}
        head.recompile()
        heads.append(head)

    cut = cut_at(survey, str(last.target), moment)
    report = SplitReport(
        cloned=tuple(n.name for n in flow.nodes if n in parts.cloned),
        passed=tuple(parts.passed),
        init=rules,
        trace=graph.report,
    )
    spec = make_spec(graph, cut, members, init, vote, seed=seed)
    spec["method"] = {"name": "mimo", "members": members, "dim": dim}
    net = join(MimoModel, flow, parts, trunk, heads, voting, cut, report, spec)
    inputs = [node for node in flow.nodes if node.op == "placeholder"]
    net.meta["mimo"] = {"position": inputs.index(source), "ndim": ndim}
    _guard(net, graph, str(source.target), members)
    return net


def _widenings(flow: Flow, entrance: Entrance, last: str, members: int) -> list[Widening]:
    first = list(dict.fromkeys(str(layer.target) for layer in entrance.layers))
    if last in first:
        raise SplitError(
            f"MIMO needs a first layer and another last one, but {last!r} is both. Put a layer between input and "
            "output."
        )
    for path in (*first, last):
        check_layer(flow.root, path)  # type: ignore[arg-type]
    return [*(Widening(path, False, members) for path in first), Widening(last, True, members)]


def _wider(shape: tuple[int, ...], dim: int, members: int) -> tuple[int, ...]:
    sizes = list(shape)
    sizes[dim] *= members
    return tuple(sizes)


def _guard(net: MimoModel, graph: TracedModel, name: str, members: int) -> None:
    """Let the heads accept an input for each member, and the vote refuse it."""
    guard = guard_of(graph.graph)
    if guard is None:
        return
    attach(net.graph, InputGuard(with_rule(guard.rules, name, OneInputRule)))
    net.recompile()
    separate = with_rule(guard.rules, name, lambda rule: MembersRule(rule, members))
    net.answer_with(InputGuard(separate))
