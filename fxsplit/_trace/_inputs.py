"""Binds an example to the model's forward and derives the same inputs at other sizes."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxsplit._errors import TraceError
from fxsplit._trace._fit import BATCH, Sizes
from fxsplit._trace._objects import has_tensors, is_plain
from fxsplit._trace._shadow import with_value

MASK_SUFFIX = "attention_mask"
LENGTH = "length"
TARGET_LENGTH = "target_length"
# Small, since a recording keeps all activations; the rehearsal keeps none, and no model is made for a batch of 5.
_BATCHES = (2, 3, 4)
_REHEARSED = 5
_SHORTER = (1, 3)
_SHORTEST = 5
Example = tuple[tuple[Any, ...], dict[str, Any]]


def as_example(example: Any) -> Example:
    """Normalise what the user passed to ``(args, kwargs)``.

    A tensor is one argument, a dict is keyword arguments, a ``(tuple, dict)`` pair is both, another tuple is arguments.
    """
    if isinstance(example, tuple):
        if len(example) == 2 and isinstance(example[0], tuple) and isinstance(example[1], dict):
            return example[0], dict(example[1])
        return example, {}
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example,), {}


@dataclass(frozen=True)
class Argument:
    """One argument of forward: its name, whether it is passed by keyword, and whether it is as long as the target.

    With ``meta``, the model wants it on the meta device, whatever values it has here.
    """

    name: str
    value: Any
    keyword: bool
    decoded: bool = False
    meta: bool = False

    @property
    def is_input(self) -> bool:
        """Whether it becomes a placeholder of the graph."""
        return has_tensors(self.value)


@dataclass(frozen=True)
class Inputs:
    """The example bound to forward's parameters, in signature order, and the sizes that can be varied.

    ``dims`` maps the position of a tensor (counted over all tensors of the example) to its symbolic dimensions.
    ``extents`` are symbols that the schedule leaves as they are in the example.
    """

    arguments: tuple[Argument, ...]
    sizes: Sizes
    dims: dict[int, dict[int, str]]
    extents: Sizes = dataclasses.field(default_factory=dict)

    def schedule(self) -> list[Sizes]:
        """The sizes to record at: the base, then other batch sizes, which shorter sequences come with."""
        if BATCH not in self.sizes:
            return [{}]
        lengths = {symbol: size for symbol, size in self.sizes.items() if symbol != BATCH}
        base, *others = ({BATCH: batch, **lengths} for batch in _BATCHES)
        if not lengths:
            return [base, *others]
        shorter = [
            {**other, symbol: length - less}
            for symbol, length in lengths.items()
            for other, less in zip(reversed(others), _SHORTER, strict=True)
        ]
        return [base, others[0], *shorter]

    def largest(self) -> Sizes:
        """The sizes of the rehearsal, larger than those of the schedule."""
        return {**self.sizes, BATCH: _REHEARSED} if BATCH in self.sizes else {}

    def without_lengths(self) -> Inputs:
        """The same inputs with every sequence at the example's length."""
        kept = {symbol: size for symbol, size in self.sizes.items() if symbol == BATCH}
        dims = {position: {d: s for d, s in found.items() if s in kept} for position, found in self.dims.items()}
        return Inputs(self.arguments, kept, dims)

    def with_extents(self, dims: dict[int, dict[int, str]], sizes: Sizes) -> Inputs:
        """The same inputs with further symbols, which the schedule does not vary."""
        merged = {
            position: {**self.dims.get(position, {}), **dims.get(position, {})} for position in {**self.dims, **dims}
        }
        return Inputs(self.arguments, self.sizes, merged, {**self.extents, **sizes})

    def make(self, sizes: Sizes) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        """Fresh ``(args, kwargs, inputs by name)`` with every symbolic dimension cut or tiled to ``sizes``."""
        count = itertools.count()
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        inputs: dict[str, Any] = {}
        for argument in self.arguments:

            def resize(tensor: torch.Tensor, argument: Argument = argument) -> torch.Tensor:
                dims = self.dims.get(next(count), {})
                wanted = {dim: sizes[symbol] for dim, symbol in dims.items() if symbol in sizes}
                made = _pad_one_row(argument.name, _resized(tensor, wanted))
                return with_value(made) if argument.meta and not made.is_meta else made

            value = map_tensors(argument.value, resize) if argument.is_input else argument.value
            if argument.is_input:
                inputs[argument.name] = value
            if argument.keyword:
                kwargs[argument.name] = value
            else:
                args.append(value)
        return tuple(args), kwargs, inputs


