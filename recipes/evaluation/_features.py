"""Features inside the heads: what a module of each head computes on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

import fxsplit
from fxsplit._errors import near_matches
from recipes.evaluation._errors import EvaluationError
from recipes.evaluation._predict import evaluation_mode


def head_features(nets: nn.Module | Sequence[nn.Module], module: str, x: Tensor, batch_size: int = 512) -> list[Tensor]:
    """Return what one module computes in every head, in evaluation mode.

    Args:
        nets: A network with `heads` (a split model of any kind), or several networks, which count as a head each.
        module: Path within a head, as in the original model: `'layer4.1'`, `'fc'`.
        x: Inputs `[N, ...]`.
        batch_size: Inputs per forward pass.

    Returns:
        M tensors `[N, D]`: all that leaves the module, flattened.

    Raises:
        EvaluationError: There are no heads, none has that module, or nothing leaves it. A MIMO network and a
            BatchEnsemble have their layers in the trunk, so that their heads share features; use their logits.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> net = fxsplit.split(fxsplit.trace(model, torch.zeros(1, 4)), "0")
        >>> [features.shape for features in head_features(net, "2", torch.zeros(5, 4))]
        [torch.Size([5, 3]), torch.Size([5, 3]), torch.Size([5, 3])]
    """
    places = _places(nets, module)
    owners = list({id(net): net for net, _ in places}.values())
    seen: list[list[Tensor]] = [[] for _ in places]
    batches: list[list[Tensor]] = [[] for _ in places]
    with ExitStack() as stack:
        for net in owners:
            stack.enter_context(evaluation_mode(net))
        for number, (net, path) in enumerate(places):
            stack.enter_context(_watched(net, path, seen[number].append))
        for part in x.split(batch_size):
            for net in owners:
                net(part)
            for number, tensors in enumerate(seen):
                if not tensors:
                    raise EvaluationError(f"Module {places[number][1]!r} was not called, so it has no features.")
                batches[number].append(torch.cat([tensor.flatten(1).cpu() for tensor in tensors], dim=1))
                tensors.clear()
    return [torch.cat(parts) for parts in batches]


def _places(nets: nn.Module | Sequence[nn.Module], module: str) -> list[tuple[nn.Module, str]]:
    """The network and the path in it for every head."""
    if isinstance(nets, nn.Module):
        heads = getattr(nets, "heads", None)
        if not isinstance(heads, nn.ModuleList) or len(heads) == 0:
            raise EvaluationError(
                f"head_features: {type(nets).__name__} has no heads. Pass a split model, or a list of networks."
            )
        roots: list[tuple[nn.Module, nn.Module, str]] = [
            (nets, head, f"heads.{number}.{module}") for number, head in enumerate(heads)
        ]
    else:
        roots = [(net, net, module) for net in nets]
    for _, root, path in roots:
        names = [name for name, _ in root.named_modules() if name]
        if module not in names:
            shown = near_matches(module, names) or f" It has {', '.join(names[:8]) or 'no modules at all'}."
            raise EvaluationError(f"head_features: no head has a module {module!r} (looked for {path!r}).{shown}")
    return [(net, path) for net, _, path in roots]


@contextmanager
def _watched(net: nn.Module, path: str, record: Callable[[Tensor], object]) -> Iterator[None]:
    """Record every tensor that leaves a module."""

    def forward_hook(layer: nn.Module, args: Any, output: Any) -> None:
        record(output if isinstance(output, Tensor) else output[0])

    def block_hook(block: nn.Module, output: Tensor) -> None:
        record(output)

    try:
        if isinstance(net, fx.GraphModule):
            handle: Any = fxsplit.hook_block(net, path, block_hook)
        else:
            handle = net.get_submodule(path).register_forward_hook(forward_hook)
    except fxsplit.SplitError as error:
        raise EvaluationError(f"head_features: {error}") from error
    try:
        yield
    finally:
        handle.remove()
