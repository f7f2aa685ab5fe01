"""Sizes of inputs besides batch and length: which of them a graph may leave free, and what to try them at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from fxsplit._trace._fit import BATCH, Sizes
from fxsplit._trace._guards import Shape
from fxsplit._trace._inputs import Inputs, iterate_tensors, symbolic

HEIGHT, WIDTH = "height", "width"
_IMAGE_NDIM = 4
_MOST_EXPERIMENTS = 6
_SMALL = 64
_SMALL_PICTURE = 160


@dataclass(frozen=True)
class Experiment:
    """Dimensions to vary together, with a symbol for each: ``dims`` as in `Inputs`."""

    dims: dict[int, dict[int, str]]
    sizes: Sizes
    others: tuple[Sizes, Sizes]


def experiments(inputs: Inputs) -> list[Experiment]:
    """What to try: height and width of images together, every other dimension that has no symbol on its own."""
    tensors = list(named_tensors(inputs))
    still = fixed_dims(inputs)
    image = next((tensor.shape[-2:] for _, tensor in tensors if tensor.ndim >= _IMAGE_NDIM), None)
    pictures: dict[int, dict[int, str]] = {}
    single: list[tuple[int, int, str, int]] = []
    for position, (name, tensor) in enumerate(tensors):
        known = {*inputs.dims.get(position, {}), *still.get(position, ())}
        for dim in range(tensor.ndim):
            if dim in known:
                continue
            is_picture = tensor.ndim >= _IMAGE_NDIM - 1 and tensor.shape[-2:] == image
            if is_picture and dim >= tensor.ndim - 2:
                pictures.setdefault(position, {})[dim] = HEIGHT if dim == tensor.ndim - 2 else WIDTH
            else:
                single.append((position, dim, f"{name}.shape[{dim}]", tensor.shape[dim]))
    found = []
    if pictures and image is not None:
        found.append(_experiment(pictures, {HEIGHT: image[0], WIDTH: image[1]}, _other_picture))
    found += [_experiment({position: {dim: symbol}}, {symbol: size}, _other) for position, dim, symbol, size in single]
    return found[:_MOST_EXPERIMENTS]


def shapes(inputs: Inputs, unread: bool) -> list[Shape]:
    """What a guard asks of every tensor; with ``unread`` sizes, those that nothing depends on are free."""
    still = fixed_dims(inputs)
    found: list[Shape] = []
    for position, (_, tensor) in enumerate(named_tensors(inputs)):
        symbols, fixed = inputs.dims.get(position, {}), still.get(position, ())
        found.append(
            tuple(
                symbols.get(dim, None if unread and dim not in fixed else size) for dim, size in enumerate(tensor.shape)
            )
        )
    return found


def fixed_dims(inputs: Inputs) -> dict[int, tuple[int, ...]]:
    """Dimensions that would be batch or length, had the model not refused to let them vary."""
    wanted = symbolic(inputs.arguments).dims
    tensors = [tensor for _, tensor in named_tensors(inputs)]
    return {
        position: tuple(dim for dim in dims if dim not in inputs.dims.get(position, {}))
        for position, dims in wanted.items()
        # A vector [T] may have been taken for a batch.
        if tensors[position].ndim > 1 or BATCH not in inputs.sizes
    }


def named_tensors(inputs: Inputs) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of the example with the names of their arguments, in the order in which ``Inputs.dims`` counts."""
    for argument in inputs.arguments:
        for tensor in iterate_tensors(argument.value):
            yield argument.name, tensor


def _experiment(dims: dict[int, dict[int, str]], sizes: Sizes, other: Callable[[int, int, int], int]) -> Experiment:
    others: Sequence[Sizes] = [
        {symbol: other(size, attempt, index) for index, (symbol, size) in enumerate(sizes.items())}
        for attempt in range(2)
    ]
    return Experiment(dims, sizes, (others[0], others[1]))


def _other(size: int, attempt: int, index: int) -> int:
    """A size nearby that is divisible by no power of two: smaller for large ones, which also saves time."""
    if size < _SMALL:
        return (size + ((5, 9), (11, 3))[attempt][index]) | 1
    return (size * ((12, 10), (10, 13))[attempt][index] // 14) | 1


def _other_picture(size: int, attempt: int, index: int) -> int:
    """The same for pictures, of which small ones grow by more than the stride of a network, 32, so that it shows."""
    if size < _SMALL_PICTURE:
        return (size + ((37, 71), (71, 105))[attempt][index]) | 1
    return _other(size, attempt, index)
