"""What a trained network must survive: saving, loading into a fresh model, and export, each with a number to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fxsplit
from recipes.evaluation import head_logits

ONNX_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Check:
    """One check: what was asked, whether it held, and what was measured."""

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {self.detail}"


def reloads(file: Path, make: Callable[[], nn.Module], x: Tensor, trained: Tensor) -> tuple[fxsplit.SplitModel, Check]:
    """Load a saved network into a fresh dense model and compare its heads, bit for bit, with what training left.

    Args:
        file: Written by `fxsplit.save`.
        make: Factory of the dense network.
        x: Inputs, `[N, ...]`.
        trained: Logits `[M, N, K]` that the heads gave before saving.

    Returns:
        The loaded network, and the check.
    """
    net = fxsplit.load(file, make(), example=x[:2])
    loaded = head_logits(net, x)
    different = int((loaded != trained).sum()) if loaded.shape == trained.shape else max(loaded.numel(), 1)
    size = file.stat().st_size / 1e3
    detail = f"{different} of {trained.numel()} logits differ ({file.name}, {size:.0f} kB)"
    return net, Check("saved, loaded into a fresh model, outputs bitwise equal", different == 0, detail)


def exports(net: fxsplit.SplitModel, file: Path, x: Tensor) -> Check:
    """Export a network to ONNX and compare onnxruntime's outputs with torch's.

    Args:
        net: A split model.
        file: Where to write the export.
        x: Inputs to compare on, `[N, ...]`.
    """
    name = "exported to ONNX, onnxruntime agrees with torch"
    try:
        fxsplit.export_onnx(net, file, x[:2])
    except fxsplit.ExportError as error:
        return Check(name, False, str(error))
    with torch.no_grad():
        expected = net.eval()(x).numpy()
    error = relative_error(run_onnx(file, x), expected)
    detail = f"max relative error {error:.1e} on {len(x)} inputs, limit {ONNX_TOLERANCE:.0e} ({file.name})"
    return Check(name, error < ONNX_TOLERANCE, detail)


def run_onnx(file: Path, x: Tensor) -> np.ndarray:
    """Compute the only output of an exported network in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return np.asarray(output)


def relative_error(measured: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference, relative to the largest expected magnitude; infinite if shapes differ.

    Example:
        >>> relative_error(np.array([1.0, 4.5]), np.array([1.0, 4.0]))
        0.125
    """
    if measured.shape != expected.shape:
        return float("inf")
    return float(np.abs(measured - expected).max() / np.abs(expected).max())
