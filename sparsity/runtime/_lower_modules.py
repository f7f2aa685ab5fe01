"""From leaf modules to operations: torch's by type, those of other libraries by what they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparsity.runtime import _activations as activations
from sparsity.runtime._modules import OpModule
from sparsity.runtime._operands import Affine, PoolKind
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
    Reshape,
)
from sparsity.runtime._program import Source
from sparsity.runtime._weights import detached, scale_and_shift, weight_of

_DROPOUTS = (nn.modules.dropout._DropoutNd, nn.Identity)
_DROP_NAMES = ("DropPath", "StochasticDepth", "DropBlock2d", "PatchDropout")
ACT = "act_only"
"""Key in a node's meta: of a norm with an activation inside, only this part is meant (``'norm'`` or ``'act'``)."""


def from_module(source: Source, node: fx.Node, module: nn.Module) -> Op | fx.Node | None:
    """The operation of a call of a leaf module, the node that it passes on, or None if it has to run in torch."""
    if isinstance(module, OpModule):
        return module.lowered(node, list(node.all_input_nodes))
    x = _input(node)
    if x is None or node not in source.shapes or x not in source.shapes:
        return None
    if isinstance(module, _DROPOUTS) or type(module).__name__ in _DROP_NAMES:
        return x if source.shapes[x] == source.shapes[node] else None
    for make in (_conv, _linear, _batch_norm, _norm, _pool, _flatten, _permute):
        made = make(source, node, x, module)
        if made is not None:
            return made
    activation = activations.of_module(module)
    return None if activation is None else Activate(node, [x], activation)


def _input(node: fx.Node) -> fx.Node | None:
    """The one tensor that a call reads."""
    values = [*node.args, *node.kwargs.values()]
    return values[0] if len(values) == 1 and isinstance(values[0], fx.Node) else None


def _inherits(module: nn.Module, base: type[nn.Module], *methods: str) -> bool:
    """Whether a module is a ``base`` that computes what ``base`` computes (parametrizations leave that alone)."""
    return isinstance(module, base) and all(
        getattr(type(module), name) is getattr(base, name) for name in ("forward", *methods)
    )


