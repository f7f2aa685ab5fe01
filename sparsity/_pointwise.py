"""Scores that look at each weight alone, so that they can be computed of any part of a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from weakref import WeakSet

from torch import Tensor

from sparsity._layer import Layer, Score
from sparsity._sharded import is_sharded
from sparsity._smallest import Scores

_known: WeakSet[Score] = WeakSet()


def pointwise(score: Score) -> Score:
    """Declare that a score is a function of weight, mask and gradients, and of each entry alone."""
    _known.add(score)
    return score


def scores(layer: Layer, score: Score, then: Callable[[Tensor], Tensor] | None = None) -> Scores:
    """Return the scores of a layer, computed on demand where that is possible.

    Args:
        layer: The layer.
        score: Its score.
        then: Applied to each score.
    """
    function = score if then is None else lambda layer: then(score(layer))
    tensors = (layer.weight, layer.mask, layer.gradient, layer.masked_gradient)
    known = [tensor for tensor in tensors if tensor is not None]
    on_demand = score in _known and not any(map(is_sharded, known))
    if not on_demand or not all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in known):
        return function(layer)

    def cut(tensor: Tensor, part: slice) -> Tensor:
        return tensor.view(-1)[part]

    def read(part: slice) -> Tensor:
        return function(
            dataclasses.replace(
                layer,
                weight=cut(layer.weight, part),
                mask=cut(layer.mask, part),
                gradient=None if layer.gradient is None else cut(layer.gradient, part),
                masked_gradient=None if layer.masked_gradient is None else cut(layer.masked_gradient, part),
            )
        )

    return read
