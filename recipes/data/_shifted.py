"""Published test sets of the same classes under other conditions: CIFAR-C, ImageNet-C and ImageNet-Sketch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from recipes.data._augment import View, centre_crop, resized_centre_crop
from recipes.data._corruptions import SEVERITIES, check_corruption
from recipes.data._errors import DataError, MissingDataError
from recipes.data._folders import list_images
from recipes.data._image_data import ImageData, of_classes
from recipes.data._parts import FileImages, Images, MemoryImages

_CIFAR_C = {
    "cifar10": ("CIFAR-10-C", "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar"),
    "cifar100": ("CIFAR-100-C", "https://zenodo.org/records/3555552/files/CIFAR-100-C.tar"),
}
_IMAGENET_C = "https://zenodo.org/records/2235448"
_SKETCH = "https://github.com/HaohanWang/ImageNet-Sketch"


def cifar_c(data: ImageData, corruption: str, severity: int, data_root: str | Path = "data") -> Images:
    """Read CIFAR-10-C or CIFAR-100-C (`CORRUPTION.npy`, `labels.npy`), the classes as in the clean data.

    Args:
        data: The clean data, `cifar10` or `cifar100`; its subset of classes, if any, is taken here too.
        corruption: Name of the corruption.
        severity: 1 to 5.
        data_root: Folder that holds `CIFAR-10-C/` or `CIFAR-100-C/`, or that folder itself.

    Raises:
        DataError: There is no such corruption, the data are not CIFAR, or the files do not fit together.
        MissingDataError: The files are not there.
    """
    check_corruption(corruption, severity)
    if data.name not in _CIFAR_C:
        raise DataError(f"there is no CIFAR-C for {data.name}; generate corruptions of any data with corrupted().")
    name, url = _CIFAR_C[data.name]
    root = Path(data_root)
    folder = root / name if (root / name).is_dir() else root
    files = [folder / f"{corruption}.npy", folder / "labels.npy"]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise MissingDataError(
            f"{name} is not in {root}: {' and '.join(missing)} not found. "
            f"Get it with: curl -LO {url} && tar -xf {name}.tar -C {root}; or generate corruptions with corrupted()."
        )
    pixels, labels = (np.load(file, mmap_mode="r") for file in files)
    if len(pixels) != len(labels) or len(pixels) % len(SEVERITIES):
        raise DataError(f"{files[0]} has {len(pixels)} images for {len(labels)} labels; expected five equal blocks.")
    count = len(pixels) // len(SEVERITIES)
    block = slice((severity - 1) * count, severity * count)
    images = MemoryImages(
        torch.from_numpy(pixels[block].transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(labels[block].astype(np.int64)),
        torch.arange(count),
    )
    return of_classes(images, data.source_names, data.source_labels)


def imagenet_c(
    data: ImageData, corruption: str, severity: int, data_root: str | Path = "data", size: int = 224
) -> Images:
    """Read ImageNet-C (`CORRUPTION/SEVERITY/CLASS/*.JPEG`, or the same in a folder of its group such as `noise/`).

    Args:
        data: The clean data, whose classes are expected.
        corruption: Name of the corruption.
        severity: 1 to 5.
        data_root: Folder that holds `ImageNet-C/`, or that folder itself.
        size: Height and width that images are cropped to.

    Raises:
        DataError: There is no such corruption, or classes are missing.
        MissingDataError: The folder is not there.
    """
    check_corruption(corruption, severity)
    root = Path(data_root)
    inside = Path(corruption, str(severity))
    bases = [base for base in (root, root / "ImageNet-C", root / "imagenet-c") if base.is_dir()]
    found = [path for base in bases for path in (base / inside, *base.glob(f"*/{inside}")) if path.is_dir()]
    if not found:
        raise MissingDataError(
            f"ImageNet-C is not in {root}: expected {inside}/CLASS/*.JPEG there or in ImageNet-C/. "
            f"Get its .tar files from {_IMAGENET_C} and unpack them there; or generate corruptions with corrupted()."
        )
    # The files are 224 x 224 already, so they are not resized again.
    return _folder(found[0], data, centre_crop(size))


def imagenet_sketch(data: ImageData, data_root: str | Path = "data", size: int = 224) -> Images:
    """Read ImageNet-Sketch (`CLASS/*.JPEG`).

    Args:
        data: The clean data, whose classes are expected.
        data_root: Folder that holds `sketch/` or `ImageNet-Sketch/`, or that folder itself.
        size: Height and width that images are cropped to.

    Raises:
        DataError: Classes are missing.
        MissingDataError: The folder is not there.
    """
    root = Path(data_root)
    for folder in (root / "sketch", root / "ImageNet-Sketch" / "sketch", root / "ImageNet-Sketch", root):
        if (folder / data.class_names[0]).is_dir():
            return _folder(folder, data, resized_centre_crop(size))
    raise MissingDataError(
        f"ImageNet-Sketch is not in {root}: expected sketch/CLASS/*.JPEG there. "
        f"Get ImageNet-Sketch.zip as {_SKETCH} says and unpack it there."
    )


def _folder(folder: Path, data: ImageData, view: View) -> Images:
    images = FileImages.of(*list_images(folder, data.source_names), view)
    return of_classes(images, data.source_names, data.source_labels)
