"""Numbers that an update needs on the host, each kind in one transfer for all layers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsity._bits import count as count_true
from sparsity._errors import SparsityWarning, listed
from sparsity._layer import Layer
from sparsity._sharded import group_of, host, local


def survey(layers: Sequence[Layer], ripe: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[str, int], list[str]]:
    """Count, by path, the active weights and those that are ripe, and tell in which layers a value is not finite."""
    shown = [(layer.path, t) for layer in layers for t in (layer.weight, layer.gradient, layer.masked_gradient)]
    sources, tensors = [path for path, t in shown if t is not None], [t for _, t in shown if t is not None]
    counted = [*(layer.mask for layer in layers), *ripe.values()]
    numbers = [*(count_true(local(each)) for each in counted), *(is_infinite(local(each)) for each in tensors)]
    known = host(numbers, [group_of(each) for each in (*counted, *tensors)])
    paths = [layer.path for layer in layers]
    active, due = dict(zip(paths, known, strict=False)), dict(zip(ripe, known[len(paths) :], strict=False))
    infinite = [path for path, wrong in zip(sources, known[len(counted) :], strict=True) if wrong]
    return active, due, list(dict.fromkeys(infinite))


def count(layers: Sequence[Layer], changes: Sequence[Tensor]) -> tuple[dict[str, int], dict[str, int]]:
    """Count, by path, the weights that are dropped and grown where their masks change."""
    pairs = list(zip(map(local, changes), (local(layer.mask) for layer in layers), strict=True))
    dropped = [count_true(changed & mask) for changed, mask in pairs]
    grown = [count_true(changed) - lost for (changed, _), lost in zip(pairs, dropped, strict=True)]
    groups, paths = [group_of(changed) for changed in changes], [layer.path for layer in layers]
    known = host([*dropped, *grown], [*groups, *groups])
    return dict(zip(paths, known, strict=False)), dict(zip(paths, known[len(paths) :], strict=True))


def warn_of_empty(paths: Sequence[str], cause: str) -> None:
    """Warn of layers without any active weight, if there are some."""
    if paths:
        text = f"After {cause} no weight is active in {listed(paths)}, so nothing passes there."
        warnings.warn(SparsityWarning(text), stacklevel=3)


def is_infinite(tensor: Tensor) -> Tensor:
    """Tell whether some value of a tensor is infinite or NaN, as a tensor on its device."""
    if not tensor.numel():  # of a weight with fewer rows than there are processes
        return tensor.new_zeros((), dtype=torch.bool)
    # The extremes of a tensor with NaN are NaN; unlike isfinite this allocates nothing of the tensor's size.
    return ~torch.stack(tensor.aminmax()).isfinite().all()
