"""Hooks on the blocks of a traced or split model, which its graph does not call as a whole."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx, nn

from fxsplit._errors import SplitError, near_matches
from fxsplit._graph import is_tensor

BlockHook = Callable[[nn.Module, Tensor], "Tensor | None"]


class Tap(nn.Module):
    """Shows the tensor that passes it to a hook; the graph calls it behind the block."""

    def __init__(self, block: nn.Module, hook: BlockHook) -> None:
        super().__init__()
        # In a tuple, so that the block does not become a part of this module.
        self._block = (block,)
        self.hook = hook

    def forward(self, value: Tensor) -> Tensor:
        """The tensor, or what the hook returns instead."""
        returned = self.hook(self._block[0], value)
        return value if returned is None else returned


class BlockHandle:
    """Takes a hook off again: by ``remove()``, or at the end of a ``with`` block."""

    def __init__(self, part: fx.GraphModule, taps: list[fx.Node]) -> None:
        self._part = part
        self._taps = taps

    def remove(self) -> None:
        """Restore the graph; a second call does nothing."""
        for tap in self._taps:
            tap.replace_all_uses_with(tap.args[0])  # type: ignore[arg-type]
            self._part.graph.erase_node(tap)
            self._part.delete_submodule(str(tap.target))
        self._taps = []
        self._part.recompile()

    def __enter__(self) -> BlockHandle:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def hook_block(net: fx.GraphModule, path: str, hook: BlockHook) -> BlockHandle:
    """Call ``hook(module, output)`` with every tensor that leaves a block.

    A graph calls the layers in a block one by one and never the block, so that ``register_forward_hook`` on it has no
    effect; on a layer it works as usual. This puts a call of the hook into the graph behind the block instead.

    Args:
        net: A `TracedModel` or `SplitModel`.
        path: Of a block or layer: ``'layer4.1'`` in a traced model, ``'trunk.layer4.1'`` or ``'heads.0.layer4.1'`` in
            a split one.
        hook: Takes the module under ``path`` and a tensor; what it returns replaces the tensor, unless that is None.

    Returns:
        A handle with ``remove()``; as a context manager it removes the hook at the end.

    Raises:
        SplitError: Nothing that the graph computes is under ``path``.

    Example:
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3))
        >>> net = fxsplit.split(fxsplit.trace(model, torch.zeros(1, 4)), 0)
        >>> with fxsplit.hook_block(net, "heads.1.0", lambda module, output: print(output.shape)):
        ...     out = net(torch.zeros(2, 4))
        torch.Size([2, 8])
    """
    part, inside = _locate(net, path)
    taps = []
    for node in [n for n in part.graph.nodes if is_tensor(n) and _within(n, inside)]:
        outside = [user for user in node.users if not _within(user, inside)]
        if not outside:
            continue
        name = _free_name(part)
        part.add_submodule(name, Tap(net.get_submodule(path), hook))
        with part.graph.inserting_after(node):
            tap = part.graph.call_module(name, (node,))
        tap.meta = {**node.meta, "flops": 0}
        for user in outside:
            user.replace_input_with(node, tap)
        taps.append(tap)
    if not taps:
        held = [str(n.target) for n in part.graph.nodes if n.op == "call_module"]
        raise SplitError(f"No tensor of the graph leaves {path!r}.{near_matches(inside, held)}")
    part.recompile()
    return BlockHandle(part, taps)


def _locate(net: nn.Module, path: str) -> tuple[fx.GraphModule, str]:
    """The innermost graph around ``path``, and the path in it."""
    if not isinstance(net, fx.GraphModule):
        raise SplitError(f"hook_block takes a traced or split model, got {type(net).__name__}.")
    try:
        net.get_submodule(path)
    except AttributeError as error:
        raise SplitError(f"The net has no module {path!r}.{near_matches(path, dict(net.named_modules()))}") from error
    part, inside, names = net, path, path.split(".")
    for count in range(1, len(names)):
        found = net.get_submodule(".".join(names[:count]))
        if isinstance(found, fx.GraphModule):
            part, inside = found, ".".join(names[count:])
    return part, inside


def _within(node: fx.Node, path: str) -> bool:
    return path in node.meta.get("modules", ()) or (node.op == "call_module" and node.target == path)


def _free_name(module: nn.Module) -> str:
    return next(name for number in range(len(module._modules) + 1) if not hasattr(module, name := f"_tap_{number}"))
