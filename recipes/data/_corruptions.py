"""The corruptions of ImageNet-C at five severities, applied to the test images of any data set.

They come from `imagecorruptions-imaug` (extra `corruptions`): Hendrycks and Dietterich's functions and constants for
ImageNet-C, kept working on current NumPy and scikit-image, without ImageMagick. The package that it continues,
`imagecorruptions`, does not import there (`np.float_`, `multichannel=`, `pkg_resources`); Albumentations, Kornia and
torchvision have similar operations with other constants, so that severities would not mean the same.
CIFAR-10-C and CIFAR-100-C were made with weaker constants: generated sets at 32 x 32 are harder than those files.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fxsplit._errors import near_matches
from recipes.data._errors import DataError, MissingDataError
from recipes.data._parts import Images
from recipes.data._random import draws, mix

CORRUPTIONS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
"""Names by group; the first four groups are the fifteen of the benchmark."""

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32
"""Pixels that an image must have on each side."""

_SEEDED_BY_ARGUMENT = ("impulse_noise", "glass_blur")


def corruption_names(extra: bool = False) -> tuple[str, ...]:
    """Return the names of the fifteen corruptions of the benchmark, or of all nineteen.

    Example:
        >>> len(corruption_names()), len(corruption_names(extra=True))
        (15, 19)
    """
    return tuple(name for group, names in CORRUPTIONS.items() if extra or group != "extra" for name in names)


@dataclass(frozen=True)
class CorruptedImages:
    """The images of a part, corrupted as they are fetched; made by `corrupted`.

    Args:
        images: The clean images.
        name: Name of the corruption.
        severity: 1 to 5.
        seed: Decides the noise; the noise of an image follows from this, the corruption and the row of the image.
    """

    images: Images
    name: str
    severity: int
    seed: int = 0

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        """Class of each image, `[N]`."""
        return self.images.labels

    @property
    def rows(self) -> Tensor:
        """The row of each image in its source, `[N]`."""
        return self.images.rows

    def fetch(self, indices: Tensor, key: int | None = None) -> tuple[Tensor, Tensor]:
        """Return corrupted images `[B, 3, H, W]` uint8 and labels `[B]`.

        Raises:
            DataError: Augmentation is asked for, or the images are too small.
            MissingDataError: The library is not installed.
        """
        if key is not None:
            raise DataError("corrupted images are for evaluation; read them with in_order, not in training batches.")
        corrupt = _library()
        x, y = self.images.fetch(indices)
        if x.shape[1] != 3 or min(x.shape[2:]) < SMALLEST:
            raise DataError(
                f"corruptions need RGB images of at least {SMALLEST} x {SMALLEST} pixels, got {tuple(x.shape[1:])}."
            )
        key = mix(self.seed, zlib.crc32(self.name.encode()), self.severity)
        seeds = (draws(key, self.rows[indices], columns=1)[:, 0] >> np.uint64(32)).tolist()
        arrays = x.permute(0, 2, 3, 1).contiguous().numpy()
        results = []
        for array, seed in zip(arrays, seeds, strict=True):
            extra = {"seed": seed} if self.name in _SEEDED_BY_ARGUMENT else {}
            with _numpy_seed(seed):
                results.append(corrupt(array, severity=self.severity, corruption_name=self.name, **extra))
        return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2).contiguous(), y

    def subset(self, indices: Tensor) -> CorruptedImages:
        """Return the images of these indices, in this order."""
        return replace(self, images=self.images.subset(indices))

    def relabel(self, labels: Tensor) -> CorruptedImages:
        """Return the same images with other labels, `[N]`."""
        return replace(self, images=self.images.relabel(labels))


def corrupted(images: Images, name: str, severity: int, seed: int = 0) -> CorruptedImages:
    """Return the images with one of ImageNet-C's corruptions, generated as they are read; the same ones every time.

    Args:
        images: RGB images of at least 32 x 32 pixels, say `data.test`.
        name: One of `corruption_names(extra=True)`.
        severity: 1 (weak) to 5.
        seed: Decides the noise.

    Raises:
        DataError: There is no such corruption or severity.
        MissingDataError: The library is not installed.

    Example:
        >>> from recipes.data import MemoryImages
        >>> images = MemoryImages(torch.full((2, 3, 32, 32), 128, dtype=torch.uint8), torch.arange(2), torch.arange(2))
        >>> x, _ = corrupted(images, "contrast", severity=5).fetch(torch.arange(2))
        >>> tuple(x.shape), x.dtype
        ((2, 3, 32, 32), torch.uint8)
    """
    check_corruption(name, severity)
    _library()
    return CorruptedImages(images, name, severity, seed)


def check_corruption(name: str, severity: int) -> None:
    """Make sure that there is such a corruption.

    Raises:
        DataError: There is none.
    """
    known = corruption_names(extra=True)
    if name not in known:
        hint = near_matches(name, known) or f" There are: {', '.join(known)}."
        raise DataError(f"unknown corruption {name!r}.{hint}")
    if severity not in SEVERITIES:
        raise DataError(f"severity must be 1 to 5, got {severity}.")


def _library() -> Callable[..., np.ndarray]:
    try:
        from imagecorruptions import corrupt
    except ImportError as error:
        raise MissingDataError(
            f"generating corruptions needs a library that is not installed ({error}). "
            "Get it with: pip install 'fxsplit[corruptions]'"
        ) from error
    return corrupt


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which the library draws from, and put it back afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
