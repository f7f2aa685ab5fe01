"""One part of an image data set (training, validation or test): in memory, or decoded from files when asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from recipes.data._augment import PadCropFlip, View
from recipes.data._random import draws

if TYPE_CHECKING:
    from PIL.Image import Image


class Part(Protocol):
    """What batches are made of: a number of examples that can be fetched by index."""

    def __len__(self) -> int: ...

    def fetch(self, indices: Tensor, key: int | None = None) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of some examples; augmented by the key of an epoch, or as they are without one."""
        ...


class Images(Part, Protocol):
    """A part that holds images: uint8, `[C, H, W]`, with a label each."""

    @property
    def labels(self) -> Tensor:
        """Class of each image, `[N]` int64."""
        ...

    @property
    def rows(self) -> Tensor:
        """The row each image has in the source's training or test set, `[N]`."""
        ...

    def subset(self, indices: Tensor) -> Images:
        """Return the images of these indices, in this order."""
        ...

    def relabel(self, labels: Tensor) -> Images:
        """Return the same images with other labels, `[N]`."""
        ...


@dataclass(frozen=True)
class MemoryImages:
    """Images in memory.

    Args:
        pixels: `[N, C, H, W]` uint8.
        labels: `[N]` int64.
        rows: `[N]`, the row of each image in its source.
        augment: How training images are varied; None for not at all.

    Example:
        >>> pixels = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
        >>> part = MemoryImages(pixels, torch.tensor([0, 1, 2]), torch.arange(3))
        >>> part.subset(torch.tensor([2, 0])).labels
        tensor([2, 0])
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor
    augment: PadCropFlip | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Tensor, key: int | None = None) -> tuple[Tensor, Tensor]:
        """Return images `[B, C, H, W]` uint8 and labels `[B]`."""
        x = self.pixels[indices]
        if key is not None and self.augment is not None:
            # By the row in the source, so that an image is varied in the same way whatever subset it is in.
            x = self.augment(x, self.rows[indices], key)
        return x, self.labels[indices]

    def subset(self, indices: Tensor) -> MemoryImages:
        """Return the images of these indices, in this order."""
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices], rows=self.rows[indices])

    def relabel(self, labels: Tensor) -> MemoryImages:
        """Return the same images with other labels, `[N]`."""
        return replace(self, labels=labels)


@dataclass(frozen=True)
class FileImages:
    """Images in files, decoded, cropped and resized each time they are asked for.

    Args:
        files: Their paths, `[N]` bytes (an array, which worker processes share; a list they would copy).
        labels: `[N]` int64.
        rows: `[N]`, the row of each image in its source.
        view: Turns a decoded image into `[C, H, W]` uint8, always in the same way.
        training_view: The same with chance, drawn from torch's global generator; None for no augmentation.
    """

    files: np.ndarray
    labels: Tensor
    rows: Tensor
    view: View
    training_view: View | None = None

    @classmethod
    def of(
        cls, files: Sequence[str | Path], labels: Sequence[int], view: View, training_view: View | None = None
    ) -> FileImages:
        """Make a part of paths and labels."""
        return cls(
            np.array([os.fsencode(file) for file in files]),
            torch.tensor(labels, dtype=torch.int64),
            torch.arange(len(files)),
            view,
            training_view,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Tensor, key: int | None = None) -> tuple[Tensor, Tensor]:
        """Return images `[B, C, H, W]` uint8 and labels `[B]`."""
        if key is None or self.training_view is None:
            views = [self.view(self.image(index)) for index in indices.tolist()]
        else:
            seeds = draws(key, self.rows[indices], columns=1)[:, 0].tolist()
            views = []
            for index, seed in zip(indices.tolist(), seeds, strict=True):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    views.append(self.training_view(self.image(index)))
        return torch.stack(views), self.labels[indices]

    def image(self, index: int) -> Image:
        """Decode one image to RGB."""
        from torchvision.datasets.folder import pil_loader

        return pil_loader(os.fsdecode(self.files[index]))

    def subset(self, indices: Tensor) -> FileImages:
        """Return the images of these indices, in this order."""
        kept = self.files[indices.numpy()]
        return replace(self, files=kept, labels=self.labels[indices], rows=self.rows[indices])

    def relabel(self, labels: Tensor) -> FileImages:
        """Return the same images with other labels, `[N]`."""
        return replace(self, labels=labels)
