"""Each metric against values counted by hand, and against another implementation of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recipes.evaluation import (
    AGGREGATIONS,
    accuracy,
    any_conflict,
    aurc,
    brier,
    calibration_error,
    cka_matrix,
    corruption_accuracy,
    disagreement,
    diversity,
    double_fault,
    entropy,
    evaluate,
    evaluate_heads,
    linear_cka,
    max_probability,
    mean_by_severity,
    mean_cka,
    mean_logit,
    mean_probability,
    nll,
    ood_auroc,
    pairwise_kl,
    q_statistic,
    released_disagreement,
    risk_coverage,
)

# Three heads, five inputs, two classes; the heads choose 0 0 1 1 0, 0 1 1 0 0 and 0 0 0 0 1.
CHOICES = [[0, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]
THREE = torch.nn.functional.one_hot(torch.tensor(CHOICES), 2).float()
FIVE = torch.tensor([0, 0, 1, 0, 1])


def case(seed: int, heads: int = 3, count: int = 200, classes: int = 5, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = scale * torch.randn(heads, count, classes, generator=generator, dtype=torch.double)
    logits[:, torch.arange(count), labels] += 1.5
    return logits, labels


def voted(seed: int) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Log-probabilities and labels, and both for numpy: probabilities and labels."""
    logits, labels = case(seed)
    log_probabilities = mean_probability(logits)
    return log_probabilities, labels, log_probabilities.exp().numpy(), labels.numpy()


# --- votes


@pytest.mark.parametrize("seed", range(3))
def test_votes_against_numpy(seed: int) -> None:
    logits, _ = case(seed)
    softmax = scipy.special.softmax(logits.numpy(), axis=-1)
    np.testing.assert_allclose(mean_probability(logits).exp(), softmax.mean(0), rtol=1e-10)
    geometric = scipy.stats.gmean(softmax, axis=0)
    np.testing.assert_allclose(mean_logit(logits).exp(), geometric / geometric.sum(-1, keepdims=True), rtol=1e-10)


def test_the_votes_may_choose_differently() -> None:
    # One head is sure of class 1, two lean to class 0: the mean logit follows the sure one, the mean probability not.
    logits = torch.tensor([[[0.0, 9.0]], [[2.0, 0.0]], [[2.0, 0.0]]])
    assert mean_probability(logits).argmax() == 0
    assert mean_logit(logits).argmax() == 1


# --- one prediction per input


@pytest.mark.parametrize("seed", range(3))
def test_quality_against_scikit_learn(seed: int) -> None:
    log_probabilities, labels, p, y = voted(seed)
    assert accuracy(log_probabilities, labels) == pytest.approx(sklearn.metrics.accuracy_score(y, p.argmax(1)))
    assert nll(log_probabilities, labels) == pytest.approx(sklearn.metrics.log_loss(y, p, labels=range(5)), rel=1e-9)
    one_hot = np.eye(5)[y]
    assert brier(log_probabilities, labels) == pytest.approx(
        5 * sklearn.metrics.mean_squared_error(one_hot, p), rel=1e-9
    )


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_against_numpy(seed: int) -> None:
    log_probabilities, labels, p, y = voted(seed)
    confidence, right = p.max(1), p.argmax(1) == y
    bins = np.minimum((confidence * 15).astype(int), 14)
    expected = sum(
        (bins == b).mean() * abs(right[bins == b].mean() - confidence[bins == b].mean()) for b in np.unique(bins)
    )
    assert calibration_error(log_probabilities, labels) == pytest.approx(expected, abs=1e-6)


def test_brier_by_hand() -> None:
    # (.2, .3, .5) for class 2 and for class 0: .04 + .09 + .25 and .64 + .09 + .25.
    log_probabilities = torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]]).log()
    assert brier(log_probabilities, torch.tensor([2, 0])) == pytest.approx((0.38 + 0.98) / 2)


