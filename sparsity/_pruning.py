"""Pruning: masks from the weights that a model has, at once or step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from sparsity import _drop
from sparsity._allocation import Allocation, allocate, check_sparsity
from sparsity._attachment import check_unattached
from sparsity._engine import Engine
from sparsity._errors import AllocationError, EngineError, MaskError, described, listed
from sparsity._layer import Layer, Score
from sparsity._masks import Masks, masks_of
from sparsity._methods import Options, engine_of
from sparsity._pointwise import checked
from sparsity._rewire import Amount, Scope, over_layers, per_layer
from sparsity._rule import Rule, Target
from sparsity._schedule import check_steps, constant
from sparsity._seed import seeded
from sparsity._select import Candidate
from sparsity._selectors import Selectors
from sparsity._sharding import shard_masks
from sparsity._sparsify import Draw, fold, masked, sparsify
from sparsity._structure import Geometry, Structure
from sparsity._survey import count, survey, warn_of_empty

_ON_META = "The weights are on the meta device, without values to compare. Load them first."


def prune(
    model: nn.Module,
    sparsity: float,
    score: Score = _drop.magnitude,
    allocation: Allocation | None = None,
    skip: Selectors = (),
    seed: int = 0,
    *,
    include: Selectors = (),
    structure: Structure | None = None,
) -> Masks:
    """Mask the weights of smallest score at once, in place; by magnitude in all layers together (Han et al. 2015).

    A model without masks gets them, on the weights that `sparsify` would choose; one with masks loses more of its
    active weights. For training on with fixed masks attach `static`.

    Args:
        model: Any module.
        sparsity: Share of zeros over all masked weights together afterwards, in [0, 1).
        score: A function of a `Layer`; the smallest are dropped.
        allocation: How density is spread, as of `sparsify`: then scores are compared within each layer. None compares
            them over all layers.
        skip: Weights to leave dense, as of `sparsify`, for a model without masks.
        seed: Of scores that are random.
        include: Embeddings and other weights to mask as well, as of `sparsify`, for a model without masks.
        structure: Pattern of the masks, `NM` or `Blocks`, for a model without masks: the weights of largest score in
            each group, or the blocks of largest sum in each layer, are kept. Densities are those of ``allocation``,
            uniform by default.

    Raises:
        AllocationError: The sparsity is not in [0, 1), less than the model has, or the allocation can't be met.
        MaskError: A weight is not finite; ``skip`` is wrong; or a weight does not fit the structure.
        EngineError: An engine is attached.

    Example:
        >>> import sparsity
        >>> net = nn.Linear(16, 40)
        >>> sparsity.prune(net, 0.75).nonzeros
        160
        >>> sparsity.prune(nn.Linear(16, 40), 0.5, structure=sparsity.NM(2, 4)).nonzeros
        320
    """
    if structure is not None:
        if any(parameter.is_meta for parameter in model.parameters()):
            raise MaskError(_ON_META)
        allocation = "uniform" if allocation is None else allocation
        return masked(model, sparsity, allocation, skip, include, structure, _best(structure, score, seed))
    return _prune(model, sparsity, score, allocation, skip, include, seed, None)


def snip(
    model: nn.Module,
    sparsity: float,
    loss: Callable[[], Tensor],
    allocation: Allocation | None = None,
    skip: Selectors = (),
    *,
    include: Selectors = (),
) -> Masks:
    """Mask the weights of smallest |w g| at initialisation, over all layers together (SNIP, Lee et al. 2019).

    Args:
        model: Any module.
        sparsity: Share of zeros over all masked weights together, in [0, 1).
        loss: Computes the training loss on a batch or a few, with gradients; it is called once, and the ``.grad`` of
            parameters stays as it is.
        allocation: As of `prune`.
        skip: As of `sparsify`.
        include: As of `sparsify`.

    Raises:
        AllocationError: As of `prune`.
        MaskError: As of `prune`; or the loss does not depend on a weight.

    Example:
        >>> import torch, sparsity
        >>> net, x = nn.Linear(8, 4), torch.randn(5, 8)
        >>> sparsity.snip(net, 0.5, lambda: net(x).square().mean()).nonzeros
        16
    """
    return _prune(model, sparsity, _drop.taylor, allocation, skip, include, 0, loss)


def gradual(
    model: nn.Module,
    optimizer: Optimizer,
    sparsity: float,
    begin: int,
    until: int,
    every: int = 100,
    allocation: Allocation | None = None,
    score: Score = _drop.magnitude,
    **options: Unpack[Options],
) -> Engine:
    """Prune step by step while training, from the masks that there are (gradual pruning, Zhu and Gupta 2017, eq. 1).

    At step t of [begin, until] the number of zeros is z_f + (z_i - z_f) (1 - (t - begin) / (until - begin))^3, z_i and
    z_f being those now and in the end, rounded. Start with ``sparsify(model, 0.0)`` for a dense model.

    Args:
        model: A model with masks.
        optimizer: The optimizer of its weights.
        sparsity: Share of zeros in the end.
        begin: Step at which pruning begins.
        until: Step of the last update; the difference to ``begin`` has to be a multiple of ``every``.
        every: Optimizer steps between updates.
        allocation: How density is spread in the end, as of `sparsify`: then scores are compared within each layer. None
            compares them over all layers.
        score: A function of a `Layer`; the smallest are dropped.
        **options: ``seed``, ``callback``, ``group`` and ``compact_state`` as of `Engine`.

    Raises:
        AllocationError: The sparsity is not in [0, 1), less than the model has, or the allocation can't be met.
        EngineError: See `Engine` and `Rule`; or the steps don't fit ``every``.

    Example:
        >>> import torch, sparsity
        >>> net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.0)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = sparsity.gradual(net, optimizer, 0.8, begin=1_000, until=50_000)
    """
    for name, value, least in (("begin", begin, 0), ("until", until, 1), ("every", every, 1)):
        check_steps(name, value, least)
    if until <= begin or (until - begin) % every:
        raise EngineError(
            f"The steps from begin={begin} to until={until} have to be a positive multiple of every={every}, so that "
            "the last update reaches the sparsity."
        )
    first: dict[str, int] = {}
    final: dict[str, int] = {}
    target = cubic(first, final, begin, until)
    rule = Rule(
        every, until + 1, constant(0.0), score, score, scope=_scope(allocation), target=target, begin=begin, start=first
    )
    masks = masks_of(model)
    first.update((layer.path, layer.nonzeros) for layer in masks.layers)
    final.update(_final(masks, sparsity, allocation) if masks else {})
    return engine_of(model, optimizer, rule, options)


def cubic(first: Mapping[str, int], final: Mapping[str, int], begin: int, until: int) -> Target:
    """Return the numbers of active weights over time that fall from ``first`` to ``final`` (Zhu and Gupta 2017, eq. 1).

    Example:
        >>> target = cubic({"weight": 100}, {"weight": 20}, begin=0, until=100)
        >>> [target(step, "weight") for step in (0, 50, 100)]
        [100, 30, 20]
    """

    def target(step: int, path: str) -> int:
        rest = 1 - min(max((step - begin) / (until - begin), 0), 1)
        return round(final[path] + (first[path] - final[path]) * rest**3)

    return target


def _prune(
    model: nn.Module,
    sparsity: float,
    score: Score,
    allocation: Allocation | None,
    skip: Selectors,
    include: Selectors,
    seed: int,
    loss: Callable[[], Tensor] | None,
) -> Masks:
    check_sparsity(sparsity)
    for name, function in (("score", score), ("loss", loss)):
        if function is not None and not callable(function):
            raise MaskError(f"{name} is a function, got {described(function)}.")
    masks = shard_masks(model)
    fresh = not masks
    if fresh:
        masks = sparsify(model, 0.0, skip=skip, include=include)
    elif skip or include:
        raise MaskError(f"skip and include are for a model without masks; this one has masks, of {listed(masks)}.")
    if not masks:
        return masks
    try:
        check_unattached(masks.weights)
        if masks.structures:
            raise MaskError(
                f"The masks of {listed(masks.structures)} have a structure, which pruning single weights would break. "
                "Call sparsity.fold(model) first."
            )
        layers = _layers(masks, seed, loss)
        dropped = _dropped(layers, _final(masks, sparsity, allocation), score, _scope(allocation))
    except Exception:
        if fresh:
            fold(model)
        raise
    for layer, drop in zip(layers, dropped, strict=True):
        layer.mask.logical_xor_(drop)
    masks.apply()
    warn_of_empty([layer.path for layer in masks.layers if not layer.nonzeros], "pruning")
    return masks


def _best(structure: Structure, score: Score, seed: int) -> Draw:
    def draw(candidate: Candidate, form: Geometry, nonzeros: int) -> Tensor:
        weight, path = candidate.weight.detach(), candidate.path
        every = torch.ones_like(weight, dtype=torch.bool)
        layer = Layer(path, weight, every, None, seeded(weight.device, seed, path))
        scores = checked(score(layer), layer).cpu()
        if scores.isnan().any():
            raise MaskError(f"The score of {path!r} is NaN somewhere, so that the smallest can't be told.")
        return structure.best(form, nonzeros, scores)

    return draw


def _layers(masks: Masks, seed: int, loss: Callable[[], Tensor] | None) -> list[Layer]:
    parameters = {path: weight.parameter for path, weight in masks.weights.items()}
    if any(parameter.is_meta for parameter in parameters.values()):
        raise MaskError(_ON_META)
    gradients: Mapping[str, Tensor | None] = dict.fromkeys(parameters)
    if loss is not None:
        frozen = [path for path, parameter in parameters.items() if not parameter.requires_grad]
        if frozen:
            raise MaskError(f"Frozen weights have no gradient: {listed(frozen)}. Name them in skip.")
        value = loss()
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else described(value)
            raise MaskError(f"loss is a function that returns a tensor with one number, got {got}.")
        if not value.requires_grad:
            raise MaskError("The loss has no gradient. Compute it with gradients enabled, from outputs of the model.")
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        gradients = dict(zip(parameters, found, strict=True))
        unused = [path for path, gradient in gradients.items() if gradient is None]
        if unused:
            raise MaskError(f"The loss does not depend on {listed(unused)}. Name them in skip, or change the loss.")
    return [
        Layer(path, weight.detach(), masks[path], None, seeded(masks[path].device, seed, path), gradients[path])
        for path, weight in parameters.items()
    ]


@torch.no_grad()
def _dropped(layers: list[Layer], final: Mapping[str, int], score: Score, scope: Scope) -> list[Tensor]:
    active, _, infinite = survey(layers, {})
    if infinite:
        raise MaskError(f"A weight or gradient is not finite in {listed(infinite)}, so the smallest can't be told.")
    amounts = [Amount(0, final[layer.path] - active[layer.path]) for layer in layers]
    changes = scope(layers, amounts, score, score, False)
    dropped, wanted = sum(count(layers, changes)[0].values()), -sum(amount.change for amount in amounts)
    if dropped != wanted:
        raise MaskError(
            f"Pruning would drop {dropped} weights instead of {wanted}, so nothing was changed. A score must not be "
            "NaN where a weight is active (0 / 0 or the logarithm of a negative number, for example)."
        )
    return changes


def _scope(allocation: Allocation | None) -> Scope:
    return over_layers if allocation is None else per_layer


def _final(masks: Masks, sparsity: float, allocation: Allocation | None) -> dict[str, int]:
    """Return the number of weights to keep in each layer; in all layers together only their sum counts."""
    shapes = {layer.path: layer.shape for layer in masks.layers}
    final = allocate(shapes, sparsity, "uniform" if allocation is None else allocation)
    more = [layer.path for layer in masks.layers if final[layer.path] > layer.nonzeros]
    if allocation is not None and more:
        raise AllocationError(f"The allocation keeps more weights than are active in {listed(more)}.")
    if sum(final.values()) > masks.nonzeros:
        raise AllocationError(
            f"The model has {masks.nonzeros} active of {masks.total} weights, a sparsity of {masks.sparsity:.6f}; a "
            f"sparsity of {sparsity} would need {sum(final.values())}. Pruning only takes weights away."
        )
    return final
