"""CIFAR-10 and CIFAR-100: torchvision's files, or the packed file of lossless mosaics."""

from __future__ import annotations

import io
import itertools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.data._augment import PadCropFlip
from recipes.data._errors import DataError, MissingDataError
from recipes.data._image_data import Source
from recipes.data._parts import MemoryImages

TILES = 16
"""Images in each row and each column of a mosaic."""


def read_cifar10(root: Path, download: bool) -> Source:
    """Read CIFAR-10, see `read_cifar`."""
    return read_cifar("cifar10", "CIFAR10", root, download)


def read_cifar100(root: Path, download: bool) -> Source:
    """Read CIFAR-100, see `read_cifar`."""
    return read_cifar("cifar100", "CIFAR100", root, download)


def read_cifar(name: str, kind: str, root: Path, download: bool) -> Source:
    """Read `NAME.npz` if it is in the folder (or in `NAME/` there), else torchvision's files, `[N, 3, 32, 32]` uint8.

    The two hold the same images in another order.

    Args:
        name: Name of the data set.
        kind: Name of torchvision's class.
        root: Folder.
        download: Whether torchvision may download what is missing.

    Raises:
        MissingDataError: Neither is there.
        DataError: A file is there but cannot be read.
    """
    folders = (root, root / name)
    packed = [folder / f"{name}.npz" for folder in folders if (folder / f"{name}.npz").is_file()]
    if packed:
        return read_packed(packed[0])

    from torchvision import datasets

    dataset: Any = getattr(datasets, kind)
    present = [folder for folder in folders if (folder / dataset.base_folder).is_dir()]
    folder = present[0] if present else root
    command = f"python -c \"from torchvision.datasets import {kind}; {kind}('{root}', download=True)\""
    try:
        train = dataset(folder, train=True, download=download)
        test = dataset(folder, train=False)
    except (RuntimeError, OSError) as error:
        if present:
            raise DataError(
                f"{folder / dataset.base_folder} is incomplete or damaged ({error}). Delete it and run: {command}"
            ) from error
        raise MissingDataError(
            f"{name} is not in {root}: neither {name}.npz nor {dataset.base_folder} is there"
            f"{_reason(error, download)}. Get it with: {command}"
        ) from error
    augment = PadCropFlip()
    return Source(
        tuple(train.classes),
        _images(torch.from_numpy(train.data), train.targets, augment),
        _images(torch.from_numpy(test.data), test.targets, None),
    )


def read_packed(path: Path) -> Source:
    """Read a packed file: mosaics of 16 x 16 images, row by row, as lossless WebP, one after the other.

    Args:
        path: An `.npz` file with `classes` and, for train and test, `..._webp` (bytes of the mosaics), `..._offsets`
            (where each one begins, and the end) and `..._labels`.

    Raises:
        DataError: It is not such a file.
    """
    try:
        with np.load(path) as arrays:
            expected = ["classes", *(f"{part}_{kind}" for part in ("train", "test") for kind in _KINDS)]
            missing = [name for name in expected if name not in arrays.files]
            if missing:
                raise DataError(f"{path} is not a packed image file: it lacks the arrays {', '.join(missing)}.")
            names = tuple(map(str, arrays["classes"]))
            parts = [_unpack(path, part, *(arrays[f"{part}_{kind}"] for kind in _KINDS)) for part in ("train", "test")]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as a packed image file: {error}") from error
    for part, (_, labels) in zip(("train", "test"), parts, strict=True):
        if labels.max() >= len(names):
            raise DataError(f"{path}: {part} has label {labels.max()}, but there are only {len(names)} classes.")
    (train, train_labels), (test, test_labels) = parts
    return Source(names, _images(train, train_labels, PadCropFlip()), _images(test, test_labels, None))


_KINDS = ("webp", "offsets", "labels")


def _unpack(path: Path, part: str, mosaics: np.ndarray, offsets: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Any]:
    from PIL import Image

    data = mosaics.tobytes()
    images = []
    for start, stop in itertools.pairwise(offsets.tolist()):
        mosaic = np.asarray(Image.open(io.BytesIO(data[start:stop])).convert("RGB"))
        side = mosaic.shape[0] // TILES
        tiles = mosaic.reshape(TILES, side, TILES, side, 3).swapaxes(1, 2)
        images.append(tiles.reshape(TILES * TILES, side, side, 3))
    count = sum(map(len, images))
    if not 0 < len(labels) <= count:
        raise DataError(f"{path}: {part} has {len(labels)} labels for {count} images.")
    return torch.from_numpy(np.concatenate(images)[: len(labels)]), labels


def _images(pixels: Tensor, labels: Any, augment: PadCropFlip | None) -> MemoryImages:
    """Make a part of `[N, H, W, C]` pixels."""
    channels_first = pixels.permute(0, 3, 1, 2).contiguous()
    classes = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    return MemoryImages(channels_first, classes, torch.arange(len(classes)), augment)


def _reason(error: Exception, download: bool) -> str:
    return f", and the download failed ({error})" if download else ""