def test_risk_coverage_by_hand() -> None:
    # Confidences .9 (wrong), .8, .7 (right), .6 (wrong): risks 1, 1/2, 1/3, 1/2.
    log_probabilities = torch.tensor([[0.7, 0.3], [0.1, 0.9], [0.8, 0.2], [0.6, 0.4]]).log()
    coverage, risk = risk_coverage(log_probabilities, torch.tensor([0, 0, 0, 1]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 2])
    assert aurc(log_probabilities, torch.tensor([0, 0, 0, 1])) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_equal_confidences_count_as_the_mean_over_their_orders() -> None:
    log_probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.6, 0.4], [0.55, 0.45]]).log()
    log_probabilities[2] = log_probabilities[1].flip(0)
    labels = torch.tensor([0, 0, 0, 0, 1])
    orders = [[False, *middle, True] for middle in itertools.permutations([False, True, False])]
    expected = np.mean([np.mean(np.cumsum(order) / np.arange(1, 6)) for order in orders])
    assert aurc(log_probabilities, labels) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_aurc_against_a_loop(seed: int) -> None:
    log_probabilities, labels, p, y = voted(seed)
    order = np.argsort(-p.max(1))
    wrong = (p.argmax(1) != y)[order]
    assert aurc(log_probabilities, labels) == pytest.approx(np.mean([wrong[:n].mean() for n in range(1, len(y) + 1)]))


# --- out of distribution


@pytest.mark.parametrize("seed", range(3))
def test_ood_auroc_against_scikit_learn(seed: int) -> None:
    inside = mean_probability(case(seed, scale=3.0)[0])
    outside = mean_probability(case(seed + 9, scale=0.5, count=150)[0])
    both, foreign = torch.cat([inside, outside]).exp().numpy(), np.repeat([0, 1], [200, 150])
    by_max = sklearn.metrics.roc_auc_score(foreign, 1 - both.max(1))
    assert ood_auroc(inside, outside) == pytest.approx(by_max, abs=1e-6)
    by_entropy = sklearn.metrics.roc_auc_score(foreign, scipy.stats.entropy(both, axis=1))
    assert ood_auroc(inside, outside, entropy) == pytest.approx(by_entropy, abs=1e-6)


def test_ood_auroc_keeps_very_large_and_equal_scores_apart() -> None:
    # 40 nats and 41 would be the same after the sigmoid that torchmetrics applies to scores outside of [0, 1].
    score: Callable[[Tensor], Tensor] = lambda log_probabilities: torch.tensor([40.0, 41.0, 41.0, 42.0])  # noqa: E731
    half = torch.tensor([[0.5, 0.5]]).log()
    inside, outside = half.repeat(2, 1), half.repeat(2, 1)
    # Pairs: 41 against 40 wins, against 41 ties; 42 wins twice.
    assert ood_auroc(inside, outside, score) == pytest.approx(3.5 / 4)


def test_uncertainties_by_hand() -> None:
    log_probabilities = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log()
    assert max_probability(log_probabilities).tolist() == pytest.approx([math.log(2), 0])
    assert entropy(log_probabilities).tolist() == pytest.approx([1.5 * math.log(2), 0])


# --- pairs of heads


def test_disagreements_by_hand() -> None:
    # Heads 0 and 1 differ on 2 of 5 inputs, 0 and 2 on 3, 1 and 2 on 3; on all inputs but the first some two differ.
    assert disagreement(THREE) == pytest.approx((2 + 3 + 3) / 15)
    assert any_conflict(THREE) == pytest.approx(4 / 5)
    matrix = np.array([[np.mean(np.array(a) != b) for b in CHOICES] for a in CHOICES])
    assert released_disagreement(THREE) == pytest.approx(matrix.mean())
    assert released_disagreement(THREE) == pytest.approx(disagreement(THREE) * 2 / 3)


def test_q_statistic_and_double_fault_by_hand() -> None:
    # Right: 1 1 1 0 0, 1 0 1 1 0, 1 1 0 1 1.
    # Heads 0, 1: both 2, neither 1, one each way 1, 1: Q = (2 - 1) / 3. Heads 0, 2: 2, 0, 1, 2: (0 - 2) / 2 = -1.
    # Heads 1, 2: 2, 0, 1, 2: -1. Both wrong: 1, 0, 0 of 5.
    assert q_statistic(THREE, FIVE) == pytest.approx((1 / 3 - 1 - 1) / 3)
    assert double_fault(THREE, FIVE) == pytest.approx(1 / 15)


