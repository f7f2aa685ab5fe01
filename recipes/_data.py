"""Data sets as tensors in memory, split once into train, validation and test, and batched by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from recipes._errors import RecipeError

Augment = Callable[[Tensor, torch.Generator], Tensor]


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


def stratified_rows(labels: np.ndarray, train: float, validation: float, seed: int) -> list[np.ndarray]:
    """Split row numbers into train, validation and test (the rest), each with the classes in proportion.

    Args:
        labels: The class of every row, `[N]`.
        train: Share of the rows for training.
        validation: Share of the rows for validation.
        seed: Decides which rows go where.

    Raises:
        RecipeError: The shares leave a part empty.

    Example:
        >>> parts = stratified_rows(np.repeat([0, 1], 10), train=0.5, validation=0.2, seed=0)
        >>> [len(part) for part in parts]
        [10, 4, 6]
    """
    if not (train > 0 and validation > 0 and train + validation < 1):
        raise RecipeError(
            f"train={train} and validation={validation} leave a part of the data empty: "
            "both must be above 0 and their sum below 1."
        )
    rows = np.arange(len(labels))
    fitting, rest = train_test_split(rows, train_size=train, stratify=labels, random_state=seed)
    choosing, testing = train_test_split(
        rest, train_size=validation / (1 - train), stratify=labels[rest], random_state=seed
    )
    return [np.sort(fitting), np.sort(choosing), np.sort(testing)]


def digits(train: float = 0.3, validation: float = 0.1, seed: int = 0, limit: int | None = None) -> Data:
    """Load scikit-learn's 1797 handwritten digits (8 x 8, ten classes), split and normalised.

    Args:
        train: Share for training. Small on purpose: it leaves networks room to differ, and a test set large enough to
            show it.
        validation: Share for validation; the rest is the test set.
        seed: Decides the split. It is the same for every training seed, so a spread over seeds is the spread of
            training, not of the data.
        limit: Keep only this many images, classes in proportion (for tests).

    Raises:
        RecipeError: The shares leave a part empty.

    Example:
        >>> data = digits()
        >>> tuple(data.train.x.shape), len(data.test.y)
        ((539, 1, 8, 8), 1079)
    """
    images, labels = load_digits(return_X_y=True)
    kept = np.arange(len(labels))
    if limit is not None:
        kept, _ = train_test_split(kept, train_size=limit, stratify=labels, random_state=seed)
    parts = [kept[rows] for rows in stratified_rows(labels[kept], train, validation, seed)]
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
    mean, std = float(pixels[parts[0]].mean()), float(pixels[parts[0]].std())
    classes = torch.tensor(labels, dtype=torch.int64)
    examples = [Examples((pixels[rows] - mean) / std, classes[rows], torch.tensor(rows)) for rows in parts]
    return Data("digits", 10, *examples, mean=mean, std=std, background=-mean / std)


def shift_by_one(background: float) -> Augment:
    """Return an augmentation that moves each image by at most one pixel in each direction.

    Args:
        background: The value of the pixels that come in at the edge.

    Example:
        >>> augment = shift_by_one(background=0.0)
        >>> tuple(augment(torch.ones(5, 1, 8, 8), torch.Generator().manual_seed(0)).shape)
        (5, 1, 8, 8)
    """

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = x.shape
        padded = functional.pad(x, (1, 1, 1, 1), value=background)
        down = torch.randint(0, 3, (batch, 1), generator=generator)
        right = torch.randint(0, 3, (batch, 1), generator=generator)
        rows = (torch.arange(height) + down)[:, :, None]
        columns = (torch.arange(width) + right)[:, None, :]
        # Indices on both sides of the channel slice put the channels last.
        return padded[torch.arange(batch)[:, None, None], :, rows, columns].permute(0, 3, 1, 2).contiguous()

    return augment


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return how many full batches an epoch has; the incomplete last one is left out, but never the only one."""
    return max(1, examples // batch_size)


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
