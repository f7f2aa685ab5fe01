"""BatchEnsemble: from a traced model to one that runs M members at once with shared weights."""

from __future__ import annotations

import warnings
import zlib
from typing import Any

from torch import Tensor, fx, nn

from fxsplit._batch_ensemble._fast import Draw, Factor, Repeat, Rows, drawn, make_draw
from fxsplit._batch_ensemble._model import BatchEnsembleModel
from fxsplit._batch_ensemble._rows import batch_inputs, try_out
from fxsplit._cuts._find import cut_at
from fxsplit._cuts._flow import Flow
from fxsplit._cuts._survey import Survey
from fxsplit._ensemble._arguments import as_traced, check_members
from fxsplit._ensemble._choice import Layers, choose
from fxsplit._ensemble._layers import features_of, has_parameters
from fxsplit._ensemble._rewriting import assemble_head, assemble_trunk, call_after, return_from_heads, unused_name
from fxsplit._errors import FxSplitWarning, SplitError
from fxsplit._exclusive import exclusive
from fxsplit._graph import fetch, target_name
from fxsplit._random import derive_seed, seeded_rng
from fxsplit._split._emission import trunk_inputs
from fxsplit._split._joining import join
from fxsplit._split._partition import divide
from fxsplit._split._report import SplitReport
from fxsplit._split._surgery import check_arguments, make_spec
from fxsplit._trace import TracedModel
from fxsplit._vote import Vote, make_vote

_MATRIX_FUNCTIONS = ("linear", "conv")


def batch_ensemble(
    graph: nn.Module,
    members: int = 3,
    layers: Layers = None,
    fast: str | Draw = "normal",
    vote: Vote = "mean",
    seed: int = 0,
    *,
    example: Any = None,
) -> BatchEnsembleModel:
    """Make a BatchEnsemble: M members whose weights differ by factors of rank one (Wen et al. 2020, 2002.06715).

    Every linear layer and convolution becomes ``y = ((x r_m) W) s_m + b_m``: W is shared, the vectors r_m, s_m and the
    bias are the member's own. All members run at once, as one batch of M times the size, in which the members come one
    after the other. Norms and embeddings are shared, and a BatchNorm takes its statistics over the whole large batch,
    as in the reference implementation (uncertainty-baselines).

    `head_loss` is the paper's loss: the mean over the large batch. The paper trains the factors with half the learning
    rate (a quarter on ImageNet) and without weight decay: see `BatchEnsembleModel.fast_parameters`.

    Args:
        graph: From `fxsplit.trace`, or a model, which is traced first. W and the biases start as its own.
        members: Number of members M.
        layers: Which layers get factors: paths of layers or of modules around them, globs, a function
            ``(path, module) -> bool``, or None for every Linear, Conv1d/2d/3d (also transposed) and transformers'
            ``Conv1D`` that sees the batch.
        fast: How factors are drawn: ``'normal'`` from N(1, 0.5), as the reference implementation does for CIFAR,
            ``'signs'`` as random signs, or a function from a shape ``[M, features]`` to a tensor.
        vote: How predictions are averaged: see `split`.
        seed: Of the factors.
        example: Example input to trace a model with.

    Raises:
        SplitError: An argument is not acceptable, or the model does not keep the rows of a batch apart and in order,
            in eval mode; that is tried out.
        TraceError: The model cannot be traced.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> net = fxsplit.batch_ensemble(model, members=3, example=torch.zeros(1, 4))
        >>> net(torch.zeros(2, 4)).shape, len(net.head_outputs(torch.zeros(2, 4)))
        (torch.Size([2, 3]), 3)
        >>> count = sum(parameter.numel() for parameter in net.parameters())
        >>> count == (4 * 8 + 8 * 3) + 3 * (4 + 8 + 8) + 3 * (8 + 3 + 3)  # W; r, s, b of each layer
        True
    """
    check_members(members)
    check_arguments(members, "copy", vote)
    draw = make_draw(fast)
    with exclusive():
        net, left = operate(as_traced(graph, example), members, layers, draw, vote, seed)
    if left and layers is None:
        warnings.warn(
            f"{len(left)} modules have weights that stay the same for all members, since they are no linear layer or "
            f"convolution that sees the batch: {', '.join(left[:5])}.",
            FxSplitWarning,
            stacklevel=2,
        )
    return net


