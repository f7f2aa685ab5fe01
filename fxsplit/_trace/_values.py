"""Example inputs for a model on the meta device: integers have values, which Python may read."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import nn

from fxsplit._trace._inputs import Argument, map_tensors
from fxsplit._trace._shadow import is_on_meta, value_of
from fxsplit._trace._transformers_example import ordinary_tokens


def prepared(model: nn.Module, arguments: tuple[Argument, ...]) -> tuple[Argument, ...]:
    """Arguments for a model on the meta device: integers with values on the CPU, floating tensors without."""
    if not is_on_meta(model):
        return arguments

    def prepare(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")
        value = value_of(tensor)
        return _plausible(model, name, tensor) if value is None else value

    return tuple(
        dataclasses.replace(
            argument,
            value=map_tensors(argument.value, functools.partial(prepare, argument.name)),
            meta=True,
        )
        for argument in arguments
    )


def _plausible(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Values for integers given on the meta device: masks hide nothing yet, positions count, ids are small."""
    if tensor.dtype is torch.bool or name.endswith("mask"):
        return torch.ones_like(tensor, device="cpu")
    if name.endswith("position_ids") and tensor.ndim:
        return torch.arange(tensor.shape[-1], dtype=tensor.dtype).expand(tensor.shape).clone()
    if name.endswith("token_type_ids"):
        return torch.zeros_like(tensor, device="cpu")
    tokens = ordinary_tokens(getattr(model, "config", None))
    numbers = torch.arange(tensor.numel()) % len(tokens)
    return torch.tensor(tokens)[numbers].to(tensor.dtype).view(tensor.shape)
