"""One network with inputs of one batch size, and what its output should be."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxsplit
import sparsity
from benchmarks.inference._errors import EngineError
from benchmarks.inference._nets import Net


@dataclass
class Case:
    """What engines are given.

    Args:
        net: Which network.
        batch: Batch size.
        model: The network, in eval mode, with its masks.
        inputs: Its inputs, ``[batch, ...]``.
        folder: Where its ONNX file is, or will be written.
    """

    net: Net
    batch: int
    model: nn.Module
    inputs: Tensor
    folder: Path
    _failed: str = field(default="", init=False)

    @cached_property
    def plain(self) -> nn.Module:
        """The network with its masks folded into the weights, as an engine without sparsity takes it."""
        plain = copy.deepcopy(self.model)
        if sparsity.masks_of(plain):
            sparsity.fold(plain)
        return plain

    @property
    def expected(self) -> np.ndarray:
        """The output that torch computes op by op, in the precision that `reference` names."""
        return self._reference[1]

    @property
    def reference(self) -> str:
        """``'float64'``, or ``'float32'`` for a network that has constants of that precision inside."""
        return self._reference[0]

    @cached_property
    def _reference(self) -> tuple[str, np.ndarray]:
        exact = copy.deepcopy(self.plain).double()
        try:
            return "float64", main_output(
                exact, self.inputs.double() if self.inputs.is_floating_point() else self.inputs
            )
        except RuntimeError:
            return "float32", main_output(self.plain, self.inputs)

    def onnx(self) -> Path:
        """Return the network's ONNX file, of any batch size; it is exported once.

        Raises:
            EngineError: It can't be exported.
        """
        path = self.folder / f"{self.net.key}.onnx"
        if self._failed:
            raise EngineError(self._failed)
        if not path.exists():
            try:
                fxsplit.export_onnx(self.model, path, self.inputs, check=False)
            except fxsplit.ExportError as error:
                self._failed = f"no ONNX file: {error}"
                raise EngineError(self._failed) from error
        return path


def build(net: Net, batch: int, folder: Path, model: nn.Module | None = None) -> Case:
    """Build a network, unless it is given, and its inputs."""
    return Case(net, batch, model or net.build(), net.inputs(batch), folder)


def first_tensor(output: Any) -> Tensor:
    """Return the output itself, or its first tensor: the logits of a model of transformers."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if hasattr(output, "values") else output
    return next(first_tensor(value) for value in values if value is not None)


def main_output(call: Any, inputs: Tensor) -> np.ndarray:
    """Return the first output of a module as an array."""
    with torch.no_grad():
        return first_tensor(call(inputs)).detach().numpy()


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return max|found - expected| / max|expected|; infinite if shapes differ or anything is not finite.

    Example:
        >>> relative_error(np.array([1.0, 4.5]), np.array([1.0, 4.0]))
        0.125
    """
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    scale = float(np.abs(expected).max())
    difference = float(np.abs(found.astype(np.float64) - expected).max())
    return difference / scale if scale else difference
