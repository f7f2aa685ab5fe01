"""The distillation loss of Network Fission Ensembles: every member learns from the mean of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fxsplit._errors import InputError
from fxsplit._vote import mean


def ensemble_distillation(outputs: Sequence[Tensor], temperature: float = 3.0) -> Tensor:
    """How far the members are from their mean, which teaches them (Lee & Lee 2024, 2408.02301).

    The sum over members of ``T^2 KL(softmax(z / T) || softmax(z_m / T))``, averaged over the batch, where z is the mean
    of the logits z_m and passes on no gradient. The paper adds it to the sum of the members' cross-entropies.

    Args:
        outputs: Logits ``[B, K]`` of each member, as ``net.head_outputs(x)`` gives them.
        temperature: T; the paper takes 3.

    Raises:
        InputError: There are no outputs, they are not two-dimensional and of one shape, or T is not positive.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> net = fxsplit.ensemble(model, example=torch.zeros(1, 4))
        >>> outputs, y = net.head_outputs(torch.randn(5, 4)), torch.tensor([0, 1, 2, 0, 1])
        >>> loss = sum(torch.nn.functional.cross_entropy(output, y) for output in outputs)
        >>> (loss + fxsplit.ensemble_distillation(outputs)).backward()
    """
    shapes = {tuple(output.shape) for output in outputs}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise InputError(
            f"ensemble_distillation takes logits [B, K] of every member, all of one shape; got {sorted(shapes)}."
        )
    if not temperature > 0:
        raise InputError(f"ensemble_distillation: temperature must be positive, got {temperature!r}.")
    teacher = torch.log_softmax(mean(outputs).detach() / temperature, -1)
    terms = [
        functional.kl_div(torch.log_softmax(z / temperature, -1), teacher, reduction="batchmean", log_target=True)
        for z in outputs
    ]
    return temperature**2 * torch.stack(terms).sum()
