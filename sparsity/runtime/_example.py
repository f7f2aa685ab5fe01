"""Examples as a call's arguments, and what may not be compiled: wrong devices, dtypes, layouts and modes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from sparsity._errors import CompileError, SparsityWarning, listed

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments_of(example: Any) -> Arguments:
    """Positional and keyword arguments: ``example`` is a tensor, a tuple, a dict of keywords, or ``(args, kwargs)``.

    Raises:
        CompileError: It is none of these, has no tensor, or an empty one.
    """
    if isinstance(example, Tensor):
        args, kwargs = (example,), {}
    elif isinstance(example, Mapping):
        args, kwargs = (), dict(example)
    elif _is_pair(example):
        args, kwargs = tuple(example[0]), dict(example[1])
    elif isinstance(example, (tuple, list)):
        args, kwargs = tuple(example), {}
    else:
        raise CompileError(
            f"compile: example must be a tensor, a tuple of arguments, a dict of keyword arguments or (args, kwargs), "
            f"got {type(example).__name__}."
        )
    tensors = tensors_of((args, kwargs))
    if not tensors:
        raise CompileError("compile: the example has no tensor; pass inputs as the network takes them.")
    if any(tensor.numel() == 0 for tensor in tensors):
        shapes = [list(tensor.shape) for tensor in tensors]
        raise CompileError(f"compile: the example is empty, of shapes {shapes}; pass at least one sample.")
    check_inputs(tensors)
    return args, kwargs


def tensors_of(arguments: Any) -> list[Tensor]:
    """All tensors among the leaves of ``arguments``."""
    return [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]


def check_inputs(tensors: list[Tensor]) -> None:
    """Refuse what kernels on float32 in CPU memory can't read.

    Raises:
        CompileError: An input is on another device, of another floating dtype, complex, sparse or wants a gradient.
    """
    for tensor in tensors:
        if tensor.device.type != "cpu":
            raise CompileError(
                f"A compiled network runs on the CPU, got an input on {tensor.device}; move it with .cpu()."
            )
        if tensor.layout != torch.strided:
            raise CompileError(
                f"A compiled network takes dense inputs, got one of layout {tensor.layout}; pass .to_dense()."
            )
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise CompileError(
                f"A compiled network computes in float32, got an input of {tensor.dtype}; convert it with .float()."
            )
        if tensor.requires_grad and torch.is_grad_enabled():
            raise CompileError(
                "A compiled network is for inference only, got an input that requires a gradient. Call it under "
                "torch.no_grad(), or train the network that it was compiled from."
            )


def warn_of_hooks(net: nn.Module) -> None:
    """Warn of forward hooks, which a compiled network does not call; those that compute a weight are folded."""
    hooked = [
        path or "the network"
        for path, module in net.named_modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if not isinstance(hook, (WeightNorm, SpectralNorm))
    ]
    if hooked:
        warnings.warn(
            SparsityWarning(
                f"compile: the forward hooks of {listed(dict.fromkeys(hooked), 3)} are left out: layers are fused, so "
                "there is nothing left to call them on. Use the network that it was compiled from to look inside."
            ),
            stacklevel=3,
        )


def check_network(net: Any) -> None:
    """Refuse what is no traced network in eval mode with float32 weights on the CPU.

    Raises:
        CompileError: Says what to change.
    """
    if not isinstance(net, fx.GraphModule):
        if isinstance(net, nn.Module):
            raise CompileError(
                f"compile takes a traced network, got {type(net).__name__}. Trace it first: "
                "sparsity.compile(fxsplit.trace(model, example), example)."
            )
        raise CompileError(f"compile takes a traced network (torch.fx.GraphModule), got {type(net).__name__}.")
    # A mask that is put on a network in eval mode is in training mode itself, which makes no difference.
    modules = [(path, module) for path, module in net.named_modules() if "parametrizations" not in path.split(".")]
    training = [path or "the network" for path, module in modules if module.training]
    if training:
        raise CompileError(
            f"compile makes a network for inference, but {listed(training, 3)} is in training mode. Call net.eval() "
            "first."
        )
    state = dict([*net.named_parameters(), *net.named_buffers()])
    elsewhere = [path for path, value in state.items() if value.device.type != "cpu"]
    if elsewhere:
        raise CompileError(
            f"compile makes a network for the CPU, but {listed(elsewhere, 3)} is on {state[elsewhere[0]].device}. Pass "
            "a copy on the CPU: copy.deepcopy(net).cpu()."
        )
    other = [p for p, v in state.items() if v.is_complex() or (v.is_floating_point() and v.dtype != torch.float32)]
    if other:
        raise CompileError(
            f"compile makes a network in float32, but {listed(other, 3)} is {state[other[0]].dtype}. Pass a copy in "
            "float32: copy.deepcopy(net).float()."
        )


def detached(arguments: Arguments) -> Arguments:
    """The arguments with copies of all tensors, so that a network that writes into its inputs leaves them alone."""
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, arguments)


def size_of_batch(arguments: Arguments) -> int:
    """Size of dimension 0 of the first tensor."""
    first = tensors_of(arguments)[0]
    return len(first) if first.ndim else 1


def few_samples(arguments: Arguments) -> Arguments | None:
    """The arguments with two samples: enough to tell the batch from other dimensions, and quick to run.

    None if not all tensors have the same dimension 0.
    """
    tensors = tensors_of(arguments)
    if any(tensor.ndim == 0 for tensor in tensors) or len({len(tensor) for tensor in tensors}) != 1:
        return None
    return pytree.tree_map(
        lambda leaf: torch.cat([leaf, leaf])[:2] if isinstance(leaf, Tensor) else leaf,
        arguments,
    )


def _is_pair(example: Any) -> bool:
    return (
        isinstance(example, (tuple, list))
        and len(example) == 2
        and isinstance(example[0], (tuple, list))
        and isinstance(example[1], Mapping)
    )
