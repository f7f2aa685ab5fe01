"""The trainer: plain torch and torchrun, for vision and language, in one process or several.

Why not accelerate or a Trainer class: a split model is trained on the outputs of its heads, which wrappers for several
processes hide; here network and loss are one module (`Objective`), which ``DistributedDataParallel`` and
``torch.compile`` take as they are. And a run that is killed at any moment has to go on bit for bit, so everything that
has a state is kept in one place (`Session`), and everything else (order of the data, learning rate, augmentation) is a
pure function of the step.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

import sparsity
from recipes._require import require
from recipes.methods import Method
from recipes.training._clock import CheckpointClock
from recipes.training._errors import TrainingError
from recipes.training._files import read_tensors, write_json, write_tensors
from recipes.training._logs import CsvFile, Log
from recipes.training._measure import measure
from recipes.training._processes import Processes
from recipes.training._session import Session
from recipes.training._settings import Runtime, Training
from recipes.training._signals import Interrupted, Request, deferred

Batch = tuple[Tensor, Tensor]
Extra = Callable[[str, int], list[Log]]


class Feed(Protocol):
    """Training batches without a state of their own, such as `recipes.data.Loader`."""

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process's share of the batches of an epoch, from one of them on."""
        ...


@runtime_checkable
class StatefulFeed(Protocol):
    """A feed that is faster to bring to where it was than to read again, such as one of C4."""

    def state_dict(self) -> dict[str, Any]:
        """Return where it is."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where it was."""
        ...


@dataclass(frozen=True)
class Job:
    """The training of one network.

    Args:
        method: The system that the network is a part of.
        training: How to train.
        runtime: How to carry it out.
        feed: Training batches.
        validation: Returns this process's share of the validation part; None if there is none.
        folder: For checkpoints, logs and the states that are kept.
        seed: Of everything random but the data.
        example: Inputs to count FLOPs with, on any device.
        better: Which measured number tells the best state, and whether more of it is better.
        title: Of the progress bar.

    Raises:
        RecipeError: The seed is negative.
    """

    method: Method
    training: Training
    runtime: Runtime
    feed: Feed
    validation: Callable[[], Iterable[Batch]] | None
    folder: Path
    seed: int
    example: Tensor
    better: tuple[str, bool] = ("accuracy", True)
    title: str = "training"

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", "be at least 0", self.seed)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.training.total_steps(self.feed.steps)


CHECKPOINT = "checkpoint.pt"
DONE = "done.json"


def train(net: nn.Module, job: Job, processes: Processes, logs: Sequence[Log] = ()) -> dict[str, Any]:
    """Train a network in place, from its last checkpoint if there is one, to the end.

    In the folder of the job this leaves ``last-<k>.pt``, and with a validation part ``best-<k>.pt``, for each of the
    method's snapshots, ``log.csv`` with what was measured, ``topology.csv`` with what each update of the masks moved,
    and ``done.json``, whose content it returns.

    Args:
        net: What to train, on the device, as built from the job's seed.
        job: The training.
        processes: Those that train it together.
        logs: What hears of each evaluation besides ``log.csv``; of the first process only.

    Raises:
        TrainingError: A checkpoint does not fit, or the loss is not finite.
        Interrupted: A signal (Ctrl-C, SIGTERM) came; there is a checkpoint of the step that it came in.
    """
    folder = job.folder
    folder.mkdir(parents=True, exist_ok=True)
    state = read_tensors(folder / CHECKPOINT) if (folder / CHECKPOINT).exists() else None
    topology = folder / "topology.csv"
    if state is None and processes.first:
        topology.unlink(missing_ok=True)
    callbacks = [sparsity.CsvLog(topology, resume=True)] if processes.first else []
    torch.manual_seed(job.seed + processes.rank)
    if job.training.channels_last:
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    session = Session(
        net,
        job.method,
        job.training,
        job.steps,
        job.example,
        processes,
        job.seed,
        callbacks,
        compile=job.runtime.compile,
    )
    progress = _Progress(job.method.snapshots(job.steps))
    if state is not None:
        session.load_state_dict(state["session"])
        progress.load_state_dict(state["progress"])
        if isinstance(job.feed, StatefulFeed):
            job.feed.load_state_dict(state["feed"])
    heard = [CsvFile(folder / "log.csv", session.step), *logs] if processes.first else []
    with deferred() as request:
        _Loop(session, job, processes, progress, heard, request).run()
    return progress.summary(session)


