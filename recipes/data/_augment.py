"""Random views of training images: shifted and mirrored in memory, or cropped and resized as they are decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recipes.data._random import draws

if TYPE_CHECKING:
    from PIL.Image import Image

Augment = Callable[[Tensor, torch.Generator], Tensor]
View = Callable[["Image"], Tensor]


@dataclass(frozen=True)
class PadCropFlip:
    """The augmentation of CIFAR: pad with black, crop at a random place, mirror every other image.

    What happens to an image follows from the key of the epoch and the index of the image alone.

    Args:
        padding: Pixels added on each side, so the largest shift.
        flip: Whether images may be mirrored.
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, x: Tensor, indices: Tensor, key: int) -> Tensor:
        """Return a view of each image, `[B, C, H, W]` uint8 as given.

        Args:
            x: Images, `[B, C, H, W]`.
            indices: Index of each image, `[B]`.
            key: Key of the epoch.

        Example:
            >>> x = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).to(torch.uint8)
            >>> views = PadCropFlip()(x, torch.tensor([0, 1]), key=5)
            >>> bool((PadCropFlip()(x[1:], torch.tensor([1]), key=5) == views[1:]).all())
            True
        """
        from torchvision.transforms.v2 import functional as v2

        down, right, mirrored = self.choices(indices, key)
        padded = v2.pad(x, [self.padding] * 4)
        return _crop_each(padded, x.shape[-2:], down, right, mirrored)

    def choices(self, indices: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the row and the column at which each padded image is cropped, and whether it is mirrored, `[B]` each.

        Args:
            indices: Index of each image, `[B]`.
            key: Key of the epoch.
        """
        numbers = draws(key, indices, columns=3)
        places = (numbers[:, :2] % np.uint64(2 * self.padding + 1)).astype(np.int64)
        mirrored = torch.from_numpy((numbers[:, 2] >> np.uint64(63)).astype(bool)) & self.flip
        return torch.from_numpy(places[:, 0]), torch.from_numpy(places[:, 1]), mirrored


def resized_crop(size: int) -> View:
    """Return the training view of ImageNet: a random part of an image, resized to a square and mirrored half the time.

    It draws from torch's global generator, as torchvision's transforms do; whoever calls it sets the seed.

    Args:
        size: Height and width of the result.
    """
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()])


def centre_crop(size: int) -> View:
    """Return a view of the square in the middle.

    Args:
        size: Height and width of the result.
    """
    from torchvision.transforms import v2

    return v2.Compose([v2.CenterCrop(size), v2.PILToTensor()])


def resized_centre_crop(size: int) -> View:
    """Return the test view of ImageNet: the shorter side resized to 8/7 of the size, then the square in the middle.

    Args:
        size: Height and width of the result; 224 makes the usual 256 of the shorter side.
    """
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(round(size * 8 / 7), antialias=True), centre_crop(size)])


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
        # Indices on both sides of the channel slice put the channels last: a layout that the demo's numbers depend on.
        return padded[torch.arange(batch)[:, None, None], :, rows, columns].permute(0, 3, 1, 2).contiguous()

    return augment


def _crop_each(x: Tensor, size: torch.Size, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
    """Crop each image at its own place, `[B, C, H', W']` to `[B, C, H, W]`: torchvision crops a batch at one place."""
    height, width = size
    rows = torch.arange(height) + down[:, None]
    columns = torch.arange(width) + right[:, None]
    columns = torch.where(mirrored[:, None], columns.flip(-1), columns)
    places = (rows[:, :, None] * x.shape[-1] + columns[:, None, :]).flatten(1)
    # Taking places of flat images is many times faster than indexing rows and columns.
    taken = x.flatten(2).gather(2, places[:, None].expand(-1, x.shape[1], -1))
    return taken.reshape(*x.shape[:2], height, width)
