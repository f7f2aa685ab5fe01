"""Decides which modules a model is built of: residual blocks, transformer layers, dense blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MANY = 3

Kinds = set[type[nn.Module]]
Follows = Callable[[str, str], bool]


@dataclass(frozen=True)
class Instance:
    """One module that is made of several parts.

    Attributes:
        path: Its name.
        kind: Its class.
        complete: Whether it ends in a place to cut, as opposed to being a part of what surrounds it.
        last: Whether the model ends with it, so that it could not be cut after it.
        listed: Whether it is a numbered item of a container.
        layers: How many weight matrices and kernels it applies.
        reused: Whether all of it runs several times.
    """

    path: str
    kind: type[nn.Module]
    complete: bool
    last: bool = False
    listed: bool = True
    layers: int = 2
    reused: bool = False

    @property
    def holder(self) -> str:
        """The module that it is a child of."""
        return self.path.rpartition(".")[0]

    @property
    def place(self) -> str:
        """Its holder without the numbers in its name: that of the other stages, too."""
        return _unnumbered(self.holder)


def block_paths(instances: Sequence[Instance], follows: Follows = lambda one, other: True) -> list[str]:
    """Paths of all blocks, in the order given.

    * A block class occurs at least twice, one instance after another, and at least three quarters of its instances
      end in places to cut, not counting one with which the model ends. Classes with several layers go before those
      with one (a convolution with its activation), what runs once before what runs repeatedly, and plain containers are
      blocks only if no other class is.
    * Where block classes are nested, the inner one wins if an outer instance is a chain of it (a stage of blocks), the
      outer one otherwise (a transformer layer with one attention part, a block of parallel branches).
    * What stands in a list with blocks is a block, although its class may occur only once.
    * Where blocks follow one another in lists, what lies between the lists (a patch merging) is none.

    Args:
        instances: In order of execution.
        follows: Whether data goes from one instance into another.
    """
    for candidates in _preferences(instances):
        kinds = _kinds(candidates, follows)
        if kinds:
            winners = _innermost_containers(_resolve_nesting([i for i in candidates if i.kind in kinds], follows))
            found = _with_siblings(instances, winners)
            return [i.path for i in _in_lists(found, follows) if i.complete]
    return []


def _preferences(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    own = [i for i in instances if i.kind not in CONTAINERS]
    yield [i for i in own if i.layers > 1 and not i.reused]
    yield [i for i in own if not i.reused]
    yield own
    yield [i for i in instances if i.kind in CONTAINERS]


def _kinds(instances: Iterable[Instance], follows: Follows) -> Kinds:
    found = set()
    ordered = sorted(instances, key=lambda i: id(i.kind))
    for kind, group in groupby(ordered, key=lambda i: i.kind):
        members = list(group)
        judged = [i for i in members if kind in CONTAINERS or not i.last]
        if (
            len(members) > 1
            and judged
            and 4 * sum(i.complete for i in judged) >= 3 * len(judged)
            and any(follows(one.path, other.path) for one, other in pairwise(members))
        ):
            found.add(kind)
    return found


def _resolve_nesting(candidates: Sequence[Instance], follows: Follows) -> list[Instance]:
    """The instances that win: classes that lose to those they hold are out, parts of the winners, too."""
    by_path = {i.path: i for i in candidates}
    while pair := _innermost_pair(by_path):
        outer, groups = pair
        chained = any(_is_chain(parts, follows) for parts in groups[:_MANY])
        if chained or _is_at_home_elsewhere(groups, by_path.values(), follows):
            by_path = {path: i for path, i in by_path.items() if i.kind is not outer}
        else:
            by_path = _without_parts(by_path, [part for parts in groups for part in parts])
    return list(by_path.values())


def _without_parts(by_path: dict[str, Instance], parts: Sequence[Instance]) -> dict[str, Instance]:
    """Without parts of other blocks, and without all of their class if more of it are such parts than not."""
    kind, inside = parts[0].kind, {part.path for part in parts}
    rest = [i for i in by_path.values() if i.kind is kind and i.path not in inside]
    drop = inside if len(rest) >= len(inside) else inside | {i.path for i in rest}
    return {path: i for path, i in by_path.items() if path not in drop}


def _innermost_containers(winners: Sequence[Instance]) -> list[Instance]:
    around = {p for w in winners for p in parents(w.path)}
    return [w for w in winners if w.kind not in CONTAINERS or w.path not in around]


def _innermost_pair(by_path: dict[str, Instance]) -> tuple[type[nn.Module], list[list[Instance]]] | None:
    """An outer class, and the instances of an inner one by outer instance: nothing between, nothing further in."""
    held: dict[tuple[type[nn.Module], type[nn.Module]], dict[str, list[Instance]]] = {}
    for path, instance in by_path.items():
        outer = next((by_path[p] for p in parents(path) if p in by_path), None)
        if outer is not None and outer.kind is not instance.kind:
            held.setdefault((outer.kind, instance.kind), {}).setdefault(outer.path, []).append(instance)
    has_inside = {outer for outer, _ in held}
    for (outer, inner), groups in held.items():
        # Two classes that hold each other have no innermost one: take either.
        if inner not in has_inside or (inner, outer) in held:
            return outer, sorted(groups.values(), key=len, reverse=True)
    return None


def _is_chain(parts: Sequence[Instance], follows: Follows) -> bool:
    """Whether instances stand in lists, or are several with numbered names, and each goes into the next."""
    listed = len(parts) > 1 and all(part.listed for part in parts)
    numbered = len(parts) >= _MANY and len({_unnumbered(part.path) for part in parts}) == 1
    return (listed or numbered) and all(follows(one.path, other.path) for one, other in pairwise(parts))


def _is_at_home_elsewhere(
    groups: Sequence[Sequence[Instance]], candidates: Iterable[Instance], follows: Follows
) -> bool:
    """Whether instances stand alone in their lists here (a stage of one layer), but follow one another in others."""
    if not all(len(parts) == 1 and parts[0].listed for parts in groups):
        return False
    listed = [i for i in candidates if i.kind is groups[0][0].kind and i.listed]
    return any(one.holder == other.holder and follows(one.path, other.path) for one, other in pairwise(listed))


def _with_siblings(instances: Sequence[Instance], winners: Sequence[Instance]) -> list[Instance]:
    """The winners, what else stands in the same lists, and what stands between two of them.

    A single layer in a list must stand between, too: what comes before the blocks is the model's first layer.
    """
    order = {i.path: number for number, i in enumerate(instances)}
    around = {p for w in winners for p in (w.path, *parents(w.path))}
    places = {w.place for w in winners if w.listed}
    reach: dict[tuple[bool, str], tuple[int, int]] = {}
    for w in winners:
        key = w.listed, w.place if w.listed else w.holder
        first, _ = reach.get(key, (order[w.path], 0))
        reach[key] = first, order[w.path]

    def belongs(i: Instance) -> bool:
        if i.listed and i.layers > 1:
            return i.place in places
        first, last = reach.get((i.listed, i.place if i.listed else i.holder), (0, 0))
        return first < order[i.path] < last and (i.listed or i.layers > 1)

    chosen = {w.path for w in winners}
    eligible = (i for i in instances if not i.reused and i.kind not in CONTAINERS and i.path not in around)
    chosen |= {i.path for i in eligible if belongs(i)}
    return [i for i in instances if i.path in chosen]


def _in_lists(blocks: Sequence[Instance], follows: Follows) -> Sequence[Instance]:
    """Without what lies between lists of blocks, if there are such lists."""
    chains = [
        one
        for one, other in pairwise(blocks)
        if one.holder == other.holder
        and (one.kind is other.kind or (one.listed and other.listed))
        and follows(one.path, other.path)
    ]
    places, kinds = {i.place for i in chains}, {i.kind for i in chains}
    return [i for i in blocks if i.place in places or i.kind in kinds] if chains else blocks


def _unnumbered(path: str) -> str:
    return re.sub(r"\d+", "#", path)


def parents(path: str) -> Iterable[str]:
    """The paths of the modules around a module, from the inside out."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path
