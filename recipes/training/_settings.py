"""What decides the result of a training, and what only decides how it is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fxsplit._errors import near_matches
from recipes._errors import RecipeError
from recipes._require import require
from recipes.training._optimizers import Adam, Sgd
from recipes.training._schedules import Constant, Cosine, FlatLinear, Piecewise, Steps

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Training:
    """How every network of a system is trained. A change of any of these makes another result.

    Args:
        optimizer: Optimizer.
        schedule: Learning rate over training.
        epochs: Passes over the training part; or None, and
        steps: optimizer steps.
        batch_size: Examples per optimizer step, of all micro-batches and processes together.
        accumulate: Micro-batches, all of one size, that a process makes of its share of a batch.
        label_smoothing: Share of the target that is spread over all classes.
        clip: Largest norm of the gradient; None for any.
        ema: Decay of an exponential average of the weights, which is evaluated instead of them; None for no average.
        precision: ``fp32``; ``bf16`` or ``fp16`` for autocast, the latter with scaled losses.
        channels_last: Memory format of images and convolutions.
        evaluate_every: Steps between evaluations on the validation part; None for once per epoch.

    Raises:
        RecipeError: A setting cannot work.
    """

    optimizer: Sgd | Adam = field(default_factory=Sgd)
    schedule: Steps | Cosine | FlatLinear | Piecewise | Constant = field(default_factory=Steps)
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 128
    accumulate: int = 1
    label_smoothing: float = 0.0
    clip: float | None = None
    ema: float | None = None
    precision: str = "fp32"
    channels_last: bool = False
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise RecipeError(f"Set either epochs or steps, got epochs={self.epochs} and steps={self.steps}.")
        for name in ("epochs", "steps", "batch_size", "accumulate", "evaluate_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "be at least 1", value)
        if self.batch_size % self.accumulate:
            raise RecipeError(
                f"accumulate must divide batch_size={self.batch_size} into micro-batches of one size, got "
                f"{self.accumulate}. Change either."
            )
        if self.precision not in PRECISIONS:
            hint = near_matches(self.precision, PRECISIONS)
            raise RecipeError(f"precision is one of {', '.join(PRECISIONS)}; got {self.precision!r}.{hint}")
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, "label_smoothing", "be at least 0 and below 1", smoothing)
        require(self.clip is None or self.clip > 0, "clip", "be positive, or None for no clipping", self.clip)
        require(self.ema is None or 0 < self.ema < 1, "ema", "lie between 0 and 1", self.ema)

    def total_steps(self, per_epoch: int) -> int:
        """Return the number of optimizer steps.

        Args:
            per_epoch: Steps of one pass over the training part.
        """
        return self.steps if self.steps is not None else (self.epochs or 0) * per_epoch


@dataclass(frozen=True)
class Runtime:
    """How a run is carried out. None of this is meant to change what it computes.

    Args:
        device: Where; None for the GPU of this process, or the CPU.
        checkpoint_minutes: Minutes between checkpoints.
        deterministic: Whether torch shall refuse algorithms whose results vary.
        compile: Whether to compile the network and its loss.
        workers: Processes that fetch data.
        progress: Whether to show a bar.
        tensorboard: Whether to write TensorBoard's event files too.
        wandb: Project of Weights & Biases to log to; None for none.
        data_root: Folder of the data sets.

    Raises:
        RecipeError: A setting cannot work.
    """

    device: str | None = None
    checkpoint_minutes: float = 10.0
    deterministic: bool = False
    compile: bool = False
    workers: int = 0
    progress: bool = True
    tensorboard: bool = False
    wandb: str | None = None
    data_root: Path | None = None

    def __post_init__(self) -> None:
        minutes = self.checkpoint_minutes
        require(minutes >= 0, "checkpoint_minutes", "be at least 0", minutes)
        require(self.workers >= 0, "workers", "be at least 0", self.workers)
