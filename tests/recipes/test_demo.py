from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fxsplit
import recipes._checks
import recipes._demo
from recipes.__main__ import main
from recipes._checks import Check, exports, relative_error, reloads, run_onnx
from recipes._demo import Job, demo, factory, load_data, plan_all, run_job
from recipes._errors import RecipeError
from recipes._settings import Settings
from recipes.evaluation import head_logits

SYSTEMS = ["single", "ensemble", "treenet", "neurotrails"]


def tiny(out: Path) -> Settings:
    return replace(Settings(out=out).quick(), epochs=1)


@dataclass(frozen=True)
class Demo:
    settings: Settings
    passed: bool
    printed: str

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.settings.out / name).open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def page(self) -> str:
        return (self.settings.out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """One demo of a single epoch, shared by the tests below."""
    out = tmp_path_factory.mktemp("demo")
    settings = tiny(out)
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *args, **kwargs: lines.append(" ".join(map(str, args))))
        passed = demo(settings)
    return Demo(settings, passed, "\n".join(lines))


def test_the_demo_passes_its_checks_and_leaves_all_files(finished: Demo) -> None:
    assert finished.passed
    names = {path.name for path in finished.settings.out.iterdir()}
    assert names >= {"results.csv", "summary.csv", "curves.csv", "topology.csv", "report.html"}
    assert names >= {"neurotrails.safetensors", "neurotrails.onnx"}


def test_results_have_a_row_per_system_and_seed(finished: Demo) -> None:
    rows = finished.rows("results.csv")
    assert [row["system"] for row in rows] == SYSTEMS
    assert {row["seed"] for row in rows} == {"0"}
    expected = {f"{metric}_{vote}" for metric in ("accuracy", "nll", "ece") for vote in ("prob", "logit")}
    expected |= {"disagreement", "head_accuracy", "parameters", "parameters_nonzero", "seconds"}
    expected |= {f"inference_flops_{convention}" for convention in ("dense", "uniform", "masks")}
    expected |= {"training_flops", "training_flops_ratio", "heads", "networks", "epochs", "steps", "label"}
    assert set(rows[0]) == expected | {"system", "seed"}


def test_results_are_numbers_of_the_right_size(finished: Demo) -> None:
    single, ensemble, treenet, neurotrails = finished.rows("results.csv")
    for row in (single, ensemble, treenet, neurotrails):
        assert 0 <= float(row["accuracy_prob"]) <= 1
        assert float(row["nll_prob"]) > 0
    assert single["disagreement"] == "nan"
    assert float(ensemble["disagreement"]) > 0
    assert float(ensemble["parameters"]) == 3 * float(single["parameters"])
    assert float(single["parameters"]) < float(treenet["parameters"]) < float(ensemble["parameters"])
    assert treenet["parameters"] == treenet["parameters_nonzero"] == neurotrails["parameters"]
    assert float(neurotrails["parameters_nonzero"]) < float(treenet["parameters"]) / 2
    assert float(neurotrails["inference_flops_uniform"]) < float(neurotrails["inference_flops_masks"])
    assert float(treenet["inference_flops_dense"]) == float(treenet["inference_flops_masks"])


def test_summary_and_curves(finished: Demo) -> None:
    results, summary = finished.rows("results.csv"), finished.rows("summary.csv")
    assert [row["system"] for row in summary] == SYSTEMS
    for one, mean in zip(results, summary, strict=True):
        assert float(mean["accuracy_prob_mean"]) == float(one["accuracy_prob"])
        assert mean["accuracy_prob_std"] == "nan"
    for row in results:
        curve = [point for point in finished.rows("curves.csv") if point["system"] == row["system"]]
        assert [int(point["epoch"]) for point in curve] == list(range(1, int(row["epochs"]) + 1))
        assert float(curve[-1]["training_flops_ratio"]) == pytest.approx(float(row["training_flops_ratio"]))


