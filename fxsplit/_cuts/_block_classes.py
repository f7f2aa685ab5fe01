"""Finds the module classes that a model is built of: residual blocks, transformer layers, dense blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Instance:
    """One called module that is made of several parts.

    Attributes:
        path: Its name.
        kind: Its class.
        clean: Whether it ends in a clean cut.
        last: Whether the model ends with it, so that no cut after it could be clean.
    """

    path: str
    kind: type[nn.Module]
    clean: bool
    last: bool = False


def block_paths(instances: Sequence[Instance]) -> list[str]:
    """Paths of all blocks, in the order given.

    A block class occurs at least twice, and at least three quarters of its instances end in clean cuts, not counting
    one with which the model ends. Plain containers are blocks only if no other class is. Where block classes are
    nested, the inner one wins if some outer instance holds several of it (a stage of blocks), the outer one otherwise
    (a transformer layer with one attention part).
    """
    for kinds in (_kinds(instances, containers=False), _kinds(instances, containers=True)):
        if kinds:
            members = [i for i in instances if i.kind in kinds]
            winners = _resolve_nesting(members)
            return [i.path for i in members if i.kind in winners]
    return []


def _kinds(instances: Iterable[Instance], containers: bool) -> set[type[nn.Module]]:
    found = set()
    ordered = sorted(instances, key=lambda i: id(i.kind))
    for kind, group in groupby(ordered, key=lambda i: i.kind):
        members = list(group)
        judged = [i for i in members if containers or not i.last]
        if (
            len(members) >= 2
            and (kind in _CONTAINERS) == containers
            and judged
            and 4 * sum(i.clean for i in judged) >= 3 * len(judged)
        ):
            found.add(kind)
    return found


def _resolve_nesting(instances: Sequence[Instance]) -> set[type[nn.Module]]:
    kind_of = {i.path: i.kind for i in instances}
    active = set(kind_of.values())
    while pair := _innermost_pair(kind_of, active):
        outer, inner, repeats = pair
        active.discard(outer if repeats else inner)
    return active


def _innermost_pair(
    kind_of: dict[str, type[nn.Module]], active: set[type[nn.Module]]
) -> tuple[type[nn.Module], type[nn.Module], bool] | None:
    """An outer and an inner class with nothing between and nothing further in; whether the inner one repeats."""
    held: dict[tuple[type[nn.Module], type[nn.Module]], dict[str, int]] = {}
    for path, kind in kind_of.items():
        outer = next((p for p in _parents(path) if kind_of.get(p) in active), None)
        if kind in active and outer is not None and kind_of[outer] is not kind:
            counts = held.setdefault((kind_of[outer], kind), {})
            counts[outer] = counts.get(outer, 0) + 1
    has_inside = {outer for outer, _ in held}
    for (outer, inner), counts in held.items():
        # Two classes that hold each other have no innermost one: take either.
        if inner not in has_inside or (inner, outer) in held:
            return outer, inner, max(counts.values()) >= 2
    return None


def _parents(path: str) -> Iterable[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path
