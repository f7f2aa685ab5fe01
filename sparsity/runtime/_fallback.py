"""Without a C++ compiler: linear layers as torch's CSR matrices where those win, the rest dense."""

from __future__ import annotations

import torch

from sparsity.runtime._choice import Choice
from sparsity.runtime._ops import Linear
from sparsity.runtime._program import Ops

CSR_DENSITY = 0.12
"""Density up to which torch's CSR product counts as faster than its dense one.

Measured on a Zen 4 core, they are level at .09 (768 x 768) to .15 (2048 x 2048) for one row, at .22 to .27 for 256.
"""


def without_kernels(ops: Ops) -> Ops:
    """Choose a kernel of torch for every layer."""
    for layer in ops.layers:
        nonzeros = int(torch.count_nonzero(layer.weight()))
        csr = isinstance(layer, Linear) and nonzeros <= CSR_DENSITY * torch.Size(layer.shape).numel()
        reason = "no sparse kernels, CSR in torch" if csr else "no sparse kernels"
        layer.choice = Choice(False, reason, nonzeros, 0.0, csr=csr)
    return ops
