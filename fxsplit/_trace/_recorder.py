"""Records one real run of a model: torch functions through a mode, modules through ``nn.Module.__call__``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from fxsplit._trace._align import Mismatch
from fxsplit._trace._calls import as_node, is_random, reads_data, replaces_data
from fxsplit._trace._flopcount import FlopCounter
from fxsplit._trace._objects import Opaque, convert, has_tensors, rebind, rebuild_output, tensors_in
from fxsplit._trace._preserve import RandomWatch
from fxsplit._trace._records import Guard, Origin, Record, Ref, refs_in, storage_id

REENTRANT_CHECKPOINT = "CheckpointFunction"


class FunctionLeaf(nn.Module):
    """A ``torch.autograd.Function`` as a module, so that a graph can call it whole."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        """Apply the function."""
        return self.function.apply(*args)

    def extra_repr(self) -> str:
        """Name the function."""
        return self.function.__name__


class Recorder(TorchFunctionMode):
    """Runs ``model`` once and keeps what happened.

    Tensors are known by identity, and kept alive while recording so that identities stay unique.
    """

    def __init__(
        self,
        model: nn.Module,
        is_leaf: Callable[[nn.Module, str], bool],
        counter: FlopCounter | None,
        *,
        opened: Iterable[str] = (),
        watch_random: bool = False,
    ) -> None:
        super().__init__()
        self.records: list[Record] = []
        self.guards: list[Guard] = []
        self.failures: list[Mismatch] = []
        self.opened = set(opened)
        self.entered: set[str] = {""}
        self.dropped: list[str] = []
        self.sizes_read: str | None = None
        self.constants: dict[str, torch.Tensor] = {}
        self.functions: dict[str, FunctionLeaf] = {}
        self.inputs: list[int] = []
        self.output: Any = None
        self.returned: list[torch.Tensor] = []
        self.raised_in: str | None = None
        self._model = model
        self._is_leaf = is_leaf
        self._counter = counter
        self._random = RandomWatch(model) if watch_random else None
        self._device_type = next((parameter.device.type for parameter in model.parameters()), "cpu")
        self._autocast = torch.is_autocast_enabled(self._device_type)
        self._silent = 0
        self._open: list[str] = []
        self._known: dict[int, tuple[Any, Ref]] = {}
        self._attributes: dict[tuple[str, int], Ref] = {}
        self._written: dict[int | None, Origin] = {}
        self._thread = threading.get_ident()
        self._paths = {id(module): path for path, module in model.named_modules()}
        named = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in named}

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: dict[str, Any]) -> None:
        """Run the model on ``args`` and ``kwargs``; ``inputs`` names their values that become placeholders."""
        for name, value in inputs.items():
            ref = self._add("placeholder", name)
            self._bind(value, ref, written=False)
        self.inputs = [self._known[id(tensor)][1].index for value in inputs.values() for tensor in tensors_in(value)]
        for record in self.records:
            if record.dtype is not None:
                floating = record.dtype.is_floating_point or record.dtype.is_complex
                record.origin = Origin.VALUE if floating else Origin.INDEX
        counting = self._counter if self._counter is not None else torch.enable_grad()
        with self._patched(), torch.enable_grad(), counting, self:
            result = self._model(*args, **kwargs)
            self.output = self._quietly(rebuild_output, result, self._returned, self.dropped)

    # Hooks into torch.

    @contextmanager
    def _patched(self) -> Iterator[None]:
        call, apply = nn.Module.__call__, torch.autograd.Function.__dict__["apply"]
        hook = saved_tensors_hooks.__enter__

        def call_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._silent or threading.get_ident() != self._thread:
                return call(module, *args, **kwargs)
            return self._call_module(call, module, args, kwargs)

        def apply_function(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
            original = apply.__get__(None, cls)
            if self._silent or threading.get_ident() != self._thread:
                return original(*args, **kwargs)
            return self._apply_function(original, cls, args)

        def enter_hooks(hooks: saved_tensors_hooks) -> Any:
            self._note_checkpoint()
            return hook(hooks)

        nn.Module.__call__ = call_module
        saved_tensors_hooks.__enter__ = enter_hooks
        torch.autograd.Function.apply = classmethod(apply_function)  # type: ignore[assignment]
        try:
            yield
        finally:
            nn.Module.__call__ = call
            saved_tensors_hooks.__enter__ = hook
            torch.autograd.Function.apply = apply

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._silent:
            return func(*args, **kwargs)
        given = list(tensors_in((args, kwargs)))
        versions = [_version(tensor) for tensor in given]
        self._take_flops()
        if torch.is_autocast_enabled(self._device_type) != self._autocast:
            self.failures.append(Mismatch(self._path, "it switches autocast on or off"))
        out = func(*args, **kwargs)
        written = [tensor for tensor, version in zip(given, versions, strict=True) if _version(tensor) != version]
        if not written and not has_tensors(out):
            self._note_read(func, args, out)
            return out
        try:
            values = convert((tuple(args), dict(kwargs)), self._ref)
        except Opaque as error:
            self.failures.append(Mismatch(self._path, f"{getattr(func, '__name__', func)} takes {error}"))
            return out
        op, target, values = as_node(func, *values)
        ref = self._add(op, target, *values, written=written, random=is_random(func))
        return self._bind(out, ref, written=any(out is tensor for tensor in written))

    def _call_module(self, call: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self._paths.get(id(module))
        if path is None:
            return call(module, *args, **kwargs)
        if path and path not in self.opened and self._is_leaf(module, path):
            try:
                values = self._quietly(convert, (tuple(args), dict(kwargs)), self._ref)
            except Opaque:
                self.opened.add(path)
            else:
                return self._call_leaf(call, module, path, args, kwargs, values)
        if path:
            self._open.append(path)
            self.entered.add(path)
        try:
            return call(module, *args, **kwargs)
        except BaseException:
            self.raised_in = path if self.raised_in is None else self.raised_in
            raise
        finally:
            if path:
                self._open.pop()

    def _call_leaf(
        self, call: Any, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], values: Any
    ) -> Any:
        with self._silence():
            given = list(tensors_in((args, kwargs)))
            watched = [*given, *module.buffers()]
            versions = [_version(tensor) for tensor in watched]
            buffers = [id(buffer) for buffer in module.buffers()]
            self._take_flops()
            try:
                out = call(module, *args, **kwargs)
            except BaseException:
                self.raised_in = path if self.raised_in is None else self.raised_in
                raise
            changed = [tensor for tensor, version in zip(watched, versions, strict=True) if _version(tensor) != version]
            written = [tensor for tensor in given if any(tensor is other for other in changed)]
            ref = self._add("call_module", path, *values, written=written)
            record = self.records[ref.index]
            record.modules = (*record.modules, path)
            record.lasting |= len(changed) > len(written) or buffers != [id(buffer) for buffer in module.buffers()]
            if record.origin and any(True for _ in module.parameters()):
                record.origin |= Origin.VALUE
            return self._bind(out, ref, written=any(out is tensor for tensor in written))

    def _apply_function(self, apply: Any, cls: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
        if cls.__name__ == REENTRANT_CHECKPOINT:
            self._note_checkpoint()
            function, _, *rest = args
            return function(*rest)
        with self._silence():
            try:
                values = convert(tuple(args), self._ref)
            except Opaque as error:
                self.failures.append(Mismatch(self._path, f"{cls.__name__} takes {error}"))
                return apply(*args)
            name = self._function_name(cls)
            self._take_flops()
            out = apply(*args)
            return self._bind(out, self._add("call_module", name, values), written=False)

    # Bookkeeping.

    @property
    def _path(self) -> str:
        return self._open[-1] if self._open else ""

    @contextmanager
    def _silence(self) -> Iterator[None]:
        self._silent += 1
        try:
            yield
        finally:
            self._silent -= 1

    def _quietly(self, function: Callable[..., Any], *args: Any) -> Any:
        with self._silence():
            return function(*args)

    def _take_flops(self) -> int:
        return self._counter.take() if self._counter is not None else 0

    def _function_name(self, cls: type[torch.autograd.Function]) -> str:
        for name, leaf in self.functions.items():
            if leaf.function is cls:
                return name
        name = f"_function_{len(self.functions)}"
        self.functions[name] = FunctionLeaf(cls)
        return name

    def _add(
        self,
        op: str,
        target: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        written: list[torch.Tensor] | None = None,
        random: bool = False,
    ) -> Ref:
        record = Record(op, target, args, kwargs or {}, tuple(self._open), grad=torch.is_grad_enabled())
        # Reading a parameter is recorded after the operation that needs it has run: the FLOPs are that operation's.
        record.flops = 0 if op == "get_attr" else self._take_flops()
        record.lasting = self._random is not None and self._random.moved()
        record.origin = self._origin(record) | (Origin.RANDOM if random else Origin.NOTHING)
        record.mutates = tuple(storage for t in written or () if (storage := storage_id(t)) is not None)
        for storage in record.mutates:
            self._written[storage] = self._written.get(storage, Origin.NOTHING) | record.origin
        self.records.append(record)
        return Ref(len(self.records) - 1)

    def _origin(self, record: Record) -> Origin:
        origin = Origin.NOTHING
        for ref in refs_in((record.args, record.kwargs)):
            source = self.records[ref.index]
            origin |= source.origin | self._written.get(source.storage, Origin.NOTHING)
        return origin

    def _ref(self, value: Any) -> Ref | None:
        """The record behind a tensor or object; None for an object that no record produced."""
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        if not isinstance(value, torch.Tensor):
            return None
        with self._silence():
            name = self._names.get(id(value))
            key = (self._path, id(value))
            if name is not None and key in self._attributes:
                return self._attributes[key]
            if name is None:
                name = f"_tensor_constant_{len(self.constants)}"
                self.constants[name] = value.detach().clone()
            ref = self._add("get_attr", name)
            record = self.records[ref.index]
            record.describe(value)
            record.origin = Origin.STATE
            if name in self.constants:
                self._known[id(value)] = (value, ref)
            else:
                self._attributes[key] = ref
            return ref

    def _returned(self, value: Any) -> Ref | None:
        if isinstance(value, torch.Tensor):
            self.returned.append(value)
        return self._ref(value)

    def _bind(self, out: Any, ref: Ref, written: bool) -> Any:
        """Let ``ref`` stand for ``out``, and further records for the tensors inside it."""
        with self._silence():
            if isinstance(out, torch.Tensor):
                if not written and (id(out) in self._known or id(out) in self._names):
                    # Dropout in eval mode returns its argument: two records may not share one identity.
                    out = out.view_as(out) if torch.is_grad_enabled() else out.detach()
                self._know(out, ref)
                self.records[ref.index].describe(out)
                return out
            if not has_tensors(out):
                return out
            self._know(out, ref)
            return rebind(out, lambda getter, key, value: self._bind_member(ref, getter, key, value))

    def _bind_member(self, ref: Ref, getter: Callable[..., Any], key: Any, value: Any) -> Any:
        if not has_tensors(value):
            return value
        part = self._add("call_function", getter, (ref, key))
        self.records[part.index].modules = self.records[ref.index].modules
        return self._bind(value, part, written=False)

    def _know(self, value: Any, ref: Ref) -> None:
        self._known[id(value)] = (value, ref)

    def _note_checkpoint(self) -> None:
        if not self._silent:
            self.dropped.append(f"gradient checkpointing (hooks on saved tensors) in {self._path or 'the model itself'}")

    def _note_read(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        if isinstance(out, torch.Size) and self.sizes_read is None and args[0].is_floating_point():
            self.sizes_read = self._path or "the model itself"
        if replaces_data(func):
            self.failures.append(Mismatch(self._path, "it assigns tensor.data"))
        if not (args and isinstance(args[0], torch.Tensor) and reads_data(func)):
            return
        known = self._known.get(id(args[0]))
        if known is None:
            return
        record = self.records[known[1].index]
        origin = record.origin | self._written.get(record.storage, Origin.NOTHING)
        if origin:
            self.guards.append(Guard(self._path, getattr(func, "__name__", "?").strip("_"), str(out)[:60], origin))


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
