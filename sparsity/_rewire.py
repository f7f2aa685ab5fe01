"""One update: which weights are dropped and which are grown, exactly as many as were asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity._errors import EngineError, listed
from sparsity._layer import Layer, Score
from sparsity._magnitudes import Selection
from sparsity._pointwise import scores
from sparsity._sharded import is_sharded, local
from sparsity._smallest import Scores, smallest_of_each


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


Scope = Callable[[Sequence[Layer], Sequence[Amount], Score, Score, bool], list[Tensor]]


def per_layer(
    layers: Sequence[Layer], amounts: Sequence[Amount], drop: Score, grow: Score, regrow: bool = False
) -> list[Tensor]:
    """Drop and grow in each layer its own amount.

    Dropped are the active weights of smallest drop score. Grown are the ones of largest grow score, of those inactive
    before the update, so none that is dropped in it; with ``regrow`` those dropped compete as well.

    Args:
        layers: The layers before the update.
        amounts: For each, at most its numbers of active and of inactive weights.
        drop: Score of each weight, not NaN where active.
        grow: Score of each weight, not NaN where inactive.
        regrow: Whether a weight that is dropped may be grown again in the same update; it stays as it is.

    Returns:
        For each layer, a bool tensor that tells which entries of its mask change.
    """
    return [changed for (changed,) in _changes([[layer] for layer in layers], amounts, drop, grow, regrow)]


def over_layers(
    layers: Sequence[Layer], amounts: Sequence[Amount], drop: Score, grow: Score, regrow: bool = False
) -> list[Tensor]:
    """Drop and grow the sum of the amounts, wherever scores are smallest and largest in all layers together.

    Numbers of active weights move between layers; a layer may lose all of its weights. Takes as much memory as the
    scores of all weights, except of scores that are computed piece by piece. Arguments and result as of `per_layer`.
    """
    return _changes([layers], [_sum(amounts)], drop, grow, regrow)[0] if layers else []


def _changes(
    together: Sequence[Sequence[Layer]], amounts: Sequence[Amount], drop: Score, grow: Score, regrow: bool
) -> list[list[Tensor]]:
    """Tell what changes in layers that are compared with each other, and have one amount."""
    masks = [[layer.mask for layer in layers] for layers in together]

    def drops(number: int) -> Iterator[Selection[Scores]]:
        count = amounts[number].drop
        # Not asked for a score that nobody needs: it may cost a pass over the weights, or a draw of random numbers.
        yield Selection([scores(layer, drop) for layer in together[number] if count], count, masks[number])

    def grows(number: int, taken: Sequence[Tensor]) -> Iterator[Selection[Scores]]:
        count = amounts[number].grow
        found = [scores(layer, grow, largest=True) for layer in together[number] if count]
        yield Selection(found, count, taken, outside=True)

    numbers = range(len(together))
    if not regrow:
        return smallest_of_each(itertools.chain(drops(i), grows(i, masks[i])) for i in numbers)
    dropped = smallest_of_each(drops(i) for i in numbers)
    grown = smallest_of_each(grows(i, _differences(masks[i], dropped[i])) for i in numbers)
    return [_differences(lost, new) for lost, new in zip(dropped, grown, strict=True)]


def _differences(ones: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    return [one ^ other for one, other in zip(ones, others, strict=True)]


def _sum(amounts: Sequence[Amount]) -> Amount:
    return Amount(sum(amount.replace for amount in amounts), sum(amount.change for amount in amounts))


def limited(amounts: Sequence[Amount], elsewhere: int) -> list[Amount]:
    """Return amounts for `over_layers` where other layers, which would change by ``elsewhere``, have no part.

    Targets are met by all layers together, so a part of them goes no further than all would, and not the other way.
    """
    here = _sum(amounts).change
    everywhere = here + elsewhere
    wanted = min(max(here, min(everywhere, 0)), max(everywhere, 0))
    return [*amounts[:-1], *(Amount(last.replace, last.change + wanted - here) for last in amounts[-1:])]


def check_changes(layers: Sequence[Layer], changes: object) -> None:
    """Check that a scope has returned where the mask of each layer changes.

    Raises:
        EngineError: It has not.
    """
    found = list(changes) if isinstance(changes, Sequence) else [changes]
    alike = len(found) == len(layers) and all(map(_changes_mask, found, layers))
    if not alike:
        raise EngineError(
            "A scope returns a list with a bool tensor for each layer that tells which entries of its mask change: "
            f"expected {_described([layer.mask for layer in layers])}, got {_described(found)}."
        )


def _changes_mask(changed: object, layer: Layer) -> bool:
    mask = layer.mask
    if not isinstance(changed, Tensor) or changed.dtype != torch.bool or changed.device != mask.device:
        return False
    return is_sharded(changed) == is_sharded(mask) and local(changed).shape == local(mask).shape


def _described(values: Sequence[object]) -> str:
    return listed(f"{v.dtype} {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in values)


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
