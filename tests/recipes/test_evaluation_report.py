"""Figures as PNG files, and the page of one run."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from recipes.evaluation import (
    METRICS,
    EvaluationError,
    Evidence,
    Perplexity,
    Plot,
    Predictions,
    after_vote,
    blocks_plot,
    calibration_bins,
    corruption_plot,
    ensemble_size_plot,
    evaluate,
    fit_temperature,
    looks,
    mean_probability,
    ood_auroc,
    reliability_diagram,
    risk_coverage_plot,
    sparsity_plot,
    training_plot,
    write_run_report,
)
from recipes.evaluation._merge import merged

LOOK = looks(["a & b", "c"])
SWEEP = {"a & b": {2: [0.7, 0.72], 8: [0.8, 0.82], 4: [0.75, 0.75]}, "c": {2: [0.6]}}
HISTORY = [
    {"epoch": 1, "validation_accuracy": 0.2, "validation_disagreement": 0.5},
    {"epoch": 2, "validation_accuracy": 0.4, "validation_disagreement": 0.3},
]


def predictions(seed: int, heads: int = 3, count: int = 60) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    logits = 2 * torch.randn(heads, count, 4, generator=generator)
    logits[:, torch.arange(count), labels] += 1.5
    return Predictions(logits, labels)


TEST = predictions(0)
VOTED = (mean_probability(TEST.logits), TEST.labels)
PLOTS: dict[str, Callable[[], Plot]] = {
    "reliability": lambda: reliability_diagram({"a & b": calibration_bins(*VOTED), "c": [(0.9, 0.8, 20)]}, LOOK),
    "risk-coverage": lambda: risk_coverage_plot({"a & b": VOTED}, LOOK),
    "corruption": lambda: corruption_plot({"a & b": {1: 0.8, 5: 0.4}, "c": {1: 0.7, 5: 0.3}}, LOOK, clean=0.9),
    "training": lambda: training_plot(HISTORY),
    "blocks": lambda: blocks_plot(SWEEP, LOOK),
    "sparsity": lambda: sparsity_plot(SWEEP, LOOK),
    "ensemble-size": lambda: ensemble_size_plot(SWEEP, {"a & b": {2: 0.5, 4: 0.9, 8: 1.7}}, LOOK),
}


def drawn(plot: Plot) -> Figure:
    figure = Figure()
    plot.draw(figure)
    return figure


def lines(plot: Plot, axes: int = 0) -> dict[str, tuple[list[float], list[float]]]:
    """The data of every labelled line."""
    found: dict[Any, Any] = {line.get_label(): line for line in drawn(plot).axes[axes].get_lines()}
    for container in drawn(plot).axes[axes].containers:
        found[container.get_label()] = container[0]  # type: ignore[index]
    return {label: (list(line.get_xdata()), list(line.get_ydata())) for label, line in found.items()}


@pytest.mark.parametrize("name", PLOTS)
def test_plots_are_png_files_of_their_name(name: str, tmp_path: Path) -> None:
    file = PLOTS[name]().save(tmp_path, dpi=80)
    assert file == tmp_path / f"{name}.png"
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert image.width > 300
        extrema: Any = image.convert("L").getextrema()
        assert extrema[0] < 100 < extrema[1]  # something is drawn


def test_sweeps_show_mean_and_spread_in_order() -> None:
    for plot in (PLOTS["blocks"](), PLOTS["sparsity"](), PLOTS["ensemble-size"]()):
        xs, ys = lines(plot)["a & b"]
        assert xs == [2, 4, 8]
        assert ys == pytest.approx([0.71, 0.75, 0.81])
        (spread,) = [c for c in drawn(plot).axes[0].containers if c.get_label() == "a & b"]
        (bars,) = spread[2]  # type: ignore[index]
        heights = [top - bottom for (_, bottom), (_, top) in (segment for segment in bars.get_segments())]
        assert heights == pytest.approx([2 * 0.02 / math.sqrt(2), 0, 2 * 0.02 / math.sqrt(2)])
    assert lines(PLOTS["ensemble-size"](), axes=1)["a & b"] == ([2, 4, 8], [0.5, 0.9, 1.7])


@pytest.mark.parametrize("sizes", [(3,), (1, 2, 5)])
def test_ticks_are_the_sizes_that_were_measured(sizes: tuple[int, ...]) -> None:
    accuracies = {"c": {size: [0.5] for size in sizes}}
    figure = drawn(ensemble_size_plot(accuracies, {"c": dict.fromkeys(sizes, 1.0)}, LOOK))
    for axes in figure.axes:
        assert list(axes.get_xticks()) == list(sizes)


def test_training_plot_has_accuracy_left_and_disagreement_right() -> None:
    left, right = drawn(PLOTS["training"]()).axes
    assert list(left.get_lines()[0].get_ydata()) == [0.2, 0.4]  # type: ignore[arg-type]
    assert list(right.get_lines()[0].get_ydata()) == [0.5, 0.3]  # type: ignore[arg-type]
    assert (left.get_ylabel(), right.get_ylabel()) == ("validation accuracy", "prediction disagreement")


def test_risk_coverage_of_many_inputs_is_thinned_out_but_ends_at_full_coverage() -> None:
    big = predictions(1, count=5000)
    voted = mean_probability(big.logits)
    ((label, (xs, ys)),) = lines(risk_coverage_plot({"c": (voted, big.labels)}, LOOK)).items()
    assert len(xs) <= 500
    assert xs[0] == 1.0
    assert ys[0] == pytest.approx(1 - evaluate(*big)["accuracy_prob"])
    assert label == f"c, AURC {evaluate(*big)['aurc_prob']:.4f}"


def test_corruption_plot_joins_severities() -> None:
    found = lines(PLOTS["corruption"]())
    assert found["a & b"] == ([1, 5], [0.8, 0.4])
    assert found["clean"][1] == [0.9, 0.9]


def test_plots_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(EvaluationError, match="'c' has no run at 4"):
        blocks_plot({"c": {4: []}}, LOOK)
    with pytest.raises(EvaluationError, match="got 0 rows"):
        training_plot([])
    with pytest.raises(EvaluationError, match="got 1 rows without validation_disagreement"):
        training_plot([{"epoch": 1, "validation_accuracy": 0.5}])


# --- the page


def everything() -> Evidence:
    return Evidence(
        "NeuroTrails <seed 0>",
        lead="On four classes & more.",
        test=TEST,
        validation=predictions(2),
        outside={"noise": predictions(3).logits / 4},
        corrupted={"fog": {1: 0.8, 2: 0.5}, "blur": {1: 0.6, 2: 0.3}},
        features={"layer4.1": [TEST.logits[m] ** 2 for m in range(3)]},
        history=HISTORY,
        perplexity={"wikitext2": Perplexity(20.0, 21.0, (22.0, 23.0, 24.0), 0.25, 1000)},
        costs=[("parameters", "1.2M")],
        settings=[("command", "python -m recipes run table-2")],
        plots=[(PLOTS["blocks"](), "Blocks < 12.")],
    )


def test_a_page_has_all_sections_and_nothing_outside_of_it(tmp_path: Path) -> None:
    file = write_run_report(tmp_path / "run", everything())
    page = file.read_text(encoding="utf-8")
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Test set, 60 inputs",
        "Language modelling",
        "Diversity of the heads",
        "Calibration",
        "Temperature scaling",
        "Out-of-distribution detection",
        "Corrupted inputs",
        "Training",
        "Further figures",
        "Cost",
        "How to get this again",
    ]
    assert "NeuroTrails &lt;seed 0&gt;" in page
    assert "Blocks &lt; 12." in page
    assert not re.search(r"<(?:script|link|iframe)\b|@import|url\(", page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 5
    files = {path.stem: path.read_bytes() for path in file.parent.glob("*.png")}
    assert set(files) == {"reliability", "risk-coverage", "corruption", "training", "blocks"}
    for source in sources:
        kind, data = source.split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) in files.values()
        Image.open(io.BytesIO(base64.b64decode(data))).verify()


def test_the_numbers_of_the_page_are_those_of_the_metrics(tmp_path: Path) -> None:
    known = everything()
    file = write_run_report(tmp_path, known)
    numbers = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    measured = evaluate(*TEST)
    assert numbers["test"] == pytest.approx(measured)
    assert len(numbers["heads"]) == 3
    assert numbers["ood"]["noise"]["max_probability"] == pytest.approx(
        ood_auroc(VOTED[0], mean_probability(known.outside["noise"]))
    )
    assert numbers["corruption"]["mean"] == pytest.approx({"1": 0.7, "2": 0.4})
    temperature = fit_temperature(*predictions(2), mean_probability, after_vote)
    assert numbers["temperature"]["after_prob"]["temperature"] == pytest.approx(temperature.value)
    assert numbers["temperature"]["after_prob"]["accuracy"] == pytest.approx(measured["accuracy_prob"])
    assert numbers["perplexity"]["wikitext2"]["heads"] == [22, 23, 24]
    assert set(numbers["cka"]) == {"layer4.1", "logits"}
    page = file.read_text(encoding="utf-8")
    for value in (measured["nll_logit"], measured["q_statistic"], measured["brier_prob"], temperature.value):
        assert f">{value:.4f}<" in page


def test_a_single_network_has_a_page_without_diversity(tmp_path: Path) -> None:
    history = [{**row, "validation_disagreement": math.nan} for row in HISTORY]
    page = write_run_report(tmp_path, Evidence("Single", test=predictions(0, heads=1), history=history)).read_text()
    assert "Diversity" not in page
    assert "Training" not in page
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["test"]["disagreement"] is None


def test_bad_evidence_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    twice = [(PLOTS["blocks"](), "one"), (PLOTS["blocks"](), "two")]
    unequal = {"a": Perplexity(2.0, 2.0, (2.0,), math.nan, 1), "b": Perplexity(2.0, 2.0, (2.0, 2.0), 0.0, 1)}
    for known, said in (
        (Evidence("Nothing"), "nothing is known of the run"),
        (Evidence("Twice", plots=twice), "two figures are called blocks"),
        (Evidence("Heads", perplexity=unequal), r"\[1, 2\] heads"),
        (Evidence("Empty", test=TEST, validation=Predictions(TEST.logits[:, :0], TEST.labels[:0])), "split is empty"),
        (Evidence("NaN", test=Predictions(TEST.logits * math.nan, TEST.labels)), "Did training diverge"),
    ):
        with pytest.raises(EvaluationError, match=said):
            write_run_report(folder, known)
    assert not folder.exists()


class TestEarlierNumbers:
    def test_the_same_measure_replaces_itself_only(self) -> None:
        earlier = {"test": {"nll": 1.0}, "ood": {"a": {"x": 0.5}, "b": {"x": 0.6}}, "heads": [1, 2]}
        new = {"test": {"nll": 2.0}, "ood": {"b": {"x": 0.7}}, "heads": [3]}
        assert merged(earlier, new) == {"test": {"nll": 2.0}, "ood": {"a": {"x": 0.5}, "b": {"x": 0.7}}, "heads": [3]}
        assert merged({}, new) == new

    def test_means_are_of_all_that_was_measured(self) -> None:
        earlier = {"corruption": {"fog": {"1": 0.5, "2": 0.4}, "mean": {"1": 0.5, "2": 0.4}}}
        new = {"corruption": {"snow": {"2": 0.2}, "mean": {"2": 0.2}}}
        assert merged(earlier, new)["corruption"]["mean"] == {"2": pytest.approx(0.3)}
        apart = merged(earlier, {"corruption": {"snow": {"5": 0.2}, "mean": {"5": 0.2}}})["corruption"]
        assert apart == {"fog": {"1": 0.5, "2": 0.4}, "snow": {"5": 0.2}}
        assert merged({"tasks": {"a": None, "average": None}}, {"tasks": {"b": 0.1, "average": 0.1}}) == {
            "tasks": {"a": None, "b": 0.1}
        }

    def test_in_the_file(self, tmp_path: Path) -> None:
        write_run_report(tmp_path, Evidence("one", further={"sketch": {"nll": 1.5}}))
        earlier = json.loads((tmp_path / METRICS).read_text())
        page = write_run_report(tmp_path, Evidence("one", further={"tasks": {"piqa": 0.5}}), earlier).read_text()
        assert json.loads((tmp_path / METRICS).read_text()) == {"sketch": {"nll": 1.5}, "tasks": {"piqa": 0.5}}
        assert "accuracy on piqa" in page
        assert not list(tmp_path.glob("*.new"))
