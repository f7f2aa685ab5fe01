from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from recipes._tables import mean_std, summarise, table, verdicts, write_csv

METRICS = ("accuracy_prob", "nll_prob", "ece_prob", "accuracy_logit", "nll_logit", "ece_logit")


def row(system: str, seed: int, accuracy: float, nll: float = 0.5) -> dict[str, Any]:
    """One row of results, all equal but for what a test is about."""
    return {
        "system": system,
        "label": system.title(),
        "seed": seed,
        "networks": 1,
        "heads": 1,
        "epochs": 10,
        "steps": 80,
        **dict.fromkeys(METRICS, 0.1),
        "accuracy_prob": accuracy,
        "nll_prob": nll,
        "disagreement": math.nan,
        "head_accuracy": accuracy,
        "parameters": 1000,
        "parameters_nonzero": 200,
        "inference_flops_dense": 100,
        "inference_flops_uniform": 20,
        "inference_flops_masks": 30,
        "training_flops": 900,
        "training_flops_ratio": 0.9,
        "seconds": 1.0 + seed,
    }


def test_mean_and_sample_standard_deviation() -> None:
    assert mean_std([2.0, 4.0, 6.0]) == (4.0, 2.0)
    mean, std = mean_std([2.0])
    assert mean == 2.0
    assert math.isnan(std)


def test_summary_has_one_row_per_system() -> None:
    one, two = summarise([row("a", 0, 0.9), row("a", 1, 0.8), row("b", 0, 0.7), row("b", 1, 0.7)])
    assert (one["system"], one["seeds"], one["parameters"]) == ("a", 2, 1000)
    assert one["accuracy_prob_mean"] == pytest.approx(0.85)
    assert one["accuracy_prob_std"] == pytest.approx(0.1 / math.sqrt(2))
    assert one["seconds_mean"] == 1.5
    assert two["accuracy_prob_std"] == 0.0
    assert "seed" not in one


def test_table_shows_mean_and_spread_and_no_number_where_there_is_none() -> None:
    headers, cells = table(summarise([row("a", 0, 0.9), row("a", 1, 0.8)]))
    shown = dict(zip(headers, cells[0], strict=True))
    assert shown["accuracy %"] == "85.00 ± 7.07"
    assert shown["disagree %"] == "-"
    assert shown["infer. FLOPs, uniform"] == "0.20x"
    assert shown["infer. FLOPs, masks"] == "0.30x"
    assert shown["train FLOPs"] == "0.90x"


def test_verdict_names_the_best_and_those_within_the_spread() -> None:
    rows = [row("a", 0, 0.90), row("a", 1, 0.92), row("b", 0, 0.93), row("b", 1, 0.93), row("c", 0, 0.5)]
    accuracy, nll, _ = verdicts(summarise([*rows, row("c", 1, 0.5)]))
    # a: .91 +- .0141, b: .93 +- 0: the means are .02 apart, more than the spread.
    assert accuracy == "accuracy %: best B with 93.00 ± 0.00; every other system differs by more than the seed spread."
    assert "within the seed spread of it: B with" in nll


def test_verdict_when_spreads_overlap() -> None:
    rows = [row("a", 0, 0.90), row("a", 1, 0.92), row("b", 0, 0.91), row("b", 1, 0.93)]
    accuracy, *_ = verdicts(summarise(rows))
    assert "best B" in accuracy
    assert "within the seed spread of it: A with 91.00 ± 1.41" in accuracy


def test_verdict_prefers_small_losses() -> None:
    rows = [row("a", seed, 0.9, nll=0.3 + 0.01 * seed) for seed in range(2)]
    rows += [row("b", seed, 0.9, nll=0.1 + 0.01 * seed) for seed in range(2)]
    _, nll, _ = verdicts(summarise(rows))
    assert nll.startswith("NLL: best B")


def test_a_single_seed_is_no_ranking() -> None:
    accuracy, *_ = verdicts(summarise([row("a", 0, 0.9), row("b", 0, 0.8)]))
    assert "no ranking" in accuracy


def test_csv_keeps_full_precision(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", [{"a": 1 / 3, "b": "x, y"}])
    with (tmp_path / "rows.csv").open(encoding="utf-8") as file:
        (read,) = csv.DictReader(file)
    assert float(read["a"]) == 1 / 3
    assert read["b"] == "x, y"