def test_pairs_whose_q_is_undefined_are_left_out() -> None:
    labels = torch.tensor([0, 0])
    right, half = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert math.isnan(q_statistic(torch.stack([right, right]), labels))
    # Two heads that are right and wrong together have Q = 1, and none with the head that is always right.
    assert q_statistic(torch.stack([right, half, half]), labels) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_pairs_against_numpy_and_scipy(seed: int) -> None:
    logits, labels = case(seed, heads=4)
    p = scipy.special.softmax(logits.numpy(), axis=-1)
    kl = [scipy.special.rel_entr(p[i], p[j]).sum(-1).mean() for i, j in itertools.permutations(range(4), 2)]
    assert pairwise_kl(logits) == pytest.approx(np.mean(kl), rel=1e-9)
    right = p.argmax(-1) == labels.numpy()
    tables = [
        sklearn.metrics.confusion_matrix(right[i], right[j], labels=[False, True])
        for i, j in itertools.combinations(range(4), 2)
    ]
    odds = [t[0, 0] * t[1, 1] / (t[0, 1] * t[1, 0]) for t in tables]
    assert q_statistic(logits, labels) == pytest.approx(np.mean([(o - 1) / (o + 1) for o in odds]))
    assert double_fault(logits, labels) == pytest.approx(np.mean([t[0, 0] / 200 for t in tables]))
    choices = p.argmax(-1)
    hamming = [sklearn.metrics.zero_one_loss(choices[i], choices[j]) for i, j in itertools.combinations(range(4), 2)]
    assert disagreement(logits) == pytest.approx(np.mean(hamming))
    assert any_conflict(logits) == pytest.approx(np.mean([len(set(column)) > 1 for column in choices.T]))


def test_classes_that_are_ruled_out_add_nothing_to_kl() -> None:
    certain, half = [0.0, -math.inf], [0.0, 0.0]
    assert pairwise_kl(torch.tensor([[certain], [certain]])) == 0.0
    assert pairwise_kl(torch.tensor([[certain], [half]])) == math.inf


# --- features


