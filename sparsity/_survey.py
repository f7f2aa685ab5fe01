"""Numbers that an update needs on the host, each kind in one transfer for all layers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsity._errors import SparsityWarning, listed
from sparsity._layer import Layer
from sparsity._rewire import Choice


def survey(layers: Sequence[Layer], ripe: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[str, int], bool]:
    """Count, by path, the active weights and those that are ripe, and tell whether all values are finite."""
    tensors = [t for layer in layers for t in (layer.weight, layer.gradient, layer.masked_gradient) if t is not None]
    numbers = [
        *(layer.mask.count_nonzero() for layer in layers),
        *(each.count_nonzero() for each in ripe.values()),
        *(_is_finite(each) for each in tensors),
    ]
    host = _to_host(numbers)
    paths = [layer.path for layer in layers]
    active, due = dict(zip(paths, host, strict=False)), dict(zip(ripe, host[len(paths) :], strict=False))
    return active, due, all(host[len(paths) + len(ripe) :])


def count(layers: Sequence[Layer], choices: Sequence[Choice]) -> tuple[dict[str, int], dict[str, int]]:
    """Count, by path, the weights that really are dropped and grown."""
    dropped = [(choice.drop & ~choice.grow).count_nonzero() for choice in choices]
    grown = [(choice.grow & ~choice.drop).count_nonzero() for choice in choices]
    host, paths = _to_host([*dropped, *grown]), [layer.path for layer in layers]
    return dict(zip(paths, host, strict=False)), dict(zip(paths, host[len(paths) :], strict=True))


def warn_of_empty(paths: Sequence[str], cause: str) -> None:
    """Warn of layers without any active weight, if there are some."""
    if paths:
        text = f"After {cause} no weight is active in {listed(paths)}, so nothing passes there."
        warnings.warn(SparsityWarning(text), stacklevel=3)


def _to_host(numbers: Sequence[Tensor]) -> list[int]:
    if not numbers:
        return []
    device = numbers[0].device
    return torch.stack([number.to(device, torch.int64) for number in numbers]).tolist()


def _is_finite(tensor: Tensor) -> Tensor:
    # The extremes of a tensor with NaN are NaN; unlike isfinite this allocates nothing of the tensor's size.
    return torch.stack(tensor.aminmax()).isfinite().all()
