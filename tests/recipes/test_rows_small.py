"""The small preset of every row, on less data and with narrower networks: each network is built and makes two steps."""

from __future__ import annotations

import itertools
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import sparsity
from recipes.cli._execute import first_seed, job_of, maker
from recipes.cli._folder import Choice
from recipes.methods import OneShot
from recipes.rows import DigitsResnet, Material, Row, Wrn, all_rows, home
from recipes.rows._data import DataSet
from recipes.training import Processes, Runtime, Session

# Depths, splits, schedules, and the steps between updates of the masks stay as they are.
DIGITS = ("images=120", "batch_size=16")
CHANGES = {
    Wrn: (*DIGITS, "data.name=digits", "classes=none", "width=1"),
    DigitsResnet: (*DIGITS, "width=4"),
}
SIZES = ("length=16", "positions=16", "hidden=16", "intermediate=24", "heads=2", "batch_size=8")
TEXT = ("name=text", "vocab=300", *SIZES)
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"all work and no play makes jack {number} a dull boy.\n" for number in range(200)))
    return file


@lru_cache
def load(data: DataSet, root: Path | None) -> Material:
    return data.load(root)


@pytest.mark.parametrize("row", all_rows().values(), ids=lambda row: row.name)
def test_the_small_preset_of_every_row_trains(row: Row, text: Path, tmp_path: Path) -> None:
    small = row.recipe("small")
    first = home(row, "small")
    if first.name != row.name:
        assert first.recipe("small") == small  # which this test trains under the other name
        return
    choice = Choice.of(row.name, "small", TEXT if small.language else CHANGES[type(small.model)])
    recipe = choice.recipe
    material = load(recipe.data, text if small.language else None)
    job = job_of(choice, material, 0, 0, tmp_path, Runtime(progress=False), ALONE)
    net = recipe.method.network(maker(recipe, material), material.example, first_seed(0))
    session = Session(net, job.method, job.training, job.steps, job.example, ALONE, job.seed, [])

    masks = sparsity.masks_of(net)
    sparse = getattr(recipe.method, "sparse", None)
    if sparse is not None and sparse.sparsity:
        pruned_later = isinstance(getattr(recipe.method, "rewiring", None), OneShot)
        assert masks.sparsity == pytest.approx(0 if pruned_later else sparse.sparsity, abs=0.01)
        assert session.engine is not None
    # The second, because some networks begin with branches that are multiplied by zero.
    for x, y in itertools.islice(job.feed.epoch(0), 2):
        assert session.advance(x, y).isfinite()
    assert session.step == 2
    assert session.training_flops() > 0
    # By the optimizer's momentum: at the beginning of a warm-up, steps can be too short to see.
    state = session.optimizer.state
    pushed = {
        name: state[value].get("momentum_buffer", state[value].get("exp_avg")) for name, value in net.named_parameters()
    }
    assert [name for name, push in pushed.items() if push is None or not push.any()] == []
