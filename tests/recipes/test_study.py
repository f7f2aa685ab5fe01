"""The study of the README: each of its commands is right, and its table is made of what runs left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import study
from recipes.cli._folder import RESULT, Choice


@pytest.mark.parametrize("name", study.STUDIES)
def test_every_entry_is_a_recipe(name: str) -> None:
    for entry in study.STUDIES[name]:
        recipe = Choice.of(entry.row, "small", entry.changes).recipe
        if name == "images":
            assert (recipe.data.classes, recipe.data.images) == (20, None)  # pyright: ignore
            long = "27" in entry.label or ("NeuroTrails" in entry.label and "15" not in entry.label)
            assert recipe.training.epochs == {"EDST ensemble (M=7, S=.9)": 51, "NFE (M=3)": 12}.get(
                entry.label, 27 if long else 15
            )


def test_table_of_what_is_there(tmp_path: Path) -> None:
    single, _, tree, _ = study.STUDIES["text"]
    for entry, perplexity, flops in ((single, 20.0, 2.0), (tree, 18.0, 5.0)):
        folder = Choice.of(entry.row, "small", entry.changes).folder(tmp_path, 0)
        folder.mkdir(parents=True)
        metrics = {"perplexity_prob": perplexity, "perplexity_head": perplexity, "disagreement": None}
        result = {
            "metrics": {"last": metrics},
            "training_flops": {"masks": flops},
            "costs": {"inference_flops_masks": 2 * flops},
            "seconds": 1800,
        }
        (folder / RESULT).write_text(json.dumps(result))
    lines = study.table("text", tmp_path).splitlines()
    assert lines[2] == "| single dense | 1 | 20.00 | 20.00 | - | 1.00x | 1.00x | 29.06 |"
    assert lines[3] == "| full ensemble (M=2) | 0 | - | - | - | - | - | - |"
    assert lines[4] == "| TreeNet (M=3) | 1 | 18.00 | 18.00 | - | 2.50x | 2.50x | 26.46 |"
    assert lines[-1] == "2 runs, 1.0 hours of training."


def test_what_is_running_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(study, "recipe", lambda arguments: called.append(arguments) or 0)
    entry = study.STUDIES["text"][1]
    with study.locked(Choice.of(entry.row, "small", entry.changes).folder(tmp_path, 0)):
        study.run("text", tmp_path, Path("data"))
    assert [arguments[1] for arguments in called] == [
        other.row for other in study.STUDIES["text"] if other is not entry
    ]
    assert called[0][-2:] == ["--resume", "--quiet"]
    assert "steps=*2" in called[0]
