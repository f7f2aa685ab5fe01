"""The order in which a model uses its weights, as far as it is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx, nn

from sparsity._select import join
from sparsity._selectors import Site


def uses(model: nn.Module, sites: Sequence[Site]) -> list[Site]:
    """Return the sites in the order of their use: that of the graph in graph modules, of definition in other modules.

    A site that a graph uses twice comes twice, and one that it never uses not at all.

    Args:
        model: A graph module, such as a traced or split model, or any other module.
        sites: Places with weights.
    """
    by_owner: dict[str, list[Site]] = {}
    for site in sites:
        by_owner.setdefault(site.path.rpartition(".")[0], []).append(site)
    found: list[Site] = []
    for owner, name in _walk(model, ""):
        found += [site for site in by_owner.get(owner, []) if name in (None, site.name)]
    return found


def _walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, str | None]]:
    """Yield the path of each module that runs, or that of a module and the name of one of its parameters."""
    if not isinstance(module, fx.GraphModule):
        yield prefix, None
        for name, child in module.named_children():
            yield from _walk(child, join(prefix, name))
        return
    for node in module.graph.nodes:
        path = join(prefix, str(node.target))
        if node.op == "call_module":
            yield from _walk(module.get_submodule(str(node.target)), path)
        elif node.op == "get_attr":
            owner, _, name = path.rpartition(".")
            yield owner, name
