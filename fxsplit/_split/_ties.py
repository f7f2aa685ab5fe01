"""Weights and modules that appear on both sides of a cut, and modules that the user wants in all heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, fx, nn

from fxsplit._errors import SplitError, near_matches
from fxsplit._graph import fetch, is_source, named_tensors
from fxsplit._split._copying import Memo
from fxsplit._split._partition import Partition


def tied_weights(root: nn.Module, parts: Partition) -> dict[int, tuple[str, str]]:
    """Parameters that both sides use: ``{identity: (path in the head, path in the trunk)}``."""
    trunk = _parameters(root, parts.trunk)
    return {key: (path, trunk[key]) for key, path in _parameters(root, parts.head).items() if key in trunk}


def _parameters(root: nn.Module, nodes: Iterable[fx.Node]) -> dict[int, str]:
    found: dict[int, str] = {}
    for path, tensor in named_tensors(root, nodes):
        if isinstance(tensor, nn.Parameter):
            found.setdefault(id(tensor), path)
    return found


def modules_on_both_sides(parts: Partition) -> tuple[str, ...]:
    """Paths of modules that run in the trunk and in the heads; switches, which hold nothing, are left out."""
    trunk = {node.target for node in parts.trunk if node.op == "call_module" and not is_source(node)}
    return tuple(dict.fromkeys(str(n.target) for n in parts.head if n.op == "call_module" and n.target in trunk))


def shared_targets(root: fx.GraphModule, parts: Partition, share: Sequence[str]) -> tuple[str, ...]:
    """The modules and parameters in the heads that lie at or below the paths in ``share``.

    Raises:
        SplitError: A path is unknown, or not (only) in the heads.
    """
    if isinstance(share, str):
        raise SplitError(
            f"share must be a sequence of module paths, got the string {share!r}; write share=({share!r},)."
        )
    targets: list[str] = []
    in_trunk = _targets(parts.trunk)
    in_head = _targets(parts.head)
    known = dict(getattr(root, "source", root).named_modules())
    for path in share:
        if path not in known or not path:
            raise SplitError(f"share: the model has no module {path!r}.{near_matches(str(path), known)}")
        if any(_below(target, path) for target in in_trunk):
            raise SplitError(
                f"share: {path!r} is used in the trunk, which all heads have in common anyway; "
                "name modules that run behind the cut only."
            )
        found = [target for target in in_head if _below(target, path)]
        if not found:
            raise SplitError(f"share: {path!r} computes nothing behind the cut.")
        targets += found
    return tuple(dict.fromkeys(targets))


def _targets(nodes: Iterable[fx.Node]) -> list[str]:
    return list(dict.fromkeys(str(n.target) for n in nodes if n.op in ("call_module", "get_attr")))


def _below(target: str, path: str) -> bool:
    return target == path or target.startswith(f"{path}.")


def instances(root: nn.Module, targets: Iterable[str], memo: Memo) -> Memo:
    """The copies that ``memo`` holds of modules and all their tensors, by the identity of the originals."""
    kept: Memo = {}
    for target in targets:
        value = fetch(root, target)
        originals: list[object] = [value]
        if isinstance(value, nn.Module):
            originals += [*value.modules(), *value.parameters(), *value.buffers()]
        kept.update({id(o): memo[id(o)] for o in originals if id(o) in memo})
    return kept


def owned_paths(
    root: nn.Module, nodes: Iterable[fx.Node], known: Iterable[str], exclude: Iterable[int]
) -> dict[str, Tensor]:
    """Tensors of a head that have a name in the user's model, each once; without those in ``exclude``."""
    names, seen = set(known), set(exclude)
    owned: dict[str, Tensor] = {}
    for path, tensor in named_tensors(root, nodes):
        if path in names and id(tensor) not in seen:
            seen.add(id(tensor))
            owned[path] = tensor
    return owned
