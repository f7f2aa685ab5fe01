"""The operator that torch.compile and torch.export see in place of a plan or a packed layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from sparsity._errors import CompileError

_numbers = itertools.count(1)


class Runnable(Protocol):
    """What the operator stands for: something that makes tensors from tensors, outside of what torch can look into."""

    handle: int

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Compute the outputs."""
        ...

    def outline(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Make outputs of the right shapes, whose values don't matter."""
        ...


_runnables: WeakValueDictionary[int, Runnable] = WeakValueDictionary()


def register(runnable: Runnable) -> int:
    """Give ``runnable`` a number under which the operator finds it as long as it lives."""
    handle = next(_numbers)
    _runnables[handle] = runnable
    return handle


def call(runnable: Runnable, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run, as an operator of torch where a graph is being recorded and directly otherwise."""
    if torch.compiler.is_compiling() or any(type(each) not in (Tensor, nn.Parameter) for each in inputs):
        return torch.ops.sparsity.run(list(inputs), runnable.handle)
    return runnable.run(inputs)


def _find(handle: int) -> Runnable:
    found = _runnables.get(handle)
    if found is None:
        raise CompileError(
            "This graph calls a compiled sparse network that no longer exists, or that belongs to another process. "
            "Keep the network that sparsity.compile returned, and record the graph in the process that runs it."
        )
    return found


@torch.library.custom_op("sparsity::run", mutates_args=())
def run(inputs: list[Tensor], handle: int) -> list[Tensor]:
    """Run what is registered as ``handle``."""
    return _find(handle).run(inputs)


@run.register_fake
def _(inputs: list[Tensor], handle: int) -> list[Tensor]:
    return _find(handle).outline(inputs)
