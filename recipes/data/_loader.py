"""Batches whose order and augmentation follow from seed and epoch, whatever the first step and the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.data._errors import DataError
from recipes.data._parts import Part
from recipes.data._random import mix

Batch = tuple[Tensor, Tensor]
_ORDER, _AUGMENTATION = 0, 1


@dataclass(frozen=True)
class Loader:
    """Shuffled, augmented batches of a part, for training.

    It has no state: `epoch(3, start=17)` gives the batches that an uninterrupted run sees from step 17 of epoch 3 on.
    Every process gets its share of the same global batch, and together they get what a single one would.

    Args:
        part: What to draw from.
        batch_size: Examples per step, of all processes together.
        seed: Decides order and augmentation, with the epoch.
        prepare: Applied to the inputs on the device, say normalisation.
        augment: Whether to augment, for parts that know how.
        rank: Number of this process.
        world: Number of processes.
        workers: Processes that fetch in the background; worth it for images in files.
        device: Where batches are put.

    Raises:
        DataError: The batch cannot be shared evenly, or there are no examples.

    Example:
        >>> from recipes.data import MemoryImages
        >>> images = MemoryImages(torch.zeros(7, 1, 8, 8, dtype=torch.uint8), torch.arange(7), torch.arange(7))
        >>> loader = Loader(images, batch_size=3, seed=0)
        >>> loader.steps, [len(y) for _, y in loader.epoch(0)]
        (2, [3, 3])
    """

    part: Part
    batch_size: int
    seed: int = 0
    prepare: Callable[[Tensor], Tensor] = lambda x: x
    augment: bool = True
    rank: int = 0
    world: int = 1
    workers: int = 0
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        check_share(self.batch_size, self.rank, self.world)
        if len(self.part) == 0:
            raise DataError("there are no examples to train on; use a larger part of the data.")
        short = min(self.batch_size, len(self.part))
        if short % self.world:
            raise DataError(
                f"the only batch has {short} examples, which {self.world} processes cannot share evenly; "
                f"use a batch_size of at most {len(self.part) - len(self.part) % self.world}."
            )

    @property
    def steps(self) -> int:
        """Batches per epoch; the incomplete last one is left out, but never the only one."""
        return steps_per_epoch(len(self.part), self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process's share of each batch: inputs `[B / world, ...]` and targets.

        Args:
            epoch: Number of the epoch.
            start: Steps of it that are done already.

        Raises:
            DataError: The epoch is shorter than that.
        """
        if not 0 <= start <= self.steps:
            raise DataError(f"an epoch has {self.steps} steps, so it cannot start at step {start}.")
        generator = torch.Generator().manual_seed(mix(self.seed, epoch, _ORDER))
        order = torch.randperm(len(self.part), generator=generator)
        key = mix(self.seed, epoch, _AUGMENTATION) if self.augment else None
        shares = [
            order[step * self.batch_size : (step + 1) * self.batch_size][self.rank :: self.world]
            for step in range(start, self.steps)
        ]
        return _batches(self.part, shares, key, self.prepare, self.workers, self.device)


def in_order(
    part: Part,
    batch_size: int = 512,
    *,
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Yield every example once, in order and as it is, for evaluation; the last batch may be smaller.

    Args:
        part: What to read.
        batch_size: Examples per batch of this process.
        prepare: Applied to the inputs on the device.
        rank: Number of this process, which reads examples `rank`, `rank + world`, ...
        world: Number of processes.
        workers: Processes that fetch in the background.
        device: Where batches are put.

    Example:
        >>> from recipes.data import MemoryImages
        >>> images = MemoryImages(torch.zeros(7, 1, 8, 8, dtype=torch.uint8), torch.arange(7), torch.arange(7))
        >>> [y.tolist() for _, y in in_order(images, batch_size=4)]
        [[0, 1, 2, 3], [4, 5, 6]]
    """
    _check_rank(rank, world)
    indices = torch.arange(rank, len(part), world)
    shares = list(indices.split(batch_size)) if len(indices) else []
    return _batches(part, shares, None, prepare, workers, device)


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return how many full batches an epoch has; the incomplete last one is left out, but never the only one."""
    return max(1, examples // batch_size)


def check_share(batch_size: int, rank: int, world: int) -> None:
    """Make sure that processes can share a batch evenly.

    Raises:
        DataError: They cannot, or there is no such process.
    """
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}.")
    _check_rank(rank, world)
    if batch_size % world:
        raise DataError(
            f"a batch of {batch_size} cannot be shared evenly by {world} processes; "
            f"use {batch_size - batch_size % world or world} or {batch_size + world - batch_size % world}."
        )


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise DataError(f"rank must lie between 0 and world - 1 = {world - 1}, got {rank}.")


@dataclass(frozen=True)
class _Fetch(Dataset):
    part: Part
    shares: list[Tensor]
    key: int | None

    def __len__(self) -> int:
        return len(self.shares)

    def __getitem__(self, step: int) -> Batch:
        return self.part.fetch(self.shares[step], self.key)


def _batches(
    part: Part,
    shares: list[Tensor],
    key: int | None,
    prepare: Callable[[Tensor], Tensor],
    workers: int,
    device: torch.device | str,
) -> Iterator[Batch]:
    fetch = _Fetch(part, shares, key)
    fetched: Any = map(fetch.__getitem__, range(len(fetch)))
    pinned = torch.device(device).type == "cuda"
    if workers:
        # Its own generator, so that the run's random numbers do not depend on the number of workers.
        own = torch.Generator().manual_seed(0)
        fetched = DataLoader(
            fetch, batch_size=None, shuffle=False, num_workers=workers, pin_memory=pinned, generator=own
        )
    elif pinned:
        # A copy from pageable memory would wait for all that the GPU has yet to do.
        fetched = ((x.pin_memory(), y.pin_memory()) for x, y in fetched)
    for x, y in fetched:
        yield prepare(x.to(device, non_blocking=True)), y.to(device, non_blocking=True)
