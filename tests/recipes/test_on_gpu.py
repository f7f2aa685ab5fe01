"""On a GPU: every method runs end to end there, and a run that is cut off goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.test_cli_runs import SMOKE, result_of, run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("row", SMOKE)
def test_every_method(row: str, tmp_path: Path) -> None:
    assert run(tmp_path, row, *SMOKE[row]) == 0
    result = result_of(tmp_path, row)
    assert result["device"] != "cpu"
    assert result["seconds"] > 0
    assert 0 < result["metrics"]["last"]["accuracy_prob"] < 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_and_channels_last(precision: str, tmp_path: Path) -> None:
    row = "table3/neurotrails-m3-s0.7"
    changes = ("--set", f"precision={precision}", "--set", "channels_last=True", "--workers", "1")
    assert run(tmp_path, row, *SMOKE[row], *changes) == 0
    metrics = result_of(tmp_path, row)["metrics"]["last"]
    assert 0 < metrics["accuracy_prob"] < 1
    assert metrics["nll_prob"] < 10
