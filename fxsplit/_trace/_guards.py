"""Checks at run time that inputs are of the kind that was traced, as the first statement of a graph's code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import fx
from torch.fx.graph import CodeGen

from fxsplit._errors import InputError
from fxsplit._trace._objects import has_tensors

_REMEDY = "or trace the model again with example= of this kind"

# A size is fixed (an int), the same in all inputs that name it (a string), or free (None).
Shape = tuple["int | str | None", ...]


class Rule(Protocol):
    """What one argument, or one part of a nested one, has to be like. Rules are plain code that dynamo can follow."""

    def check(self, value: Any, sizes: dict[str, tuple[int, str]]) -> None:
        """Raise an InputError unless ``value`` fits; ``sizes`` holds ``(size, name)`` of the inputs before it."""


class TensorRule:
    """A tensor of one category of dtypes, with this many dimensions."""

    def __init__(self, name: str, example: torch.Tensor, shape: Shape) -> None:
        self.name = name
        self.category = category(example)
        self.shape = shape

    def check(self, value: Any, sizes: dict[str, tuple[int, str]]) -> None:
        """Compare category, number of dimensions and sizes."""
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{self._traced()}; got {_kind(value)}. Pass a tensor, {_REMEDY}.")
        if category(value) != self.category:
            raise InputError(f"{self._traced()}; got {value.dtype}. Convert it, {_REMEDY}.")
        if value.ndim != len(self.shape):
            raise InputError(f"{self._traced()}; got {value.ndim} dimensions, {_sizes(value)}. Reshape it, {_REMEDY}.")
        for dim, size in enumerate(self.shape):
            if size is None:
                continue
            got = value.shape[dim]
            if isinstance(size, str):
                if size not in sizes:
                    sizes[size] = (got, self.name)
                elif sizes[size][0] != got:
                    other, where = sizes[size]
                    raise InputError(
                        f"{self._traced()}; got {_sizes(value)}, but the {size} of input {where!r} is {other}. "
                        f"Give both the same {size}, {_REMEDY}."
                    )
            elif got != size:
                raise InputError(
                    f"{self._traced()}; got {_sizes(value)}: size {got} of dimension {dim} instead of {size}. The "
                    f"graph holds for that size only: pass it, {_REMEDY}."
                )

    def _traced(self) -> str:
        shape = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"input {self.name!r} was traced as a tensor ({self.category}) [{shape}]"


class ContainerRule:
    """A list, tuple, dict or dataclass with parts by position, key or field."""

    def __init__(self, name: str, kind: str, parts: dict[Any, Rule]) -> None:
        self.name = name
        self.kind = kind
        self.parts = parts

    def check(self, value: Any, sizes: dict[str, tuple[int, str]]) -> None:
        """Compare the structure, then the parts."""
        given = parts_of(value)
        if given is None:
            raise InputError(
                f"input {self.name!r} was traced as a {self.kind}; got {_kind(value)}. Pass a {self.kind}, {_REMEDY}."
            )
        for key in given:
            if key not in self.parts:
                raise InputError(
                    f"input {self.name!r} has a part {key!r} that was not traced. Leave it out, {_REMEDY}."
                )
        for key, rule in self.parts.items():
            if key not in given:
                raise InputError(f"input {self.name!r} lacks its part {key!r}, which was traced. Pass it, {_REMEDY}.")
            rule.check(given[key], sizes)


class ConstantRule:
    """A part without tensors, which the graph holds as a constant."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def check(self, value: Any, sizes: dict[str, tuple[int, str]]) -> None:
        """Compare with what was traced, if that is a plain number, string or None."""
        if isinstance(value, torch.Tensor):
            raise InputError(
                f"input {self.name!r} was traced as {self.value!r}; got a tensor. Leave it out, {_REMEDY}."
            )
        if (isinstance(self.value, (bool, int, float, str)) or self.value is None) and value != self.value:
            raise InputError(f"input {self.name!r} was traced as {self.value!r}; got {value!r}. Pass that, {_REMEDY}.")


class InputGuard:
    """Checks the arguments of a graph, in the order of its placeholders; takes microseconds."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)

    def __call__(self, values: tuple[Any, ...]) -> None:
        """Raise an InputError that names the argument, what it was like when traced, what it is, and the remedy."""
        sizes: dict[str, tuple[int, str]] = {}
        for rule, value in zip(self.rules, values, strict=True):
            if isinstance(value, fx.Proxy):  # somebody traces through: there is nothing to check yet
                return
            rule.check(value, sizes)


def make_rule(name: str, value: Any, shapes: Sequence[Shape]) -> Rule:
    """The rule for one argument; ``shapes`` are those of the tensors in it, in order."""
    rest = list(shapes)
    return _make(name, value, rest)


def attach(graph: fx.Graph, guard: InputGuard | None) -> None:
    """Let the code of ``graph`` check its inputs; modules that hold the graph have to be recompiled."""
    if guard is not None:
        graph.set_codegen(_GuardedCode(guard))


def guard_of(graph: fx.Graph) -> InputGuard | None:
    """The guard that was attached to ``graph``."""
    return graph._codegen.guard if isinstance(graph._codegen, _GuardedCode) else None


def category(tensor: torch.Tensor) -> str:
    """Which numbers a tensor holds; within a category, the graph follows the dtype."""
    if tensor.dtype == torch.bool:
        return "bool"
    if tensor.is_floating_point():
        return "floating"
    return "complex" if tensor.is_complex() else "integer"


def parts_of(value: Any) -> dict[Any, Any] | None:
    """The parts of a container; None if it is none."""
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return None


def _make(name: str, value: Any, rest: list[Shape]) -> Rule:
    if isinstance(value, torch.Tensor):
        return TensorRule(name, value, rest.pop(0))
    parts = parts_of(value) if has_tensors(value) else None
    if parts is None:
        return ConstantRule(name, value)
    made = {key: _make(f"{name}[{key!r}]", part, rest) for key, part in parts.items()}
    return ContainerRule(name, type(value).__name__, made)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _sizes(tensor: torch.Tensor) -> str:
    return f"[{', '.join([str(size) for size in tensor.shape])}]"


class _GuardedCode(CodeGen):
    """Writes a call of the guard in front of the graph's own code; copied with the graph."""

    def __init__(self, guard: InputGuard) -> None:
        super().__init__()
        self.guard = guard

    def gen_fn_def(self, free_vars: list[str], *args: Any, **kwargs: Any) -> str:
        definition = super().gen_fn_def(free_vars, *args, **kwargs)
        names = [_name(variable) for variable in free_vars if variable != "self"]
        if len(names) != len(self.guard.rules):  # the graph was given other inputs since
            return definition
        return f"{definition}\n    _check_inputs(({', '.join(names)},))"

    def additional_globals(self) -> list[tuple[str, Any]]:
        return [*super().additional_globals(), ("_check_inputs", self.guard)]


def _name(variable: str) -> str:
    """The name in a parameter with annotation, default or comment."""
    return variable.split(":")[0].split("=")[0].split("#")[0].strip()