def hsic_cka(x: np.ndarray, y: np.ndarray) -> float:
    """CKA from Gram matrices and the centring matrix, as its definition has it."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    k, l = (centre @ (f @ f.T) @ centre for f in (x, y))  # noqa: E741
    return (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())


@pytest.mark.parametrize(("count", "widths"), [(40, (3, 7)), (12, (60, 50)), (30, (2, 400))])
def test_cka_against_its_definition(count: int, widths: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(count, width)) + 3 for width in widths)
    y[:, :2] += x[:, :2]
    found = linear_cka(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(hsic_cka(x, y), rel=1e-9)
    assert 0 < found < 1


def test_cka_ignores_rotation_scale_and_shift() -> None:
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.double))
    assert linear_cka(x, 3 * x @ rotation - 2) == pytest.approx(1.0)
    # Orthogonal features have nothing in common.
    one, other = torch.tensor([[1.0, 1, -1, -1], [1.0, -1, 1, -1]])
    assert linear_cka(one, other) == 0.0


def test_mean_cka_is_the_mean_off_the_diagonal() -> None:
    features = torch.randn(3, 20, 4, 2, generator=torch.Generator().manual_seed(0))
    matrix = cka_matrix(features)
    assert matrix.diagonal().tolist() == [1, 1, 1]
    pairs = [linear_cka(features[i], features[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert mean_cka(list(features)) == pytest.approx(np.mean(pairs))
    assert torch.equal(matrix, matrix.T)
    assert math.isnan(linear_cka(torch.ones(5, 2), features[0, :5, :, 0]))


# --- all at once


def test_evaluate_measures_both_votes_heads_and_pairs() -> None:
    logits, labels = case(0)
    measured = evaluate(logits, labels)
    for vote, aggregate in AGGREGATIONS.items():
        assert measured[f"brier_{vote}"] == brier(aggregate(logits), labels)
        assert measured[f"aurc_{vote}"] == aurc(aggregate(logits), labels)
    heads = evaluate_heads(logits, labels)
    assert measured["head_nll"] == pytest.approx(np.mean([head["nll"] for head in heads]))
    for number, head in enumerate(heads):
        assert head["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, logits[number].argmax(-1)))
        assert head["nll"] == pytest.approx(
            sklearn.metrics.log_loss(labels, logits[number].softmax(-1), labels=range(5))
        )
    assert {name: measured[name] for name in diversity(logits, labels)} == diversity(logits, labels)


def test_half_precision_is_measured_in_single() -> None:
    logits, labels = case(0)
    measured, half = evaluate(logits.float(), labels), evaluate(logits.bfloat16(), labels)
    assert half == evaluate(logits.bfloat16().float(), labels)
    assert half["nll_prob"] == pytest.approx(measured["nll_prob"], rel=1e-2)


def test_corruption_tables() -> None:
    logits, labels = case(0)
    noisy = {"noise": {2: case(1)[0], 1: logits}, "blur": {1: logits, 2: logits}}
    found = corruption_accuracy(noisy, labels)
    clean = accuracy(mean_probability(logits), labels)
    assert found["blur"] == {1: clean, 2: clean}
    assert list(found["noise"]) == [1, 2]
    assert found["noise"][2] == accuracy(mean_probability(case(1)[0]), labels)
    assert mean_by_severity(found)[2] == pytest.approx((clean + found["noise"][2]) / 2)
    by_logit = corruption_accuracy(noisy, labels, mean_logit)
    assert by_logit["noise"][1] == accuracy(mean_logit(logits), labels)


# --- what must not matter


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    heads, count, classes = draw(st.integers(2, 5)), draw(st.integers(1, 12)), draw(st.integers(2, 4))
    # Few levels, so that there are ties between classes and between inputs.
    levels = st.lists(st.integers(-3, 3), min_size=heads * count * classes, max_size=heads * count * classes)
    logits = torch.tensor(draw(levels), dtype=torch.double).reshape(heads, count, classes)
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    return logits, torch.tensor(labels)


def same(one: dict[str, float], other: dict[str, float], *ignored: str) -> bool:
    return all(
        math.isclose(one[name], other[name], rel_tol=1e-6, abs_tol=1e-6)
        or (math.isnan(one[name]) and math.isnan(other[name]))
        for name in one
        if not name.startswith(ignored)
    )


@settings(max_examples=25, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_inputs_does_not_matter(given_case: tuple[Tensor, Tensor], random: object) -> None:
    logits, labels = given_case
    order = torch.tensor(random.sample(range(len(labels)), len(labels)))  # type: ignore[attr-defined]
    assert same(evaluate(logits, labels), evaluate(logits[:, order], labels[order]))


@settings(max_examples=25, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_heads_does_not_matter(given_case: tuple[Tensor, Tensor], random: object) -> None:
    logits, labels = given_case
    # Distinct multiples of a tiny number: without ties, rounding in another order can't change a choice.
    logits = logits + torch.arange(logits[0].numel()).reshape(logits[0].shape) * 1e-4
    order = random.sample(range(len(logits)), len(logits))  # type: ignore[attr-defined]
    assert same(evaluate(logits, labels), evaluate(logits[order], labels))


@settings(max_examples=25, deadline=None)
@given(cases())
def test_heads_that_are_copies_have_no_diversity(given_case: tuple[Tensor, Tensor]) -> None:
    logits, labels = given_case
    measured = evaluate(logits[:1].expand(3, -1, -1), labels)
    assert measured["disagreement"] == measured["any_conflict"] == measured["pairwise_kl"] == 0
    assert math.isnan(measured["q_statistic"]) or measured["q_statistic"] == 1
    assert measured["double_fault"] == pytest.approx(1 - measured["head_accuracy"])
    single = evaluate(logits[:1], labels)
    assert same(single, measured, "disagreement", "any", "released", "pairwise", "q_", "double")


RANGES = {"accuracy": (0, 1), "nll": (0, math.inf), "ece": (0, 1), "brier": (0, 2), "aurc": (0, 1)}
PAIR_RANGES = {
    "disagreement": (0, 1),
    "any_conflict": (0, 1),
    "released_disagreement": (0, 1),
    "pairwise_kl": (-1e-12, math.inf),
    "q_statistic": (-1, 1),
    "double_fault": (0, 1),
}


@settings(max_examples=25, deadline=None)
@given(cases())
def test_metrics_lie_in_their_ranges(given_case: tuple[Tensor, Tensor]) -> None:
    measured = evaluate(*given_case)
    ranges = {f"{name}_{vote}": pair for name, pair in RANGES.items() for vote in AGGREGATIONS}
    ranges |= {f"head_{name}": pair for name, pair in RANGES.items()} | PAIR_RANGES
    assert set(measured) == set(ranges)
    for name, (low, high) in ranges.items():
        assert low <= measured[name] <= high or (name == "q_statistic" and math.isnan(measured[name])), name
    assert measured["disagreement"] <= measured["any_conflict"] + 1e-12
