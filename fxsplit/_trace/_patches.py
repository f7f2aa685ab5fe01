"""Routes module calls and autograd functions through a recorder while it runs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize


class Listener(Protocol):
    """What is told about calls; ``original`` runs what would have run."""

    def call_module(self, original: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module is called."""

    def apply_function(self, original: Any, function: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
        """An autograd function is applied."""

    def call_mapped(self, function: Any, args: tuple[Any, ...]) -> Any:
        """A function that torch.vmap made is called."""

    def hook_saved_tensors(self) -> None:
        """Hooks on saved tensors are installed: gradient checkpointing or offloading."""

    def switch_autocast(self, region: torch.autocast) -> None:
        """A region with autocast on or off was entered."""


@contextmanager
def uncached_weights() -> Iterator[bool]:
    """Compute parametrized weights anew, also inside ``parametrize.cached()``; yields whether they were cached.

    A cached weight may have been computed before the recording, or inside a leaf, where no graph can get it from.
    """
    cache = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield bool(cache[0])
    finally:
        parametrize._cache_enabled, parametrize._cache = cache


@contextmanager
def unfused_encoders() -> Iterator[None]:
    """Let nn.TransformerEncoder take the same way in eval mode as in train mode, without asking its data which."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def zeroes_hidden(encoder: nn.TransformerEncoder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an encoder that is called so would use nested tensors if it were not for `unfused_encoders`."""
    hidden = args[2] if len(args) > 2 else kwargs.get("src_key_padding_mask")
    return bool(getattr(encoder, "use_nested_tensor", False)) and hidden is not None


@contextmanager
def patched(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` about the calls that this thread makes."""
    call, enter, autocast = nn.Module.__call__, saved_tensors_hooks.__enter__, torch.autocast.__enter__
    apply = torch.autograd.Function.__dict__["apply"]
    vmap = torch.vmap
    thread = threading.get_ident()

    def mapped(*args: Any, **kwargs: Any) -> Any:
        function = vmap(*args, **kwargs)

        @functools.wraps(function)
        def call_function(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or kwargs:
                return function(*args, **kwargs)
            return listener.call_mapped(function, args)

        return call_function

    def call_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return call(module, *args, **kwargs)
        return listener.call_module(call, module, args, kwargs)

    def apply_function(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        original = apply.__get__(None, cls)
        if threading.get_ident() != thread or kwargs:
            return original(*args, **kwargs)
        return listener.apply_function(original, cls, args)

    def enter_hooks(self: saved_tensors_hooks) -> None:
        if threading.get_ident() == thread:
            listener.hook_saved_tensors()
        enter(self)

    def enter_autocast(self: torch.autocast) -> Any:
        entered = autocast(self)
        if threading.get_ident() == thread:
            listener.switch_autocast(self)
        return entered

    nn.Module.__call__ = call_module
    torch.autograd.Function.apply = classmethod(apply_function)  # type: ignore[assignment]
    saved_tensors_hooks.__enter__ = enter_hooks
    torch.autocast.__enter__ = enter_autocast  # type: ignore[method-assign]
    torch.vmap = torch.func.vmap = mapped
    try:
        with uncached_weights(), unfused_encoders(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        nn.Module.__call__ = call
        torch.autograd.Function.apply = apply
        saved_tensors_hooks.__enter__ = enter
        torch.autocast.__enter__ = autocast
        torch.vmap = torch.func.vmap = vmap
