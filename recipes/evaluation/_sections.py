"""The sections of a run's page: each takes what is known of the run, and gives numbers, a table and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from recipes import _report as html
from recipes.evaluation._calibration import calibration_bins
from recipes.evaluation._cka import cka_matrix
from recipes.evaluation._corruption import mean_by_severity
from recipes.evaluation._diagrams import FEWEST, corruption_plot, reliability_diagram, risk_coverage_plot
from recipes.evaluation._errors import EvaluationError
from recipes.evaluation._evaluate import evaluate, evaluate_heads
from recipes.evaluation._evidence import Evidence
from recipes.evaluation._figure import Plot, looks
from recipes.evaluation._ood import OOD_SCORES, ood_auroc
from recipes.evaluation._pairs import DIVERSITY
from recipes.evaluation._quality import QUALITY, quality
from recipes.evaluation._sweeps import training_plot
from recipes.evaluation._temperature import after_vote, before_vote, fit_temperature
from recipes.evaluation._votes import AGGREGATIONS

VOTES = {"prob": "vote, mean probability", "logit": "vote, mean logit"}


@dataclass(frozen=True)
class Part:
    """A section: its title, its text and tables as HTML, figures with captions, and its numbers for `metrics.json`."""

    title: str
    body: str = ""
    plots: Sequence[tuple[Plot, str]] = ()
    numbers: dict[str, Any] = field(default_factory=dict)


def test_part(known: Evidence) -> Part | None:
    """Quality of both votes and of every head."""
    if known.test is None:
        return None
    logits, labels = known.test
    measured, heads = evaluate(logits, labels), evaluate_heads(logits, labels)
    rows = [[title, *(_show(measured[f"{name}_{vote}"]) for name in QUALITY)] for vote, title in VOTES.items()]
    rows += [[f"head {number}", *(_show(head[name]) for name in QUALITY)] for number, head in enumerate(heads)]
    names = ("accuracy", "NLL, nats", "ECE, 15 bins", "Brier", "AURC")
    body = html.data_table(["test set", *names], rows)
    return Part(f"Test set, {len(labels)} inputs", body, numbers={"test": measured, "heads": heads})


def diversity_part(known: Evidence) -> Part | None:
    """How much heads differ: in their predictions, and in their features."""
    if known.test is None or len(known.test.logits) < 2:
        return None
    measured = evaluate(*known.test)
    titles = (
        "prediction disagreement, mean over pairs",
        "inputs with any conflict",
        "disagreement as the released code counts it",
        "KL divergence, mean over ordered pairs, nats",
        "Q-statistic",
        "double fault",
    )
    rows = [(title, _show(measured[name])) for title, name in zip(titles, DIVERSITY, strict=True)]
    features: dict[str, Sequence[Tensor]] = {**known.features, "logits": list(known.test.logits)}
    matrices = {name: cka_matrix(heads) for name, heads in features.items()}
    alike = [[name, *map(_show, _spread(matrix))] for name, matrix in matrices.items()]
    body = html.facts(rows) + html.data_table(["linear CKA of", "mean over pairs", "least", "most"], alike)
    numbers = {"cka": {name: matrix.tolist() for name, matrix in matrices.items()}}
    return Part("Diversity of the heads", body, numbers=numbers)


def calibration_part(known: Evidence) -> Part | None:
    """Reliability diagram and risk-coverage curve of both votes and of the first head."""
    if known.test is None:
        return None
    logits, labels = known.test
    shown = {VOTES[vote]: aggregate(logits) for vote, aggregate in AGGREGATIONS.items()}
    if len(logits) == 1:
        shown = {"network": shown[VOTES["prob"]]}
    else:
        shown["head 0"] = functional.log_softmax(logits[0], dim=-1)
    look = looks(shown)
    bins = {label: calibration_bins(values, labels) for label, values in shown.items()}
    curves = {label: (values, labels) for label, values in shown.items()}
    plots = [
        (reliability_diagram(bins, look), f"Reliability on the test set, bins with {FEWEST} or more predictions."),
        (risk_coverage_plot(curves, look), "Error if only the most confident predictions are given."),
    ]
    return Part("Calibration", plots=plots)


def temperature_part(known: Evidence) -> Part | None:
    """Temperature scaling for both votes, before and after the vote, fitted on the validation set."""
    if known.test is None or known.validation is None:
        return None
    rows, numbers = [], {}
    for vote, aggregate in AGGREGATIONS.items():
        for name, place in (("before", before_vote), ("after", after_vote)):
            temperature = fit_temperature(*known.validation, aggregate, place)
            scaled = quality(temperature(known.test.logits), known.test.labels)
            numbers[f"{name}_{vote}"] = {"temperature": temperature.value, **scaled}
            shown = [scaled[metric] for metric in ("accuracy", "nll", "ece")]
            rows.append([f"{VOTES[vote]}, T {name} the vote", *map(_show, (temperature.value, *shown))])
    body = html.data_table(["test set, scaled", "T", "accuracy", "NLL, nats", "ECE, 15 bins"], rows)
    note = f"Fitted on {len(known.validation.labels)} validation inputs by NLL."
    return Part("Temperature scaling", body + html.paragraphs([note], "note"), numbers={"temperature": numbers})


def outside_part(known: Evidence) -> Part | None:
    """AUROC of telling other data sets from the test set, by the mean probability."""
    if known.test is None or not known.outside:
        return None
    vote = AGGREGATIONS["prob"]
    inside = vote(known.test.logits)
    numbers = {
        name: {score: ood_auroc(inside, vote(logits), measure) for score, measure in OOD_SCORES.items()}
        for name, logits in known.outside.items()
    }
    rows = [[name, *map(_show, values.values())] for name, values in numbers.items()]
    body = html.data_table(["AUROC against the test set", *(score.replace("_", " ") for score in OOD_SCORES)], rows)
    return Part("Out-of-distribution detection", body, numbers={"ood": numbers})


def corruption_part(known: Evidence) -> Part | None:
    """Accuracy by corruption and severity."""
    if not known.corrupted:
        return None
    mean = mean_by_severity(known.corrupted)
    severities = list(mean)
    table = {**known.corrupted, "mean": mean}
    rows = [[name, *(_show(values[severity]) for severity in severities)] for name, values in table.items()]
    body = html.data_table(["accuracy at severity", *map(str, severities)], rows)
    clean = None if known.test is None else evaluate(*known.test)["accuracy_prob"]
    order = ["mean", *known.corrupted]
    plot = corruption_plot({name: table[name] for name in order}, looks(order), clean)
    numbers = {name: {str(severity): values[severity] for severity in severities} for name, values in table.items()}
    return Part(
        "Corrupted inputs", body, [(plot, "Accuracy of the vote on corrupted test inputs.")], {"corruption": numbers}
    )


def training_part(known: Evidence) -> Part | None:
    """Accuracy and disagreement over training."""
    pairs = [row for row in known.history if not math.isnan(row.get("validation_disagreement", 0.0))]
    if not pairs:
        return None
    return Part("Training", plots=[(training_plot(pairs), "After each epoch, on the validation set.")])


def language_part(known: Evidence) -> Part | None:
    """Perplexity of both votes and of every head."""
    if not known.perplexity:
        return None
    counts = {len(found.heads) for found in known.perplexity.values()}
    if len(counts) != 1:
        raise EvaluationError(f"One run has the same heads on every text; got perplexities of {sorted(counts)} heads.")
    heads = [f"head {number}" for number in range(counts.pop())]
    headers = ["perplexity", *VOTES.values(), *heads, "disagreement", "tokens"]
    rows = [
        [name, *map(_show, (found.prob, found.logit, *found.heads, found.disagreement)), str(found.tokens)]
        for name, found in known.perplexity.items()
    ]
    numbers = {"perplexity": {name: asdict(found) for name, found in known.perplexity.items()}}
    return Part("Language modelling", html.data_table(headers, rows), numbers=numbers)


def numbers_part(known: Evidence) -> Part | None:
    """Downstream tasks, and the quality on further data."""
    if not any(known.further.values()):
        return None
    rows = [
        (further_title(group, name), _show(value))
        for group, numbers in known.further.items()
        for name, value in numbers.items()
    ]
    return Part("Further data", html.facts(rows), numbers={group: dict(each) for group, each in known.further.items()})


def further_title(group: str, name: str) -> str:
    """Return what a further number is called: ``accuracy on piqa``."""
    return {"tasks": f"accuracy on {name}", "sketch": f"ImageNet-Sketch, {name}"}.get(group, f"{group}, {name}")


def facts_part(title: str, pick: Callable[[Evidence], Sequence[tuple[str, str]]]) -> Callable[[Evidence], Part | None]:
    """Make a section of names and texts."""

    def part(known: Evidence) -> Part | None:
        pairs = pick(known)
        return Part(title, html.facts(pairs)) if pairs else None

    return part


def further_part(known: Evidence) -> Part | None:
    """Figures that the caller brings along."""
    return Part("Further figures", plots=known.plots) if known.plots else None


PARTS: tuple[Callable[[Evidence], Part | None], ...] = (
    test_part,
    language_part,
    diversity_part,
    calibration_part,
    temperature_part,
    outside_part,
    corruption_part,
    numbers_part,
    training_part,
    further_part,
    facts_part("Cost", lambda known: known.costs),
    facts_part("How to get this again", lambda known: known.settings),
)


def _show(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _spread(matrix: Tensor) -> tuple[float, float, float]:
    """Mean, least and most of the values off the diagonal."""
    rows, columns = torch.triu_indices(*matrix.shape, offset=1)
    values = matrix[rows, columns]
    return values.mean().item(), values.min().item(), values.max().item()
