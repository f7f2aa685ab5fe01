"""Operations as modules that run in torch: layers whose dense kernel wins, and what was fused outside of regions."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparsity.runtime._activations import FUNCTIONS
from sparsity.runtime._operands import Activation, PoolKind
from sparsity.runtime._operator import call, register
from sparsity.runtime._ops import (
    ChannelAffine,
    ChannelNorm,
    Conv,
    GlobalMean,
    Layer,
    Linear,
    Norm,
    Op,
    Permute,
    Pool,
    Product,
    Sum,
    applied,
)
from sparsity.runtime._packing import pack_weight, unpack_weight


class OpModule(nn.Module):
    """An operation that runs in torch.

    Attributes:
        op: The operation, without the nodes that it was made for.
    """

    def __init__(self, op: Op) -> None:
        super().__init__()
        # Nodes keep their graph, and a graph all that it was made from.
        blank = cast(Any, None)
        self.op = dataclasses.replace(op, node=blank, inputs=[])
        self.eval()

    def lowered(self, node: fx.Node, inputs: list[fx.Node]) -> Op:
        """The operation again, for other nodes."""
        return dataclasses.replace(self.op, node=node, inputs=inputs)


class LayerModule(OpModule):
    """A convolution or linear layer in torch; its weight is held once, as the kernel wants it."""

    def __init__(self, op: Layer) -> None:
        self.fused = op.residual is not None
        blank = cast(Any, None)
        super().__init__(dataclasses.replace(op, weight=blank, residual=None))

    def dense_weight(self) -> Tensor:
        """The weight in torch's layout."""
        raise NotImplementedError

    def lowered(self, node: fx.Node, inputs: list[fx.Node]) -> Op:
        """The layer again, for other nodes; the second input is the residual."""
        op = cast(Layer, self.op)
        residual = inputs[1] if self.fused else None
        return dataclasses.replace(
            op, node=node, inputs=inputs, weight=self.dense_weight, residual=residual, choice=None
        )

    def finished(self, y: Tensor, residual: Tensor | None, activation: Activation) -> Tensor:
        """Add the residual and apply the activation; ``y`` is overwritten."""
        y = y if residual is None else y.add_(residual)
        return y.relu_() if activation is Activation.RELU else FUNCTIONS[activation](y)


