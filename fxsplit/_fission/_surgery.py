"""Network Fission Ensembles: one network's weights, shared out among M members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from fxsplit._cuts._find import Cut
from fxsplit._cuts._locate import At
from fxsplit._ensemble._arguments import as_traced, check_members
from fxsplit._ensemble._choice import Layers, choose
from fxsplit._ensemble._layers import features_of
from fxsplit._errors import SplitError
from fxsplit._exclusive import exclusive
from fxsplit._fission._groups import check_kept, share_out, versions
from fxsplit._fission._paths import build
from fxsplit._graph import is_size, target_name
from fxsplit._split._model import SplitModel
from fxsplit._split._surgery import Init, check_arguments, warn_of_equal_heads
from fxsplit._trace import TracedModel
from fxsplit._vote import Vote


def fission(
    graph: nn.Module,
    at: At | Sequence[At],
    members: int = 3,
    layers: Layers = None,
    init: Init = "fresh",
    vote: Vote = "mean",
    seed: int = 0,
    *,
    masks: Mapping[str, Tensor] | None = None,
    example: Any = None,
) -> SplitModel:
    """Make a Network Fission Ensemble: M paths through one network, each with weights of its own (2408.02301).

    The layers before the cut are shared. Behind it, every weight of the network belongs to one path, so that all paths
    together have the weights, and the FLOPs, of one network (Lee & Lee 2024). At several cuts, one path leaves at each
    and the rest go on together, to part at the last one: the paper's network of three exits is
    ``fission(graph, at=(end of stage 1, end of stage 2))``, in which half of stage 2 and a third of stage 3 belong to
    the first path, the other half of stage 2 to the other two together, and a third of stage 3 to each of them.

    The shares are masks, as those of ``sparsity.sparsify``, so all that is there for masks works; attach
    ``sparsity.static(net, optimizer)`` to keep masked weights at zero whatever the optimizer does. The paper trains
    with the sum of the members' losses and of `ensemble_distillation`. To prune first, as the paper does for its sparse
    variants, pass the masks that ``sparsity.snip`` or ``sparsity.sparsify`` made: what they hold at zero belongs to
    nobody.

    Of the paper's two-step grouping only the result is reproduced: random shares, here of equal size to the weight. Its
    released code computes such shares, but never zeroes the weights outside of them, only their gradients; here they
    are zero.

    Args:
        graph: From `fxsplit.trace`, or a model, which is traced first.
        at: Where the paths part: as for `split`, or a sequence of up to M - 1 such places in the order of execution.
        members: Number of paths M, at least 2.
        layers: Which layers behind the cut are shared out: paths of layers or of modules around them, globs, a function
            ``(path, module) -> bool``, or None for every linear layer and convolution but the last layer and 1x1
            convolutions on shortcuts, as in the paper. Those left out, and norms and biases, every path has for itself.
        init: As for `split`. With ``'copy'`` the weights of a path are those that the model has there; in distribution
            it makes no difference.
        vote: How predictions are averaged: see `split`.
        seed: Of the fresh weights and of the shares.
        masks: Bool masks by weight path of the model, True where a weight takes part: what ``sparsity.sparsify``
            returns, also once ``sparsity.fold`` took it off the model, which can't be traced with masks.
        example: Example input to trace a model with.

    Raises:
        CutError: ``at`` holds no legal cut, or the order is another one.
        SplitError: Another argument is not acceptable (too many cuts, for instance), there is nothing to share out, or
            the model has no values.
        TraceError: The model cannot be traced.

    Example:
        >>> layers = [layer for _ in range(3) for layer in (torch.nn.Linear(6, 6, bias=False), torch.nn.ReLU())]
        >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(6, 2))
        >>> net = fxsplit.fission(model, at="1", members=3, example=torch.zeros(1, 6))
        >>> [int((head.get_submodule("2").weight != 0).sum()) for head in net.heads]
        [12, 12, 12]
    """
    places = [at] if isinstance(at, (str, int, float, Cut)) else list(at)
    _check(members, init, vote, places)
    with exclusive():
        traced = as_traced(graph, example)
        if any(parameter.is_meta for parameter in traced.parameters()):
            raise SplitError("The model is on the meta device, where shares of weights can't be held: load it first.")
        net = build(traced, places, members, init, vote, seed)
        weights = versions(net)
        kept = {} if masks is None else masks
        check_kept(kept, weights, net)
        shared = [f"{path}.weight" for path in _shared_out(traced, net, layers)]
        share_out(net, shared, kept, seed, weights)
    warn_of_equal_heads(net.report, dict(traced.named_parameters(remove_duplicate=False)))
    return net


def _check(members: int, init: Init, vote: Vote, places: Sequence[At]) -> None:
    check_members(members)
    check_arguments(members, init, vote)
    if members < 2:
        raise SplitError("fission needs at least 2 members to share the weights out among.")
    if not 1 <= len(places) <= members - 1:
        raise SplitError(
            f"fission with {members} members needs 1 to {members - 1} cuts, since a path leaves at each and two at the "
            f"last one; got {len(places)}."
        )


def _shared_out(graph: TracedModel, net: SplitModel, layers: Layers) -> list[str]:
    """Layers of the original whose weights are shared out."""
    behind = {path for name, path in net.origin.items() if name.startswith("heads.")}
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_module" and node.target in behind]
    known = {path: graph.get_submodule(path) for path in calls if features_of(graph.get_submodule(path)) is not None}
    if layers is None and known:
        last = list(known)[-1]
        shortcuts = {
            str(node.target) for node in graph.graph.nodes if node.target in known and _is_shortcut(graph, node)
        }
        known = {path: layer for path, layer in known.items() if path != last and path not in shortcuts}
    return choose(layers, known, {path for path, _ in graph.source.named_modules()})


def _is_shortcut(graph: TracedModel, node: fx.Node) -> bool:
    """Whether a layer is a 1x1 convolution beside others: they get the same input, and the results are added."""
    layer = graph.get_submodule(str(node.target))
    if not isinstance(layer, nn.modules.conv._ConvNd) or any(size != 1 for size in layer.kernel_size):
        return False
    if sum(not is_size(user) for user in node.all_input_nodes[0].users) < 2:
        return False
    while len(node.users) == 1:
        node = next(iter(node.users))
        if target_name(node).strip("_") in ("add", "iadd"):
            return True
        if node.op != "call_module" or features_of(graph.get_submodule(str(node.target))) is not None:
            return False
    return False
