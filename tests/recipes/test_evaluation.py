from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recipes.evaluation import EvaluationError, calibration_bins, disagreement, evaluate, mean_logit, mean_probability


def logits_of(*heads: list[list[float]]) -> Tensor:
    """Logits from probabilities, written head by head."""
    return torch.tensor(heads).log()


TWO_HEADS = logits_of(
    [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]],
    [[0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9]],
)
LABELS = torch.tensor([0, 0, 1, 0])


def test_mean_probability_averages_probabilities() -> None:
    expected = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    torch.testing.assert_close(mean_probability(TWO_HEADS).exp(), expected)


def test_mean_logit_is_the_normalised_geometric_mean() -> None:
    # First input: sqrt(.9 * .7) against sqrt(.1 * .3), normalised.
    good, bad = math.sqrt(0.63), math.sqrt(0.03)
    assert mean_logit(TWO_HEADS)[0, 0].exp().item() == pytest.approx(good / (good + bad))


def test_evaluate_against_hand_computed_values() -> None:
    measured = evaluate(TWO_HEADS, LABELS)
    # Votes 0, 1, 1, 1 with labels 0, 0, 1, 0.
    assert measured["accuracy_prob"] == 0.5
    assert measured["nll_prob"] == pytest.approx(-sum(map(math.log, (0.8, 0.4, 0.7, 0.2))) / 4)
    # Confidences .8, .6, .7, .8 lie in bins 12, 9, 10, 12 of 15: right 1 0 1 0, so |.5 - .8| / 2 + .6 / 4 + .3 / 4.
    assert measured["ece_prob"] == pytest.approx(0.5 * 0.3 + 0.25 * 0.6 + 0.25 * 0.3, abs=1e-6)
    # Heads predict 0 0 1 1 and 0 1 1 1: they differ on one input of four.
    assert measured["disagreement"] == 0.25
    assert measured["head_accuracy"] == pytest.approx((0.75 + 0.5) / 2)


def test_disagreement_is_the_mean_over_pairs_without_the_zero_diagonal() -> None:
    one, other = [[1.0, 0.0]], [[0.0, 1.0]]
    assert disagreement(torch.tensor([one, one, other])) == pytest.approx(2 / 3)
    assert disagreement(torch.tensor([one, one, one])) == 0.0


def test_disagreement_of_one_head_is_no_number() -> None:
    with pytest.raises(EvaluationError, match=r"needs logits \[M, N, K\] of M >= 2 heads; got M=1"):
        disagreement(torch.zeros(1, 4, 2))
    measured = evaluate(torch.zeros(1, 4, 2), torch.zeros(4, dtype=torch.long))
    assert all(math.isnan(measured[name]) for name in ("disagreement", "any_conflict", "pairwise_kl", "q_statistic"))


def test_calibration_bins_give_the_same_ece_as_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 500, 10, generator=generator)
    labels = torch.randint(0, 10, (500,), generator=generator)
    bins = calibration_bins(mean_probability(logits), labels)
    by_hand = sum(count / 500 * abs(accuracy - confidence) for confidence, accuracy, count in bins)
    assert sum(count for _, _, count in bins) == 500
    assert by_hand == pytest.approx(evaluate(logits, labels)["ece_prob"], abs=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 7])
def test_saturated_predictions_stay_probabilities(heads: int) -> None:
    """Rounding can lift a probability above 1, and torchmetrics would silently take the whole batch for logits."""
    logits = torch.tensor([[[90.0, 0.0], [90.0, 0.0], [0.0, 8.0]]]).repeat(heads, 1, 1)
    measured = evaluate(logits, torch.tensor([0, 1, 1]))
    confidence = (2 + 1 / (1 + math.exp(-8))) / 3
    assert measured["ece_prob"] == pytest.approx(confidence - 2 / 3, abs=1e-5)


def test_certain_predictions_share_the_top_bin() -> None:
    # One certain and wrong, one at .95 and right, in one bin of 15: |.5 - .975|, not .5 * 1 + .5 * .05.
    logits = torch.tensor([[[200.0, 0.0], [math.log(0.95), math.log(0.05)]]])
    assert evaluate(logits, torch.tensor([1, 0]))["ece_prob"] == pytest.approx(0.475, abs=1e-5)
