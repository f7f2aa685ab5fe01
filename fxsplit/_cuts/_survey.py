"""Everything that cuts need to know about one graph: module exits, blocks, and what would cross at each of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from torch import fx, nn

from fxsplit._cuts._block_classes import parents
from fxsplit._cuts._dominance import Dominance
from fxsplit._cuts._flow import BEFORE, Flow
from fxsplit._cuts._sizes import Sizes
from fxsplit._graph import is_container, is_getter, is_tensor, named_tensors


@dataclass(frozen=True)
class Verdict:
    """What is alive at a moment, and which tensors of it carry the computation.

    Attributes:
        mains: The tensors that carry the computation, the last one made first; empty if nothing was computed yet.
        sides: Other values that later computations read; inputs of the model among them.
        blocking: Those of ``mains`` that the first one is computed from: skip connections that are still open.
    """

    mains: tuple[fx.Node, ...]
    sides: tuple[fx.Node, ...]
    blocking: tuple[fx.Node, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether exactly one tensor carries the computation."""
        return len(self.mains) == 1

    @property
    def complete(self) -> bool:
        """Whether no skip connection is open: what crosses was made by the last module, or before it for others."""
        return bool(self.mains) and not self.blocking


class Survey:
    """Looks up module exits of a traced graph and judges them as cuts."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.flow = Flow(graph)
        self.ways = Dominance(self.flow)
        self.sizes = Sizes(self.flow)
        self.root = graph
        self.members: dict[str, list[fx.Node]] = {}
        for node in self.flow.nodes:
            for path in node.meta.get("modules", ()):
                self.members.setdefault(path, []).append(node)
        self._verdicts: dict[tuple[int, str], Verdict] = {}
        self._clean: list[tuple[int, fx.Node]] = []
        self._entering: dict[str, dict[fx.Node, frozenset[fx.Node]]] = {}

    @property
    def source(self) -> nn.Module:
        """The model that was traced."""
        return getattr(self.root, "source", self.root)

    @cached_property
    def exits(self) -> dict[str, int]:
        """The moment when each module has run for the last time, in that order; nothing that ends the model.

        A block ends where its result is complete: see `blocks`.
        """
        found = {path: self.flow.exit_of(nodes) for path, nodes in self.members.items()}
        legal = {path: moment for path, moment in found.items() if moment is not None and self.is_inside(moment)}
        return dict(sorted((legal | self.blocks).items(), key=lambda item: (item[1], -item[0].count("."))))

    def exit(self, path: str) -> int | None:
        """The exit of a module, or of a list of modules that is never called itself."""
        if path in self.blocks:
            return self.blocks[path]
        moment = self.flow.exit_of(self.inside(path))
        # A list of modules ends where its last block ends.
        ends = (end for block, end in self.blocks.items() if block.startswith(f"{path}.") and end >= (moment or 0))
        return max(ends, default=moment) if path not in self.members else moment

    def inside(self, path: str) -> list[fx.Node]:
        """The nodes recorded within a module, or within the members of one that is never called itself."""
        return self.members.get(path) or self._below.get(path, [])

    @cached_property
    def _below(self) -> dict[str, list[fx.Node]]:
        found: dict[str, list[fx.Node]] = {}
        for node in self.flow.nodes:
            for path in {p for recorded in node.meta.get("modules", ()) for p in parents(recorded)}:
                found.setdefault(path, []).append(node)
        return found

    def is_inside(self, moment: int) -> bool:
        """Whether parameters are left after a moment, so that there is something for the heads to own."""
        return self.sizes.params(moment)[1] > 0

    @cached_property
    def blocks(self) -> dict[str, int]:
        """The blocks whose exits are the model's block cuts, with their exits, in order."""
        from fxsplit._cuts._blocks import find_blocks

        return find_blocks(self)

    @cached_property
    def block_ends(self) -> frozenset[int]:
        """The moments at which blocks end."""
        return frozenset(self.blocks.values())

    def judge(self, moment: int, path: str) -> Verdict:
        """Find the tensors that carry the computation at a moment, and the side inputs.

        The main tensor is the last one made, inside ``path`` if there is one. Others carry the computation too if
        ``path`` makes them of at least what it makes the main one of (branches), or if data reaches the main one only
        through them (a skip connection that is still open). The rest are side inputs: masks, position encodings,
        another tower. Data on a way through another side input, such as a mask, does not count.
        """
        key = (moment, path)
        if key not in self._verdicts:
            verdict = self._verdicts[key] = self._judge(moment, path)
            if verdict.clean:
                at = bisect_left(self._clean, moment, key=lambda entry: entry[0])
                self._clean.insert(at, (moment, verdict.mains[0]))
        return self._verdicts[key]

    def _judge(self, moment: int, path: str) -> Verdict:
        alive = [node for node in self.flow.alive(moment) if is_tensor(node) or is_container(node)]
        made = [node for node in alive if is_tensor(node) and not self.flow.is_input(node)]
        carrying = [node for node in made if node in self.flow.fed]
        carrying = [node for node in carrying if _holds_numbers(node)] or carrying
        results, others = self._results([node for node in carrying if _is_within(node, path)], path)
        main = self._last(results or carrying)
        if main is None:
            return Verdict((), tuple(alive))
        beside = [node for node in (*results, *others) if node is not main]
        # Ids and masks only say what the main tensor is about, like the model's inputs.
        own = [node for node in made if _holds_numbers(node) and node is not main and node not in beside]
        around = [node for node in alive if node not in own and node is not main and node not in beside]
        blocking = self._blocking(main, own, around, moment)
        mains = (main, *beside, *blocking)
        return Verdict(mains, tuple(node for node in alive if node not in mains), tuple(blocking))

    def _results(self, made: list[fx.Node], path: str) -> tuple[list[fx.Node], list[fx.Node]]:
        """The results of a module made of the most of what enters it, and others that learned values enter.

        A position bias that a layer computes and hands on is made of the mask alone: neither.
        """
        if len(made) < 2:
            return made, []
        entering = self.entering(path)
        most = [n for n in made if not any(entering[n] < entering[other] for other in made)]
        rest = (n for n in made if n not in most)
        return most, [n for n in rest if any(v in self.learned for v in entering[n])]

    def entering(self, path: str) -> dict[fx.Node, frozenset[fx.Node]]:
        """For every value computed within a module: the values from outside that data goes into it from."""
        if path not in self._entering:
            found: dict[fx.Node, frozenset[fx.Node]] = {}
            for node in self.inside(path):
                values = [v for v in self.flow.data_inputs.get(node, ()) if v in self.flow.fed]
                found[node] = frozenset().union(*(found.get(v, (v,)) for v in values))
            self._entering[path] = found
        return self._entering[path]

    @cached_property
    def learned(self) -> set[fx.Node]:
        """Floating values that are computed from the model's inputs with parameters; a mask is not."""
        return {node for node in self._origins[0] if not is_tensor(node) or _holds_numbers(node)}

    @cached_property
    def _origins(self) -> tuple[set[fx.Node], set[fx.Node]]:
        """Values computed with parameters, and those (ids, images) that layers make the first of them of."""
        learned: set[fx.Node] = set()
        sources: set[fx.Node] = set()
        for node in self.flow.nodes:
            if node not in self.flow.fed or node.op == "placeholder":
                continue
            values = self.flow.data_inputs.get(node, ())
            constants = (v for v in (node, *self.flow.inputs[node]) if v.op in ("call_module", "get_attr"))
            if any(isinstance(t, nn.Parameter) for _, t in named_tensors(self.root, constants)):
                sources.update(v for v in values if v in self.flow.fed and v not in learned)
                learned.add(node)
            elif any(v in learned for v in values):
                learned.add(node)
        for node in reversed(self.flow.nodes):
            if node in sources:
                sources.update(v for v in self.flow.data_inputs.get(node, ()) if v in self.flow.fed)
        return learned, sources

    def _blocking(self, main: fx.Node, own: list[fx.Node], others: list[fx.Node], moment: int) -> list[fx.Node]:
        """Tensors that the main one cannot bypass, each alone or else all together, and later ones made of it alone."""
        found = [node for node in own if self.ways.dominates(node, main)]
        if not found and own:
            found = self._together(main, own, others, self._horizon(moment, own))
        later = [n for n in own if self.flow.moment[n] >= self.flow.moment[main] and self.ways.dominates(main, n)]
        return list(dict.fromkeys((*found, *later)))

    def _together(self, main: fx.Node, own: list[fx.Node], others: list[fx.Node], horizon: int) -> list[fx.Node]:
        # A way through ids that are read again counts, one through a mask does not.
        passed = [node for node in others if node not in self._origins[1]]
        passed = passed if self.ways.bypasses(main, passed, horizon) else []
        if self.ways.bypasses(main, [*own, *passed], horizon):
            return []
        needed = list(own)
        for node in own:
            rest = [n for n in needed if n is not node]
            if not self.ways.bypasses(main, [*rest, *passed], horizon):
                needed = rest
        return [node for node in needed if node in self.learned] or needed

    def _horizon(self, moment: int, own: Collection[fx.Node]) -> int:
        """The last clean cut before whose main tensor is not in question."""
        at = bisect_left(self._clean, moment, key=lambda entry: entry[0])
        return next((made for made, main in reversed(self._clean[:at]) if main not in own), BEFORE)

    def _last(self, candidates: list[fx.Node]) -> fx.Node | None:
        last = max((self.flow.moment[n] for n in candidates), default=None)
        # Of several results of one call the first is the one that goes on.
        return next((n for n in candidates if self.flow.moment[n] == last), None)

    @cached_property
    def _last_nodes(self) -> dict[int, fx.Node]:
        found: dict[int, fx.Node] = {}
        for node, made in self.flow.moment.items():
            if made not in found or (is_getter(found[made]) and not is_getter(node)):
                found[made] = node
        return found

    @cached_property
    def moments(self) -> dict[str, int]:
        """The moments of all nodes by their names."""
        return {node.name: moment for node, moment in self.flow.moment.items()}

    def last_node(self, moment: int) -> fx.Node | None:
        """The node that runs last up to a moment."""
        return None if moment == BEFORE else self._last_nodes.get(moment)


def _is_within(node: fx.Node, path: str) -> bool:
    """Whether a node was recorded within a module, or within a member of a list of modules that is never called."""
    return bool(path) and any(p == path or p.startswith(f"{path}.") for p in node.meta["modules"])


def _holds_numbers(node: fx.Node) -> bool:
    """Whether a tensor is floating or complex: no ids, no mask."""
    return node.meta["dtype"].is_floating_point or node.meta["dtype"].is_complex
