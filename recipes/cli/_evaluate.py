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
from recipes.cli._inputs import Inputs, Questions, first
from recipes.cli._report import command
from recipes.cli._restore import restore
from recipes.data import ImageData, Images, StreamData, TextData, Tokenizer, in_order
from recipes.evaluation import (
    METRICS,
    Evidence,
    Predictions,
    corruption_accuracy,
    evaluate,
    further_title,
    harness_model,
    head_features,
    mean_probability,
    ood_auroc,
    perplexity,
    predict,
    run_tasks,
    write_run_report,
)
from recipes.training import Processes, read_json

FEATURES_OF = 1000
"""Test images that features of heads are compared on."""


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
    choice: Choice, seed: int, out: Path, inputs: Inputs, device: torch.device, state: str
) -> tuple[Path, Evidence]:
    """Measure a finished run, and write what was found beside it, in ``evaluation-<state>``.

    What was measured there before stays in ``metrics.json``, but for what is measured again; the page is about what is
    measured now.

    Args:
        choice: What was run.
        seed: Its seed.
        out: Folder of all runs.
        inputs: What to measure, and on what: see `look_up`.
        device: Where to compute.
        state: ``last``, or ``best`` on the validation part.

    Returns:
        The page that was written, and what is on it.

    Raises:
        TrainingError: What was measured before cannot be read.
        EvaluationError: The network cannot be measured so.
    """
    folder = choice.folder(out, seed) / f"evaluation-{state}"
    earlier = read_json(folder / METRICS) if (folder / METRICS).exists() else {}
    material, data = inputs.material, inputs.material.data
    net = restore(choice, material, out, seed, state).to(device)
    lead = f"{choice.title}: the {state} state, evaluated further."
    if earlier:
        lead += f" {METRICS} keeps what was measured before as well."
    known: dict[str, Any]
    settings = [("run", command(choice)), ("torch", torch.__version__)]
    if isinstance(data, ImageData):
        known = _of_images(net, data, device, inputs)
    else:
        # First the tasks, whose names and data may turn out to be wrong or missing.
        known = {"further": _tasks(net, data, inputs.asked)}
        batches = (x for x, _ in material.read("test", Processes(0, 1, device)))
        known["perplexity"] = {data.name: perplexity(net, batches)}
    evidence = Evidence(f"{choice.row.label}, seed {seed}", lead, settings=settings, **known)
    return write_run_report(folder, evidence, earlier), evidence


def _of_images(net: nn.Module, data: ImageData, device: torch.device, inputs: Inputs) -> dict[str, Any]:
    def said(images: Images) -> Predictions:
        return predict(net, in_order(images, prepare=data.prepare, workers=asked.workers, device=device))

    asked = inputs.asked
    test = first(data.test, asked.images)
    known: dict[str, Any] = {}
    if asked.modules:
        (x, _), *_ = in_order(first(test, FEATURES_OF), FEATURES_OF, prepare=data.prepare, device=device)
        known["features"] = {module: head_features(net, module, x) for module in asked.modules}
    known["test"] = said(test)
    if data.validation is not None:
        known["validation"] = said(data.validation)
    if asked.corruptions:
        found: dict[str, dict[int, Tensor]] = {}
        labels = known["test"].labels
        for name, severity in itertools.product(asked.corruptions, asked.severities):
            found.setdefault(name, {})[severity], labels = said(inputs.corrupted(test, name, severity))
        known["corrupted"] = corruption_accuracy(found, labels)
    known["outside"] = {name: said(images).logits for name, images in inputs.outside.items()}
    if inputs.sketches is not None:
        known["further"] = {"sketch": evaluate(*said(inputs.sketches))}
    return known


def _tasks(net: nn.Module, data: TextData | StreamData, asked: Questions) -> dict[str, dict[str, float]]:
    if not asked.tasks:
        return {}
    codec = _TextCodec(data.tokenizer)
    options = {} if asked.limit is None else {"limit": asked.limit}
    return {"tasks": run_tasks(harness_model(net, codec, max_length=data.length), asked.tasks, **options)}


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
    for group, numbers in known.further.items():
        yield from (f"{further_title(group, name)}: {value:.4f}" for name, value in numbers.items())
