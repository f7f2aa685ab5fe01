"""The growing list of records of one run, and which value came from which record."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from fxsplit._trace._align import Mismatch
from fxsplit._trace._flopcount import FlopCounter
from fxsplit._trace._nested import refs_in
from fxsplit._trace._objects import has_tensors, rebind, tensors_in
from fxsplit._trace._preserve import RandomWatch
from fxsplit._trace._records import Origin, Record, Ref, storage_id


class Tape:
    """Records, and the values they produced.

    Values are known by identity, and kept alive so that identities stay unique. ``open`` holds the paths of the
    modules that are running. Buffers named in ``cached`` are captured as constants: the model built them for the
    example, and does not keep them. ``foreign`` are uses of tensors with a gradient that no record produced.
    """

    def __init__(
        self, model: nn.Module, counter: FlopCounter | None, random: RandomWatch | None, cached: Collection[str]
    ) -> None:
        self.records: list[Record] = []
        self.constants: dict[str, torch.Tensor] = {}
        self.open: list[str] = []
        self.foreign: list[Mismatch] = []
        self._counter = counter
        self._random = random
        named = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in named if name not in cached}
        self._known: dict[int, tuple[Any, Ref]] = {}
        self._attributes: dict[tuple[str, int], Ref] = {}
        self._written: dict[int | None, Origin] = {}

    @property
    def path(self) -> str:
        """The innermost module that is running."""
        return self.open[-1] if self.open else ""

    def release(self) -> None:
        """Let go of the values once the run is over."""
        self._known.clear()

    def forget_flops(self) -> None:
        """Count from here: what ran before belongs to no record."""
        self._take_flops()

    def add(
        self,
        op: str,
        target: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        written: list[torch.Tensor] | None = None,
        random: bool = False,
    ) -> Ref:
        """Append a record; ``written`` are the tensors that the operation changed in place."""
        record = Record(op, target, args, kwargs or {}, tuple(self.open), grad=torch.is_grad_enabled())
        # A parameter is recorded when its first reader is, which has run by then: the FLOPs are the reader's.
        record.flops = 0 if op == "get_attr" else self._take_flops()
        record.lasting = self._random is not None and self._random.moved()
        record.origin = Origin.RANDOM if random else Origin.NOTHING
        for ref in refs_in((record.args, record.kwargs)):
            record.origin |= self._origin_now(self.records[ref.index])
        record.mutates = tuple(storage for t in written or () if (storage := storage_id(t)) is not None)
        for storage in record.mutates:
            self._written[storage] = self._written.get(storage, Origin.NOTHING) | record.origin
        self.records.append(record)
        return Ref(len(self.records) - 1)

    def add_input(self, name: str, value: Any) -> list[int]:
        """Append a placeholder, taken apart if it is a container; return the positions of its tensors' records."""
        self.bind(value, self.add("placeholder", name), written=False)
        indices = [self._known[id(tensor)][1].index for tensor in tensors_in(value)]
        for index in indices:
            dtype = self.records[index].dtype
            floating = dtype is not None and (dtype.is_floating_point or dtype.is_complex)
            self.records[index].origin = Origin.VALUE if floating else Origin.INDEX
        return indices

    def find(self, value: Any) -> Ref | None:
        """The record behind a tensor or object; None for an object that no record produced.

        An unknown tensor is a parameter or buffer of the model, read once in every module that uses it, or else a
        constant.
        """
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        if not isinstance(value, torch.Tensor):
            return None
        name = self._names.get(id(value))
        key = (self.path, id(value))
        if name is not None and key in self._attributes:
            return self._attributes[key]
        ref = self.add("get_attr", name or f"_tensor_constant_{len(self.constants)}")
        record = self.records[ref.index]
        record.describe(value)
        record.origin = Origin.STATE
        if name is None:
            if not value.is_leaf:
                why = "it uses a tensor that was computed from parameters elsewhere, which no graph can train"
                self.foreign.append(Mismatch(self.path, why))
            self.constants[record.target] = value.detach().clone()
            self._known[id(value)] = (value, ref)
        else:
            self._attributes[key] = ref
        return ref

    def bind(self, out: Any, ref: Ref, *, written: bool) -> Any:
        """Let ``ref`` stand for ``out``, and further records for the tensors inside it; return what to pass on."""
        if isinstance(out, torch.Tensor):
            if not written and (id(out) in self._known or id(out) in self._names):
                # Dropout in eval mode returns its argument: two records may not share one identity.
                out = out.view_as(out) if torch.is_grad_enabled() else out.detach()
            self._known[id(out)] = (out, ref)
            self.records[ref.index].describe(out)
            return out
        if not has_tensors(out):
            return out
        self._known[id(out)] = (out, ref)
        if isinstance(out, (list, tuple)):
            self.records[ref.index].length = len(out)
        return rebind(out, lambda getter, key, value: self._bind_part(ref, getter, key, value))

    def take_back(self, value: torch.Tensor) -> None:
        """Remove the last record if ``value`` is what it produced."""
        known = self._known.get(id(value))
        if known is not None and known[1].index == len(self.records) - 1:
            del self._known[id(value)]
            self.records.pop()

    def index_of(self, tensor: torch.Tensor) -> int | None:
        """The position of the record that made a tensor; None for parameters and what no record made."""
        known = self._known.get(id(tensor))
        return known[1].index if known is not None else None

    def is_state(self, tensor: torch.Tensor) -> bool:
        """Whether this is a parameter or buffer of the model."""
        return id(tensor) in self._names

    def origin_of(self, tensor: torch.Tensor) -> Origin:
        """What the values of a tensor depend on."""
        known = self._known.get(id(tensor))
        return self._origin_now(self.records[known[1].index]) if known is not None else Origin.NOTHING

    def _bind_part(self, whole: Ref, getter: Callable[..., Any], key: Any, value: Any) -> Any:
        if not has_tensors(value):
            return value
        part = self.add("call_function", getter, (whole, key))
        self.records[part.index].modules = self.records[whole.index].modules
        return self.bind(value, part, written=False)

    def _origin_now(self, record: Record) -> Origin:
        return record.origin | self._written.get(record.storage, Origin.NOTHING)

    def _take_flops(self) -> int:
        return self._counter.take() if self._counter is not None else 0
