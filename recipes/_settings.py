"""Everything that decides what a demo run computes, as plain data, checked before anything is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from recipes._errors import RecipeError


@dataclass(frozen=True)
class Hyper:
    """What every network of an experiment is trained with: SGD with Nesterov momentum, learning rate on a cosine to 0.

    Args:
        batch_size: Examples per step.
        lr: Learning rate of the first step.
        momentum: Of Nesterov's kind.
        weight_decay: L2, on every parameter.
    """

    batch_size: int = 64
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4


@dataclass(frozen=True)
class Settings:
    """Settings of the demo; the defaults are those of `make demo`.

    Args:
        out: Folder for the results.
        seeds: Number of training seeds, 0, 1, ...
        epochs: Epochs of a dense network, the E of the budget.
        heads: Heads of every ensemble, M.
        sparsity: Share of the weights that are switched off in NeuroTrails, S.
        split: Residual blocks in the trunk.
        every: Steps between topology updates, dT.
        fraction: Share of the active weights that the first topology update drops.
        width: Channels of the first stage.
        blocks: Residual blocks per stage, of which there are three.
        train_share: Share of the images for training.
        validation_share: Share of the images for validation.
        limit: Number of images used in all; None for all of them.
        hyper: Optimizer and batch size.
        workers: Runs trained side by side, each on one thread.

    Raises:
        RecipeError: A setting cannot work.
    """

    out: Path = Path("runs/demo")
    seeds: int = 3
    epochs: int = 50
    heads: int = 3
    sparsity: float = 0.8
    split: int = 2
    every: int = 20
    fraction: float = 0.5
    width: int = 16
    blocks: int = 2
    train_share: float = 0.3
    validation_share: float = 0.1
    limit: int | None = None
    hyper: Hyper = Hyper()
    workers: int = 2

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("epochs", 1), ("heads", 2), ("every", 1), ("blocks", 1), ("workers", 1)):
            value = getattr(self, name)
            if value < least:
                raise RecipeError(f"{name} must be at least {least}, got {value}.")
        if not (0 < self.sparsity < 1 and math.isfinite(self.sparsity)):
            raise RecipeError(f"sparsity must lie between 0 and 1, got {self.sparsity}.")
        if not 0 < self.split < 3 * self.blocks:
            raise RecipeError(f"split must leave blocks on both sides: 1 to {3 * self.blocks - 1}, got {self.split}.")

    def quick(self) -> Settings:
        """Return these settings shrunk to a smoke test of seconds, whose numbers mean nothing."""
        return replace(
            self,
            seeds=1,
            epochs=2,
            every=2,
            width=8,
            blocks=1,
            split=1,
            limit=300,
            hyper=replace(self.hyper, batch_size=16),
            workers=1,
        )


def prepare_folder(folder: Path) -> Path:
    """Create the folder for results and make sure that it can be written to.

    Raises:
        RecipeError: It cannot.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RecipeError(f"cannot write to {folder}: {error.strerror}. Choose another folder with --out.") from error
    return folder
