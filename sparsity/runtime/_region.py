"""A region of a network as one module: checks its inputs, makes its outputs, runs its plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsity._errors import CompileError
from sparsity.runtime._operator import call, register
from sparsity.runtime._plan import Plan

Shape = tuple[int, ...]
_CACHE_FLOATS = 1 << 20
_LEAST_ROWS = 256
"""Rows that are run at once at least: each chunk reads all weights."""


class ShapeMismatch(CompileError):
    """Inputs of another shape than a region was made for."""


@dataclass(frozen=True)
class Ports:
    """What goes into a region and comes out of it, per sample.

    Attributes:
        rows: Whether a sample is a row of tokens, and not an image.
        inputs: Shape of a sample of each input.
        buffers: Shape of a sample of each buffer that is returned.
        outputs: For each output its buffer, by position in ``buffers``, and the shape of its samples.
    """

    rows: bool
    inputs: tuple[Shape, ...]
    buffers: tuple[Shape, ...]
    outputs: tuple[tuple[int, Shape], ...]


class Region(nn.Module):
    """Runs a plan on tensors of any number of samples.

    Args:
        plan: The finished plan.
        ports: Shapes of its inputs and outputs.
        arena: Floats per sample of what the plan works on.
        threads: Number of threads; None asks torch at every call.
    """

    def __init__(self, plan: Plan, ports: Ports, arena: int, threads: int | None) -> None:
        super().__init__()
        self.plan, self.ports, self.arena, self.threads = plan, ports, arena, threads
        self.handle = register(self)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """Return the output, or a list of several."""
        outputs = call(self, inputs)
        return outputs[0] if len(self.ports.outputs) == 1 else outputs

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the plan.

        Raises:
            ShapeMismatch: The inputs are not those that the plan was made for.
        """
        leading = self._leading(inputs)
        samples = math.prod(leading)
        buffers = [torch.empty(*leading, *shape) for shape in self.ports.buffers]
        threads = torch.get_num_threads() if self.threads is None else self.threads
        chunk = self._chunk(threads)
        given = [each.contiguous() for each in inputs]
        if samples > chunk:
            # What a plan works on should stay in the cache, however large the batch.
            rows = [each.view(samples, -1).split(chunk) for each in (*given, *buffers)]
            for parts in zip(*rows, strict=True):
                self.plan.run(parts[: len(given)], parts[len(given) :], len(parts[0]), threads)
        elif samples:
            self.plan.run(given, buffers, samples, threads)
        return self._views(buffers, leading)

    def _chunk(self, threads: int) -> int:
        """Number of samples that are run at once."""
        fit = _CACHE_FLOATS // max(1, self.arena)
        return max(fit, _LEAST_ROWS if self.ports.rows else threads)

    def outline(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Make outputs of the right shapes."""
        leading = self._leading(inputs)
        return [inputs[0].new_empty(*leading, *shape) for _, shape in self.ports.outputs]

    def profile(self, inputs: Sequence[Tensor]) -> list[float]:
        """Seconds that each step takes on one thread, for a large batch by its first part."""
        samples = math.prod(self._leading(inputs))
        part = min(samples, self._chunk(1))
        buffers = [torch.empty(part, *shape) for shape in self.ports.buffers]
        given = [each.contiguous().view(samples, -1)[:part] for each in inputs]
        return [each * samples / part for each in self.plan.profile(given, buffers, part, 1)]

    def _views(self, buffers: list[Tensor], leading: Sequence[int]) -> list[Tensor]:
        return [
            buffers[index] if shape == self.ports.buffers[index] else buffers[index].view(*leading, *shape)
            for index, shape in self.ports.outputs
        ]

    def _leading(self, inputs: Sequence[Tensor]) -> Sequence[int]:
        """The dimensions that count samples, which all inputs have in common."""
        first = inputs[0]
        dims = first.ndim - len(self.ports.inputs[0])
        leading = first.shape[:dims]
        for each, shape in zip(inputs, self.ports.inputs, strict=True):
            fits = each.ndim == dims + len(shape) and each.shape[:dims] == leading and each.shape[dims:] == shape
            if not fits or each.dtype != torch.float32 or dims < 1 or (dims > 1 and not self.ports.rows):
                raise ShapeMismatch(
                    f"A part of the network was compiled for samples of shape {list(shape)} in float32, got a tensor "
                    f"{list(each.shape)} of {each.dtype}. Compile the network with an example of that shape."
                )
        return leading

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"{len(self.plan.steps)} steps"
