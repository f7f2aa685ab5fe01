"""Fresh heads: new draws of a head's tensors, distributed as the original model's own initialisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fxsplit._errors import SplitError
from fxsplit._init._plan import META, Planner
from fxsplit._init._redraw import PERMUTED, plan_redraw
from fxsplit._init._replica import tensors_at
from fxsplit._init._rules import FACTORY, Factory, device_set, values_of
from fxsplit._init._statistics import sample
from fxsplit._random import derive_seed, seeded_rng


@dataclass(frozen=True)
class HeadDraw:
    """The tensors of one fresh head.

    Attributes:
        values: New tensors by path, with shape, dtype and device of the source's; paths that are tied in the source
            hold the same tensor object.
        rule: How each was drawn: ``'factory'``, ``'create_model'``, ``'config init'``, ``'init_weights'``,
            ``'reset_parameters'``, ``'permuted'``, ``'orthogonal'``, ``'normal fit'``, ``'kept: ...'``,
            ``'meta: ...'`` or ``'NOT redrawn: why'``.
    """

    values: dict[str, Tensor]
    rule: dict[str, str]


def fresh_heads(
    source: nn.Module, paths: Sequence[str], heads: int, seed: int, factory: Factory | None = None
) -> Iterator[HeadDraw]:
    """Draw ``heads`` fresh sets of the tensors at ``paths``, one at a time.

    The first rule that fits a tensor draws it: a model made by ``factory``; the initialisation of the model itself
    (transformers' config-driven one, ``init_weights``); the layer's ``reset_parameters``, if the present values look
    as if it had drawn them; else the tensor's own values in a new order. Constants and computed tables are kept.
    Neither the source nor the global random state changes.

    A trained model is told by its heavy-tailed weights. There a new timm model of the same architecture comes first,
    and ``reset_parameters`` draws also what it had not drawn. Only parameters that no initialiser knows (a module's
    bare ones) get their trained values in a new order: give a ``factory`` where that matters.

    Args:
        source: The user's model.
        paths: Dotted names of the parameters and buffers that a head owns.
        heads: Number of heads.
        seed: Draws depend on it and on the index of the head only.
        factory: Returns a new model of the same architecture at every call.

    Returns:
        An iterator that draws each head when it is asked for it.

    Raises:
        SplitError: If a path is unknown, ``heads`` is not positive, or the factory's models don't fit.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> first, second = fresh_heads(model, ["1.weight", "1.bias"], heads=2, seed=0)
        >>> first.rule["1.weight"], bool((first.values["1.weight"] == second.values["1.weight"]).any())
        ('reset_parameters', False)
    """
    if heads < 1:
        raise SplitError(f"heads must be a positive number, got {heads}")
    if factory is not None and not callable(factory):
        raise SplitError(f"factory must be callable without arguments and return a model, got {type(factory).__name__}")
    tensors = tensors_at(source, paths)
    draw = _from_factory(source, tensors, factory) if factory is not None else _from_model(source, tensors)
    return _generate(draw, tensors, heads, seed)


def _generate(
    draw: Callable[[int], HeadDraw], tensors: Mapping[str, Tensor], heads: int, seed: int
) -> Iterator[HeadDraw]:
    for head in range(heads):
        with seeded_rng(derive_seed(seed, head), device_set(tensors)), torch.no_grad():
            drawn = draw(head)
        yield drawn


def _from_factory(source: nn.Module, tensors: dict[str, Tensor], factory: Factory) -> Callable[[int], HeadDraw]:
    previous: list[dict[str, np.ndarray]] = []

    def draw(head: int) -> HeadDraw:
        model = factory()
        if model is source:
            raise SplitError("factory returned the model that is split, expected a new model at every call")
        values = values_of(model, tensors, "factory")
        rule = {path: META if value.is_meta else FACTORY for path, value in values.items()}
        prints = {path: sample(value, 64) for path, value in values.items() if not value.is_meta}
        for path, mine in prints.items():
            repeated = any(np.array_equal(mine, other[path]) for other in previous)
            if repeated and plan_redraw(tensors[path], isinstance(tensors[path], nn.Parameter))[0] == PERMUTED:
                raise SplitError(
                    f"factory drew the same '{path}' for two heads: it must return a new, unseeded, untrained model "
                    "at every call"
                )
        previous.append(prints)
        return HeadDraw(values, rule)

    return draw


def _from_model(source: nn.Module, tensors: dict[str, Tensor]) -> Callable[[int], HeadDraw]:
    planner = Planner(source, tensors)

    def draw(head: int) -> HeadDraw:
        values = planner.draw()
        return HeadDraw(
            {path: values[id(tensor)] for path, tensor in tensors.items()},
            {path: planner.rule[id(tensor)] for path, tensor in tensors.items()},
        )

    return draw
