"""What the heads of a network say: logits of a whole data set, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recipes.evaluation._errors import EvaluationError


class Predictions(NamedTuple):
    """Logits `[M, N, K]` of all heads, and labels `[N]`, on the CPU."""

    logits: Tensor
    labels: Tensor


@contextmanager
def evaluation_mode(net: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode without gradients; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def head_outputs(net: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    """Return each head's logits; a network without `head_outputs` counts as a single head.

    Args:
        net: Any network with the protocol `net.head_outputs(x) -> [output, ...]`, or without it.
        *args: Inputs of the network.
        **kwargs: Inputs of the network.

    Returns:
        M tensors. Of an output with `logits` (transformers) those are taken, of a tuple the first tensor.

    Raises:
        EvaluationError: A wrapper hides the heads, or an output holds no logits.

    Example:
        >>> [logits.shape for logits in head_outputs(nn.Linear(4, 3), torch.zeros(2, 4))]
        [torch.Size([2, 3])]
    """
    run = getattr(net, "head_outputs", None)
    if run is not None:
        return [logits_of(output) for output in run(*args, **kwargs)]
    if hasattr(getattr(net, "module", None), "head_outputs"):
        raise EvaluationError(
            f"{type(net).__name__} hides the heads of the network inside, so only their vote would be measured. "
            "Pass net.module."
        )
    return [logits_of(net(*args, **kwargs))]


def logits_of(output: Any) -> Tensor:
    """Find the logits in what a network returns.

    Raises:
        EvaluationError: There are none.

    Example:
        >>> logits_of({"loss": None, "logits": torch.zeros(2)})
        tensor([0., 0.])
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, (tuple, list)):
        found = next((value for value in output if isinstance(value, Tensor)), None)
    if not isinstance(found, Tensor):
        raise EvaluationError(
            f"The network returned {type(output).__name__}, in which there are no logits; expected a tensor, a tuple "
            "that begins with one, or an object with 'logits'."
        )
    return found


def head_logits(net: nn.Module, x: Tensor, batch_size: int = 512) -> Tensor:
    """Compute every head's logits in evaluation mode: `[N, ...]` to `[M, N, K]`. The mode is put back afterwards.

    Args:
        net: A split model or another one with `head_outputs`, or any network, which counts as one head.
        x: Inputs, on the network's device.
        batch_size: Inputs per forward pass.

    Raises:
        EvaluationError: `x` is empty, a wrapper hides the heads, or an output holds no logits.

    Example:
        >>> head_logits(nn.Linear(4, 3), torch.zeros(5, 4), batch_size=2).shape
        torch.Size([1, 5, 3])
    """
    if len(x) == 0:
        raise EvaluationError(f"There are no inputs to evaluate on: x is {list(x.shape)}. Is the split empty?")
    with evaluation_mode(net):
        return torch.cat([torch.stack(head_outputs(net, part)) for part in x.split(batch_size)], dim=1)


def predict(nets: nn.Module | Sequence[nn.Module], batches: Iterable[tuple[Tensor, Tensor]]) -> Predictions:
    """Compute every head's logits on a data loader.

    Args:
        nets: A network, or several (a full ensemble trained one by one), whose heads are put behind each other. They
            stay on their devices and are left in the mode they are in.
        batches: Pairs of inputs `[B, ...]` and labels `[B]`, such as a DataLoader's; read once.

    Returns:
        Logits `[M, N, K]` in at least single precision, and labels `[N]`, both on the CPU.

    Raises:
        EvaluationError: There are no networks or no batches.

    Example:
        >>> nets = [nn.Linear(4, 3), nn.Linear(4, 3)]
        >>> predict(nets, [(torch.zeros(5, 4), torch.zeros(5)), (torch.zeros(2, 4), torch.zeros(2))]).logits.shape
        torch.Size([2, 7, 3])
    """
    everyone = [nets] if isinstance(nets, nn.Module) else list(nets)
    logits, labels = [], []
    for x, y in batches:
        heads = [head_logits(net, x.to(device_of(net)), batch_size=max(len(x), 1)).cpu() for net in everyone]
        logits.append(torch.cat(heads))
        labels.append(y.cpu())
    if not everyone or not logits:
        raise EvaluationError(
            f"predict: nothing to evaluate: {len(everyone)} networks and {len(logits)} batches. Is the split empty, or "
            "the loader used up? An iterator can be read only once."
        )
    voted = torch.cat(logits, dim=1)
    return Predictions(voted.to(torch.promote_types(voted.dtype, torch.float32)), torch.cat(labels))


def device_of(net: nn.Module) -> torch.device:
    """Return the device of a network's first parameter or buffer; the CPU if it has none."""
    tensors = (*net.parameters(), *net.buffers())
    return tensors[0].device if tensors else torch.device("cpu")
