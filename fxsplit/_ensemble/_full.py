"""The full ensemble: M independent copies of a whole model in one module."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxsplit._ensemble._arguments import as_traced, check_members
from fxsplit._split._model import SplitModel
from fxsplit._split._surgery import Init, check_arguments, split
from fxsplit._vote import Vote


def ensemble(
    graph: nn.Module, members: int = 3, init: Init = "fresh", vote: Vote = "mean", seed: int = 0, *, example: Any = None
) -> SplitModel:
    """Make a deep ensemble: M models that share nothing, in one module (Lakshminarayanan et al. 2017, 1612.01474).

    It is `split` with an empty trunk, so all that is there for split models works: ``net.head_outputs(x)``, `save`,
    `summary`, ``sparsity.sparsify`` (a DST ensemble, Liu et al. 2022, 2106.14568, once an engine rewires it), and so
    on. ``heads.<m>`` is the m-th model.

    `head_loss` is the mean of the members' losses, so every member's gradient is 1 / M of its own. Multiply it by M to
    train the members just as if they were alone; they are independent then, but for the order of the batches.

    Args:
        graph: From `fxsplit.trace`, or a model, which is traced first.
        members: Number of models M.
        init: ``'fresh'`` draws every member anew, from the distribution of the model's initialisation; ``'copy'``
            copies the model's weights into every member; a function without arguments that returns a new model takes
            the members' weights from there, which joins trained models too: see the second example.
        vote: How predictions are averaged: see `split`.
        seed: Of the fresh members.
        example: Example input to trace a model with.

    Raises:
        SplitError: An argument is not acceptable, or the model is split already.
        TraceError: The model cannot be traced.

    Example:
        >>> def make():
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> net = fxsplit.ensemble(make(), members=5, example=torch.zeros(1, 4))
        >>> net(torch.zeros(2, 4)).shape, net.num_heads
        (torch.Size([2, 3]), 5)

        Models that were trained one by one become one model:

        >>> models = [make(), make()]
        >>> net = fxsplit.ensemble(make(), members=2, init=iter(models).__next__, example=torch.zeros(1, 4))
        >>> torch.equal(net.head_outputs(torch.ones(1, 4))[1], models[1](torch.ones(1, 4)))
        True
    """
    check_members(members)
    check_arguments(members, init, vote)
    return split(as_traced(graph, example), 0, members, init, vote, seed=seed)
