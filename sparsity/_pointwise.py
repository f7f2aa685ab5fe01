"""Scores that look at each weight alone, so that they can be computed of any part of a layer."""

from __future__ import annotations

import dataclasses
import functools
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor

from sparsity._errors import EngineError
from sparsity._layer import Layer, Score
from sparsity._magnitudes import Magnitudes
from sparsity._sharded import is_sharded
from sparsity._smallest import Scores

_known: WeakSet[Score] = WeakSet()
_signed: WeakKeyDictionary[Score, Score] = WeakKeyDictionary()


def pointwise(score: Score) -> Score:
    """Declare that a score is a function of weight, mask and gradients, and of each entry alone."""
    _known.add(score)
    return score


def magnitude_of(tensor: Score) -> Score:
    """Make a score of a function that returns one of a layer's tensors: the absolute value of each entry."""

    @pointwise
    @functools.wraps(tensor)
    def score(layer: Layer) -> Tensor:
        return tensor(layer).abs()

    _signed[score] = tensor
    return score


def checked(score: object, layer: Layer) -> Tensor:
    """Return a score, which has to have a number for each weight.

    Raises:
        EngineError: It is something else.
    """
    if isinstance(score, Tensor) and score.shape == layer.weight.shape and not score.is_complex():
        return score
    got = f"one of shape {tuple(score.shape)}, {score.dtype}" if isinstance(score, Tensor) else type(score).__name__
    raise EngineError(
        f"A score is a tensor of the weight's shape, with a real number for each weight: expected "
        f"{tuple(layer.weight.shape)} for {layer.path!r}, got {got}."
    )


def scores(layer: Layer, score: Score, largest: bool = False) -> Scores:
    """Return the scores of a layer, computed on demand where that is possible.

    Args:
        layer: The layer.
        score: Its score.
        largest: Return the scores times -1, so that the largest are the smallest.
    """

    def function(layer: Layer) -> Tensor:
        found = checked(score(layer), layer)
        if not largest:
            return found
        return -(found if found.is_floating_point() else found.float())

    tensors = (layer.weight, layer.mask, layer.gradient, layer.masked_gradient)
    known = [tensor for tensor in tensors if tensor is not None]
    on_demand = score in _known and not any(map(is_sharded, known))
    if not on_demand or not all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in known):
        return function(layer)
    if score in _signed:
        return Magnitudes(_signed[score](layer).view(-1), largest)

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
