"""Which images belong to which part: splits and subsets, stratified by class, that follow from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import train_test_split

from fxsplit._errors import near_matches
from recipes.data._errors import DataError


def stratified_rows(labels: np.ndarray, train: float, validation: float, seed: int) -> list[np.ndarray]:
    """Split row numbers into train, validation and test (the rest), each with the classes in proportion.

    Args:
        labels: The class of every row, `[N]`.
        train: Share of the rows for training.
        validation: Share of the rows for validation.
        seed: Decides which rows go where.

    Raises:
        DataError: The shares leave a part empty.

    Example:
        >>> parts = stratified_rows(np.repeat([0, 1], 10), train=0.5, validation=0.2, seed=0)
        >>> [len(part) for part in parts]
        [10, 4, 6]
    """
    if not (train > 0 and validation > 0 and train + validation < 1):
        raise DataError(
            f"train={train} and validation={validation} leave a part of the data empty: "
            "both must be above 0 and their sum below 1."
        )
    rows = np.arange(len(labels))
    fitting, rest = train_test_split(rows, train_size=train, stratify=labels, random_state=seed)
    choosing, testing = train_test_split(
        rest, train_size=validation / (1 - train), stratify=labels[rest], random_state=seed
    )
    return [np.sort(fitting), np.sort(choosing), np.sort(testing)]


def hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split row numbers in two, the second with this share of the rows, the classes in proportion; both sorted.

    Args:
        labels: The class of every row, `[N]`.
        share: Share that is held out, between 0 and 1.
        seed: Decides which rows those are.

    Raises:
        DataError: One of the two would be empty, or would lack a class.

    Example:
        >>> kept, held = hold_out(np.repeat([0, 1], 10), share=0.1, seed=0)
        >>> len(kept), len(held)
        (18, 2)
    """
    if not 0 < share < 1:
        raise DataError(f"the validation share must lie between 0 and 1, got {share}.")
    classes, counts = np.unique(labels, return_counts=True)
    held = round(share * len(labels))
    if held == 0:
        least = -(-len(classes) // share)
        raise DataError(
            f"an empty validation split: validation={share} of {len(labels)} images is none; "
            f"use a larger share, or at least {least:.0f} images."
        )
    if min(held, len(labels) - held) < len(classes) or counts.min() < 2:
        raise DataError(
            f"{held} of {len(labels)} images cannot be held out with an image of each of the {len(classes)} classes "
            "on both sides; use more images, fewer classes or another validation share."
        )
    kept, out = train_test_split(np.arange(len(labels)), test_size=held, stratify=labels, random_state=seed)
    return np.sort(kept), np.sort(out)


def keep_images(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose this many row numbers, the classes in proportion; sorted.

    Args:
        labels: The class of every row, `[N]`.
        count: How many to keep.
        seed: Decides which.

    Raises:
        DataError: There are not that many, or not one of each class could be kept.

    Example:
        >>> labels = np.repeat([0, 1], 10)
        >>> labels[keep_images(labels, count=4, seed=0)].tolist()
        [0, 0, 1, 1]
    """
    classes = len(np.unique(labels))
    if not classes <= count <= len(labels):
        raise DataError(
            f"images={count} cannot be kept: there are {len(labels)}, and at least one of each of {classes} "
            "classes is needed."
        )
    if len(labels) - count < classes:  # too few are left over to stratify them, so drop these at random
        dropped = np.random.default_rng(seed).permutation(len(labels))[: len(labels) - count]
        return np.setdiff1d(np.arange(len(labels)), dropped)
    kept, _ = train_test_split(np.arange(len(labels)), train_size=count, stratify=labels, random_state=seed)
    return np.sort(kept)


def choose_classes(names: Sequence[str], wanted: int | Sequence[str]) -> list[int]:
    """Return the labels of the wanted classes, in the order asked for.

    Args:
        names: Names of all classes, by label.
        wanted: The names, or a number for the first so many.

    Raises:
        DataError: There is no such class, fewer than two are wanted, or one twice.

    Example:
        >>> choose_classes(["apple", "bear", "cat"], ["cat", "apple"])
        [2, 0]
    """
    chosen = list(names[:wanted]) if isinstance(wanted, int) else list(wanted)
    for name in chosen:
        if name not in names:
            raise DataError(f"there is no class {name!r} among the {len(names)}.{near_matches(name, names)}")
    count = wanted if isinstance(wanted, int) else len(set(chosen))
    if not 2 <= count <= len(names) or count != len(chosen):
        raise DataError(f"classes must be 2 to {len(names)} different ones, got {wanted}.")
    return [names.index(name) for name in chosen]