class _Progress:
    """Where a training is, besides the state of the network."""

    def __init__(self, snapshots: tuple[int, ...]) -> None:
        self.snapshots = snapshots
        self.taken = 0
        self.loss = 0.0
        self.losses = 0
        self.seconds = 0.0
        self.best: float | None = None
        self.best_steps: list[int | None] = [None] * len(snapshots)

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "snapshots"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["best_steps"]) != len(self.snapshots):
            raise TrainingError("The checkpoint is of another method, with another number of snapshots.")
        vars(self).update(state)

    def summary(self, session: Session) -> dict[str, Any]:
        return {
            "steps": session.step,
            "snapshots": list(self.snapshots),
            "best_steps": self.best_steps,
            "seconds": self.seconds,
            "training_flops": session.training_flops(),
            "training_flops_dense": session.training_flops_dense(),
        }


class _Loop:
    """The loop over steps, with what happens between them."""

    def __init__(
        self,
        session: Session,
        job: Job,
        processes: Processes,
        progress: _Progress,
        logs: Sequence[Log],
        request: Request,
    ) -> None:
        self.session, self.job, self.processes, self.progress, self.logs = session, job, processes, progress, logs
        self._request = request
        self.every = job.training.evaluate_every or job.feed.steps
        self._pending = torch.zeros((), dtype=torch.float64, device=processes.device)
        self._clock = CheckpointClock(job.runtime.checkpoint_minutes, processes, session.step)
        self._started = time.perf_counter()

    def run(self) -> None:
        """Train to the end."""
        session, job = self.session, self.job
        session.net.train()
        hidden = not (job.runtime.progress and self.processes.first)
        self._started = time.perf_counter()
        with tqdm(total=job.steps, initial=session.step, desc=job.title, unit="step", disable=hidden) as bar:
            while session.step < job.steps:
                epoch, start = divmod(session.step, job.feed.steps)
                for x, y in job.feed.epoch(epoch, start):
                    self._pending += session.advance(x, y)
                    self.progress.losses += 1
                    bar.update()
                    self._between(bar)
                    if session.step == job.steps:
                        break
        self._settle()
        if self.processes.first:
            write_json(job.folder / DONE, self.progress.summary(session))
            (job.folder / CHECKPOINT).unlink(missing_ok=True)
        self.processes.wait()
        self._end_if_asked()

    def _between(self, bar: Any) -> None:
        step, progress = self.session.step, self.progress
        if step % self.every == 0 or step in progress.snapshots:
            self._evaluate(bar)
        if step == progress.snapshots[min(progress.taken, len(progress.snapshots) - 1)]:
            self._keep(f"last-{progress.taken}.pt")
            progress.taken, progress.best = progress.taken + 1, None
        if step < self.job.steps and self._clock.due(step, urgent=self._request.number is not None):
            self._checkpoint()
            self._end_if_asked()

    def _end_if_asked(self) -> None:
        """End all processes together, when the first has got a signal; those that torchrun started all get it."""
        asked = self._request.number
        if self.processes.agree(asked is not None):
            raise Interrupted(asked or signal.SIGTERM)

    def _evaluate(self, bar: Any) -> None:
        session, progress = self.session, self.progress
        self._settle()
        loss = progress.loss / progress.losses
        progress.loss, progress.losses = 0.0, 0
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss was {loss} up to step {session.step}. Lower lr, set clip, or use another precision."
            )
        row = {
            "step": session.step,
            "epoch": session.step / self.job.feed.steps,
            "loss": loss,
            "lr": session.learning_rate,
            "training_flops": session.training_flops(),
        }
        if self.job.validation is not None:
            measured = measure(session.evaluated, self.job.validation(), self.processes)
            row |= {f"validation_{name}": value for name, value in measured.items()}
            name, more = self.job.better
            value = measured[name] if more else -measured[name]
            if progress.best is None or value > progress.best:
                progress.best, progress.best_steps[progress.taken] = value, session.step
                self._keep(f"best-{progress.taken}.pt")
            bar.set_postfix({name: f"{measured[name]:.4f}", "loss": f"{loss:.3f}"}, refresh=False)
        for log in self.logs:
            log.write(row)
        self._started = time.perf_counter()

    def _settle(self) -> None:
        """Bring the sum of losses, which no step waits for, to the host, and count the time up to here."""
        self.progress.loss += self.processes.sum(self._pending).item() / self.processes.world
        self._pending.zero_()
        now = time.perf_counter()
        self.progress.seconds += now - self._started
        self._started = now

    def _keep(self, name: str) -> None:
        if self.processes.first:
            write_tensors(self.job.folder / name, self.session.evaluated.state_dict())

    def _checkpoint(self) -> None:
        self._settle()
        state = {"session": self.session.state_dict(), "progress": self.progress.state_dict()}
        if isinstance(self.job.feed, StatefulFeed):
            state["feed"] = self.job.feed.state_dict()
        if self.processes.first:
            write_tensors(self.job.folder / CHECKPOINT, state)
        self._clock.saved(self.session.step)
        self._started = time.perf_counter()
