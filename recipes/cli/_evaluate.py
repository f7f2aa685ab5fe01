"""Measure a finished run on more than its test part: corrupted images, other data sets, downstream tasks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.cli._folder import Choice
from recipes.cli._report import command
from recipes.cli._restore import check_finished, restore
from recipes.data import (
    SEVERITIES,
    DataError,
    ImageData,
    Images,
    StreamData,
    TextData,
    Tokenizer,
    cifar_c,
    corrupted,
    imagenet_c,
    imagenet_sketch,
    in_order,
    load_images,
)
from recipes.evaluation import (
    Evidence,
    Predictions,
    corruption_accuracy,
    evaluate,
    harness_model,
    head_features,
    mean_probability,
    ood_auroc,
    perplexity,
    predict,
    run_tasks,
    write_run_report,
)
from recipes.training import Processes, TrainingError

FEATURES_OF = 1000
"""Test images that features of heads are compared on."""


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
class _TextCodec:
    """A tokenizer of `recipes.data`, as lm-evaluation-harness takes one."""

    tokenizer: Tokenizer

    @property
    def eos_token_id(self) -> int:
        return self.tokenizer.end

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self.tokenizer.encode(text).tolist()

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(torch.tensor(tokens))


def measure_more(
    choice: Choice, seed: int, out: Path, data_root: Path, device: torch.device, state: str, asked: Questions
) -> tuple[Path, Evidence]:
    """Measure a finished run, and write what was found beside it, in ``evaluation-<state>``.

    Args:
        choice: What was run.
        seed: Its seed.
        out: Folder of all runs.
        data_root: Folder of the data sets.
        device: Where to compute.
        state: ``last``, or ``best`` on the validation part.
        asked: What to measure.

    Returns:
        The page that was written, and what is on it.

    Raises:
        TrainingError: The run is not finished, or the questions don't fit its kind of data.
        DataError: Data are not there.
    """
    check_finished(choice, out, seed, state)
    material = choice.recipe.data.load(data_root)
    data = material.data
    net = restore(choice, material, out, seed, state).to(device)
    title = f"{choice.row.label}, seed {seed}"
    lead = f"{choice.title}: the {state} state, evaluated further."
    settings = [("run", command(choice)), ("torch", torch.__version__)]
    if isinstance(data, ImageData):
        _refuse(asked.tasks, "--tasks", "images")
        known = _of_images(net, data, data_root, device, asked)
    else:
        given = (*asked.corruptions, *asked.outside, *asked.modules, *(["--sketch"] if asked.sketch else []))
        _refuse(given, "--corruptions, --outside, --modules and --sketch", "text")
        batches = (x for x, _ in material.read("test", Processes(0, 1, device)))
        known = {
            "perplexity": {data.name: perplexity(net, batches)},
            "costs": _tasks(net, data, asked),
        }
    evidence = Evidence(title, lead, settings=settings, **known)
    return write_run_report(choice.folder(out, seed) / f"evaluation-{state}", evidence), evidence


def _refuse(given: Sequence[Any], options: str, kind: str) -> None:
    if given:
        raise TrainingError(f"This row is about {kind}, to which {options} do not apply.")


def _of_images(net: nn.Module, data: ImageData, root: Path, device: torch.device, asked: Questions) -> dict[str, Any]:
    def said(images: Images) -> Predictions:
        return predict(net, in_order(images, prepare=data.prepare, workers=asked.workers, device=device))

    test = _first(data.test, asked.images)
    known: dict[str, Any] = {"test": said(test), "costs": []}
    if data.validation is not None:
        known["validation"] = said(data.validation)
    if asked.corruptions:
        found: dict[str, dict[int, Tensor]] = {}
        labels = known["test"].labels
        for name, severity in itertools.product(asked.corruptions, asked.severities):
            images = _corrupted(data, test, name, severity, asked)
            found.setdefault(name, {})[severity], labels = said(images)
        known["corrupted"] = corruption_accuracy(found, labels)
    if asked.outside:
        known["outside"] = {name: said(_outside(name, data, root, asked)).logits for name in asked.outside}
    if asked.modules:
        (x, _), *_ = in_order(_first(test, FEATURES_OF), FEATURES_OF, prepare=data.prepare, device=device)
        known["features"] = {module: head_features(net, module, x) for module in asked.modules}
    if asked.sketch:
        sketches = said(_first(imagenet_sketch(data, root), asked.images))
        known["costs"] = [(f"ImageNet-Sketch, {name}", f"{value:.4f}") for name, value in evaluate(*sketches).items()]
    return known


def _first(images: Any, count: int | None) -> Any:
    return images if count is None else images.subset(torch.arange(min(count, len(images))))


def _corrupted(data: ImageData, test: Images, name: str, severity: int, asked: Questions) -> Images:
    if asked.corrupted_from is None:
        return corrupted(test, name, severity)
    read = imagenet_c if data.name == "imagenet" else cifar_c
    return _first(read(data, name, severity, asked.corrupted_from), asked.images)


def _outside(name: str, data: ImageData, root: Path, asked: Questions) -> Images:
    other = load_images(name, root, validation=0)
    shapes = [tuple(part.fetch(torch.arange(1))[0].shape[1:]) for part in (data.test, other.test)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{name} has images {list(shapes[1])}, but the network was trained on {list(shapes[0])}; take a data set "
            "of the same size."
        )
    return _first(other.test, asked.images)


def _tasks(net: nn.Module, data: TextData | StreamData, asked: Questions) -> list[tuple[str, str]]:
    if not asked.tasks:
        return []
    codec = _TextCodec(data.tokenizer)
    options = {} if asked.limit is None else {"limit": asked.limit}
    found = run_tasks(harness_model(net, codec, max_length=data.length), asked.tasks, **options)
    return [(f"accuracy on {task}", f"{value:.4f}") for task, value in found.items()]


def headlines(known: Evidence) -> Iterator[str]:
    """Say in a line each what was found."""
    if known.test is not None:
        yield f"test images: accuracy {evaluate(*known.test)['accuracy_prob']:.4f}"
    for name, severities in known.corrupted.items():
        yield f"{name}: accuracy " + ", ".join(f"{value:.4f}" for value in severities.values())
    if known.test is not None:
        inside = mean_probability(known.test.logits)
        for name, logits in known.outside.items():
            yield f"{name}: AUROC {ood_auroc(inside, mean_probability(logits)):.4f}"
    for name, found in known.perplexity.items():
        yield f"{name}: perplexity {found.prob:.3f}"
    for name, text in known.costs:
        yield f"{name}: {text}"
