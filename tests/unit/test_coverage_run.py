"""The runner of the coverage benchmark: what a process that dies costs, and going on where a run stopped."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.coverage._measure import Plan, Row
from benchmarks.coverage._rivals import RIVALS
from benchmarks.coverage._run import Job, run

NAMES = ["test_vit", "test_resnet", "test_mlp"]
DEADLY = "test_resnet"


def _measure(job: Job, limit: int) -> Row:
    if job[1] == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"zoo": job[0], "name": job[1], "real": True, "error": ""}


def test_only_what_dies_by_itself_has_failed(tmp_path: Path) -> None:
    jobs = [("timm", name, Plan(real=True)) for name in NAMES]
    rows = run(jobs, tmp_path / "rows.jsonl", workers=1, limit=60, measure=_measure)
    assert {row["name"]: row["error"] for row in rows} == {
        "test_vit": "",
        DEADLY: "its process died (memory?)",
        "test_mlp": "",
    }


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    done = {"zoo": "timm", "name": DEADLY, "real": True, "error": "kept"}
    path.write_text(json.dumps(done) + '\n{"zoo": "timm", "na')  # stopped in the middle of a line
    jobs = [("timm", name, Plan(real=True)) for name in (DEADLY, "test_vit")]
    rows = run(jobs, path, workers=1, limit=60, measure=_measure)
    assert rows == [done, {"zoo": "timm", "name": "test_vit", "real": True, "error": ""}]


@pytest.mark.parametrize("rival", RIVALS)
def test_rivals_trace_what_is_easy(rival: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    graph = RIVALS[rival](model, torch.randn(2, 3, 8, 8))
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(graph(x), model(x))
