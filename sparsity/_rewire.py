"""One update: which weights are dropped and which are grown, exactly as many as were asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity._errors import EngineError
from sparsity._layer import Layer, Score
from sparsity._magnitudes import Selection
from sparsity._pointwise import scores
from sparsity._smallest import Scores, smallest_of, smallest_of_each


@dataclass(frozen=True)
class Amount:
    """How many weights to drop and to grow.

    Attributes:
        replace: Number of weights to drop and to grow others for.
        change: Number of weights to grow besides; negative to drop that many.
    """

    replace: int
    change: int = 0

    @property
    def drop(self) -> int:
        """Number of weights to drop."""
        return self.replace + max(-self.change, 0)

    @property
    def grow(self) -> int:
        """Number of weights to grow."""
        return self.replace + max(self.change, 0)


@dataclass(frozen=True)
class Choice:
    """Bool masks of the weights of one layer to drop and to grow; with regrowth one may be in both and stays."""

    drop: Tensor
    grow: Tensor


Scope = Callable[[Sequence[Layer], Sequence[Amount], Score, Score, bool], list[Choice]]


def per_layer(
    layers: Sequence[Layer], amounts: Sequence[Amount], drop: Score, grow: Score, regrow: bool = False
) -> list[Choice]:
    """Drop and grow in each layer its own amount.

    Dropped are the active weights of smallest drop score. Grown are the ones of largest grow score, of those inactive
    before the update, so none that is dropped in it; with ``regrow`` those dropped compete as well.

    Args:
        layers: The layers before the update.
        amounts: For each, at most its numbers of active and of inactive weights.
        drop: Score of each weight, not NaN where active.
        grow: Score of each weight, not NaN where inactive.
        regrow: Whether a weight that is dropped may be grown again in the same update.
    """
    drops = (_lowest(layer, amount.drop, drop) for layer, amount in zip(layers, amounts, strict=True))

    def grows(taken: Iterable[Tensor]) -> Iterator[Selection[Scores]]:
        for layer, amount, mask in zip(layers, amounts, taken, strict=True):
            yield _highest(layer, amount.grow, grow, mask)

    if regrow:
        dropped = smallest_of_each(drops)
        grown = smallest_of_each(grows(layer.mask ^ lost for layer, (lost,) in zip(layers, dropped, strict=True)))
    else:
        both = smallest_of_each(itertools.chain(drops, grows(layer.mask for layer in layers)))
        dropped, grown = both[: len(layers)], both[len(layers) :]
    return [Choice(lost, new) for (lost,), (new,) in zip(dropped, grown, strict=True)]


def over_layers(
    layers: Sequence[Layer], amounts: Sequence[Amount], drop: Score, grow: Score, regrow: bool = False
) -> list[Choice]:
    """Drop and grow the sum of the amounts, wherever scores are smallest and largest in all layers together.

    Numbers of active weights move between layers; a layer may lose all of its weights. Takes as much memory as the
    scores of all weights, except of scores that are computed piece by piece. Arguments as of `per_layer`.
    """
    if not layers:
        return []
    active = [layer.mask for layer in layers]
    total = _sum(amounts)
    dropped = grown = [torch.zeros_like(mask) for mask in active]
    if total.drop:
        dropped = smallest_of([scores(layer, drop) for layer in layers], total.drop, active)
    if total.grow:
        taken = [mask ^ lost if regrow else mask for mask, lost in zip(active, dropped, strict=True)]
        grown = smallest_of([scores(layer, grow, largest=True) for layer in layers], total.grow, taken, outside=True)
    return [Choice(lost, new) for lost, new in zip(dropped, grown, strict=True)]


def _sum(amounts: Sequence[Amount]) -> Amount:
    return Amount(sum(amount.replace for amount in amounts), sum(amount.change for amount in amounts))


def check_amounts(
    step: int, amounts: Sequence[Amount], dropped: Mapping[str, int], grown: Mapping[str, int], regrow: bool
) -> None:
    """Check that an update drops and grows as many weights in all as were asked for, before it is made.

    Raises:
        EngineError: It does not.
    """
    least = _sum(amounts)
    lost, new = sum(dropped.values()), sum(grown.values())
    # What is dropped and grown again counts in neither. Layers that change in opposite directions may do more.
    if new - lost != least.change or (not regrow and lost < least.drop):
        raise EngineError(
            f"The update at step {step} would drop {lost} and grow {new} weights instead of {least.drop} and "
            f"{least.grow}, so nothing was changed. A drop score must not be NaN where a weight is active, nor a grow "
            "score where it is inactive (0 / 0, for example), and a scope has to keep the sums of the amounts."
        )


def _lowest(layer: Layer, count: int, score: Score) -> Selection[Scores]:
    # Not asked for a score that nobody needs: it may cost a pass over the weights, or a draw of random numbers.
    return Selection([scores(layer, score)] if count else [], count, [layer.mask])


def _highest(layer: Layer, count: int, score: Score, taken: Tensor) -> Selection[Scores]:
    return Selection([scores(layer, score, largest=True)] if count else [], count, [taken], outside=True)
