"""Put random masks on a model, and take masks off."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import parametrize

from sparsity._allocation import Allocation, allocate, check_sparsity
from sparsity._errors import MaskError, NoEffectWarning, SparsityWarning, listed
from sparsity._masks import Mask, Masks, masked_sites, masks_of, own_class, unwrap
from sparsity._seed import seeded
from sparsity._select import COMPUTED, Candidate, Selection, Skip, select, weight_names
from sparsity._subset import random_subset


def sparsify(
    model: nn.Module,
    sparsity: float,
    allocation: Allocation = "erk",
    skip: Iterable[str] | Skip = (),
    seed: int = 0,
) -> Masks:
    """Give the weights of ``model`` random masks of an exact total sparsity, in place.

    Masked are the weights of linear layers, convolutions, attention projections (``nn.MultiheadAttention``) and
    transformers' ``Conv1D``. Embeddings, biases, norms and bare parameters stay dense, and so does a weight that is
    tied to one of them. A weight that is computed from other parameters (weight_norm, spectral_norm and other
    parametrizations) stays dense too, with a warning: zeros of what it is computed from need not be zeros of it.
    Weights tied to each other share one mask. ``Masks.left`` tells what stayed dense and why.

    Each masked weight becomes a parametrization: the parameter object stays the same (an optimizer may exist already)
    and gets the name ``<module>.parametrizations.<name>.original``; its masked entries are set to zero, and their
    gradients are zero from then on. Masked weights stay zero under any optimizer while an engine (`static`, `rigl`,
    `set_`) is attached. With ``sparsity=0.0`` the same weights get masks, all True. The masks of a model on the meta
    device have no values until a state dict is loaded.

    Args:
        model: Any module.
        sparsity: Share of zeros over all masked weights together, in [0, 1).
        allocation: How density is spread: ``'erk'`` (Evci et al. 2020), ``'er'`` (Mocanu et al. 2018), ``'uniform'``; a
            dict of densities by path or glob, the weights that it leaves out sharing the rest by ERK; or a callable
            ``(shapes, density) -> {path: density}``.
        skip: Weights to leave dense: paths of weights or of modules around them, globs (``'heads.*.fc'``), or a
            callable ``(path, module, parameter) -> bool``.
        seed: Seed of the masks. Each layer draws with a seed of its own made from this and its path, on the CPU, so
            that masks depend neither on the device nor on the other layers. The global random state is not used.

    Returns:
        The masks, a live view.

    Raises:
        AllocationError: The sparsity is not in [0, 1), or the allocation is unknown or can't be met.
        MaskError: The model has masks already, has uninitialised parameters, or ``skip`` names nothing.

    Example:
        >>> import sparsity
        >>> net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> masks = sparsity.sparsify(net, 0.75)
        >>> masks.nonzeros, masks.total
        (160, 640)
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise MaskError(f"sparsify takes an nn.Module that is not scripted, got {type(model).__name__}.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise MaskError(f"seed is an int, got {seed!r}.")
    check_sparsity(sparsity)
    model = unwrap(model)
    present = masks_of(model)
    if present:
        raise MaskError(
            f"The model has masks already, for {listed(present)}. Call sparsity.fold(model) first to make new ones."
        )
    selection = select(model, skip)
    if not selection.chosen:
        warnings.warn(
            NoEffectWarning(
                "sparsify changed nothing: the model has no linear, convolution or attention weight to mask"
                + (f" (left dense: {selection.left})." if selection.left else ".")
            ),
            stacklevel=2,
        )
        return present
    _warn_of_computed(selection)
    shapes = {candidate.path: tuple(candidate.weight.shape) for candidate in selection.chosen}
    counts = allocate(shapes, sparsity, allocation)
    for candidate in selection.chosen:
        _attach(candidate, counts[candidate.path], seed)
    return masks_of(model)


def _warn_of_computed(selection: Selection) -> None:
    computed = [path for path, reason in selection.left.items() if reason == COMPUTED]
    if computed:
        warnings.warn(
            f"{len(computed)} weights stay dense, because they are computed from other parameters: {listed(computed)}. "
            "Remove their parametrizations (torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm) to "
            "mask them, or name them in skip.",
            SparsityWarning,
            stacklevel=3,
        )


def fold(model: nn.Module) -> nn.Module:
    """Take the masks off ``model``, in place: plain weights with exact zeros, under their original names.

    Parameter objects stay the same. Fold a deep copy to export a model that goes on training.

    Returns:
        The same model.

    Raises:
        MaskError: A masked weight got another parametrization on top, so that it can't be told apart.

    Example:
        >>> import sparsity
        >>> net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> int((sparsity.fold(net).weight != 0).sum())
        16
    """
    masks = masks_of(model)
    if not masks:
        warnings.warn(NoEffectWarning("fold changed nothing: the model has no masks."), stacklevel=2)
        return model
    sites = list(masked_sites(unwrap(model)))
    for path, module, name in sites:
        stacked = [type(each).__name__ for each in module.parametrizations[name]]  # pyright: ignore
        if len(stacked) > 1:
            raise MaskError(f"{path!r} has other parametrizations besides its mask: {stacked}. Remove those first.")
    masks.apply()
    for _, module, name in sites:
        own_class(module)
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        _weights_first(module)
    return model


def _weights_first(module: nn.Module) -> None:
    """Undo the change of order that comes with registering a parameter again, for code that zips parameters."""
    parameters = module._parameters
    weights = [name for name in weight_names(module) if name in parameters]
    for name in [*weights, *(name for name in list(parameters) if name not in weights)]:
        parameters[name] = parameters.pop(name)


def _attach(candidate: Candidate, nonzeros: int, seed: int) -> None:
    weight = candidate.weight
    # Drawn on the CPU whatever the device, so that the same seed means the same masks everywhere.
    if weight.is_meta:
        flat = torch.zeros(weight.numel(), dtype=torch.bool, device="meta")
    else:
        flat = random_subset(weight.numel(), nonzeros, seeded("cpu", seed, candidate.path))
    # Laid out like the weight, so that a channels-last weight meets a channels-last mask.
    mask = torch.empty_like(weight, dtype=torch.bool, requires_grad=False).copy_(flat.view(weight.shape))
    holder = Mask(mask, nonzeros)
    holder.train(candidate.sites[0].module.training)
    holder.zero(weight)
    # Registering assigns the weight, which would make another tensor of its size to zero it once more.
    holder.right_inverse = lambda weight: weight
    for site in candidate.sites:
        own_class(site.module)
        parametrize.register_parametrization(site.module, site.name, holder)
    del holder.right_inverse