def operate(
    graph: TracedModel, members: int, layers: Layers, draw: Draw, vote: Vote, seed: int
) -> tuple[BatchEnsembleModel, list[str]]:
    """Do the surgery; also return what has matrices that stay shared."""
    survey = Survey(graph)
    flow = survey.flow
    learned = [node for node in flow.moment if has_parameters(graph, node)]
    if not learned:
        raise SplitError("BatchEnsemble needs layers to give factors to, but this model has no parameters.")
    # The members part once the last parameters are used; all that follows is done for each on its own.
    last = max(learned, key=flow.moment.__getitem__)
    moment = flow.moment[last]
    parts = divide(flow, moment, [last.name])
    made = [place for place, node in parts.passed.items() if node.op != "placeholder"]
    parts = return_from_heads(flow, parts, made)
    batched = [node for node in batch_inputs(graph) if node in trunk_inputs(flow, parts)]
    calls = [node for node in parts.trunk if node.op == "call_module" and _is_layer(graph, node)]
    known = {str(node.target): graph.get_submodule(str(node.target)) for node in calls}
    chosen = choose(layers, known, {path for path, _ in graph.source.named_modules()})
    trial = try_out(graph, parts, batched, [node for node in calls if node.target in chosen], members)
    chosen = [p for p in chosen if all(node in trial.layers for node in calls if node.target == p)]
    if not chosen:
        raise SplitError("BatchEnsemble: none of the layers sees the batch, so that no factor could make a difference.")

    trunk, copies = assemble_trunk(flow, parts)
    for node, copied in copies.items():
        _describe(copied, trial.shapes.get(node))
    repeat = unused_name(trunk, "repeat")
    trunk.add_submodule(repeat, Repeat(members))
    for node in batched:
        shape = node.meta["shape"]
        _describe(call_after(trunk, copies[node], repeat), (shape[0] * members, *shape[1:]))
    name = unused_name(trunk, "fast")
    for path in chosen:
        before, after = _factors(trunk.get_submodule(path), path, members, draw, seed)
        trunk.add_submodule(f"{name}.r.{path}", before)
        trunk.add_submodule(f"{name}.s.{path}", after)
        for node in calls:
            if node.target == path:
                call = copies[node]
                # They belong to the blocks that the layer is in.
                around = tuple(module for module in node.meta["modules"] if module != path)
                for value, side, users in ((call.all_input_nodes[0], "r", [call]), (call, "s", None)):
                    call_after(trunk, value, f"{name}.{side}.{path}", users).meta |= {"modules": around, "path": ""}
    trunk.recompile()

    heads = []
    for index in range(members):
        head, placeholders = assemble_head(flow, parts)
        part = unused_name(head, "rows")
        if trial.divided:
            head.add_submodule(part, Rows(index, members))
        for node in flow.nodes:
            if node in trial.divided:
                call_after(head, placeholders[node], part)
                _describe(placeholders[node], trial.shapes.get(node))
        head.recompile()
        heads.append(head)

    shared, left = _shared(flow, set(chosen))
    cut = cut_at(survey, str(last.target) if last.op == "call_module" else last.meta["path"], moment)
    report = SplitReport(
        cloned=tuple(n.name for n in flow.nodes if n in parts.cloned),
        shared=tuple(shared),
        passed=tuple(parts.passed),
        trace=graph.report,
    )
    spec = make_spec(graph, cut, members, "copy", vote, seed=seed)
    spec["method"] = {"name": "batch_ensemble", "members": members, "layers": chosen}
    voting = make_vote(vote, list(parts.leaves))
    net = join(BatchEnsembleModel, flow, parts, trunk, heads, voting, cut, report, spec)
    net.meta["batch_ensemble"] = {"fast": name, "layers": chosen}
    return net, left


def _is_layer(graph: TracedModel, node: fx.Node) -> bool:
    return features_of(fetch(graph, str(node.target))) is not None


def _describe(node: fx.Node, shape: tuple[int, ...] | None) -> None:
    """Write down the shape that a value has with all members in the batch, and what it costs then."""
    old = node.meta.get("shape")
    if shape is None or old is None or tuple(old) == shape:
        return
    # A value in which nothing but the number of rows has changed costs so many times as much.
    node.meta["flops"] = node.meta.get("flops", 0) * shape[0] // max(old[0], 1)
    node.meta["shape"] = shape


def _factors(layer: nn.Module, path: str, members: int, draw: Draw, seed: int) -> tuple[Factor, Factor]:
    """The factors of a layer's inputs and outputs; its bias moves to the latter, where each member has its own."""
    features = features_of(layer)
    assert features is not None  # only such layers are chosen
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    # Of each path, so that the choice of layers does not change the factors.
    with seeded_rng(derive_seed(seed, zlib.crc32(path.encode()))):
        before = drawn(draw, members, features.inputs, weight)
        after = drawn(draw, members, features.outputs, weight)
    own = None if bias is None else bias.detach().repeat(members, 1)
    trainable = weight.requires_grad
    pair = Factor(before, features.dim), Factor(after, features.dim, own)
    for factor in pair:
        factor.train(layer.training).requires_grad_(trainable)
    if bias is not None:
        del layer.bias
        # transformers' Conv1D can't do without one.
        keeps = features.names == ("nx", "nf")
        if keeps:
            layer.register_buffer("bias", bias.detach().new_zeros(bias.shape), persistent=False)
        else:
            layer.register_parameter("bias", None)
    return pair


def _shared(flow: Flow, chosen: set[str]) -> tuple[list[str], list[str]]:
    """Paths of modules whose parameters all members share, and those of them that apply matrices to the data."""
    shared: dict[str, None] = {}
    left: dict[str, None] = {}
    for node in flow.moment:
        if not has_parameters(flow.root, node) or node.target in chosen:
            continue
        if node.op == "call_module":
            paths = [str(node.target)]
            module = fetch(flow.root, paths[0])
            lookup = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
            matrices = not lookup and any(parameter.ndim > 1 for parameter in module.parameters())
        else:
            paths = [str(value.target) for value in node.all_input_nodes if value.op == "get_attr"]
            matrices = target_name(node).startswith(_MATRIX_FUNCTIONS)
        shared |= dict.fromkeys(paths)
        if matrices:
            left |= dict.fromkeys(paths)
    return list(shared), list(left)
