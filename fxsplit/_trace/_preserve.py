"""Leaves a model, its modes and the random number generators as they were."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxsplit._random import random_state_kept
from fxsplit._trace._objects import is_plain
from fxsplit._trace._records import storage_id

_COPIED = (dict, list, set, collections.OrderedDict)


class Snapshot:
    """The state of every module: attributes, registries, modes, buffer values and, once written, parameter values."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._attributes = [dict(module.__dict__) for module in self._modules]
        self._buffers = {id(module): dict(module._buffers) for module in self._modules}
        self._containers = [
            # Most are empty registries of hooks.
            (value, value.copy() if value else ())
            for attributes in self._attributes
            for value in attributes.values()
            if type(value) in _COPIED
        ]
        self._values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._parameters: dict[int | None, torch.Tensor] = {}
        for buffer in model.buffers():
            self._keep(buffer)
        for parameter in model.parameters():
            if not parameter.is_meta:
                self._parameters.setdefault(storage_id(parameter), parameter.detach())
        self._gradients = [(parameter, parameter.grad) for parameter in model.parameters()]

    def _keep(self, tensor: torch.Tensor) -> None:
        if not tensor.is_meta and id(tensor) not in self._values:
            self._values[id(tensor)] = (tensor, tensor.detach().clone())

    def before_write(self, tensor: torch.Tensor) -> None:
        """Copy a parameter's values the first time something is about to write into its memory."""
        if self._parameters and not tensor.is_meta:
            parameter = self._parameters.pop(storage_id(tensor), None)
            if parameter is not None:
                self._keep(parameter)

    @property
    def watches(self) -> bool:
        """Whether there are parameters that could be written."""
        return bool(self._parameters)

    def has_other_buffers(self, module: nn.Module) -> bool:
        """Whether the module's registered buffers are other tensors than they were."""
        before, now = self._buffers[id(module)], module._buffers
        return now.keys() != before.keys() or any(now[name] is not before[name] for name in before)

    def changed(self) -> set[int]:
        """The ids of the modules whose attributes are others than they were, or hold others."""
        kept = {id(value): items for value, items in self._containers}

        def same(value: Any, before: Any) -> bool:
            if value is before:
                return id(value) not in kept or _holds(value, kept[id(value)])
            return is_plain(value) and type(value) is type(before) and value == before

        return {
            id(module)
            for module, before in zip(self._modules, self._attributes, strict=True)
            if module.__dict__.keys() != before.keys()
            or not all(same(value, before[name]) for name, value in module.__dict__.items() if name != "training")
        }

    def restore(self) -> None:
        """Put everything back."""
        for module, attributes in zip(self._modules, self._attributes, strict=True):
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for container, before in self._containers:
            if not container and not before:
                continue
            if isinstance(container, list):
                container[:] = before
            else:
                container.clear()
                container.update(before)
        self.restore_values()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    def restore_values(self) -> None:
        """Put back what tensors held, but not what attributes and registries hold: caches that were built stay."""
        with torch.no_grad():
            for tensor, value in self._values.values():
                tensor.data.copy_(value)


def _holds(container: Any, items: Any) -> bool:
    """Whether a container holds exactly these objects."""
    if isinstance(container, dict):
        return container.keys() == dict(items).keys() and all(container[key] is items[key] for key in container)
    return len(container) == len(items) and all(a is b for a, b in zip(container, items, strict=True))


class _WriteWatch(TorchDispatchMode):
    """Tells a snapshot about every tensor that an operator is about to write."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self._snapshot = snapshot

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
            for argument in schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = given.get(argument.name)
                    for tensor in value if isinstance(value, (list, tuple)) else (value,):
                        if isinstance(tensor, torch.Tensor):
                            self._snapshot.before_write(tensor)
        return func(*args, **kwargs)


@contextmanager
def preserved(model: nn.Module, *, attributes: bool = True) -> Iterator[Snapshot]:
    """Restore ``model`` and all random number generators on exit, also after an exception.

    With ``attributes=False`` only values are restored: what the model set on itself, like a cache, stays.
    """
    snapshot = Snapshot(model)
    with random_state_kept():
        try:
            with _WriteWatch(snapshot) if snapshot.watches else nullcontext():
                yield snapshot
        finally:
            if attributes:
                snapshot.restore()
            else:
                snapshot.restore_values()


class RandomWatch:
    """Tells whether torch's random numbers were used since the last question."""

    def __init__(self, model: nn.Module) -> None:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._generator = torch.default_generator
        if device.type == "cuda":
            self._generator = torch.cuda.default_generators[device.index or 0]
        self._state = self._read()

    def moved(self) -> bool:
        """Whether the state is another one than at the last call."""
        before, self._state = self._state, self._read()
        return before != self._state

    def _read(self) -> bytes:
        return self._generator.get_state().numpy().tobytes()
