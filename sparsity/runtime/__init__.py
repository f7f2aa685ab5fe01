"""Sparse inference on the CPU: compiled networks, the plans they run, and the kernels of those."""

from __future__ import annotations

from sparsity.runtime._compile import compile
from sparsity.runtime._net import SparseNet

__all__ = ["SparseNet", "compile"]
