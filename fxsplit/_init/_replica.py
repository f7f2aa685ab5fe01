"""A throw-away copy of a model whose head tensors can be exchanged while everything else is on the meta device.

Whole-model initialisers run over such a copy at the price of the head alone: on the meta device they write nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxsplit._errors import SplitError, near_matches
from fxsplit._init._lazy import LazyCopies
from fxsplit._parametrized import copy_apart


@dataclass(frozen=True)
class Slot:
    """One place in the model that holds a tensor: ``module._parameters[name]`` or ``module._buffers[name]``."""

    owner: str
    name: str
    is_parameter: bool

    @property
    def path(self) -> str:
        return f"{self.owner}.{self.name}" if self.owner else self.name


def slots_of(model: nn.Module) -> Iterator[tuple[Slot, Tensor]]:
    """Yield every slot with its tensor; tied tensors and shared modules appear once per path."""
    for owner, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield Slot(owner, name, True), parameter
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield Slot(owner, name, False), buffer


def tensors_at(model: nn.Module, paths: Iterable[str]) -> dict[str, Tensor]:
    """Return the parameters and buffers at ``paths``.

    Raises:
        SplitError: If a path names neither a parameter nor a buffer of the model.
    """
    known = {slot.path: tensor for slot, tensor in slots_of(model)}
    found = {}
    for path in paths:
        if path not in known:
            raise SplitError(
                f"'{path}' is neither a parameter nor a buffer of {type(model).__name__}.{near_matches(path, known)}"
            )
        found[path] = known[path]
    return found


def _placeholder(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


class Replica:
    """A deep copy of ``source`` with all tensors on the meta device and the tensors at ``paths`` exchangeable.

    All paths of a tied tensor share one key.
    """

    def __init__(self, source: nn.Module, paths: Iterable[str]) -> None:
        heads = {id(tensor) for tensor in tensors_at(source, paths).values()}
        memo: dict[int, object] = {}
        self._slots: dict[int, list[Slot]] = {}
        self._originals: dict[int, Tensor] = {}
        for slot, tensor in slots_of(source):
            key = id(tensor)
            if key not in memo:
                memo[key] = _placeholder(tensor)
            if key in heads:
                self._slots.setdefault(key, []).append(slot)
                self._originals[key] = tensor
        self.model: nn.Module = copy_apart(source, memo)
        self._modules = dict(self.model.named_modules(remove_duplicate=False))
        self._below: dict[str, dict[int, Slot]] = {}
        for key, slots in self._slots.items():
            # Where constructors tie an output layer to an embedding, the embedding's initialisation stays.
            for slot in sorted(slots, key=lambda slot: not isinstance(self._modules[slot.owner], nn.Embedding)):
                for module in _prefixes(slot.owner):
                    self._below.setdefault(module, {}).setdefault(key, slot)

    def module(self, path: str) -> nn.Module:
        """Return the replica's module at ``path``."""
        return self._modules[path]

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Every module of the replica with its first path."""
        yield from self.model.named_modules()

    def fill(self, under: str) -> None:
        """Put fresh clones of the source's values into the head slots of the subtree ``under``."""
        for key in self.below(under):
            self._put(key, self._originals[key].detach().clone(), self._slots[key])

    def release(self, under: str) -> None:
        """Put meta tensors back into the head slots, so that the replica keeps no memory between draws."""
        for key in self.below(under):
            self._put(key, torch.empty_like(self._originals[key].detach(), device="meta"), self._slots[key])

    def run(self, initialise: Callable[[], object], under: str) -> dict[int, Tensor] | None:
        """Return the head tensors of the subtree ``under`` that ``initialise`` wrote to, or None if it fails.

        It finds the source's values in them, in one slot each: what else is tied to it is initialised to no effect.
        """
        copies = LazyCopies()
        for key, slot in self._below.get(under, {}).items():
            self._put(key, copies.add(self._originals[key]), [slot])
        try:
            with copies:
                initialise()
            held = {key: self._held(slot) for key, slot in self._below.get(under, {}).items()}
            return {key: tensor for key, tensor in held.items() if tensor is not None and not copies.pending(tensor)}
        except Exception:
            # Foreign code may fail in any way, on meta tensors for instance; other rules remain.
            return None
        finally:
            self.release(under)

    def get(self, key: int) -> Tensor:
        """Return what the first slot of one source tensor holds now, also if an initialiser put a new object there."""
        held = self._held(self._slots[key][0])
        return held if held is not None else self._originals[key].detach()

    def _held(self, slot: Slot) -> Tensor | None:
        module = self._modules[slot.owner]
        held = (module._parameters if slot.is_parameter else module._buffers)[slot.name]
        return None if held is None else held.detach()

    def owned(self) -> dict[str, list[int]]:
        """Return the keys of the head tensors that each module holds directly, children before their parents."""
        owners: dict[str, list[int]] = {path: [] for path in reversed(self._modules)}
        for key, slots in self._slots.items():
            owners[slots[0].owner].append(key)
        return {path: keys for path, keys in owners.items() if keys}

    def below(self, module: str) -> list[int]:
        """Return the keys of the head tensors in the subtree of ``module``."""
        return list(self._below.get(module, {}))

    def at(self, paths: Collection[str]) -> list[int]:
        """Return the keys of the head tensors that have one of ``paths``."""
        return [key for key, slots in self._slots.items() if any(slot.path in paths for slot in slots)]

    def _put(self, key: int, value: Tensor, slots: Iterable[Slot]) -> None:
        original = self._originals[key]
        parameter = isinstance(original, nn.Parameter)
        held = nn.Parameter(value, original.requires_grad) if parameter else value
        for slot in slots:
            module = self._modules[slot.owner]
            (module._parameters if slot.is_parameter else module._buffers)[slot.name] = held  # type: ignore[assignment]


def _prefixes(path: str) -> Iterator[str]:
    """The path itself and those of all modules around it, the outermost, ``''``, included."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""
