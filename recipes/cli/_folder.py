"""The folder of a run: which one it is, whose it is, and what is finished in it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.rows import Recipe, Row, find, home, overridden, spelled
from recipes.training import CHECKPOINT, DONE, TrainingError, read_json, write_json

RESULT = "result.json"
RECIPE = "recipe.json"
LONGEST = 200
"""Bytes of a folder's name."""


@dataclass(frozen=True)
class Choice:
    """A row in a preset, with settings changed.

    Args:
        row: The row.
        preset: Name of the preset.
        changes: ``name=value`` each, as `spelled` spells them.
    """

    row: Row
    preset: str
    changes: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, preset: str, changes: Sequence[str] = ()) -> Choice:
        """Look the row up, and check all of it.

        Raises:
            RecipeError: There is no such row, preset or setting.
        """
        row = find(name)
        choice = cls(row, preset, spelled(row.recipe(preset), changes))
        _ = choice.recipe
        return choice

    @property
    def recipe(self) -> Recipe:
        """The recipe, with the settings changed."""
        return overridden(self.row.recipe(self.preset), self.changes)

    @property
    def title(self) -> str:
        """For people: ``table2/treenet-m3 (small, lr=.05)``."""
        return f"{self.row.name} ({', '.join((self.preset, *self.changes))})"

    def folder(self, out: Path, seed: int) -> Path:
        """Return the folder of a seed: that of the first row with the same recipe."""
        settings = "+".join((self.preset, *(c.replace("/", "_").replace("*", "x") for c in self.changes)))
        return out / home(self.row, self.preset).name / _shortened(settings) / f"seed{seed}"

    @property
    def options(self) -> str:
        """The options of the command line that choose it, quoted for a shell: ``--preset small --set 'epochs=*.5'``."""
        return " ".join(("--preset", self.preset, *(f"--set {shlex.quote(change)}" for change in self.changes)))


def _shortened(name: str) -> str:
    """A name that file systems take, which allow for 255 bytes."""
    whole = name.encode()
    if len(whole) <= LONGEST:
        return name
    digest = f"-{hashlib.sha256(whole).hexdigest()[:12]}"
    return whole[: LONGEST - len(digest)].decode(errors="ignore") + digest


def claim(folder: Path, recipe: Recipe, seed: int, *, resume: bool) -> bool:
    """Make sure that a folder is this run's; tell whether the run is finished.

    Args:
        folder: The folder, locked.
        recipe: What the run computes.
        seed: Its seed.
        resume: Whether to go on with what is there.

    Raises:
        TrainingError: The folder is of another recipe, or unfinished and not to be gone on with.
    """
    wanted = {"seed": seed, **recipe.as_dict()}
    if (folder / RECIPE).exists():
        different = _differences(read_json(folder / RECIPE), wanted)
        if different:
            raise TrainingError(
                f"{folder} is of another recipe: {'; '.join(different)}. Choose another --out, or delete the folder."
            )
        if (folder / RESULT).exists():
            return True
        started = any(next(folder.glob(f"network-*/{name}"), None) for name in (CHECKPOINT, DONE))
        if started and not resume:
            raise TrainingError(
                f"{folder} has an unfinished run. Go on with it by --resume, or delete the folder to start over."
            )
        return False
    write_json(folder / RECIPE, wanted)
    return False


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            each
            for key in dict.fromkeys((*old, *new))
            for each in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path} was {old!r}, now {new!r}"]
