"""A module of plain tensors around any model, so that an exporter sees named inputs and outputs only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fxsplit._errors import ExportError
from fxsplit._trace._inputs import Argument, iterate_tensors, map_tensors


class TensorsOnly(nn.Module):
    """Calls ``net`` with tensors put in the places they have in ``arguments``, and returns its tensors as a tuple."""

    def __init__(self, net: nn.Module, arguments: Sequence[Argument]) -> None:
        super().__init__()
        self.net = net
        self._arguments = tuple(arguments)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the output's tensors ``(y, ...)``."""
        return tuple(tensor for _, tensor in named_outputs(self.call(tensors)))

    def call(self, tensors: Sequence[Tensor]) -> Any:
        """Return what ``net`` returns."""
        rest = iter(tensors)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument in self._arguments:
            value = map_tensors(argument.value, lambda _: next(rest)) if argument.is_input else argument.value
            if argument.keyword:
                kwargs[argument.name] = value
            else:
                args.append(value)
        return self.net(*args, **kwargs)


def input_names(arguments: Sequence[Argument]) -> list[str]:
    """Return one name per tensor: that of the argument, with a number if the argument is a container of several."""
    names = []
    for argument in arguments:
        count = sum(1 for _ in iterate_tensors(argument.value)) if argument.is_input else 0
        alone = count == 1 and isinstance(argument.value, Tensor)
        names += [argument.name] if alone else [f"{argument.name}_{index}" for index in range(count)]
    return names


def named_outputs(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an output with their names: keys, fields or positions; a lone tensor is ``output``."""
    if isinstance(value, Tensor):
        yield name or "output", value
        return
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, (list, tuple)):
        numbers = [f"{'' if name else 'output_'}{index}" for index in range(len(value))]
        items = list(zip(getattr(value, "_fields", numbers), value, strict=True))
    else:
        return
    for key, item in items:
        yield from named_outputs(item, f"{name}_{key}" if name else key)


def fold_parametrizations(net: nn.Module) -> None:
    """Replace every parametrized weight (masks, weight norms) by the plain weight it stands for, in place.

    Raises:
        ExportError: If a parametrization can't be removed.
    """
    for path, module in list(net.named_modules()):
        names = list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]
        try:
            with torch.no_grad():
                for name in names:
                    _own_class(module)
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"the weights of '{path}' can't be made plain ones: {error}") from error


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own.

    torch keeps the property of a parametrized weight in a class that deep copies share: removing it from a copy would
    take it from the original too.
    """
    shared = type(module)
    members = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, members)  # pyright: ignore
