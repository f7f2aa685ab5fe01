"""The comparison of engines: what it measures, what it refuses to measure, and how it shows both."""

import csv
import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import benchmarks.inference
from benchmarks.inference import _floors, _rows, _table, _timing
from benchmarks.inference.__main__ import main
from benchmarks.inference._case import Case, first_tensor, relative_error
from benchmarks.inference._deepsparse import PYTHON, DeepSparse
from benchmarks.inference._engine import InProcess, Local, Runner, ready
from benchmarks.inference._errors import BenchmarkError, EngineError
from benchmarks.inference._nets import catalogue, choose, single_of
from benchmarks.inference._onnxruntime import OnnxRuntime
from benchmarks.inference._ours import Ours
from benchmarks.inference._plot import plot
from benchmarks.inference._torch_engines import Compiled, Eager

QUICK = ("--quick", "--repeat", "2", "--threads", "1")


class Lying(InProcess):
    """Torch, with one of its outputs off by a thousandth of the largest."""

    key, label, licence = "lying", "lying", "none"

    def version(self) -> str:
        return "0"

    def prepare(self, case: Case, threads: int) -> Runner:
        def off() -> Any:
            output = first_tensor(case.plain(case.inputs)).clone()
            output.view(-1)[3] += 1e-3 * output.abs().max()
            return output

        return ready(lambda: off, threads)


class Refusing(InProcess):
    """An engine that can't run sparse networks."""

    key, label, licence = "refusing", "refusing", "none"

    def version(self) -> str:
        return "0"

    def prepare(self, case: Case, threads: int) -> Runner:
        if case.net.sparsity:
            raise EngineError("no zeros, please")
        return Local(lambda: case.plain(case.inputs), threads, 0.0)


