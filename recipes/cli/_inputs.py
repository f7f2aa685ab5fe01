"""What a finished run is measured on: looked up before anything is computed, to say at once what is missing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recipes.cli._folder import Choice
from recipes.cli._restore import check_finished
from recipes.data import (
    SEVERITIES,
    DataError,
    ImageData,
    Images,
    cifar_c,
    corrupted,
    imagenet_c,
    imagenet_sketch,
    load_images,
)
from recipes.rows import Material
from recipes.training import TrainingError


@dataclass(frozen=True)
class Questions:
    """What to measure.

    Args:
        corruptions: Names of corruptions of the test images.
        severities: How strong, 1 to 5.
        corrupted_from: Folder of CIFAR-C or ImageNet-C; None to corrupt the test images here.
        outside: Data sets to be told from the test images.
        sketch: Whether to measure on ImageNet-Sketch.
        modules: Paths within the heads whose features are compared.
        images: Use so many test images; None for all.
        workers: Processes that fetch images.
        tasks: Downstream tasks of a language model.
        limit: Examples of each task; None for all.
    """

    corruptions: Sequence[str] = ()
    severities: Sequence[int] = SEVERITIES
    corrupted_from: Path | None = None
    outside: Sequence[str] = ()
    sketch: bool = False
    modules: Sequence[str] = ()
    images: int | None = None
    workers: int = 0
    tasks: Sequence[str] = ()
    limit: int | None = None


@dataclass(frozen=True)
class Inputs:
    """The data that questions are about.

    Args:
        material: Data of the run.
        asked: The questions.
        outside: Other data sets.
        sketches: ImageNet-Sketch, if it is asked for.
    """

    material: Material
    asked: Questions
    outside: Mapping[str, Images] = field(default_factory=dict)
    sketches: Images | None = None

    def corrupted(self, test: Images, name: str, severity: int) -> Images:
        """Return the test images, corrupted."""
        data, folder = self.material.data, self.asked.corrupted_from
        if folder is None:
            return corrupted(test, name, severity)
        assert isinstance(data, ImageData)
        read = imagenet_c if data.name == "imagenet" else cifar_c
        return first(read(data, name, severity, folder), self.asked.images)


def look_up(choice: Choice, seeds: Sequence[int], out: Path, data_root: Path, state: str, asked: Questions) -> Inputs:
    """Find everything that finished runs are to be measured on.

    Args:
        choice: What was run.
        seeds: Its seeds.
        out: Folder of all runs.
        data_root: Folder of the data sets.
        state: ``last``, or ``best`` on the validation part.
        asked: What to measure.

    Raises:
        TrainingError: A run is not finished, or the questions don't fit its kind of data.
        DataError: Data are not there.
    """
    if choice.recipe.language:
        given = (*asked.corruptions, *asked.outside, *asked.modules, *(["--sketch"] if asked.sketch else []))
        _refuse(given, "--corruptions, --outside, --modules and --sketch", "text")
    else:
        _refuse(asked.tasks, "--tasks", "images")
    if asked.modules and choice.recipe.method.heads == 1:
        raise TrainingError("--modules compares features of several heads, and the networks of this row have one.")
    for seed in seeds:
        check_finished(choice, out, seed, state)
    material = choice.recipe.data.load(data_root)
    data = material.data
    if not isinstance(data, ImageData):
        return Inputs(material, asked)
    outside = {name: first(_outside(name, data, data_root), asked.images) for name in asked.outside}
    sketches = first(imagenet_sketch(data, data_root), asked.images) if asked.sketch else None
    inputs = Inputs(material, asked, outside, sketches)
    for name, severity in itertools.product(asked.corruptions, asked.severities):
        # One image tells whether files and libraries are there.
        inputs.corrupted(data.test, name, severity).fetch(torch.arange(1))
    return inputs


def first(images: Any, count: int | None) -> Any:
    """Return so many of the images, from the first on; None for all."""
    return images if count is None else images.subset(torch.arange(min(count, len(images))))


def _refuse(given: Sequence[Any], options: str, kind: str) -> None:
    if given:
        raise TrainingError(f"This row is about {kind}, to which {options} do not apply.")


def _outside(name: str, data: ImageData, root: Path) -> Images:
    other = load_images(name, root, validation=0)
    shapes = [tuple(part.fetch(torch.arange(1))[0].shape[1:]) for part in (data.test, other.test)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{name} has images {list(shapes[1])}, but the network was trained on {list(shapes[0])}; take a data set "
            "of the same size."
        )
    return other.test