def test_topology_updates_reach_trunk_and_every_head(finished: Demo) -> None:
    rows = finished.rows("topology.csv")
    assert {row["component"] for row in rows} == {"trunk", "heads.0", "heads.1", "heads.2"}
    assert {row["system"] for row in rows} == {"neurotrails"}
    assert all(int(row["replaced"]) > 0 for row in rows if row["step"] == rows[0]["step"])


def test_the_page_is_self_contained_and_complete(finished: Demo) -> None:
    page = finished.page
    assert not re.search(r'\b(?:src|href)\s*=\s*["\']?(?!["\']?#)', page)
    assert not re.search(r"<(?:script|link|iframe|img)\b|@import|url\((?!#)", page)
    for text in ("Single dense", "Full ensemble (M=3)", "TreeNet (M=3)", "NeuroTrails (M=3, S=0.8)", "RigL", "torch 2"):
        assert text in page
    # Eight figures and the drawing of the network.
    assert page.count("<svg") >= 9
    assert "FAIL" not in page


def test_the_terminal_shows_budget_table_and_checks(finished: Demo) -> None:
    printed = finished.printed
    assert "One budget rule for all" in printed
    assert "TreeNet (M=3)" in printed
    assert "no ranking" in printed  # a single seed
    assert printed.count("pass  ") == 2


def test_a_run_follows_from_its_seed(tmp_path: Path) -> None:
    settings = tiny(tmp_path)
    planned = plan_all(settings)["neurotrails"]
    runs = [run_job(Job(settings, "neurotrails", seed, planned), lambda units: None).logits for seed in (1, 1, 2)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


def test_too_few_steps_for_an_update(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="would train for 5 steps, but its first topology update comes after 50"):
        plan_all(replace(tiny(tmp_path), every=50))


def test_a_changed_network_fails_the_check_of_loading(finished: Demo) -> None:
    data, file = load_data(finished.settings), finished.settings.out / "neurotrails.safetensors"
    net = fxsplit.load(file, factory(finished.settings)())
    logits = head_logits(net, data.test.x)
    assert reloads(file, factory(finished.settings), data.test.x, logits)[1].passed
    logits[0, 0, 0] += 1e-3
    check = reloads(file, factory(finished.settings), data.test.x, logits)[1]
    assert not check.passed
    assert f"1 of {logits.numel()} logits differ" in check.detail
    assert str(check).startswith("FAIL")


def test_a_wrong_export_fails_its_check(finished: Demo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def slightly_off(file: Path, x: torch.Tensor) -> np.ndarray:
        right = run_onnx(file, x)
        return right + np.abs(right).max() / 1000

    monkeypatch.setattr(recipes._checks, "run_onnx", slightly_off)
    net = fxsplit.load(finished.settings.out / "neurotrails.safetensors", factory(finished.settings)())
    check = exports(net, tmp_path / "net.onnx", load_data(finished.settings).test.x)
    assert not check.passed
    assert "1.0e-03" in check.detail


def test_an_export_that_is_refused_fails_its_check(
    finished: Demo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object) -> None:
        raise fxsplit.ExportError("the outputs differ")

    monkeypatch.setattr(fxsplit, "export_onnx", refuse)
    net = fxsplit.load(finished.settings.out / "neurotrails.safetensors", factory(finished.settings)())
    check = exports(net, tmp_path / "net.onnx", load_data(finished.settings).test.x)
    assert str(check).startswith("FAIL")
    assert "the outputs differ" in check.detail


def test_relative_error() -> None:
    assert relative_error(np.array([1.0, -7.0]), np.array([1.0, -8.0])) == 0.125
    assert relative_error(np.zeros(2), np.ones(3)) == float("inf")


def test_a_failed_check_is_the_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr(recipes._demo, "demo", lambda settings: seen.append(settings) is not None)
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    monkeypatch.setattr(recipes._demo, "demo", lambda settings: True)
    assert main(["demo", "--seeds", "2", "--out", str(tmp_path)]) == 0
    assert seen[0].limit is not None


def test_checks_print_their_outcome() -> None:
    assert str(Check("a", True, "0 of 3")) == "pass  a: 0 of 3"
    assert torch.get_num_threads() == 1
