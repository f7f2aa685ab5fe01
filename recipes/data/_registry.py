"""One name per data set, and how to load it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from fxsplit._errors import near_matches
from recipes.data._c4 import StreamData, load_c4
from recipes.data._cifar import read_cifar10, read_cifar100
from recipes.data._digits import read_digits
from recipes.data._errors import DataError
from recipes.data._folders import read_image_folders, read_imagenet, read_tiny_imagenet
from recipes.data._image_data import ImageData, Source, assemble
from recipes.data._text import TextData, assemble_text, read_any_text, read_wikitext2
from recipes.data._tokenizers import Recipe

IMAGES: dict[str, Callable[[Path, bool], Source]] = {
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "tiny-imagenet": read_tiny_imagenet,
    "imagenet": read_imagenet,
    "imagefolder": read_image_folders,
    "digits": read_digits,
}
"""Image data sets: how to read the official training and test set."""

TEXTS: dict[str, Callable[[Path], list[str]]] = {"wikitext2": read_wikitext2, "text": read_any_text}
"""Texts that fit in memory: how to read their parts."""

STREAMS: dict[str, Callable[..., StreamData]] = {"c4": load_c4}
"""Texts that are read as they are trained on."""


def names() -> tuple[str, ...]:
    """Return the names of all data sets.

    Example:
        >>> names()
        ('cifar10', 'cifar100', 'tiny-imagenet', 'imagenet', 'imagefolder', 'digits', 'wikitext2', 'text', 'c4')
    """
    return (*IMAGES, *TEXTS, *STREAMS)


def load_images(
    name: str,
    data_root: str | Path = "data",
    *,
    validation: float = 0.1,
    split_seed: int = 0,
    classes: int | Sequence[str] | None = None,
    images: int | None = None,
    download: bool = False,
) -> ImageData:
    """Load an image data set in three parts.

    Args:
        name: Name of the data set.
        data_root: Folder that holds the data set, or a folder of it.
        validation: Share of the training images that is kept for validation; 0 for none.
        split_seed: Decides which images those are, and which ones a subset has. It is not the seed of training, so a
            spread over seeds is the spread of training, not of the data.
        classes: Keep these classes, in this order, or the first so many.
        images: Keep so many training images, those for validation included; the test set stays whole.
        download: Let torchvision download CIFAR if it is missing.

    Raises:
        DataError: There is no such data set, its files are damaged, or nothing is left of it.
        MissingDataError: Its files are not there.

    Example:
        >>> data = load_images("digits", validation=0.25, classes=3)
        >>> data.classes, len(data.train), len(data.need_validation()), tuple(data.example.shape)
        (3, 161, 54, (2, 1, 8, 8))
        >>> x, y = next(data.loader(batch_size=32, seed=0).epoch(0))
        >>> tuple(x.shape), tuple(y.shape)
        ((32, 1, 8, 8), (32,))
    """
    _check_name(name, IMAGES, "images", "load_images")
    source = IMAGES[name](Path(data_root), download)
    return assemble(name, source, validation=validation, split_seed=split_seed, classes=classes, images=images)


def load_text(
    name: str,
    data_root: str | Path = "data",
    *,
    tokenizer: Recipe | None = None,
    length: int = 128,
    validation: float = 0.05,
    test: float = 0.05,
    tokens: int | None = None,
) -> TextData:
    """Load a text in three parts, as blocks of tokens.

    Args:
        name: `wikitext2`, or `text` for any text file.
        data_root: Folder that holds the data set, a folder of it, or a text file.
        tokenizer: How to get a tokenizer: `Bytes()` (the default), `Bpe(vocab)` or `Pretrained(name)`. It is trained on
            the training text alone.
        length: Tokens per block, L.
        validation: Share of a single text file for validation.
        test: Share of a single text file for testing.
        tokens: Keep only so many training tokens.

    Raises:
        DataError: There is no such data set, its files are damaged, or a part has not one block.
        MissingDataError: Its files are not there.
    """
    _check_name(name, TEXTS, "a text in memory", "load_text")
    texts = TEXTS[name](Path(data_root))
    return assemble_text(
        name, texts, tokenizer=tokenizer, length=length, validation=validation, test=test, tokens=tokens
    )


def _check_name(name: str, known: Collection[str], kind: str, function: str) -> None:
    if name in known:
        return
    if name in names():
        raise DataError(f"the data set {name!r} is not {kind}: {function} loads {', '.join(known)}.")
    hint = near_matches(name, names()) or f" There are: {', '.join(names())}."
    raise DataError(f"unknown data set {name!r}.{hint}")
