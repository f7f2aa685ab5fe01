"""Grow scores: the inactive weights of largest score are grown."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from sparsity._errors import EngineError, described
from sparsity._layer import Layer, hint_to_call
from sparsity._pointwise import magnitude_of


@magnitude_of
def gradient(layer: Layer) -> Tensor:
    """Absolute gradient of the loss, as if the weight were active (RigL, Evci et al. 2020)."""
    return layer.dense_gradient()


def uniform(layer: Layer) -> Tensor:
    """Uniformly at random (SET, Mocanu et al. 2018)."""
    return layer.draw(Tensor.uniform_)


def momentum(layer: Layer) -> Tensor:
    """Absolute value of the gradient smoothed over steps by `Smoothed` (SNFS, Dettmers and Zettlemoyer 2019)."""
    if Smoothed.name not in layer.memory:
        raise EngineError("grow.momentum needs smoothed gradients: a rule with observe=sparsity.grow.Smoothed(0.9).")
    return layer.memory[Smoothed.name].abs()


class Smoothed:
    """Keeps an exponentially smoothed gradient of every weight, active or not: m <- decay m + (1 - decay) g.

    To be the ``observe`` of a `Rule` with ``dense=True``. Costs the gradients of all weights in every step, and memory
    of the weights' size.

    Args:
        decay: In [0, 1).

    Raises:
        EngineError: ``decay`` is not in [0, 1).
    """

    name = "smoothed gradient"

    def __init__(self, decay: float) -> None:
        if isinstance(decay, bool) or not isinstance(decay, numbers.Real) or not 0 <= decay < 1:
            raise EngineError(f"decay is in [0, 1), got {described(decay)}.{hint_to_call(decay)}")
        self.decay = decay

    def __call__(self, layer: Layer) -> None:
        """Take the gradients of one step in."""
        # In the optimizer's units, since a loss scale may change from step to step.
        gradient = layer.scaled_gradient()
        known = layer.memory.get(self.name)
        if known is None:
            known = torch.zeros_like(gradient)
        # One step of infinite gradients would stay forever.
        finite = gradient.isfinite().all()
        layer.memory[self.name] = torch.where(finite, known.lerp(gradient, 1 - self.decay), known)
