"""Everything that cuts need to know about one graph: module exits, blocks, and what would cross at each of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import fx, nn

from fxsplit._cuts._block_classes import Instance, block_paths
from fxsplit._cuts._flow import BEFORE, Flow
from fxsplit._flops import node_costs, recorded_batch
from fxsplit._graph import fetch, is_container, is_getter, is_source, is_tensor, named_tensors


@dataclass(frozen=True)
class Verdict:
    """What is alive at a moment, and whether exactly one tensor of it is the main one.

    Attributes:
        main: The tensor that carries the computation; None if there is none.
        sides: Other tensors that later computations read; inputs of the model among them.
        blocking: The side tensors that together make the cut illegal, empty if it is legal.
    """

    main: fx.Node | None
    sides: tuple[fx.Node, ...]
    blocking: tuple[fx.Node, ...]

    @property
    def clean(self) -> bool:
        """Whether a model may be split here."""
        return self.main is not None and not self.blocking


class Survey:
    """Looks up module exits of a traced graph and judges them as cuts."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.flow = Flow(graph)
        self.root = graph
        self.members: dict[str, list[fx.Node]] = {}
        for node in self.flow.nodes:
            for path in node.meta.get("modules", ()):
                self.members.setdefault(path, []).append(node)
        self._verdicts: dict[tuple[int, str], Verdict] = {}

    @cached_property
    def exits(self) -> dict[str, int]:
        """The moment when each module has run for the last time, in that order; nothing that ends the model."""
        found = {path: self.flow.exit_of(nodes) for path, nodes in self.members.items()}
        legal = {path: moment for path, moment in found.items() if moment is not None and self.is_inside(moment)}
        return dict(sorted(legal.items(), key=lambda item: (item[1], -item[0].count("."))))

    @property
    def clean_exits(self) -> dict[str, int]:
        """Those exits at which the model may be split."""
        return {path: moment for path, moment in self.exits.items() if self.judge(moment, path).clean}

    def exit(self, path: str) -> int | None:
        """The exit of a module, or of a list of modules that is never called itself."""
        inside = self.members.get(path)
        if inside is None:
            inside = [n for p, nodes in self.members.items() if p.startswith(f"{path}.") for n in nodes]
        return self.flow.exit_of(inside)

    def is_inside(self, moment: int) -> bool:
        """Whether parameters are left after a moment, so that there is something for the heads to own."""
        return self.params(moment)[1] > 0

    @cached_property
    def blocks(self) -> dict[str, int]:
        """The blocks whose exits are the model's block cuts, with their exits, in order."""
        source = getattr(self.root, "source", self.root)
        composite = {path for path in _modules(source) if path in self.members and self._is_composite(path)}
        instances = [
            Instance(path, type(module), self._is_clean_exit(path), self._ends_model(path))
            for path, module in _modules(source).items()
            if path in composite
        ]
        paths = block_paths(instances) or self._before_layers()
        exits = {moment: path for path in reversed(paths) if (moment := self.exit(path)) is not None}
        return {path: moment for moment, path in sorted(exits.items()) if self._is_clean_exit(path)}

    def _is_composite(self, path: str) -> bool:
        below = [n for n in self.members[path] if n.meta["modules"][-1] != path]
        is_leaf = any(n.op == "call_module" and n.target == path for n in self.members[path])
        return (
            not is_leaf
            and len(below) >= 2
            and any(isinstance(t, nn.Parameter) for _, t in named_tensors(self.root, below))
        )

    def _is_clean_exit(self, path: str) -> bool:
        return path in self.exits and self.judge(self.exits[path], path).clean

    def _ends_model(self, path: str) -> bool:
        moment = self.exit(path)
        return moment is not None and not self.is_inside(moment)

    def _before_layers(self) -> list[str]:
        """Where no class repeats: the last module before every convolution and linear layer but the first."""
        paths: list[str] = []
        previous, seen = "", False
        for node in self.flow.nodes:
            if node.op != "call_module" or is_source(node):
                continue
            if _has_weight(fetch(self.root, str(node.target))):
                if seen:
                    paths.append(previous)
                seen = True
            previous = node.meta["modules"][-1] if node.meta["modules"] else previous
        return paths

    def judge(self, moment: int, path: str) -> Verdict:
        """Find the main tensor and the side inputs at a moment.

        The main tensor is the last one made, inside ``path`` if there is one. The others are side inputs (masks,
        position encodings, another tower) if data reaches the main tensor without passing through them. If not, a skip
        connection is still open, and the main tensor alone says nothing new. Data on a way through another side
        input, such as a mask, does not count.
        """
        key = (moment, path)
        if key not in self._verdicts:
            self._verdicts[key] = self._judge(moment, path)
        return self._verdicts[key]

    def _judge(self, moment: int, path: str) -> Verdict:
        alive = [node for node in self.flow.alive(moment) if is_tensor(node) or is_container(node)]
        made = [node for node in alive if is_tensor(node) and not self.flow.is_input(node)]
        main = self._last([node for node in made if node in self.flow.fed], path)
        if main is None:
            return Verdict(None, tuple(alive), ())
        sides = tuple(node for node in alive if node is not main)
        # Ids and masks only say what the main tensor is about, like the model's inputs.
        own = tuple(node for node in sides if node in made and _holds_numbers(node))
        if not self.flow.bypasses(main, own):
            return Verdict(main, sides, own)
        later = (n for n in own if n in self.flow.fed and self.flow.moment[n] >= self.flow.moment[main])
        return Verdict(main, sides, tuple(n for n in later if not self.flow.bypasses(n, (main,))))

    def obstacles(self, verdict: Verdict) -> list[fx.Node]:
        """The fewest of the blocking tensors that the main one cannot bypass; one skip connection, as a rule."""
        needed = list(verdict.blocking)
        if verdict.main is None or self.flow.bypasses(verdict.main, needed):
            return needed
        for node in verdict.blocking:
            rest = [n for n in needed if n is not node]
            if not self.flow.bypasses(verdict.main, rest):
                needed = rest
        return needed

    def _last(self, candidates: list[fx.Node], path: str) -> fx.Node | None:
        pool = [n for n in candidates if _holds_numbers(n)] or candidates
        pool = [n for n in pool if path in n.meta["modules"]] or pool
        if not pool:
            return None
        last = max(self.flow.moment[n] for n in pool)
        # Of several results of one call the first is the one that goes on.
        return next(n for n in pool if self.flow.moment[n] == last)

    @cached_property
    def _spans(self) -> list[tuple[int, int, int]]:
        """First use, last use and size of every parameter."""
        uses: dict[int, list[int]] = {}
        sizes: dict[int, int] = {}
        for node in self.flow.nodes:
            if node.op not in ("call_module", "get_attr"):
                continue
            users = (node,) if node in self.flow.moment else self.flow.readers[node]
            moments = [self.flow.moment[n] for n in users if n in self.flow.moment]
            for _, tensor in named_tensors(self.root, [node]) if moments else ():
                if isinstance(tensor, nn.Parameter):
                    uses.setdefault(id(tensor), []).extend(moments)
                    sizes[id(tensor)] = tensor.numel()
        return [(min(moments), max(moments), sizes[key]) for key, moments in uses.items()]

    def params(self, moment: int) -> tuple[int, int]:
        """Parameters used up to a moment, and after it; one that is used on both sides counts twice."""
        before = sum(size for first, _, size in self._spans if first <= moment)
        return before, sum(size for _, last, size in self._spans if last > moment)

    @cached_property
    def _costs(self) -> list[tuple[int, int]]:
        """The moment and FLOPs of every node that computes something, for the batch of the recording."""
        return [
            (self.flow.moment[node], sum(cost.weights.values()) + cost.other)
            for _, node, cost in node_costs(self.root)
            if node in self.flow.moment
        ]

    def flops(self, moment: int) -> tuple[int, int]:
        """FLOPs per sample up to a moment, and after it."""
        batch = recorded_batch(self.root)
        before = sum(flops for made, flops in self._costs if made <= moment)
        return before // batch, (sum(flops for _, flops in self._costs) - before) // batch

    def last_node(self, moment: int) -> fx.Node | None:
        """The node that runs last up to a moment."""
        at = [node for node, made in self.flow.moment.items() if made == moment and made != BEFORE]
        return next((node for node in at if not is_getter(node)), at[0] if at else None)


def _holds_numbers(node: fx.Node) -> bool:
    """Whether a tensor is floating or complex: no ids, no mask."""
    return node.meta["dtype"].is_floating_point or node.meta["dtype"].is_complex


def _has_weight(module: object) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim >= 2 and not isinstance(module, nn.Embedding)


def _modules(source: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in source.named_modules() if path}
