"""Image folders, one folder per class: ImageNet, Tiny-ImageNet, and any other of that form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fxsplit._errors import near_matches
from recipes.data._augment import PadCropFlip, resized_centre_crop, resized_crop
from recipes.data._errors import DataError, MissingDataError
from recipes.data._image_data import Source
from recipes.data._parts import FileImages, MemoryImages

# Of ImageNet's training images, as everybody uses them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TINY = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"


def read_imagenet(root: Path, download: bool, size: int = 224) -> Source:
    """Read ImageNet from `train/` and `val/`, each with 1000 folders named by synset; `val/` serves as the test set.

    Args:
        root: Folder that holds the two, or `imagenet/`.
        download: Not used: ImageNet needs an account.
        size: Height and width that images are cropped to.

    Raises:
        MissingDataError: The folders are not there.
        DataError: Classes are missing.
    """
    from timm.data import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]

    folder = find_folder(
        root,
        ("imagenet", "ImageNet", "ILSVRC2012"),
        ("train", "val"),
        "ImageNet",
        "Get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar with an account of https://image-net.org/download, "
        "and unpack both with: python -c \"from torchvision.datasets import ImageNet; [ImageNet('FOLDER', split=s) "
        "for s in ('train', 'val')]\"",
    )
    return read_folders(folder, ImageNetInfo().label_names(), size)


def read_image_folders(root: Path, download: bool, size: int = 224) -> Source:
    """Read any `train/` and `val/` (or `test/`) with a folder per class.

    Args:
        root: Folder that holds the two.
        download: Not used.
        size: Height and width that images are cropped to.

    Raises:
        MissingDataError: The folders are not there.
        DataError: The two do not have the same classes.
    """
    help_ = "Make train/CLASS/*.jpg and val/CLASS/*.jpg, and point data_root to the folder that holds them."
    test = "test" if (root / "test").is_dir() and not (root / "val").is_dir() else "val"
    folder = find_folder(root, (), ("train", test), "the image folder data set", help_)
    return read_folders(folder, None, size, test)


def read_folders(folder: Path, expected: Sequence[str] | None, size: int, test: str = "val") -> Source:
    """Read a training and a test folder whose images are decoded as they are needed.

    Args:
        folder: Holds both.
        expected: Names of the classes; None for those of the training folder.
        size: Height and width that images are cropped to.
        test: Name of the test folder.

    Raises:
        DataError: A class is missing.
    """
    names = tuple(sorted(expected)) if expected else class_folders(folder / "train")
    train = list_images(folder / "train", names)
    held = list_images(folder / test, names)
    view = resized_centre_crop(size)
    return Source(names, FileImages.of(*train, view, resized_crop(size)), FileImages.of(*held, view), MEAN, STD)


def read_tiny_imagenet(root: Path, download: bool) -> Source:
    """Read Tiny-ImageNet (200 classes, 64 x 64) into memory; `val/` serves as the test set, for `test/` has no labels.

    Args:
        root: Folder that holds `train/` and `val/`, or `tiny-imagenet-200/`.
        download: Not used.

    Raises:
        MissingDataError: The folders are not there.
        DataError: Classes are missing.
    """
    folder = find_folder(
        root,
        ("tiny-imagenet-200", "tiny-imagenet", "tiny_imagenet"),
        ("train", "val"),
        "Tiny-ImageNet",
        f"Get it with: curl -LO {_TINY} && unzip tiny-imagenet-200.zip -d {root}",
    )
    listed = folder / "wnids.txt"
    names = tuple(sorted(listed.read_text().split())) if listed.is_file() else class_folders(folder / "train")
    annotations = folder / "val" / "val_annotations.txt"
    train = list_images(folder / "train", names)
    held = _annotated(annotations, names) if annotations.is_file() else list_images(folder / "val", names)
    return Source(names, _in_memory(*train, PadCropFlip()), _in_memory(*held, None))


def find_folder(root: Path, names: Sequence[str], needed: Sequence[str], what: str, help_: str) -> Path:
    """Return the folder, the root or one of these in it, that has all the folders needed.

    Args:
        root: Where to look.
        names: Folders in it to look into.
        needed: What must be there.
        what: Name of the data set, for the message.
        help_: How to get it.

    Raises:
        MissingDataError: None has them.
    """
    for folder in (root, *(root / name for name in names)):
        if all((folder / name).is_dir() for name in needed):
            return folder
    raise MissingDataError(
        f"{what} is not in {root}: expected the folders {' and '.join(f'{name}/' for name in needed)} there"
        f"{f' or in {names[0]}/' if names else ''}. {help_}"
    )


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder, sorted: by name they are the classes, by place the labels.

    Raises:
        DataError: There are fewer than two.
    """
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if len(names) < 2:
        raise DataError(f"{folder} has {len(names)} folders; expected one per class, and at least two classes.")
    return names


def list_images(folder: Path, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return paths and labels of all images in the folders of these classes, in a fixed order.

    Args:
        folder: Has a folder per class; images may lie deeper in it.
        names: Names of the classes, by label. Every one must be there, and no other.

    Raises:
        DataError: A class is missing, has no images, or is not one of these.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    present = class_folders(folder)
    missing = [name for name in names if name not in set(present)]
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} of {len(names)} classes: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}. Unpack the data set again, or load the classes that are there "
            "as the data set 'imagefolder'."
        )
    extra = [name for name in present if name not in set(names)]
    if extra:
        raise DataError(
            f"{folder} has folders that are no classes of the data set: {', '.join(extra[:5])}. Move them away."
            f"{near_matches(extra[0], names)}"
        )
    try:
        found = make_dataset(str(folder), {name: label for label, name in enumerate(names)}, IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: {error}") from error
    return [path for path, _ in found], [label for _, label in found]


def _annotated(annotations: Path, names: Sequence[str]) -> tuple[list[str], list[int]]:
    label = {name: place for place, name in enumerate(names)}
    rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line.strip()]
    unknown = [name for _, name in rows if name not in label]
    if unknown:
        raise DataError(f"{annotations} names the class {unknown[0]!r}, which is not among the {len(names)}.")
    files = [str(annotations.parent / "images" / file) for file, _ in rows]
    return files, [label[name] for _, name in rows]


def _in_memory(files: Sequence[str], labels: Sequence[int], augment: PadCropFlip | None) -> MemoryImages:
    from torchvision.transforms.v2 import functional as v2

    part = FileImages.of(files, labels, v2.pil_to_tensor)
    try:
        pixels, classes = part.fetch(torch.arange(len(part)))
    except (OSError, RuntimeError) as error:
        raise DataError(f"an image of {Path(files[0]).parents[2]} cannot be used: {error}") from error
    return MemoryImages(pixels, classes, part.rows, augment)
