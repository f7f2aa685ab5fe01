"""A small data set as normalised tensors in memory, batched by a generator: what the demo trains on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recipes.data._augment import Augment
from recipes.data._loader import steps_per_epoch


class Examples(NamedTuple):
    """Inputs `[N, C, H, W]`, labels `[N]` and the row each one has in the source data set."""

    x: Tensor
    y: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Data:
    """A data set, normalised with the mean and standard deviation of its training part.

    Args:
        name: What the data is called in reports.
        classes: Number of classes.
        train: What the networks are fitted to.
        validation: What settings are chosen on and learning curves show.
        test: What is reported, once, after the last epoch.
        mean: Mean of the raw training inputs, already subtracted everywhere.
        std: Standard deviation of the raw training inputs, already divided by everywhere.
        background: The normalised value of an empty pixel, which shifting fills in.
    """

    name: str
    classes: int
    train: Examples
    validation: Examples
    test: Examples
    mean: float
    std: float
    background: float

    @property
    def example(self) -> Tensor:
        """Two training inputs, `[2, C, H, W]`: what a network is traced with."""
        return self.train.x[:2]


def batches(
    examples: Examples, batch_size: int, generator: torch.Generator, augment: Augment | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of shuffled, augmented batches; order and augmentation follow from the generator alone.

    Args:
        examples: What to draw from.
        batch_size: Examples per batch. Fewer only if there are fewer in all.
        generator: Source of the order and of the augmentation.
        augment: Applied to each batch of inputs.

    Yields:
        Inputs `[B, C, H, W]` and labels `[B]`.
    """
    order = torch.randperm(len(examples.y), generator=generator)
    for step in range(steps_per_epoch(len(order), batch_size)):
        rows = order[step * batch_size : (step + 1) * batch_size]
        x = examples.x[rows]
        yield (x if augment is None else augment(x, generator)), examples.y[rows]
