"""Values of tensors on the meta device, where they are known: Python may read a mask there, as it does elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from fxsplit._errors import TraceError
from fxsplit._trace._calls import is_attribute, is_random, reads_data
from fxsplit._trace._nested import map_value
from fxsplit._trace._objects import tensors_in

# Masks and positions are small; activations need no values.
_MOST_ELEMENTS = 1 << 20
_CPU = torch.device("cpu")
# Attributes that are tensors.
_DERIVED = frozenset(["T", "mT", "H", "mH", "data", "real", "imag"])
_values = WeakTensorKeyDictionary()


def with_value(value: torch.Tensor) -> torch.Tensor:
    """A tensor on the meta device whose values are known, for as long as it lives."""
    made = torch.empty_like(value, device="meta")
    _values[made] = value
    return made


def value_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The values behind a tensor; None for a meta tensor if they are not known."""
    return _values.get(tensor) if tensor.is_meta else tensor


def shadowing(model: nn.Module) -> AbstractContextManager[Any]:
    """Keep values beside the meta tensors of a model on the meta device; nothing for other models."""
    return Shadows() if is_on_meta(model) else nullcontext()


def runner(model: nn.Module) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]:
    """What a torch function mode calls functions with, in place of ``shadowing``."""
    return Shadows().run if is_on_meta(model) else _call


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def is_on_meta(model: nn.Module) -> bool:
    """Whether the parameters and buffers hold no values."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return first is not None and first.is_meta


class Shadows(TorchFunctionMode):
    """Runs what only depends on known values a second time, on these values, and answers what Python reads from them.

    Known are integer inputs, what factory functions such as ``arange`` and ``ones`` make, constants, and what is
    computed from these alone.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``func``, and keep what is known of its results."""
        if is_attribute(func) and getattr(func.__self__, "__name__", "") not in _DERIVED:
            return func(*args, **kwargs)
        given = list(tensors_in((args, kwargs)))
        if reads_data(func) and any(tensor.is_meta for tensor in given):
            return self._read(func, args, kwargs, given)
        versions = [tensor._version for tensor in given]
        try:
            out = func(*args, **kwargs)
        except RuntimeError:
            if getattr(func, "__name__", "").endswith("grouped_mm") and given[0].dtype is not torch.bfloat16:
                return _in_bfloat16(func, args, kwargs).to(given[0].dtype)
            # The meta device has no kernel for results whose size depends on values.
            if not given or not _all_known(given):
                raise
            return _as_meta(_run(func, args, kwargs))
        written = [tensor for tensor, version in zip(given, versions, strict=True) if tensor._version != version]
        self._follow(func, args, kwargs, given, written, out)
        return out

    def _read(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[torch.Tensor]) -> Any:
        if _all_known(given):
            return _run(func, args, kwargs)
        name = getattr(func, "__name__", "?").strip("_")
        raise TraceError(
            f"on the meta device Python reads values of a tensor ({name}() of {list(given[0].shape)} {given[0].dtype}) "
            "that depends on weights or floating inputs, and so has none. Trace the model on a real device, or keep "
            "the module that reads it whole with leaf=[...]."
        )

    def _follow(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[torch.Tensor],
        written: list[torch.Tensor],
        out: Any,
    ) -> None:
        made = [tensor for tensor in tensors_in(out) if tensor.is_meta]
        if not made and not any(tensor.is_meta for tensor in written):
            return
        small = all(tensor.numel() <= _MOST_ELEMENTS for tensor in (*made, *given))
        if small and not _draws(func) and _all_known(given):
            try:
                result = _run(func, args, kwargs)
            except Exception:  # a value is a help, and nothing that may end a run
                _forget(written)
                return
            for tensor, value in zip(made, tensors_in(result), strict=False):
                if value.shape == tensor.shape and value.dtype == tensor.dtype:
                    _values[tensor] = value
        else:
            _forget(written)


def _all_known(tensors: list[torch.Tensor]) -> bool:
    return all(not tensor.is_meta or tensor in _values for tensor in tensors)


def _draws(func: Any) -> bool:
    return is_random(func) or "dropout" in getattr(func, "__name__", "")


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``func`` on values in place of meta tensors."""

    def real(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value_of(value)
        if isinstance(value, torch.device) or (isinstance(value, str) and value == "meta"):
            return _CPU
        return value

    with _uncounted(), torch.no_grad():
        return func(*map_value(args, real), **map_value(kwargs, real))


def _in_bfloat16(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run what refuses other dtypes on the meta device, although it takes them elsewhere."""

    def cast(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(torch.bfloat16) if floating else value

    return func(*map_value(args, cast), **map_value(kwargs, cast))


@contextmanager
def _uncounted() -> Iterator[None]:
    """Run without the modes that count FLOPs and watch writes, on the CPU."""
    with _disable_current_modes(), torch.device(_CPU):
        yield


def _as_meta(value: Any) -> Any:
    return map_value(value, lambda item: with_value(item) if isinstance(item, torch.Tensor) else item)


def _forget(tensors: list[torch.Tensor]) -> None:
    """Drop the values of tensors that were written by something unknown, and those of their views."""
    memory = {tensor.untyped_storage()._cdata for tensor in tensors if tensor in _values}
    if memory:
        for known in [tensor for tensor in list(_values) if tensor.untyped_storage()._cdata in memory]:
            del _values[known]
