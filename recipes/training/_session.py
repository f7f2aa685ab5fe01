"""One network in training: all that has a state, so that a checkpoint holds it and a resumed training is the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparsity
from recipes.data._random import mix
from recipes.methods import Method
from recipes.training._cost import forward_flops
from recipes.training._errors import TrainingError
from recipes.training._measure import predictions
from recipes.training._processes import Processes
from recipes.training._random import random_state, restore_random
from recipes.training._settings import Training

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Objective(nn.Module):
    """A network with its loss, so that what wraps modules (DistributedDataParallel, compile) runs the heads.

    Args:
        net: The network.
        method: Knows the loss.
        label_smoothing: Share of the target that is spread over all classes.
    """

    def __init__(self, net: nn.Module, method: Method, label_smoothing: float) -> None:
        super().__init__()
        self.net = net
        self._method = method
        self._smoothing = label_smoothing

    def criterion(self, output: Any, y: Tensor) -> Tensor:
        """Return the cross-entropy of classes, or of tokens."""
        logits, targets = predictions(output, y)
        return functional.cross_entropy(logits, targets, label_smoothing=self._smoothing)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return self._method.loss(self.net, self.criterion, x, y)


class Session:
    """A network, its optimizer, its engine and the rest, at some step of its training.

    Args:
        net: What to train, on its device.
        method: The system that it is a part of.
        training: How to train.
        steps: Optimizer steps in all.
        example: Inputs to count FLOPs with, on any device.
        processes: Those that train it together.
        seed: Of random growth and of the method's batches.
        callbacks: What hears of updates of the masks.
        compile: Whether to compile network and loss.

    Raises:
        TrainingError: A process's share of a batch cannot be cut into micro-batches of one size.
    """

    def __init__(
        self,
        net: nn.Module,
        method: Method,
        training: Training,
        steps: int,
        example: Tensor,
        processes: Processes,
        seed: int,
        callbacks: list[Callable[[Any], None]],
        *,
        compile: bool = False,
    ) -> None:
        self.net = net
        self.step = 0
        self._method, self._training, self._steps, self._seed = method, training, steps, seed
        self._processes = processes
        share = training.batch_size // processes.world
        if share % training.accumulate:
            raise TrainingError(
                f"accumulate={training.accumulate} does not divide a process's share of a batch, {share} of "
                f"{training.batch_size} examples, into micro-batches of one size. Set another accumulate or batch_size."
            )
        self.optimizer = training.optimizer.make(method.groups(net))
        flops = forward_flops(net, example.to(processes.device))
        self._batch = training.batch_size * method.repetitions
        self._dense_step = 3 * flops.total * self._batch
        masks = sparsity.masks_of(net)
        self.flops = (
            sparsity.TrainingFlops(masks, flops.layers, self._dense_gradients, rest=flops.rest, batch=self._batch)
            if masks
            else None
        )
        heard = [*([self.flops] if self.flops is not None else []), *callbacks]
        self.engine = method.attach(net, self.optimizer, steps, heard, seed)
        self.average: AveragedModel | None = None
        if training.ema is not None:
            self.average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(training.ema))
            if masks:
                sparsity.follow(self.average, net)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=training.precision == "fp16")
        objective: Any = Objective(net, method, training.label_smoothing)
        if compile:
            objective = torch.compile(objective)
        if processes.world > 1:
            objective = DistributedDataParallel(objective)
        self._objective = objective

    def _dense_gradients(self, step: int) -> bool:
        return self.engine is not None and sparsity.dense_steps.of(self.engine)(step)

    @property
    def evaluated(self) -> nn.Module:
        """What is measured and kept: the network, or the average of its weights."""
        return self.net if self.average is None else self.average.module

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step, of the first group."""
        return self.optimizer.param_groups[0]["base_lr"] * self._training.schedule.factor(self.step, self._steps)

    def training_flops(self) -> float:
        """Training FLOPs so far: of the masks of every step (Evci et al. 2020, app. H)."""
        return self.step * self._dense_step if self.flops is None else self.flops.total(self.step)

    def training_flops_dense(self) -> float:
        """Training FLOPs so far, as if there were no masks."""
        return self.step * self._dense_step

    def advance(self, x: Tensor, y: Tensor) -> Tensor:
        """Make one optimizer step on this process's share of a batch, and return its loss.

        Raises:
            RecipeError: The batch is too small for the method.
        """
        training, device = self._training, self._processes.device
        generator = torch.Generator().manual_seed(mix(self._seed, self.step, self._processes.rank))
        x, y = self._method.batch(x, y, generator)
        if training.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        factor = training.schedule.factor(self.step, self._steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        parts = list(zip(x.chunk(training.accumulate), y.chunk(training.accumulate), strict=True))
        total = torch.zeros((), device=device)
        for number, (inputs, targets) in enumerate(parts):
            with self._local(number < len(parts) - 1), self._autocast():
                loss = self._objective(inputs, targets) * (len(targets) / len(y))
                self.scaler.scale(loss).backward()
            total += loss.detach()
        if training.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), training.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.net)
        self.step += 1
        return total

    @contextlib.contextmanager
    def _local(self, on: bool) -> Iterator[None]:
        """Let processes keep their gradients to themselves until the last micro-batch."""
        if on and isinstance(self._objective, DistributedDataParallel):
            with self._objective.no_sync():
                yield
        else:
            yield

    def _autocast(self) -> Any:
        dtype = _DTYPES.get(self._training.precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self._processes.device.type, dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs; call it in all processes."""
        return {
            "step": self.step,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "engine": None if self.engine is None else self.engine.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": self.scaler.state_dict(),
            "flops": None if self.flops is None else self.flops.state_dict(),
            "random": self._processes.gather(random_state(self._processes.device)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            TrainingError: The state is of another network or of another number of processes.
        """
        if len(state["random"]) != self._processes.world:
            raise TrainingError(
                f"The checkpoint is of {len(state['random'])} processes, this run has {self._processes.world}. Go on "
                "with as many."
            )
        try:
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.engine is not None:
                self.engine.load_state_dict(state["engine"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"The checkpoint is of another network: {error}") from error
        self.scaler.load_state_dict(state["scaler"])
        if self.flops is not None:
            self.flops.load_state_dict(state["flops"])
        self.step = state["step"]
        restore_random(state["random"][self._processes.rank], self._processes.device)
