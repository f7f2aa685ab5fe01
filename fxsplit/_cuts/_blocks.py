"""Finds the blocks of a traced model: which of its modules a person would name as the places to cut after."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from torch import fx, nn

from fxsplit._cuts._block_classes import CONTAINERS, Instance, block_paths, parents
from fxsplit._graph import fetch, is_source, named_tensors
from fxsplit._params import raw_parameter

if TYPE_CHECKING:
    from fxsplit._cuts._survey import Survey, Verdict


def find_blocks(survey: Survey) -> dict[str, int]:
    """The paths of the blocks with the moments of their exits, in order of execution."""
    search = _Search(survey)
    paths = block_paths(search.instances, search.follows)
    ends = {path: search.ends[path] for path in paths} or _between_layers(survey)
    # Where two blocks end at the same moment, the first one listed, the outer one, gives it its name.
    names = {moment: path for path, moment in reversed(ends.items()) if moment is not None}
    return {path: moment for moment, path in sorted(names.items())}


class _Search:
    """The modules of several parts in order of execution, and where each of them ends."""

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        modules = dict(survey.source.named_modules())
        self._composite = {path: modules[path] for path in modules if self._has_parts(path, modules[path])}
        self._counts = Counter(type(module) for module in self._composite.values())
        self._listed = {path for path in self._composite if _is_numbered_item(path, modules)}
        self._exits = {path: survey.flow.exit_of(survey.inside(path)) or 0 for path in self._composite}
        self.ends = {path: self._end(path) for path in self._composite}
        order = sorted(self._composite, key=lambda path: (self._exits[path], path.count(".")))
        self.instances = [self._instance(path, modules) for path in order]

    def _instance(self, path: str, modules: dict[str, nn.Module]) -> Instance:
        survey = self._survey
        nodes = survey.inside(path)
        calls = Counter(node.target for node in nodes if node.op == "call_module" and not is_source(node))
        owning = {t for t in calls if any(True for _ in fetch(survey.root, str(t)).parameters())}
        tensors = {id(tensor): tensor for _, tensor in named_tensors(survey.root, nodes)}
        return Instance(
            path,
            type(modules[path]),
            self.ends[path] is not None,
            last=not survey.is_inside(self._exits[path]),
            listed=path in self._listed,
            layers=sum(isinstance(t, nn.Parameter) and t.ndim > 1 for t in tensors.values()),
            reused=all(calls[target] > 1 for target in owning) and bool(owning),
        )

    def _has_parts(self, path: str, module: nn.Module) -> bool:
        nodes = self._survey.inside(path)
        if not path or not nodes or (path not in self._survey.members and type(module) in CONTAINERS):
            return False
        if any(n.op == "call_module" and n.target == path for n in nodes):
            # It was recorded as a whole.
            return any(True for child in module.children() for _ in child.parameters())
        below = [n for n in nodes if n.meta["modules"][-1] != path]
        owned = (isinstance(t, nn.Parameter) for _, t in named_tensors(self._survey.root, below))
        return len(below) > 1 and any(owned)

    def _end(self, path: str) -> int | None:
        """The moment when a module's result is complete; None if it is only a part of what surrounds it.

        A skip connection around it makes it a part, and so does a branch beside it, unless that leads out of all
        modules that the model repeats (the long connections of a U-Net, features collected for a decoder). If nothing
        but an addition is missing, as in ``x = x + layer(x)``, that counts as its end.
        """
        survey = self._survey
        moment = self._exits[path]
        if not survey.is_inside(moment):
            return None
        verdict = survey.judge(moment, path)
        if not verdict.mains:
            return None
        around = [p for p in parents(path) if self._is_repeated(p)]
        if not around:
            return moment if verdict.complete else self._completed(path, moment) or moment
        closing = max(self._exits[p] for p in around)
        closed = {n for n in verdict.blocking if survey.flow.last_read[n] <= closing}
        alone = any(survey.ways.dominates(n, verdict.mains[0]) for n in closed)
        if alone or (closed and closed.issuperset(verdict.blocking)):
            return None
        return None if any(self._has_branch(p, verdict) for p in around) else moment

    def _has_branch(self, path: str, verdict: Verdict) -> bool:
        """Whether a module around has started another branch that it has yet to join with the main one."""
        survey = self._survey
        waiting = [n for n in verdict.sides if n in survey.learned and survey.flow.last_read[n] <= self._exits[path]]
        if not waiting:
            return False
        entering = survey.entering(path)
        main = entering.get(verdict.mains[0], frozenset())
        # What other parts read (a context that attention looks at) is no branch: the module itself joins branches.
        joined = (n for n in waiting if any(r.meta["modules"][-1:] == (path,) for r in survey.flow.readers[n]))
        return any(n in entering and not entering[n] < main for n in joined)

    def _is_repeated(self, path: str) -> bool:
        module = self._composite.get(path)
        if module is None or type(module) in CONTAINERS:
            return False
        return self._counts[type(module)] > 1 or path in self._listed

    def _completed(self, path: str, moment: int) -> int | None:
        """When the operations that the surrounding module itself does next have closed all skip connections."""
        survey = self._survey
        enclosing = set(parents(path)) | {""}
        for node in survey.flow.nodes[moment + 1 :]:
            if is_source(node):
                continue
            within = node.meta["modules"][-1] if node.meta.get("modules") else ""
            if node.op not in ("call_function", "call_method") or within not in enclosing:
                return None
            later = survey.flow.moment.get(node)
            if later is None or not survey.is_inside(later):
                return None
            if survey.judge(later, "").clean:
                return later
        return None

    def follows(self, one: str, other: str) -> bool:
        """Whether what one module computes goes into another one that runs later, as opposed to beside it."""
        flow, inside = self._survey.flow, self._survey.inside
        first = {node for node in inside(one) if node in flow.moment}
        start = min(flow.moment[node] for node in first)
        seen: set[fx.Node] = set()
        open_nodes = list(inside(other))
        while open_nodes:
            for value in flow.data_inputs.get(open_nodes.pop(), ()):
                if value in first:
                    return True
                if value not in seen and flow.moment.get(value, start) > start:
                    seen.add(value)
                    open_nodes.append(value)
        return False


def _is_numbered_item(path: str, modules: dict[str, nn.Module]) -> bool:
    holder, _, name = path.rpartition(".")
    return isinstance(modules.get(holder), CONTAINERS) and any(character.isdigit() for character in name)


def _between_layers(survey: Survey) -> dict[str, int]:
    """Where no class repeats: the last module before every convolution and linear layer but the first."""
    paths: list[str] = []
    previous, seen = "", False
    for node in survey.flow.nodes:
        if node.op != "call_module" or is_source(node):
            continue
        if _has_weight(fetch(survey.root, str(node.target))):
            if seen:
                paths.append(previous)
            seen = True
        previous = node.meta["modules"][-1] if node.meta["modules"] else previous
    exits = {path: survey.flow.exit_of(survey.members[path]) for path in paths if path}
    return {
        path: moment
        for path, moment in exits.items()
        if moment is not None and survey.is_inside(moment) and survey.judge(moment, path).clean
    }


def _has_weight(module: object) -> bool:
    # The stored parameter: computing a parametrized weight may change it (spectral_norm).
    weight = raw_parameter(module, "weight") if isinstance(module, nn.Module) else None
    return weight is not None and weight.ndim >= 2 and not isinstance(module, nn.Embedding)
