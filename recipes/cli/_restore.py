"""A network that a run left, as it was after training."""

from __future__ import annotations

import shlex
from pathlib import Path

from torch import nn

import fxsplit
from recipes.cli._execute import first_seed, maker
from recipes.cli._folder import RESULT, Choice
from recipes.cli._report import command
from recipes.rows import Material
from recipes.training import TrainingError, read_tensors


def restore(choice: Choice, material: Material, out: Path, seed: int, state: str) -> nn.Module:
    """Load the network of a finished run (see `check_finished`).

    Args:
        choice: What was run.
        material: Its data.
        out: Folder of all runs.
        seed: Its seed.
        state: ``last``, or ``best`` on the validation part.
    """
    folder, recipe = choice.folder(out, seed), choice.recipe
    make = maker(recipe, material)
    whole, weights = folder / f"{state}.safetensors", folder / f"{state}.pt"
    if whole.exists():
        return fxsplit.load(whole, make(), material.example)
    # An earlier version kept single networks as they were, without a head.
    net = recipe.method.network(make, material.example, first_seed(seed))
    net.load_state_dict(read_tensors(weights))
    return recipe.method.join(make, material.example, [net])


def check_finished(choice: Choice, out: Path, seed: int, state: str) -> None:
    """Make sure that a run left a state.

    Raises:
        TrainingError: The run is not finished, or has no such state.
    """
    folder = choice.folder(out, seed)
    if not (folder / RESULT).exists():
        raise TrainingError(
            f"There is no finished run in {folder}. Make it with: {command(choice)} --first-seed {seed} --out "
            f"{shlex.quote(str(out))}"
        )
    if not any((folder / f"{state}.{kind}").exists() for kind in ("safetensors", "pt")):
        raise TrainingError(
            f"{folder} holds no {state!r} state; a run without a validation part keeps the last one only."
        )
