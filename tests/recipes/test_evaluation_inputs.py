"""What the metrics refuse, and what they say then."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import recipes.evaluation as evaluation
from recipes._errors import RecipeError
from recipes.evaluation import EvaluationError, Predictions, evaluate

LOGITS = torch.zeros(3, 4, 5)
LABELS = torch.tensor([0, 1, 2, 3])
VOTED = torch.full((4, 5), 0.2).log()

WITH_LABELS = ("accuracy", "nll", "brier", "calibration_error", "calibration_bins", "risk_coverage", "aurc", "quality")
OF_PAIRS = ("disagreement", "any_conflict", "released_disagreement", "pairwise_kl", "q_statistic", "double_fault")


def changed(value: float) -> torch.Tensor:
    logits = LOGITS.clone()
    logits[1, 2, 3] = value
    return logits


@pytest.mark.parametrize("name", OF_PAIRS)
def test_metrics_of_pairs_refuse_a_single_head(name: str) -> None:
    labels = (LABELS,) if name in ("q_statistic", "double_fault") else ()
    with pytest.raises(EvaluationError, match=rf"{name.removeprefix('released_')} compares pairs of heads.*got\s+M=1"):
        getattr(evaluation, name)(LOGITS[:1], *labels)


@pytest.mark.parametrize(
    "metric", [evaluate, evaluation.evaluate_heads, evaluation.diversity, evaluation.fit_temperature]
)
@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (LOGITS, LABELS[:3], r"a label for each of 4 inputs.*got labels \[3\]"),
        (LOGITS, LABELS[:, None], r"got labels \[4, 1\]"),
        (LOGITS, LABELS.float(), "integer tensor, got torch.float32"),
        (LOGITS, LABELS + 2, "labels lie in 0 to 4; got 2 to 5"),
        (LOGITS, LABELS - 1, "got -1 to 2"),
        (LOGITS[0], LABELS, r"\[M, N, K\]; got torch.float32 \[4, 5\].*logits\[None\]"),
        (LOGITS.long(), LABELS, "got torch.int64"),
        (LOGITS[..., :1], LABELS * 0, r"two classes, got \[3, 4, 1\]"),
        (changed(math.nan), LABELS, "1 of 12 rows are NaN or infinite, the first at head 1, input 2"),
        (changed(math.inf), LABELS, "Did training diverge"),
    ],
)
def test_logits_and_labels_have_to_fit(
    metric: Callable[..., object], logits: torch.Tensor, labels: torch.Tensor, said: str
) -> None:
    with pytest.raises(EvaluationError, match=said):
        metric(logits, labels)


@pytest.mark.parametrize("name", WITH_LABELS)
def test_metrics_of_a_vote_refuse_what_is_none(name: str) -> None:
    metric = getattr(evaluation, name)
    with pytest.raises(EvaluationError, match=r"a label for each of 4 inputs"):
        metric(VOTED, LABELS[:2])
    with pytest.raises(EvaluationError, match=r"Vote over heads first"):
        metric(LOGITS, LABELS)
    with pytest.raises(EvaluationError, match="These look like logits"):
        metric(torch.randn(4, 5) * 9, LABELS)
    with pytest.raises(EvaluationError, match="NaN"):
        metric(VOTED * math.nan, LABELS)
    with pytest.raises(EvaluationError, match="Is the split empty"):
        metric(VOTED[:0], LABELS[:0])


def test_a_class_may_be_ruled_out_but_not_all() -> None:
    assert evaluate(changed(-math.inf), LABELS)["accuracy_prob"] >= 0
    logits = LOGITS.clone()
    logits[0, 1] = -math.inf
    with pytest.raises(EvaluationError, match="head 0, input 1"):
        evaluate(logits, LABELS)


def test_an_empty_validation_split() -> None:
    with pytest.raises(EvaluationError, match="the validation split is empty"):
        evaluation.fit_temperature(LOGITS[:, :0], LABELS[:0])
    with pytest.raises(EvaluationError, match="Is the split empty"):
        evaluate(LOGITS[:, :0], LABELS[:0])


def test_data_sets_of_different_classes_have_no_auroc() -> None:
    with pytest.raises(EvaluationError, match=r"the same classes; got \[4, 5\] and \[2, 3\]"):
        evaluation.ood_auroc(VOTED, torch.full((2, 3), 1 / 3).log())


def test_cka_needs_the_same_inputs() -> None:
    with pytest.raises(EvaluationError, match="got features of 4, 3 inputs"):
        evaluation.linear_cka(torch.zeros(4, 2), torch.zeros(3, 2))
    with pytest.raises(EvaluationError, match="two or more inputs"):
        evaluation.linear_cka(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(EvaluationError, match="NaN"):
        evaluation.linear_cka(torch.zeros(2, 2), torch.full((2, 2), math.nan))
    with pytest.raises(EvaluationError, match="2 or more; got 1"):
        evaluation.mean_cka([torch.zeros(4, 2)])


def test_corruptions_need_the_same_severities() -> None:
    with pytest.raises(EvaluationError, match=r"'fog': \[1\], 'blur': \[2\]"):
        evaluation.mean_by_severity({"fog": {1: 0.5}, "blur": {2: 0.5}})
    with pytest.raises(EvaluationError, match=r"corruption 'fog' 1: the logits"):
        evaluation.corruption_accuracy({"fog": {1: changed(math.nan)}}, LABELS)


def test_errors_are_those_of_recipes() -> None:
    assert issubclass(EvaluationError, RecipeError)
    assert issubclass(EvaluationError, ValueError)
    assert Predictions(LOGITS, LABELS).labels is LABELS


def test_heavy_libraries_are_imported_when_they_are_needed() -> None:
    heavy = ("matplotlib", "torchmetrics", "sklearn", "scipy", "lm_eval", "transformers", "pandas", "datasets")
    code = f"import sys, recipes.evaluation; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
