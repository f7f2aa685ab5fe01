"""The training loss of a split model: every head is trained on its own output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fxsplit._errors import SplitError
from fxsplit._vote import mean


def head_loss(net: nn.Module, criterion: Callable[[Any, Any], Tensor], *inputs_and_target: Any) -> Tensor:
    """The mean over heads of ``criterion(output of the head, target)`` (NeuroTrails, section 3).

    The trunk runs once, and its gradient is the mean of what the heads send back. Each head gets 1/M of the gradient of
    its own loss, which Adam does not mind; under SGD heads learn that much slower at first, so in a short training
    multiply the loss by M (measured in the README, under the paper's experiments).

    Args:
        net: A `SplitModel`, of any kind: those of `ensemble`, `mimo`, `batch_ensemble` and `fission` are some.
        criterion: A loss of one output and the target.
        *inputs_and_target: The model's inputs, then the target; for MIMO, those of `mimo_batch`.

    Returns:
        The mean of the M losses, in the shape that the criterion gives.

    Raises:
        SplitError: ``net`` has no heads, or there is no input besides the target.

    Example:
        >>> import torch, fxsplit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> net = fxsplit.split(fxsplit.trace(model, x), "1")
        >>> fxsplit.head_loss(net, torch.nn.functional.cross_entropy, x, y).ndim
        0
    """
    head_outputs = getattr(net, "head_outputs", None)
    if head_outputs is None:
        hint = (
            " Wrapped models (DistributedDataParallel) hide their heads: pass the model inside."
            if hasattr(net, "module")
            else ""
        )
        raise SplitError(f"head_loss needs a split model, got {type(net).__name__}; make one with fxsplit.split.{hint}")
    if len(inputs_and_target) < 2:
        raise SplitError("head_loss(net, criterion, x, y) needs at least one input and the target.")
    *inputs, target = inputs_and_target
    outputs = head_outputs(*inputs)
    # In a MIMO network, each head may have a sample of its own.
    separate = getattr(net, "head_targets", None)
    targets = [target] * len(outputs) if separate is None else separate(target, *inputs)
    return mean([criterion(output, own) for output, own in zip(outputs, targets, strict=True)])
