"""What one run of a model leaves behind: a flat list of records that refer to each other by position."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


class Origin(enum.IntFlag):
    """What a value depends on; decides whether reading it in Python is a harmless or a dangerous guard."""

    NOTHING = 0
    INDEX = 1  # integer or bool inputs (token ids, masks)
    VALUE = 2  # floating inputs, or anything computed from inputs with weights
    RANDOM = 4
    STATE = 8  # parameters and buffers


@dataclass(frozen=True, slots=True)
class Ref:
    """The value that record number ``index`` produced."""

    index: int


@dataclass(frozen=True, slots=True)
class Call:
    """A container of the output that needs its class called to be rebuilt."""

    target: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """One operation: the arguments hold ``Ref`` where the run had tensors."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    modules: tuple[str, ...]
    grad: bool = True
    mutates: tuple[int, ...] = ()
    updates: bool = False  # it changed buffers of the leaf that it calls
    lasting: bool = False  # it changed buffers or the random state, so it counts even if nothing uses its result
    origin: Origin = Origin.NOTHING
    is_tensor: bool = False
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    storage: int | None = None
    length: int | None = None  # of a list or tuple
    whole: bool = False  # it is used as a container, without taking items out
    flops: int = 0
    of_weights: bool = False  # the last dtype that its module read is that of a parameter or buffer

    @property
    def path(self) -> str:
        """The innermost module that was open."""
        return self.modules[-1] if self.modules else ""

    @property
    def owner(self) -> str:
        """The module whose code made this operation: for a leaf's call, the module around the leaf."""
        inside = self.modules[:-1] if self.op == "call_module" and self.path == self.target else self.modules
        return inside[-1] if inside else ""

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        """What has to agree for two recordings to be the same program."""
        name = self.target if isinstance(self.target, str) else getattr(self.target, "__name__", repr(self.target))
        return self.op, name, self.modules

    def describe(self, tensor: torch.Tensor) -> None:
        """Remember what can be known of the produced tensor without keeping it."""
        self.is_tensor = True
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype
        self.storage = storage_id(tensor)


@dataclass(frozen=True, slots=True)
class Guard:
    """A tensor value that Python read, so that the graph holds only for inputs with the same answer."""

    path: str
    what: str
    value: str
    origin: Origin

    @property
    def follows_data(self) -> bool:
        """Whether the answer depends on activations, not just on ids and masks."""
        return bool(self.origin & Origin.VALUE) or bool(self.origin & Origin.INDEX and self.origin & Origin.STATE)

    def __str__(self) -> str:
        return f"{self.what}() was {self.value} in {self.path or 'the model'}"


def storage_id(tensor: torch.Tensor) -> int | None:
    """Identity of the memory behind a tensor; None for tensors without storage (sparse ones)."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None
