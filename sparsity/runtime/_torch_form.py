"""Which module computes an operation in torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from sparsity.runtime._modules import (
    ActivateModule,
    AffineModule,
    ChannelNormModule,
    CsrLinear,
    DenseConv,
    DenseLinear,
    GlobalMeanModule,
    NormModule,
    OpModule,
    PermuteModule,
    PoolModule,
    ProductModule,
    ReshapeModule,
    SumModule,
)
from sparsity.runtime._operands import Affine
from sparsity.runtime._ops import (
    Activate,
    ChannelAffine,
    ChannelNorm,
    Conv,
    GlobalMean,
    Linear,
    Norm,
    Op,
    Permute,
    Pool,
    Product,
    Reshape,
    Shape,
    Sum,
)

_MODULES: dict[type[Op], type[OpModule]] = {
    ChannelAffine: AffineModule,
    Sum: SumModule,
    Product: ProductModule,
    Norm: NormModule,
    ChannelNorm: ChannelNormModule,
    Pool: PoolModule,
    Reshape: ReshapeModule,
    Permute: PermuteModule,
    Activate: ActivateModule,
}


def module_of(op: Op, shapes: Mapping[fx.Node, Shape]) -> OpModule:
    """The module that computes an operation in torch; for a layer, with a copy of its weight."""
    if isinstance(op, Conv):
        return DenseConv(op)
    if isinstance(op, GlobalMean):
        return GlobalMeanModule(op, keep=len(shapes[op.node]) == 4)
    if isinstance(op, Linear):
        return CsrLinear(op) if op.choice is not None and op.choice.csr else DenseLinear(op)
    return _MODULES[type(op)](op)


def bytes_of(module: OpModule) -> int:
    """Memory of a module's own tensors."""
    op = module.op
    affine: Affine | None = getattr(op, "affine", None)
    held = [getattr(module, "weight", None), getattr(op, "bias", None)]
    held += [] if affine is None else [affine.scale, affine.shift]
    return sum(_bytes(each) for each in held if isinstance(each, Tensor))


def _bytes(value: Tensor) -> int:
    if value.layout == torch.sparse_csr:
        return sum(_bytes(part) for part in (value.values(), value.col_indices(), value.crow_indices()))
    return value.numel() * value.element_size()
