"""The compiled network: a module for inference."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsity._errors import CompileError, SparsityWarning
from sparsity.runtime._assemble import Settings
from sparsity.runtime._build_net import Built, build
from sparsity.runtime._example import Arguments, check_inputs, few_samples, tensors_of
from sparsity.runtime._inflate import inflate
from sparsity.runtime._measure import measure
from sparsity.runtime._region import ShapeMismatch
from sparsity.runtime._report import CompileReport, make_report
from sparsity.runtime._stored import Stored, restored, stored

_Key = tuple[tuple[int, ...], ...]


class SparseNet(nn.Module):
    """A network compiled for sparse inference on the CPU; made by `sparsity.compile`.

    It is called like the network it was compiled from, with any batch. For images of another height and width it
    compiles itself once more, and keeps that beside; ``report()`` lists them. It holds its own weights: changes to the
    original network do not show. Copies share the weights, which never change; a pickle holds them and is compiled
    when it is loaded. ``state_dict()`` is empty, since nothing in here can be trained or loaded.

    Zero weights are skipped: a NaN or Inf in the input that meets only zero weights does not reach the output.
    """

    def __init__(self, built: Built, arguments: Arguments, settings: Settings) -> None:
        super().__init__()
        self._built, self._settings = built, settings
        self._example = few_samples(arguments) or arguments
        self._others: dict[_Key, Built] = {}
        self.program = built.program.module
        self._has_heads = _has_heads(built)
        super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network on float32 inputs in CPU memory.

        Returns:
            What the original network returns.

        Raises:
            CompileError: An input is on another device, of another dtype or layout, or requires a gradient.
        """
        return self._run(args, kwargs)[0]

    def head_outputs(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Run the network and return each head's output, in the order of the heads.

        Raises:
            CompileError: The original network had no heads; or as for calling it.
        """
        if not self._has_heads:
            raise CompileError("head_outputs: this network was not compiled from a split one, so it has no heads.")
        return list(self._run(args, kwargs)[1])

    def report(self, *args: Any, **kwargs: Any) -> CompileReport:
        """What runs, layer by layer, and why; displayable in a terminal and in a notebook.

        Args:
            *args: With an input, the layers are measured on it now; else it shows what compiling measured.
            **kwargs: As for calling the network.
        """
        built = self._built
        notes = [*built.report.notes, *(f"compiled again for inputs {shapes}" for shapes in self._shapes())]
        if not args and not kwargs:
            return dataclasses.replace(built.report, notes=tuple(notes))
        built = self._others.get(_key((args, kwargs)), built)
        times, counts = measure(built.program, (args, kwargs))
        shapes = tuple(tuple(tensor.shape) for tensor in tensors_of((args, kwargs)))
        return make_report(built.program, times, counts, notes, built.report.seconds, shapes)

    @property
    def nbytes(self) -> int:
        """Memory of all weights and constants, in all shapes it was compiled for."""
        return sum(_bytes(built) for built in (self._built, *self._others.values()))

    def train(self, mode: bool = True) -> SparseNet:
        """Stay in eval mode.

        Raises:
            CompileError: ``mode`` is True: there is nothing to train.
        """
        if mode:
            raise CompileError(
                "A compiled network is for inference only. Train the network that it was compiled from, and compile it "
                "again."
            )
        return self

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            return self.program(*args, **kwargs)
        check_inputs(tensors_of((args, kwargs)))
        with torch.no_grad():
            if self._others:
                other = self._others.get(_key((args, kwargs)))
                if other is not None:
                    return other.program.module(*args, **kwargs)
            try:
                return self.program(*args, **kwargs)
            except ShapeMismatch:
                return self._compiled_again((args, kwargs)).program.module(*args, **kwargs)

    def _compiled_again(self, arguments: Arguments) -> Built:
        """Compile for inputs of another shape; a plan is laid out for one height and width."""
        dense = inflate(self._built.program)
        with warnings.catch_warnings():
            # It was said when the network was compiled first.
            warnings.simplefilter("ignore", SparsityWarning)
            built = build(dense, dense.graph, arguments, self._settings)
        self._others[_key(arguments)] = built
        return built

    def _shapes(self) -> list[str]:
        return [", ".join(str(list(shape)) for shape in built.report.shapes) for built in self._others.values()]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return nothing of this network, or what is in ``destination`` already."""
        destination = kwargs.get("destination", args[0] if args else None)
        return {} if destination is None else destination

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load nothing."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Refuse.

        Raises:
            CompileError: Always, unless there is nothing to load.
        """
        if state_dict:
            raise CompileError(
                "Weights can't be loaded into a compiled network. Load them into the network that it was compiled "
                "from, and compile again."
            )
        return nn.modules.module._IncompatibleKeys([], [])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseNet:
        moved = fn(torch.zeros(1))
        if moved.device.type != "cpu" or moved.dtype != torch.float32:
            raise CompileError(
                f"A compiled network runs on the CPU in float32, it can't become {moved.dtype} on {moved.device}."
            )
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseNet:
        copied = SparseNet(self._built, self._example, self._settings)
        copied._others = dict(self._others)
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> Any:
        state = stored(inflate(self._built.program))
        return _load, (state, self._example, self._settings)

    def extra_repr(self) -> str:
        """Shown by print."""
        report = self._built.report
        return f"{len(report.layers)} layers, {report.regions} regions, {report.bytes:,} bytes of weights"


def _load(state: Stored, example: Arguments, settings: Settings) -> SparseNet:
    dense = restored(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparsityWarning)
        return SparseNet(build(dense, dense.graph, example, settings), example, settings)


def _has_heads(built: Built) -> bool:
    output = next(node for node in built.program.module.graph.nodes if node.op == "output")
    return output.args[0][1] is not None


def _key(arguments: Arguments) -> _Key:
    """Shapes of all inputs without the batch."""
    return tuple(tuple(tensor.shape[1:]) for tensor in tensors_of(arguments))


def _bytes(built: Built) -> int:
    program = built.program
    held = {id(value): value for value in (*program.module.parameters(), *program.module.buffers())}
    return built.report.bytes + sum(value.numel() * value.element_size() for value in held.values())
