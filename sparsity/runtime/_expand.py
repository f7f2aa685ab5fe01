"""Modules that are a norm and an activation in one become two nodes."""

from __future__ import annotations

from torch import fx, nn

from sparsity.runtime._lower_modules import ACT


def expand_norm_acts(root: nn.Module, graph: fx.Graph) -> None:
    """Split calls of timm's BatchNormAct2d, so that the norm can be folded and the activation fused.

    The activation becomes a call of the module's own ``act``, and the call of the module is marked: only its norm is
    meant.
    """
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        module = root.get_submodule(str(node.target))
        if not is_batch_norm_act(module):
            continue
        node.meta[ACT] = "norm"
        with graph.inserting_after(node):
            act = graph.call_module(f"{node.target}.act", (node,))
        node.replace_all_uses_with(act, delete_user_cb=lambda user, act=act: user is not act)
        act.meta = {"path": node.meta.get("path", "")}


def is_batch_norm_act(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm with an activation, and nothing else, behind it."""
    return (
        type(module).__name__ in ("BatchNormAct2d", "FrozenBatchNormAct2d")
        and isinstance(module, nn.BatchNorm2d)
        and module.track_running_stats
        and isinstance(getattr(module, "act", None), nn.Module)
        and isinstance(getattr(module, "drop", nn.Identity()), nn.Identity)
    )
