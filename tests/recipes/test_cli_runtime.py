"""How a run is carried out, which is not to change what it computes: compiled, in two processes, deterministic."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.cli import main

ROOT = Path(__file__).parents[2]
SETTINGS = ["images=120", "batch_size=32", "epochs=2", "width=4", "blocks=1", "split=1"]
TINY = ["--quiet", "--preset", "small", *(f"--set={setting}" for setting in SETTINGS)]
TREENET = ["table3/treenet-m3", *TINY]
TRAILS = ["table3/neurotrails-m3-s0.7", *TINY, "--set=every=2"]


def run(out: Path, arguments: list[str]) -> Path:
    """Run a row, and return the folder of its seed."""
    assert main(["run", *arguments, "--out", str(out)]) == 0
    return folder(out)


def folder(out: Path) -> Path:
    (found,) = out.glob("*/*/*/seed0")
    return found


def logged(seed: Path) -> list[dict[str, float]]:
    with (seed / "network-0" / "log.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def result(seed: Path) -> dict[str, Any]:
    return json.loads((seed / "result.json").read_text())


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Compilation from nothing, of which nothing is left."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("row", [TREENET, TRAILS], ids=lambda row: row[0])
def test_a_compiled_run_computes_the_same(compiled: None, row: list[str], tmp_path: Path) -> None:
    torch._dynamo.utils.counters.clear()
    fast = run(tmp_path / "compiled", [*row, "--compile"])
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    plain = run(tmp_path / "plain", row)
    for one, other in zip(logged(fast), logged(plain), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert result(fast)["metrics"]["last"] == pytest.approx(result(plain)["metrics"]["last"], rel=1e-3)
    for name in ("parameters", "nonzeros"):
        assert result(fast)["costs"][name] == result(plain)["costs"][name]


def test_two_processes_run_a_row_together(tmp_path: Path) -> None:
    """Each normalises its half of a batch, so numbers differ a little; what is written does not."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [*torchrun, "-m", "recipes", "run", *TRAILS, "--seeds", "2", "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("seed 0: accuracy_prob") == 1
    assert done.stdout.count("seed 1: accuracy_prob") == 1

    alone = run(tmp_path / "one", TRAILS)
    (two,) = (tmp_path / "two").glob("*/*/*/seed0")
    ours, theirs = result(two), result(alone)
    assert (ours["processes"], theirs["processes"]) == (2, 1)
    assert ours["steps"] == theirs["steps"] == [6]
    assert ours["training_flops"] == theirs["training_flops"]
    assert ours["costs"] == theirs["costs"]
    assert ours["metrics"]["last"]["nll_prob"] == pytest.approx(theirs["metrics"]["last"]["nll_prob"], rel=0.05)
    assert {file.name for file in two.iterdir()} == {file.name for file in alone.iterdir()}
    for one, other in zip(logged(two), logged(alone), strict=True):
        assert one.keys() == other.keys()
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05)


def test_deterministic_runs_are_the_same_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    step = torch.optim.SGD.step

    def watched(*arguments: Any, **options: Any) -> Any:
        modes.append(torch.are_deterministic_algorithms_enabled())
        return step(*arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    one, other = (run(tmp_path / name, [*TRAILS, "--deterministic"]) for name in ("one", "other"))
    assert modes == [True] * 12
    assert not torch.are_deterministic_algorithms_enabled()
    for name in ("last.safetensors", "best.safetensors", "network-0/log.csv", "network-0/topology.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert {**result(one), "seconds": 0} == {**result(other), "seconds": 0}