@pytest.fixture(scope="module", autouse=True)
def _in_haste() -> Iterator[None]:
    """Short turns, and no second try where other processes disturb: no test here is about the times themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_timing, "TURN", 0.002)
        patch.setattr(_timing, "PAUSE", 0.0)
        patch.setattr(_timing, "PATIENCE", 1)
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inference")
    nets = ("wrn-single", "wrn-ensemble", "wrn-erk-.8", "wrn-erk-.99")
    status = main([*QUICK, "--nets", *nets, "--out", str(folder)], [Ours(), OnnxRuntime(), Eager()])
    assert status == 0
    return folder


def test_there_is_one_row_per_engine_and_network(measured: Path) -> None:
    rows = _rows.read(measured / "results.csv")
    keys = [(row["net"], row["engine"]) for row in rows]
    nets = ("wrn-single", "wrn-ensemble", "wrn-erk-.8", "wrn-erk-.99")
    assert keys == [(net, engine) for net in nets for engine in ("sparsity", "onnxruntime", "torch")]
    for row in rows:
        assert row["status"] == "ok"
        assert 0 < row["fastest_ms"] <= row["p25_ms"] <= row["median_ms"] <= row["p75_ms"]
        assert row["throughput"] == pytest.approx(1000 / row["median_ms"])
        assert row["error"] < 1e-5
        assert row["reference"] == "float64"
        assert (row["rounds"], row["threads"], row["batch"]) == (2, 1, 1)
        assert row["against_onnxruntime_single"] > 0


def test_the_single_model_is_as_fast_as_itself(measured: Path) -> None:
    single = [row for row in _rows.read(measured / "results.csv") if row["role"] == "single"]
    assert [row["against_own_single"] for row in single] == [1, 1, 1]


def test_the_ensemble_has_three_times_the_size_and_the_sparse_net_its_share(measured: Path) -> None:
    rows = {row["net"]: row for row in _rows.read(measured / "results.csv")}
    single, ensemble, sparse = (rows[net] for net in ("wrn-single", "wrn-ensemble", "wrn-erk-.8"))
    assert ensemble["parameters"] == 3 * single["parameters"]
    assert ensemble["flops_dense"] == 3 * single["flops_dense"]
    assert sparse["flops_masked"] < sparse["flops_dense"]
    assert sparse["nonzeros"] < 0.25 * sparse["parameters"]


def test_results_are_drawn_and_shown(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (measured / "wrn-batch1-threads1.png").stat().st_size > 10_000
    assert main(["--markdown", "--out", str(measured)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n| WRN10-1") == 4
    assert "onnxruntime 1." in shown


def test_an_engine_that_lies_is_not_timed_and_fails_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([*QUICK, "--nets", "wrn-erk-.8", "--out", str(tmp_path)], [Lying(), Eager()])
    assert status == 1
    lying, honest = _rows.read(tmp_path / "results.csv")
    assert lying["status"] == "disagrees: relative error 1.0e-03, allowed is 1e-04"
    assert lying["median_ms"] is None
    assert honest["status"] == "ok"
    assert "disagrees" in capsys.readouterr().err


def test_an_engine_that_refuses_leaves_the_others_running(tmp_path: Path) -> None:
    status = main([*QUICK, "--nets", "wrn-erk-.8", "--out", str(tmp_path)], [Refusing(), Eager()])
    assert status == 0
    refused, other = _rows.read(tmp_path / "results.csv")
    assert refused["status"] == "failed: no zeros, please"
    assert (other["status"], other["against_own_single"] > 0) == ("ok", True)


def test_an_engine_that_is_not_installed_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = DeepSparse(python=tmp_path / "python")
    assert main([*QUICK, "--nets", "wrn-single", "--out", str(tmp_path)], [absent, Eager()]) == 0
    assert "DeepSparse is left out: not installed" in (shown := capsys.readouterr().out)
    assert "make deepsparse" in shown
    assert [row["engine"] for row in _rows.read(tmp_path / "results.csv")] == ["torch"]


def test_no_engine_at_all_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--out", str(tmp_path)], [DeepSparse(python=tmp_path / "python")]) == 2
    assert "none of the engines" in capsys.readouterr().err


def test_networks_are_chosen_by_family_and_pattern(tmp_path: Path) -> None:
    nets = catalogue(tmp_path)
    assert [net.key for net in choose(nets, ["wrn-erk-*", "wrn-single"])] == [
        "wrn-single",
        *(f"wrn-erk-{s}" for s in (".8", ".9", ".95", ".99")),
    ]
    assert len(choose(nets, ["wrn"])) == 10
    assert single_of(nets, choose(nets, ["llama-prefill-.9"])[0]).key == "llama-prefill-single"
    assert len({net.key for net in nets}) == len(nets)
    with pytest.raises(BenchmarkError, match="no network is called 'vgg'; there are wrn-single"):
        choose(nets, ["vgg"])


@pytest.mark.parametrize("pattern", ["resnet-erk-.95", "llama-prefill-.8", "digits-trained"])
def test_the_other_families_run(pattern: str, tmp_path: Path) -> None:
    assert main([*QUICK, "--nets", pattern, "--out", str(tmp_path)], [Ours(), Eager()]) == 0
    assert [row["status"] for row in _rows.read(tmp_path / "results.csv")] == ["ok", "ok"]


def test_measuring_again_replaces_rows(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    row = {
        "engine": "torch",
        "net": "a",
        "batch": 1,
        "threads": 2,
        "status": "ok",
        "allocation": "",
        "sparsity": 0.0,
        "median_ms": 3.0,
    }
    _rows.merge(path, [row, {**row, "net": "b"}])
    _rows.merge(path, [{**row, "median_ms": 4.0}, {**row, "threads": 1}])
    found = [(r["net"], r["threads"], r["median_ms"]) for r in _rows.read(path)]
    assert found == [("b", 2, 3.0), ("a", 2, 4.0), ("a", 1, 3.0)]
    with path.open(newline="") as file:
        assert next(csv.reader(file)) == list(_rows.COLUMNS)


def _row(net: str, engine: str, ms: float, dense: float, **more: Any) -> _rows.Row:
    values = {
        "family": "wrn",
        "role": "neurotrails",
        "batch": 1,
        "threads": 2,
        "status": "ok",
        "error": 1e-7,
        "allocation": "",
        "sparsity": 0.0,
        "version": "1",
    }
    times = {"median_ms": ms, "throughput": 1000 / ms, "against_own_single": 2.0, "against_onnxruntime_single": dense}
    return {"net": net, "label": net.upper(), "engine": engine, **values, **times, **more}


ROWS = [
    _row("wrn-ensemble", "onnxruntime", 150.0, 0.25, role="ensemble"),
    _row("wrn-erk-.95", "sparsity", 20.0, 2.5, paper_ms=19.2, paper_spread_ms=2.45, paper_against_single=0.93),
    _row("wrn-erk-.95", "onnxruntime", 150.0, 0.25),
    _row("wrn-erk-.95", "deepsparse", 120.0, 0.4),
    _row("wrn-erk-.95", "torch", 1.0, 1.0, status="failed: out of memory"),
]


def test_the_table_for_the_readme() -> None:
    assert _table.markdown(ROWS).splitlines()[:6] == [
        "Batch 1, 2 threads:",
        "",
        "| network | `sparsity.compile` | onnxruntime | DeepSparse 1.8 | ours : dense ensemble | ours : DeepSparse | "
        "paper, ms | paper : its single |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| WRN-ENSEMBLE | - | 150 (2.00x / 0.25x) | - | - | - | - | - |",
        "| WRN-ERK-.95 | 20 (2.00x / 2.50x) | 150 (2.00x / 0.25x) | 120 (2.00x / 0.40x) | 10.0x | 6.25x | "
        "19.20 ± 2.45 | 0.93x |",
    ]
    assert "* WRN-ERK-.95, torch, batch 1: failed: out of memory." in _table.markdown(ROWS)


def test_the_table_has_an_order_of_its_own_whatever_was_measured_first() -> None:
    sparse = [_row(f"wrn-{s}", "torch", 1.0, 1.0, sparsity=s, allocation="erk") for s in (0.9, 0.99, 0.8)]
    dense = [_row("wrn-single", "torch", 1.0, 1.0, role="single"), _row("wrn-many", "torch", 1.0, 1.0, batch=16)]
    lines = _table.markdown([*sparse, *dense]).splitlines()
    shown = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| WRN")]
    assert shown == ["WRN-SINGLE", "WRN-0.8", "WRN-0.9", "WRN-0.99", "WRN-MANY"]


def test_the_paper_stands_beside_its_own_batch_size_only() -> None:
    assert "paper" not in _table.markdown([{**row, "batch": 16} for row in ROWS]).split(_table.LEGEND)[0]


def test_floors_are_held_against_the_rows() -> None:
    assert _floors.verdicts(ROWS) == [
        "reached: WRN28-10 M=3 ERK S=.95 against the dense single model on onnxruntime: 2.50x (floor 2.3x, aim 3x)",
        "reached: WRN28-10 M=3 ERK S=.95 against DeepSparse on the same network: 6.25x (floor 5x)",
        "reached: WRN28-10 M=3 ERK S=.95 against the dense ensemble on onnxruntime: 10.00x (floor 7x)",
    ]
    slow = [{**row, "against_onnxruntime_single": 1.0} if row["engine"] == "sparsity" else row for row in ROWS]
    assert _floors.verdicts(slow)[0].startswith("MISSED: ")
    assert _floors.verdicts([{**row, "threads": 1} for row in ROWS]) == []


def test_one_sparsity_is_nothing_to_draw(tmp_path: Path) -> None:
    rows = [{**row, "sparsity": 0.95, "allocation": "erk"} for row in ROWS]
    assert not plot(rows, "wrn", 1, 2, tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize("found", [[1.0, float("nan")], [1.0, float("inf")], [1.0], [[1.0, 2.0]]])
def test_what_is_not_finite_or_has_another_shape_never_agrees(found: Any) -> None:
    assert relative_error(np.array(found), np.array([1.0, 2.0])) == float("inf")


def test_normalisations_of_the_networks_do_something(tmp_path: Path) -> None:
    model = choose(catalogue(tmp_path, quick=True), ["wrn-erk-.8"])[0].build()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_mean.abs().max() > 0
        assert norm.weight.std() > 0.1
    assert not any(module.training for module in model.modules())


def test_networks_are_the_same_every_time(tmp_path: Path) -> None:
    (net,) = choose(catalogue(tmp_path, quick=True), ["wrn-uniform-.9"])
    first, second = net.build(), net.build()
    with torch.no_grad():
        assert torch.equal(first(net.inputs(2)), second(net.inputs(2)))


def test_examples_in_docstrings() -> None:
    modules = pkgutil.iter_modules(benchmarks.inference.__path__, "benchmarks.inference.")
    results = [
        doctest.testmod(importlib.import_module(module.name)) for module in modules if "__main__" not in module.name
    ]
    assert sum(result.attempted for result in results) >= 6
    assert sum(result.failed for result in results) == 0


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("family", ["wrn", "resnet", "llama-decode", "llama-prefill", "digits"])
def test_every_network_runs(family: str, threads: str, tmp_path: Path) -> None:
    arguments = [*QUICK[:-1], threads, "--nets", family, "--batch", "1", "3", "--out", str(tmp_path)]
    assert main(arguments, [Ours(), OnnxRuntime(), Eager()]) == 0
    assert {row["status"] for row in _rows.read(tmp_path / "results.csv")} == {"ok"}


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["wrn-erk-.8", "llama-decode-.9"])
def test_torch_compile_runs_beside_the_others(pattern: str, tmp_path: Path) -> None:
    assert main([*QUICK, "--nets", pattern, "--out", str(tmp_path)], [Ours(), Compiled()]) == 0
    assert [row["status"] for row in _rows.read(tmp_path / "results.csv")] == ["ok", "ok"]


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="`make deepsparse` was not run")
def test_deepsparse_itself_runs_whole_networks(tmp_path: Path) -> None:
    nets = ("wrn-single", "wrn-erk-.8", "digits-averaged", "digits-trained")
    assert main([*QUICK, "--nets", *nets, "--out", str(tmp_path)], [DeepSparse()]) == 0
    rows = {row["net"]: row for row in _rows.read(tmp_path / "results.csv")}
    for net in nets[:3]:
        assert (rows[net]["status"], rows[net]["coverage"]) == ("ok", 1.0)
    assert "leaves the rest to onnxruntime" in rows["digits-trained"]["status"]  # logarithms and exponentials
