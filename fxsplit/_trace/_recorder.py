"""Records one real run of a model: torch functions through a mode, modules and autograd functions through patches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from fxsplit._parametrized import parametrized_tensors
from fxsplit._trace._align import Mismatch
from fxsplit._trace._calls import as_node, is_attribute, is_random, reads_data, reads_size, replaces_data
from fxsplit._trace._closures import MappedFunction, captured
from fxsplit._trace._flopcount import FlopCounter
from fxsplit._trace._fold import fold_containers
from fxsplit._trace._model import FunctionLeaf
from fxsplit._trace._objects import Opaque, convert, has_tensors, rebuild_output, tensors_in
from fxsplit._trace._patches import patched, uncached_weights, zeroes_hidden
from fxsplit._trace._preserve import RandomWatch
from fxsplit._trace._python_random import PythonRandomWatch
from fxsplit._trace._ragged import SizeRead, pads_to_the_longest
from fxsplit._trace._records import Guard, Origin, Record, Ref
from fxsplit._trace._shadow import runner
from fxsplit._trace._tape import Tape

_REENTRANT_CHECKPOINT = "CheckpointFunction"
_INPUTS_OF_CHECKPOINT = "_NoopSaveInputs"  # an autograd function of older versions of torch, which computes nothing


class Recorder(TorchFunctionMode):
    """Runs a model once and keeps what happened.

    Attributes:
        inputs: positions of the records of the example's tensors.
        output: what the model returned, with refs for tensors; ``returned`` are these tensors.
        guards: tensor values that Python read.
        failures: what could not be recorded.
        idle_switches: where autocast is switched to what it is already, or for another device.
        opened: leaves that are recorded from the inside, because they take arguments that a graph cannot hold.
        entered: modules that were recorded from the inside.
        raised_in: the innermost module that raised.
        dropped: what is not part of the graph.
        sizes_read: where sizes of a tensor were first read, or decided on a number of results.
        size_reads: which sizes of recorded tensors Python read.
        draws: where Python or numpy drew random numbers.
        deviations: what the graph does in another way than the model.
        dtype_read: whether Python read the dtype of a tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        is_leaf: Callable[[nn.Module, str], bool],
        counter: FlopCounter | None,
        *,
        opened: Iterable[str] = (),
        cached: Collection[str] = (),
        watch_random: bool = False,
    ) -> None:
        super().__init__()
        self.inputs: list[int] = []
        self.output: Any = None
        self.returned: list[torch.Tensor] = []
        self.guards: list[Guard] = []
        self.failures: list[Mismatch] = []
        self.opened = set(opened)
        self.entered: set[str] = {""}
        self.raised_in: str | None = None
        self.dropped: list[str] = []
        self.sizes_read: str | None = None
        self.dtype_read = False
        self.size_reads: list[SizeRead] = []
        self.draws: list[Mismatch] = []
        self.deviations: list[str] = []
        self._python_random = PythonRandomWatch()
        self.functions: dict[str, FunctionLeaf | MappedFunction] = {}
        self._model = model
        self._is_leaf = is_leaf
        self._counter = counter
        self._tape = Tape(model, counter, RandomWatch(model) if watch_random else None, cached)
        self.idle_switches: list[Mismatch] = []
        self._weights_read: dict[str, bool] = {}
        self._silent = 0
        self._run = runner(model)
        self._paths = {id(module): path for path, module in model.named_modules()}
        device = next((parameter.device.type for parameter in model.parameters()), "cpu")
        self._device = "cpu" if device == "meta" else device  # the meta device has no autocast
        self._autocast = self._in_autocast()

    @property
    def records(self) -> list[Record]:
        """The operations, in order."""
        return self._tape.records

    @property
    def constants(self) -> dict[str, torch.Tensor]:
        """Captured tensors that are neither parameters nor buffers."""
        return self._tape.constants

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: dict[str, Any]) -> None:
        """Run the model on ``args`` and ``kwargs``; ``inputs`` names their values that become placeholders."""
        for name, value in inputs.items():
            self.inputs += self._tape.add_input(name, value)
        self._python_random.moved()
        with patched(self), torch.enable_grad(), self._counter or nullcontext(), self:
            result = self._model(*args, **kwargs)
            with self._silence():
                self.output = rebuild_output(result, self._find_returned, self.dropped)
        self._tape.records, self.output, self.inputs = fold_containers(self.records, self.output, self.inputs)
        self.failures += self._tape.foreign
        # Several runs are kept until they are merged; their activations and autograd graphs need not be.
        self._tape.release()
        self.returned = [tensor.detach() for tensor in self.returned]

    # What the mode and the patches call.

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._silent:
            return self._run(func, args, kwargs)
        # Most calls read an attribute, and write nothing.
        given = _Versions(() if is_attribute(func) else tensors_in((args, kwargs)))
        if given.are_wrapped():
            self._fail("it uses a transform of torch.func other than torch.vmap")
            return func(*args, **kwargs)
        self._tape.forget_flops()
        if self._in_autocast() != self._autocast:
            self._fail("it switches autocast on or off")
        out = self._run(func, args, kwargs)
        written = given.changed()
        if not written and not has_tensors(out):
            self._note_read(func, args, out)
            return out
        try:
            values = convert((tuple(args), dict(kwargs)), self._tape.find)
        except Opaque as error:
            self._fail(f"{getattr(func, '__name__', func)} takes {error}")
            return out
        if self.sizes_read is None and reads_size(func, out):
            self.sizes_read = self._tape.path or "the model itself"
        op, target, values = as_node(func, *values)
        if target is torch._VF._pad_packed_sequence and pads_to_the_longest():
            self._fail("it pads to the longest length, which follows data (pad_packed_sequence takes total_length)")
        ref = self._tape.add(op, target, *values, written=written, random=is_random(func))
        self.records[ref.index].of_weights = self._weights_read.get(self._tape.path, False)
        return self._tape.bind(out, ref, written=any(out is tensor for tensor in written))

    def call_module(self, original: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a leaf as one operation, or run another module with its path on the stack."""
        path = self._paths.get(id(module))
        if self._silent or path is None:
            return original(module, *args, **kwargs)
        self._note_draws()
        try:
            if path and path not in self.opened and self._is_leaf(module, path):
                with self._silence():
                    values = self._leaf_arguments(path, args, kwargs)
                    if values is not None:
                        out = self._call_leaf(original, module, path, args, kwargs, values)
                        self._python_random.moved()  # what a leaf draws is drawn when the graph runs, too
                        return out
            return self._call_inside(original, module, path, args, kwargs)
        except BaseException:
            self.raised_in = path if self.raised_in is None else self.raised_in
            raise

    def apply_function(self, original: Any, function: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
        """Record an autograd function as one operation."""
        if self._silent:
            return original(*args)
        if function.__name__ == _REENTRANT_CHECKPOINT:
            self.hook_saved_tensors()
            run, _, *rest = args
            return run(*rest)
        if function.__name__ == _INPUTS_OF_CHECKPOINT:
            self._tape.take_back(args[0])  # an empty tensor, made for it
            with self._silence():
                return original(*args)
        with self._silence():
            try:
                values = convert(tuple(args), self._tape.find)
            except Opaque as error:
                self._fail(f"{function.__name__} takes {error}")
                return original(*args)
            given = _Versions(tensors_in(args))
            self._tape.forget_flops()
            out = original(*args)
            written = given.changed()
            ref = self._tape.add("call_module", self._function_name(function), values, written=written)
            return self._tape.bind(out, ref, written=any(out is tensor for tensor in written))

    def call_mapped(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Record a function that torch.vmap made as one operation on its arguments and what it closes over."""
        if self._silent:
            return function(*args)
        modes = [type(mode) for mode in _get_current_function_mode_stack() if not isinstance(mode, Recorder)]
        with self._silence():
            values = captured(function)
            try:
                converted = convert((values, *args), self._tape.find)
            except Opaque as error:
                self._fail(f"torch.vmap's function takes {error}")
                return function(*args)
            self._tape.forget_flops()
            out = function(*args)
            name = f"_function_{len(self.functions)}"
            self.functions[name] = MappedFunction(function, modes)
            return self._tape.bind(out, self._tape.add("call_module", name, converted), written=False)

    def hook_saved_tensors(self) -> None:
        """Note that gradient checkpointing is flattened away."""
        if not self._silent:
            where = self._tape.path or "the model itself"
            self.dropped.append(f"gradient checkpointing (hooks on saved tensors) in {where}")

    def switch_autocast(self, region: torch.autocast) -> None:
        """Note that autocast is switched: for the model's device now, or only in another context than this one."""
        if not self._silent:
            on = "on" if region._enabled else "off"
            why = Mismatch(self._tape.path, f"it switches autocast {on}")
            changes = (region.prev, region.prev_fastdtype) != (region._enabled, region.fast_dtype)
            here = region.device == self._device and changes and (region.prev or region._enabled)
            (self.failures if here else self.idle_switches).append(why)

    # Parts of these.

    def _leaf_arguments(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return convert((tuple(args), dict(kwargs)), self._tape.find)
        except Opaque:
            self.opened.add(path)
            return None

    def _call_leaf(
        self, original: Any, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], values: Any
    ) -> Any:
        given, buffers = _Versions(tensors_in((args, kwargs))), _Versions(module.buffers())
        self._tape.forget_flops()
        with uncached_weights() as cached:
            out = original(module, *args, **kwargs)
        written = given.changed()
        ref = self._tape.add("call_module", path, *values, written=written)
        record = self.records[ref.index]
        record.modules = (*record.modules, path)
        record.updates = bool(buffers.changed()) or not buffers.are(module.buffers())
        record.lasting |= record.updates
        if cached and record.updates and parametrized_tensors(module):
            self._fail(f"under parametrize.cached() it runs {path!r}, which changes when its weights are computed")
        if record.origin and any(True for _ in module.parameters()):
            record.origin |= Origin.VALUE
        return self._tape.bind(out, ref, written=any(out is tensor for tensor in written))

    def _call_inside(
        self, original: Any, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not path:
            out = original(module, *args, **kwargs)
            self._note_draws()
            return out
        self.entered.add(path)
        if isinstance(module, nn.TransformerEncoder) and zeroes_hidden(module, args, kwargs):
            self.deviations.append(
                f"in eval mode without gradients {path!r} sets the hidden positions of its output to zero (nested "
                "tensors), but the graph computes them: make it with enable_nested_tensor=False"
            )
        self._tape.open.append(path)
        try:
            out = original(module, *args, **kwargs)
            self._note_draws()
            return out
        finally:
            self._tape.open.pop()

    def _in_autocast(self) -> bool:
        return torch.amp.is_autocast_available(self._device) and torch.is_autocast_enabled(self._device)

    @contextmanager
    def _silence(self) -> Iterator[None]:
        self._silent += 1
        try:
            yield
        finally:
            self._silent -= 1

    def _note_draws(self) -> None:
        if self._python_random.moved():
            why = "it draws random numbers of Python or numpy, which would be constants of the graph"
            self.draws.append(Mismatch(self._tape.path, why))

    def _fail(self, why: str) -> None:
        self.failures.append(Mismatch(self._tape.path, why))

    def _find_returned(self, value: Any) -> Ref | None:
        if isinstance(value, torch.Tensor):
            self.returned.append(value)
        return self._tape.find(value)

    def _function_name(self, function: type[torch.autograd.Function]) -> str:
        for name, leaf in self.functions.items():
            if isinstance(leaf, FunctionLeaf) and leaf.function is function:
                return name
        name = f"_function_{len(self.functions)}"
        self.functions[name] = FunctionLeaf(function)
        return name

    def _note_read(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        if replaces_data(func):
            self._fail("it assigns tensor.data")
        if not (args and isinstance(args[0], torch.Tensor)):
            return
        if self.sizes_read is None and reads_size(func, out):
            self.sizes_read = self._tape.path or "the model itself"
        index = self._tape.index_of(args[0])
        if index is not None and reads_size(func, out):
            self.size_reads.append(SizeRead(self._tape.path, index, out if isinstance(out, torch.Size) else (out,)))
        if isinstance(out, torch.dtype):
            self.dtype_read = True
            self._weights_read[self._tape.path] = self._tape.is_state(args[0])
        origin = self._tape.origin_of(args[0]) if reads_data(func) else Origin.NOTHING
        if origin:
            what = getattr(func, "__name__", "?").strip("_")
            self.guards.append(Guard(self._tape.path, what, str(out)[:60], origin))


class _Versions:
    """Tensors and how often they had been written, to see which an operation changes in place."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._seen = [(tensor, _version(tensor)) for tensor in tensors]

    def changed(self) -> list[torch.Tensor]:
        """The tensors that were written since."""
        return [tensor for tensor, version in self._seen if _version(tensor) != version]

    def are_wrapped(self) -> bool:
        """Whether one of the tensors is what a function under ``torch.func`` sees, which is no value of a graph."""
        return any(is_functorch_wrapped_tensor(tensor) for tensor, _ in self._seen)

    def are(self, tensors: Iterable[torch.Tensor]) -> bool:
        """Whether these are still the same tensors."""
        return [id(tensor) for tensor, _ in self._seen] == [id(tensor) for tensor in tensors]


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