class DenseConv(LayerModule):
    """A dense convolution, prepacked for oneDNN where torch has it.

    Args:
        op: The convolution.
    """

    def __init__(self, op: Conv) -> None:
        super().__init__(op)
        # The weight, and what it is laid out for: None in torch's own layout. Always replaced together, since several
        # threads may call.
        self._held: tuple[tuple[int, ...] | None, Tensor] = None, op.weight().clone()
        self.handle = register(self)

    def _laid_out(self, shape: Sequence[int]) -> Tensor | None:
        """The weight in oneDNN's layout for an input of this shape; None if there is no oneDNN."""
        layout, weight = self._held
        # With the layout of another shape or number of threads, some convolutions take twenty times as long.
        wanted = (torch.get_num_threads(), *shape)
        if layout != wanted:
            packed = self._pack(self.dense_weight(), shape)
            if packed is None:
                return None
            weight = packed
            self._held = wanted, weight
        return weight

    def _pack(self, weight: Tensor, shape: Sequence[int]) -> Tensor | None:
        op = cast(Conv, self.op)
        if torch.backends.mkldnn.is_available():
            # Private operators that inductor uses too; without them the public one serves.
            with contextlib.suppress(AttributeError, RuntimeError):
                return torch.ops.mkldnn._reorder_convolution_weight(
                    weight.contiguous(), op.padding, op.stride, op.dilation, op.groups, list(shape)
                )
        return None

    @property
    def weight(self) -> Tensor:
        """The weight in the layout that it has now."""
        return self._held[1]

    def dense_weight(self) -> Tensor:
        layout, weight = self._held
        return weight if layout is None else weight.to_dense()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map ``[N, C, H, W]`` to the convolution of it."""
        return call(self, [x] if residual is None else [x, residual])[0]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Convolve."""
        op = cast(Conv, self.op)
        x = applied(op.affine, inputs[0], 1)
        residual = inputs[1] if len(inputs) > 1 else None
        weight = self._laid_out(x.shape) if x.numel() else None
        if weight is None:
            y = F.conv2d(x, self.dense_weight(), op.bias, op.stride, op.padding, op.dilation, op.groups)
            return [self.finished(y, residual, op.activation)]
        attr, activation = "none", op.activation
        if residual is None and activation is Activation.RELU:
            attr, activation = "relu", Activation.NONE
        y = torch.ops.mkldnn._convolution_pointwise.default(
            x, weight, op.bias, op.padding, op.stride, op.dilation, op.groups, attr, [], ""
        )
        return [self.finished(y, residual, activation)]

    def outline(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Make an output of the right shape."""
        op = cast(Conv, self.op)
        sizes = zip(inputs[0].shape[2:], op.shape[2:], op.stride, op.padding, op.dilation, strict=True)
        out = [
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in sizes
        ]
        return [inputs[0].new_empty(inputs[0].shape[0], op.shape[0], *out)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": pack_weight(self.dense_weight()), "handle": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._held = None, unpack_weight(state["_held"])
        self.handle = register(self)


class DenseLinear(LayerModule):
    """A dense linear layer."""

    weight: Tensor

    def __init__(self, op: Linear) -> None:
        super().__init__(op)
        self.weight = op.weight().clone(memory_format=torch.contiguous_format)

    def dense_weight(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map ``[..., K]`` to ``[..., M]``."""
        op = cast(Linear, self.op)
        y = F.linear(applied(op.affine, x, -1), self.weight, op.bias)
        return self.finished(y, residual, op.activation)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "weight": pack_weight(self.weight)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.weight = unpack_weight(state["weight"])


class AffineModule(OpModule):
    """Scale, shift and ReLU per channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to one of its shape."""
        op = cast(ChannelAffine, self.op)
        if op.affine.scale is None or op.affine.shift is None or op.dim != 1:
            return applied(op.affine, x, op.dim)
        # One pass over memory instead of two. An epsilon of zero is refused by some versions of torch; this is none.
        zero, one = torch.zeros_like(op.affine.scale), torch.ones_like(op.affine.scale)
        y = F.batch_norm(x, zero, one, op.affine.scale, op.affine.shift, eps=1e-30)
        return y.relu_() if op.affine.relu else y


class SumModule(OpModule):
    """A scaled sum with an activation."""

    def forward(self, *values: Tensor) -> Tensor:
        """Add tensors of one shape."""
        op = cast(Sum, self.op)
        total = values[0] + values[1]
        for each in values[2:]:
            total += each
        return FUNCTIONS[op.activation](total if op.scale == 1 else total * op.scale)


class ProductModule(OpModule):
    """A gate."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Multiply tensors of one shape."""
        return FUNCTIONS[cast(Product, self.op).activation](first) * second


class GlobalMeanModule(OpModule):
    """A mean over height and width, of what an affine makes of the input.

    Args:
        op: The mean.
        keep: Whether height and width stay, as ones.
    """

    def __init__(self, op: GlobalMean, keep: bool) -> None:
        super().__init__(op)
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C]`` or ``[N, C, 1, 1]``."""
        return applied(cast(GlobalMean, self.op).affine, x, 1).mean((2, 3), keepdim=self.keep)


class NormModule(OpModule):
    """A LayerNorm or RMSNorm of the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to one of its shape."""
        op = cast(Norm, self.op)
        if op.centered:
            return F.layer_norm(x, x.shape[-1:], op.weight, op.bias, op.eps)
        return F.rms_norm(x, x.shape[-1:], op.weight, op.eps)


class ChannelNormModule(OpModule):
    """A LayerNorm over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to images of the same shape."""
        op = cast(ChannelNorm, self.op)
        normed = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], op.weight, op.bias, op.eps)
        return normed.permute(0, 3, 1, 2)


class PermuteModule(OpModule):
    """Images as maps of feature vectors, or back."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, H, W, C]``, or the other way round."""
        return x.permute(0, 2, 3, 1) if cast(Permute, self.op).to_last else x.permute(0, 3, 1, 2)


class ReshapeModule(OpModule):
    """Images as vectors."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C * H * W]``."""
        return x.flatten(1)


class PoolModule(OpModule):
    """A maximum or average over windows."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to smaller images."""
        op = cast(Pool, self.op)
        if op.kind is PoolKind.MAX:
            return F.max_pool2d(x, op.kernel, op.stride, op.padding, ceil_mode=op.ceil_mode)
        return F.avg_pool2d(x, op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad)


class ActivateModule(OpModule):
    """An activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to one of its shape."""
        return FUNCTIONS[self.op.activation](x)  # pyright: ignore


class CsrLinear(LayerModule):
    """A linear layer with a sparse weight in torch, for machines without a C++ compiler."""

    weight: Tensor

    def __init__(self, op: Linear) -> None:
        super().__init__(op)
        self._hold(op.weight())

    def _hold(self, weight: Tensor) -> None:
        with warnings.catch_warnings():
            # torch says at first use that CSR is in beta.
            warnings.filterwarnings("ignore", message="Sparse CSR", category=UserWarning)
            self.weight = weight.to_sparse_csr()

    def dense_weight(self) -> Tensor:
        return self.weight.to_dense()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map ``[..., K]`` to ``[..., M]``."""
        op = cast(Linear, self.op)
        rows = applied(op.affine, x, -1).reshape(-1, x.shape[-1])
        y = (self.weight @ rows.t()).t()
        y = (y if op.bias is None else y + op.bias).reshape(*x.shape[:-1], op.shape[0])
        return self.finished(y, residual, op.activation)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "weight": pack_weight(self.dense_weight())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hold(unpack_weight(state["weight"]))
