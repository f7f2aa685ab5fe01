"""Drop scores: the active weights of smallest score are dropped."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from sparsity._errors import EngineError, described
from sparsity._layer import Layer, Score, hint_to_call
from sparsity._pointwise import magnitude_of, pointwise

SIGN = "sign"


@magnitude_of
def magnitude(layer: Layer) -> Tensor:
    """Absolute value of each weight (Mocanu et al. 2018; Evci et al. 2020)."""
    return layer.weight


def soft_magnitude(temperature: float = 3.0) -> Score:
    """Return a score by which weights survive at random, in proportion to |w|^temperature.

    The survivors are a sample without replacement, one after the other with probabilities proportional to
    |w|^temperature: those of largest temperature log|w| + Gumbel noise (the Gumbel top-k trick of Kool et al. 2019).
    The larger the temperature, the nearer this is to `magnitude`; at 0 it is uniform.

    NeuroTrails (table 10, after Zhang et al. 2025) drops by "soft magnitude" of temperature 3.0 without giving the
    formula; this is the one without a scale: all weights times a constant survive with the same probabilities.

    Raises:
        EngineError: ``temperature`` is not a finite number of at least 0.
    """
    check_number("temperature", temperature)

    def score(layer: Layer) -> Tensor:
        # -log U of a uniform U in (0, 1], since drawing an exponential number takes ten times as long.
        exponential = layer.draw(Tensor.uniform_).neg_().add_(1).log_().neg_()
        if not temperature:
            return exponential.log_().neg_()
        # Zeros as the smallest normal number, so that they go first; log(0) is slow, and no number to add noise to.
        keys = layer.weight.abs().float().clamp_min(torch.finfo(torch.float32).tiny).log_().mul_(temperature)
        return keys.sub_(exponential.log_())

    return score


def magnitude_and_gradient(share: float = 0.01) -> Score:
    """Return the score |w| + share |g| (MEST, Yuan et al. 2021), g being the gradient that the optimizer is to use.

    Raises:
        EngineError: ``share`` is not a finite number of at least 0.
    """
    check_number("share", share)
    return pointwise(lambda layer: layer.weight.abs() + share * _gradient(layer).abs())


@pointwise
def taylor(layer: Layer) -> Tensor:
    """|w g|: how much the loss changes, to first order, when the weight becomes zero (Mozer and Smolensky 1988)."""
    return (layer.weight * _gradient(layer)).abs_()


def flipped(layer: Layer) -> Tensor:
    """Tell which active weights have another sign than when they were looked at first (DeepR, Bellec et al. 2018).

    Bool. The signs are kept in ``layer.memory``, one byte per weight. A weight that is zero has no sign yet.
    """
    signs = layer.weight.sign().to(torch.int8)
    known = layer.memory.get(SIGN)
    # What is inactive now forgets its sign, so that it starts anew when it is grown.
    first = signs if known is None else torch.where(layer.mask & (known != 0), known.to(signs.device), signs)
    layer.memory[SIGN] = torch.where(layer.mask, first, 0)
    return layer.mask & (first * signs < 0)


def check_number(name: str, value: float) -> None:
    """Check that ``value`` is a finite number of at least 0.

    Raises:
        EngineError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < float("inf"):
        raise EngineError(f"{name} is a finite number of at least 0, got {described(value)}.{hint_to_call(value)}")


def _gradient(layer: Layer) -> Tensor:
    if layer.masked_gradient is None:
        raise EngineError(f"The gradient of {layer.path!r} is needed, and not known.")
    return layer.masked_gradient