def _conv(source: Source, node: fx.Node, x: fx.Node, module: Any) -> Conv | None:
    if not _inherits(module, nn.Conv2d, "_conv_forward") or len(source.shapes[node]) != 4:
        return None
    padding = module.padding
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(each % 2 for each in reach):
            return None
        padding = (reach[0] // 2, reach[1] // 2)
    if module.padding_mode != "zeros" and any(padding):
        return None
    weight = weight_of(module)
    return Conv(
        node,
        [x],
        str(node.target),
        tuple(weight.shape),
        lambda: weight,
        detached(module.bias),
        stride=module.stride,
        padding=padding,
        dilation=module.dilation,
        groups=module.groups,
    )


def _linear(source: Source, node: fx.Node, x: fx.Node, module: Any) -> Linear | None:
    if len(source.shapes[node]) < 2:
        return None
    if _inherits(module, nn.Linear):
        weight = weight_of(module)
    elif type(module).__name__.removeprefix("Parametrized") == "Conv1D" and hasattr(module, "nf"):
        # transformers' Conv1D is a linear layer that stores its weight the other way round.
        weight = weight_of(module).t()
    else:
        return None
    return Linear(node, [x], str(node.target), tuple(weight.shape), lambda: weight, detached(module.bias))


def _batch_norm(source: Source, node: fx.Node, x: fx.Node, module: Any) -> ChannelAffine | None:
    base = nn.modules.batchnorm._BatchNorm
    # What is left of timm's BatchNormAct2d, once its activation is a node of its own, is a plain BatchNorm.
    if not (_inherits(module, base) or node.meta.get(ACT) == "norm") or module.running_mean is None:
        return None
    scale, shift = scale_and_shift(
        module.running_mean, module.running_var, detached(module.weight), detached(module.bias), module.eps
    )
    return ChannelAffine(node, [x], Affine(scale, shift, False), dim=1)


def _norm(source: Source, node: fx.Node, x: fx.Node, module: Any) -> Norm | ChannelNorm | None:
    name, shape = type(module).__name__, source.shapes[x]
    if shape != source.shapes[node] or len(shape) < 2 or not ("LayerNorm" in name or "RMSNorm" in name):
        return None
    given = (getattr(module, each, None) for each in ("eps", "variance_epsilon", "epsilon"))
    eps = next((float(each) for each in given if each is not None), torch.finfo(torch.float32).eps)
    weight, bias = detached(getattr(module, "weight", None)), detached(getattr(module, "bias", None))
    sizes = {tuple(each.shape) for each in (weight, bias) if each is not None}
    centered = "RMSNorm" not in name
    if bias is not None and not centered:
        return None
    x_sample = _small_input(shape)
    if len(shape) == 4 and centered and not sizes - {shape[1:2]}:
        expected = F.layer_norm(x_sample.permute(0, 2, 3, 1), shape[1:2], weight, bias, eps).permute(0, 3, 1, 2)
        if _gives(module, x_sample, expected):
            return ChannelNorm(node, [x], weight, bias, eps)
    if sizes - {shape[-1:]}:
        return None
    # Some RMSNorms store their weight without the one that they add to it.
    for each in (weight, None if weight is None else 1 + weight):
        if centered:
            expected = F.layer_norm(x_sample, shape[-1:], each, bias, eps)
        else:
            expected = F.rms_norm(x_sample, shape[-1:], each, eps)
        if _gives(module, x_sample, expected):
            return Norm(node, [x], each, bias, eps, centered)
    return None


def _small_input(shape: tuple[int, ...]) -> Tensor:
    """Random numbers of such a shape, with few samples and pixels."""
    small = [min(shape[0], 2), *shape[1:2], *(min(size, 3) for size in shape[2:-1]), *shape[2:][-1:]]
    return torch.randn(*small, generator=torch.Generator().manual_seed(0)) * 3 + 1


def _gives(module: nn.Module, x: Tensor, expected: Tensor) -> bool:
    """Whether a module computes that, by asking it: libraries have many norms of these names, some with a twist."""
    try:
        with torch.no_grad():
            got = module(x)
    except Exception:  # it wants something else than one tensor of this shape
        return False
    same = isinstance(got, Tensor) and got.dtype == torch.float32 and got.shape == x.shape
    return same and torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


def _pool(source: Source, node: fx.Node, x: fx.Node, module: Any) -> Pool | GlobalMean | None:
    if len(source.shapes[x]) != 4:
        return None
    if _inherits(module, nn.AdaptiveAvgPool2d):
        size = module.output_size
        return GlobalMean(node, [x]) if _pair(size) == (1, 1) else None
    if _inherits(module, nn.MaxPool2d) and _pair(module.dilation) == (1, 1) and not module.return_indices:
        kind, include = PoolKind.MAX, True
    elif _inherits(module, nn.AvgPool2d) and module.divisor_override is None:
        kind, include = PoolKind.AVERAGE, module.count_include_pad
    else:
        return None
    kernel, stride, padding = (_pair(each) for each in (module.kernel_size, module.stride, module.padding))
    return Pool(node, [x], kind, kernel, stride, padding, bool(module.ceil_mode), bool(include))


def _flatten(source: Source, node: fx.Node, x: fx.Node, module: Any) -> Reshape | None:
    before, after = source.shapes[x], source.shapes[node]
    flattens = len(before) == 4 and len(after) == 2 and after[0] == before[0]
    return Reshape(node, [x]) if _inherits(module, nn.Flatten) and flattens else None


def _permute(source: Source, node: fx.Node, x: fx.Node, module: Any) -> Permute | None:
    # torchvision has a module for it.
    dims = list(getattr(module, "dims", ())) if type(module).__name__ == "Permute" else []
    return Permute(node, [x], dims == [0, 2, 3, 1]) if dims in ([0, 2, 3, 1], [0, 3, 1, 2]) else None


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[-1]) if isinstance(value, (tuple, list)) else (value, value)
