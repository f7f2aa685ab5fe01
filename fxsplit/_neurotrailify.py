"""Trace, split and sparsify in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from fxsplit._cuts._locate import At
from fxsplit._exclusive import exclusive
from fxsplit._split._model import SplitModel
from fxsplit._split._surgery import Init, check_arguments
from fxsplit._split._surgery import split as split_graph
from fxsplit._trace import trace
from fxsplit._vote import Vote

if TYPE_CHECKING:
    from sparsity import Structure
    from sparsity._allocation import Allocation
    from sparsity._selectors import Selectors


def neurotrailify(
    model: nn.Module,
    split: At,
    heads: int = 3,
    sparsity: float | None = 0.8,
    example: Any = None,
    init: Init = "fresh",
    vote: Vote = "mean",
    allocation: Allocation = "erk",
    seed: int = 0,
    *,
    skip: Selectors = (),
    include: Selectors = (),
    structure: Structure | None = None,
) -> SplitModel:
    """Turn a model into a NeuroTrails network: a sparse trunk and sparse heads whose outputs are averaged.

    The same as `trace`, `split` and ``sparsity.sparsify`` one after the other.

    Args:
        model: Any traceable model; it is not changed.
        split: Where: a path, a number or share of blocks, ``'auto'`` or a `Cut`: see `split`.
        heads: Number of heads M.
        sparsity: Share of the weights that are masked; 0 or None leaves the network dense (TreeNet).
        example: Example input; None is inferred for timm, torchvision and transformers models.
        init: See `split`.
        vote: See `split`.
        allocation: How the density is distributed over the layers: see ``sparsity.sparsify``.
        seed: Of the fresh heads and of the masks.
        skip: Weights to leave dense; paths begin with ``trunk`` or ``heads``: see ``sparsity.sparsify``.
        include: Embeddings and other weights to mask as well: see ``sparsity.sparsify``.
        structure: Pattern of the masks: see ``sparsity.sparsify``.

    Raises:
        TraceError: The model cannot be traced.
        CutError: ``split`` is no legal cut.
        SplitError: Another argument of the surgery is not acceptable.
        sparsity.AllocationError: ``sparsity`` or ``allocation`` is not acceptable.
        sparsity.MaskError: ``skip``, ``include`` or ``structure`` is not acceptable.

    Example:
        >>> import torch, fxsplit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> fxsplit.neurotrailify(model, "1", sparsity=0, example=torch.zeros(1, 4)).num_heads
        3
    """
    check_arguments(heads, init, vote)
    _check_masks(sparsity, allocation)
    with exclusive():
        net = split_graph(trace(model, example), split, heads, init, vote, seed=seed)
        if sparsity:
            from sparsity import sparsify

            sparsify(net, sparsity, allocation, skip, seed, include=include, structure=structure)
    return net


def _check_masks(sparsity: float | None, allocation: Allocation) -> None:
    """Reject what no network could be masked with, before the model is traced."""
    if sparsity is not None:
        from sparsity import allocate

        # One large weight meets every acceptable sparsity. Paths in a dict can only be judged with the network at hand.
        allocate({"weight": (1 << 30, 1 << 30)}, sparsity, allocation if isinstance(allocation, str) else "erk")
