"""Training batches for MIMO: another sample for each member."""

from __future__ import annotations

import torch
from torch import Tensor

from fxsplit._errors import InputError


def mimo_batch(
    x: Tensor,
    y: Tensor,
    members: int = 3,
    repetition_probability: float = 0.0,
    batch_repetitions: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Give each member of a MIMO network other samples of a batch (Havasi et al. 2021, section 2 and appendix).

    The batch is repeated r times, in random order; then every member gets the rows in an order of its own, but for the
    last share rho of them, which are the same for all members. The paper takes r = 4 and rho = 0 for CIFAR, r = 2 and
    rho = 0.6 for ImageNet.

    Args:
        x: Inputs ``[B, ...]``.
        y: Their targets ``[B, ...]``.
        members: Number of members M.
        repetition_probability: Share rho of the rows in which all members see the same sample.
        batch_repetitions: How often r each sample comes, for every member.
        generator: Source of the random orders; None is torch's global one.

    Returns:
        Inputs ``[B r, M, ...]`` for ``net.head_outputs`` and targets ``[B r, M, ...]``; `head_loss` takes both.

    Raises:
        InputError: An argument is out of range, or the batch is too small for the members to see different samples.

    Example:
        >>> x, y = mimo_batch(torch.randn(8, 3, 32, 32), torch.arange(8), members=2, batch_repetitions=4)
        >>> x.shape, y.shape
        (torch.Size([32, 2, 3, 32, 32]), torch.Size([32, 2]))
        >>> [sorted(y[:, member].tolist()) == sorted(4 * list(range(8))) for member in range(2)]
        [True, True]
    """
    rows = _check(x, y, members, repetition_probability, batch_repetitions)
    device = "cpu" if generator is None else generator.device
    order = torch.arange(len(x), device=device).repeat(batch_repetitions)
    order = order[torch.randperm(len(order), generator=generator, device=device)]
    own, common = order[:rows], order[rows:]
    columns = [
        torch.cat([own[torch.randperm(rows, generator=generator, device=device)], common]) for _ in range(members)
    ]
    index = torch.stack(columns, 1)
    return x[index.to(x.device)], y[index.to(y.device)]


def _check(x: Tensor, y: Tensor, members: int, repetition_probability: float, batch_repetitions: int) -> int:
    """The number of rows in which members have samples of their own."""
    for name, value in (("members", members), ("batch_repetitions", batch_repetitions)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"mimo_batch: {name} must be a whole number of at least 1, got {value!r}.")
    if not 0 <= repetition_probability <= 1:
        raise InputError(f"mimo_batch: repetition_probability must be in [0, 1], got {repetition_probability!r}.")
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise InputError(f"mimo_batch: x and y must have as many rows, got {list(x.shape)} and {list(y.shape)}.")
    total = len(x) * batch_repetitions
    rows = round(total * (1 - repetition_probability))
    if members > 1 and repetition_probability < 1 and min(len(x), rows) < members:
        raise InputError(
            f"mimo_batch: {members} members can't see different samples in a batch of {len(x)} with "
            f"{batch_repetitions} repetitions and repetition_probability={repetition_probability:g}: that leaves "
            f"{rows} of {total} rows to shuffle, of {len(x)} different samples. Take batches of at least {members} "
            "samples (drop_last=True in the DataLoader drops a small last one), more repetitions, or a smaller "
            "repetition_probability."
        )
    return rows