def bind(model: nn.Module, example: Example) -> tuple[Argument, ...]:
    """Name the example's values by forward's parameters.

    Raises:
        TraceError: forward does not take these arguments.
    """
    args, kwargs = example
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TraceError(
            f"the example does not fit {type(model).__name__}.forward{signature}: {error}. Pass a tensor, a tuple of "
            "arguments, a dict of keyword arguments, or (args, kwargs)."
        ) from error
    found: list[Argument] = []
    variadic = False
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            variadic = True
            found += [Argument(f"{name}_{n}", item, keyword=False) for n, item in enumerate(value)]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found += [Argument(key, item, keyword=True) for key, item in value.items()]
        else:
            positional = kind is inspect.Parameter.POSITIONAL_ONLY or (not variadic and name not in kwargs)
            found.append(Argument(name, value, keyword=not positional))
    if not any(argument.is_input for argument in found):
        raise TraceError(f"the example for {type(model).__name__} holds no tensor, so there is nothing to record.")
    config = getattr(getattr(model, "source", model), "config", None)
    decodes = getattr(config, "is_encoder_decoder", False) is True or any(_of_decoder(a.name) for a in found)
    return tuple(dataclasses.replace(a, decoded=decodes and (a.name == "labels" or _of_decoder(a.name))) for a in found)


def _of_decoder(name: str) -> bool:
    return name.startswith("decoder_")


def symbolic(arguments: tuple[Argument, ...], skip_vectors: bool = False) -> Inputs:
    """Find the dimensions that may vary: the batch, and the length of token sequences.

    The batch is dim 0 of every tensor with as many rows as the first one. Lengths are dim 1 of integer tensors [B, T].
    ``skip_vectors`` leaves one-dimensional tensors alone: a tensor [T] with T equal to the batch size has no batch.
    """
    named = [(argument, tensor) for argument in arguments for tensor in iterate_tensors(argument.value)]
    batch = next((tensor.shape[0] for _, tensor in named if tensor.ndim > 0), 0)
    if batch == 0:
        return fixed(arguments)
    sizes: Sizes = {BATCH: batch}
    dims: dict[int, dict[int, str]] = {}
    for position, (argument, tensor) in enumerate(named):
        if tensor.ndim <= int(skip_vectors) or tensor.shape[0] != batch:
            continue
        dims[position] = {0: BATCH}
        if tensor.ndim == 2 and not tensor.is_floating_point() and tensor.shape[1] >= _SHORTEST:
            symbol = TARGET_LENGTH if argument.decoded else LENGTH
            if sizes.setdefault(symbol, tensor.shape[1]) == tensor.shape[1]:
                dims[position][1] = symbol
    return Inputs(arguments, sizes, dims)


def fixed(arguments: tuple[Argument, ...]) -> Inputs:
    """The example as it is, without symbolic dimensions."""
    return Inputs(arguments, {}, {})


def map_tensors(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of nested containers with every tensor replaced."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if is_plain(value) or not has_tensors(value):
        return value
    if isinstance(value, (list, tuple)):
        items = [map_tensors(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # type: ignore[call-arg]
    if isinstance(value, dict) and not dataclasses.is_dataclass(value):
        return type(value)([(key, map_tensors(item, function)) for key, item in value.items()])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return type(value)(**{key: map_tensors(item, function) for key, item in fields.items()})
    raise TraceError(
        f"an example argument of type {type(value).__name__} holds tensors but is no list, tuple, dict or dataclass; "
        "pass the tensors in one of these."
    )


def iterate_tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a value in the order in which ``map_tensors`` visits them."""
    found: list[torch.Tensor] = []

    def collect(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, collect)
    return iter(found)


def _resized(tensor: torch.Tensor, sizes: dict[int, int]) -> torch.Tensor:
    out = tensor.detach()
    for dim, size in sizes.items():
        have = out.shape[dim]
        index = torch.arange(size, device=out.device) % have
        out = out.narrow(dim, 0, size) if size <= have else out.index_select(dim, index)
    return out.clone().requires_grad_(tensor.requires_grad)


def _pad_one_row(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Hide the last token of the first row of an all-ones mask: models skip masking when nothing is hidden."""
    maskable = name.endswith(MASK_SUFFIX) and tensor.ndim == 2 and tensor.shape[1] > 1
    if maskable and not tensor.is_floating_point() and not tensor.is_meta and bool(tensor.all()):
        tensor[0, -1] = 0
    return tensor
