"""Times of the layers of a program on one thread."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from sparsity.runtime._emit import Program
from sparsity.runtime._example import Arguments
from sparsity.runtime._timing import one_thread

_ROUNDS = 3
_SECONDS = 0.5


def measure(program: Program, arguments: Arguments) -> tuple[dict[str, float], dict[str, int]]:
    """Run a program a few times with a clock at every layer.

    Returns:
        CPU seconds on one thread: of step ``i`` of a region as ``'<region>.<i>'``, of a module in torch by its name.
        Samples that each region was given; for a layer in torch the operations on its nonzeros.
    """
    args, kwargs = arguments
    given: dict[str, tuple[Tensor, ...]] = {}
    taken: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, int] = {}
    started: dict[str, float] = {}
    handles = []
    for name in program.bodies:
        keep = _keep(given, name)
        handles.append(program.module.get_submodule(name).register_forward_pre_hook(keep))
    for name, layer in program.dense.items():
        nonzeros = layer.choice.nonzeros if layer.choice else 0
        module = program.module.get_submodule(name)
        handles.append(module.register_forward_pre_hook(_start(started, name)))
        handles.append(module.register_forward_hook(_stop(started, taken, counts, name, nonzeros, layer.shape[0])))
    try:
        with torch.no_grad(), one_thread():
            begun = time.perf_counter()
            for _ in range(_ROUNDS):
                program.module(*args, **kwargs)
                if time.perf_counter() - begun > _SECONDS:
                    break
    finally:
        for handle in handles:
            handle.remove()
    times = {name: min(values) for name, values in taken.items()}
    for name, inputs in given.items():
        region = program.bodies[name].region
        begun, rounds = time.perf_counter(), [region.profile(inputs)]
        while len(rounds) < _ROUNDS and time.perf_counter() - begun < _SECONDS:
            rounds.append(region.profile(inputs))
        times.update({f"{name}.{step}": min(values) for step, values in enumerate(zip(*rounds, strict=True))})
        counts[name] = inputs[0].numel() // math.prod(region.ports.inputs[0])
    return times, counts


def _keep(given: dict[str, tuple[Tensor, ...]], name: str) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given[name] = inputs

    return hook


def _start(started: dict[str, float], name: str) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        started[name] = time.thread_time()

    return hook


def _stop(
    started: dict[str, float],
    taken: dict[str, list[float]],
    counts: dict[str, int],
    name: str,
    nonzeros: int,
    outputs: int,
) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        taken[name].append(time.thread_time() - started[name])
        counts[name] = 2 * nonzeros * (output.numel() // outputs)

    return hook
