"""Scikit-learn's handwritten digits, which need no download: for the demo, and in the form of the larger data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from recipes.data._augment import PadCropFlip
from recipes.data._examples import Data, Examples
from recipes.data._image_data import Source
from recipes.data._parts import MemoryImages
from recipes.data._splits import stratified_rows

_TRAIN, _VALIDATION = 0.3, 0.1


def digits(train: float = _TRAIN, validation: float = _VALIDATION, seed: int = 0, limit: int | None = None) -> Data:
    """Load scikit-learn's 1797 handwritten digits (8 x 8, ten classes), split and normalised.

    Args:
        train: Share for training. Small on purpose: it leaves networks room to differ, and a test set large enough to
            show it.
        validation: Share for validation; the rest is the test set.
        seed: Decides the split. It is the same for every training seed, so a spread over seeds is the spread of
            training, not of the data.
        limit: Keep only this many images, classes in proportion (for tests).

    Raises:
        DataError: The shares leave a part empty.

    Example:
        >>> data = digits()
        >>> tuple(data.train.x.shape), len(data.test.y)
        ((539, 1, 8, 8), 1079)
    """
    images, labels = _load()
    kept = np.arange(len(labels))
    if limit is not None:
        kept, _ = train_test_split(kept, train_size=limit, stratify=labels, random_state=seed)
    parts = [kept[rows] for rows in stratified_rows(labels[kept], train, validation, seed)]
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
    mean, std = float(pixels[parts[0]].mean()), float(pixels[parts[0]].std())
    classes = torch.tensor(labels, dtype=torch.int64)
    examples = [Examples((pixels[rows] - mean) / std, classes[rows], torch.tensor(rows)) for rows in parts]
    return Data("digits", 10, *examples, mean=mean, std=std, background=-mean / std)


def read_digits(root: Path, download: bool) -> Source:
    """Return the digits as uint8 images (0 to 16); the test images are those of the demo, the rest is for training.

    Args:
        root: Not used: the images come with scikit-learn.
        download: Not used.
    """
    images, labels = _load()
    fitting, choosing, testing = stratified_rows(labels, _TRAIN, _VALIDATION, seed=0)
    pixels = torch.tensor(images, dtype=torch.uint8).reshape(-1, 1, 8, 8)
    classes = torch.tensor(labels, dtype=torch.int64)
    train, test = (torch.from_numpy(rows) for rows in (np.sort(np.concatenate([fitting, choosing])), testing))
    return Source(
        tuple(map(str, range(10))),
        MemoryImages(pixels[train], classes[train], train, PadCropFlip(padding=1, flip=False)),
        MemoryImages(pixels[test], classes[test], test),
    )


def _load() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return np.asarray(images), np.asarray(labels)
