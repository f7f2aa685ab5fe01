"""A module of plain tensors around any model, so that an exporter sees named inputs and outputs only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from fxsplit._errors import ExportError
from fxsplit._parametrized import parametrized_names, separate
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

    A graph that reads such a weight without calling its module names the parametrization, which then stays.

    Raises:
        ExportError: If a parametrization can't be removed.
    """
    separate(net)
    called = {id(chain) for chain in _called_chains(net)}
    for path, module in list(net.named_modules()):
        names = [n for n in parametrized_names(module) if id(module.parametrizations[n]) not in called]  # type: ignore[index]
        try:
            with torch.no_grad():
                for name in names:
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"the weights of '{path}' can't be made plain ones: {error}") from error


def _called_chains(net: nn.Module) -> Iterator[nn.Module]:
    """The lists of parametrizations that are nodes of a graph themselves."""
    for module in net.modules():
        if isinstance(module, fx.GraphModule):
            targets = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
            called = (module.get_submodule(target) for target in targets)
            yield from (chain for chain in called if isinstance(chain, parametrize.ParametrizationList))
