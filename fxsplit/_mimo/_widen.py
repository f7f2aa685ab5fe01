"""The first and the last layer of a MIMO network: M times as wide on one side, with weights drawn for that width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxsplit._ensemble._layers import Features, features_of, other_owners
from fxsplit._errors import SplitError
from fxsplit._init._fresh import fresh_heads
from fxsplit._init._replica import tensors_at
from fxsplit._init._rules import (
    CONFIG_INIT,
    FACTORY,
    INIT_WEIGHTS,
    RESET,
    model_initialisers,
    reset_of,
    run_model_initialiser,
    values_of,
)
from fxsplit._parametrized import copy_apart, norm_hooks, parametrized_names
from fxsplit._random import derive_seed, seeded_rng
from fxsplit._trace import TracedModel


@dataclass(frozen=True)
class Widening:
    """A layer that becomes M times as wide: at its inputs, if it is a first layer, or at its outputs."""

    path: str
    outputs: bool
    members: int

    def dim(self, name: str, features: Features) -> int | None:
        """The dimension of the weight or bias that grows; None if it stays."""
        if self.outputs:
            return features.weight_outputs if name == "weight" else 0
        return features.weight_inputs if name == "weight" else None

    def joined(self, name: str, features: Features, values: Sequence[Tensor]) -> Tensor:
        """M tensors of the original's shape in one; the first one if that does not grow."""
        dim = self.dim(name, features)
        return values[0].clone() if dim is None else torch.cat(list(values), dim)


def check_layer(graph: TracedModel, path: str) -> None:
    """Refuse a layer whose weight can't change its shape.

    Raises:
        SplitError: It runs twice, shares its weight, or computes it from other parameters.
    """
    layer = graph.get_submodule(path)
    runs = sum(node.op == "call_module" and node.target == path for node in graph.graph.nodes)
    tied = [*other_owners(graph, path), *(n.target for n in graph.graph.nodes if _reads(n, path))]
    if runs > 1:
        problem = f"it runs {runs} times"
    elif tied:
        problem = f"its weight is also that of {tied[0]!r}"
    elif parametrized_names(layer) or norm_hooks(layer):
        problem = "its weight is computed from others (a parametrization, a mask or weight normalisation)"
    else:
        return
    raise SplitError(
        f"MIMO has to make {path!r} {type(layer).__name__} wider, but {problem}. Change the model so that the layer "
        "has a plain weight of its own; masks can be put on afterwards."
    )


def _reads(node: object, path: str) -> bool:
    return getattr(node, "op", "") == "get_attr" and str(node.target).startswith(f"{path}.")  # type: ignore[attr-defined]


def widened_layers(
    graph: TracedModel, widenings: Sequence[Widening], init: str | Callable[[], nn.Module], seed: int
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Copies of layers, made wider.

    Args:
        graph: Holds the originals.
        widenings: What to make wider.
        init: ``'fresh'``, ``'copy'``, or a function that returns a model in which the layers are that wide.
        seed: Of the fresh weights.

    Returns:
        The layers by path, and the rule by which each of their tensors was drawn.

    Raises:
        SplitError: The model made by ``init`` does not fit.
    """
    layers = {each.path: _resized(graph.get_submodule(each.path), each) for each in widenings}
    if callable(init):
        wanted = {f"{path}.{name}": p for path, layer in layers.items() for name, p in layer.named_parameters()}
        values, rules = values_of(init(), wanted, "init"), dict.fromkeys(wanted, FACTORY)
    elif init == "copy":
        values, rules = _copied(graph, widenings), {}
    else:
        values, rules = _drawn(graph, widenings, layers, seed)
    with torch.no_grad():
        for path, layer in layers.items():
            for name, parameter in layer.named_parameters():
                parameter.copy_(values[f"{path}.{name}"])
    return layers, rules


def _resized(layer: nn.Module, widening: Widening) -> nn.Module:
    """A copy of a layer with parameters of the new sizes, which hold nothing yet."""
    features = _features(layer)
    copied = copy_apart(layer, {})
    name = features.names[widening.outputs]
    setattr(copied, name, getattr(copied, name) * widening.members)
    for name, parameter in list(copied.named_parameters()):
        dim = widening.dim(name, features)
        shape = list(parameter.shape)
        if dim is not None:
            shape[dim] *= widening.members
        setattr(copied, name, nn.Parameter(parameter.new_empty(shape), parameter.requires_grad))
    return copied


def _features(layer: nn.Module) -> Features:
    features = features_of(layer)
    if features is None or {name for name, _ in layer.named_parameters()} - {"weight", "bias"}:
        raise SplitError(
            f"MIMO can make the weight and the bias of a layer wider, but {type(layer).__name__} has "
            f"{[name for name, _ in layer.named_parameters()]}. Exchange it for a plain Linear or Conv."
        )
    return features


def _copied(graph: TracedModel, widenings: Sequence[Widening]) -> dict[str, Tensor]:
    """Every member gets the original's weights; the first layer takes the mean of what it would make of each input."""
    values = {}
    for each in widenings:
        layer = graph.get_submodule(each.path)
        for name, parameter in layer.named_parameters():
            value = parameter.detach()
            value = value / each.members if name == "weight" and not each.outputs else value
            values[f"{each.path}.{name}"] = each.joined(name, _features(layer), [value] * each.members)
    return values


def _drawn(
    graph: TracedModel, widenings: Sequence[Widening], layers: Mapping[str, nn.Module], seed: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Draw the layers by the model's own initialisation, run at the new width.

    What no initialiser draws is made of M draws of the original's distribution.
    """
    paths = {f"{each.path}.{name}": each for each in widenings for name, _ in layers[each.path].named_parameters()}
    draws = list(fresh_heads(graph.source, list(paths), widenings[0].members, seed))
    rules = dict(draws[0].rule)
    values = {}
    for path, each in paths.items():
        features = _features(graph.get_submodule(each.path))
        values[path] = each.joined(path.rpartition(".")[2], features, [draw.values[path] for draw in draws])
    devices = {tensor.device for tensor in values.values()}
    with seeded_rng(derive_seed(seed, widenings[0].members), devices), torch.no_grad():
        for path, layer in layers.items():
            owned = {name: f"{path}.{name}" for name, _ in layer.named_parameters()}
            reset = reset_of(layer) if RESET in {rules[full] for full in owned.values()} else None
            if reset is not None:
                reset()
                own = dict(layer.named_parameters())
                values |= {full: own[name].clone() for name, full in owned.items() if rules[full] == RESET}
        by_model = [path for path in paths if rules[path] in (INIT_WEIGHTS, CONFIG_INIT)]
        if by_model:
            values |= _initialised(graph.source, layers, by_model)
    return values, rules


def _initialised(source: nn.Module, layers: Mapping[str, nn.Module], paths: Sequence[str]) -> dict[str, Tensor]:
    """What the model's own initialiser makes of the wide layers, in a copy of the model that has them."""
    twin = copy_apart(source, {})
    for path, layer in layers.items():
        twin.set_submodule(path, copy_apart(layer, {}))
    for prefix, rule in model_initialisers(twin):
        if any(not prefix or path.startswith(f"{prefix}.") for path in paths):
            run_model_initialiser(twin.get_submodule(prefix), rule)
    return {path: tensor.detach() for path, tensor in tensors_at(twin, paths).items()}
