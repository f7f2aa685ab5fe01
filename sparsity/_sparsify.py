"""Put masks on a model, random ones or others, and take masks off."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsity._allocation import Allocation, check_sparsity
from sparsity._errors import MaskError, NoEffectWarning, SparsityWarning, listed
from sparsity._masks import Mask, Masks, masked_sites, masks_of, own_class, unwrap
from sparsity._seed import seeded
from sparsity._select import COMPUTED, Candidate, Selection, select
from sparsity._selectors import Selectors
from sparsity._sharding import check_unsharded
from sparsity._structure import Geometry, Structure, Unstructured, geometry

Draw = Callable[[Candidate, Geometry, int], Tensor]


def sparsify(
    model: nn.Module,
    sparsity: float,
    allocation: Allocation = "erk",
    skip: Selectors = (),
    seed: int = 0,
    *,
    include: Selectors = (),
    structure: Structure | None = None,
) -> Masks:
    """Give the weights of ``model`` random masks of an exact total sparsity, in place.

    Masked are the weights of linear layers, convolutions, attention projections (``nn.MultiheadAttention``) and
    transformers' ``Conv1D``. Embeddings, biases, norms and bare parameters stay dense, and so does a weight that is
    tied to one of them, unless ``include`` names it. A weight that is computed from other parameters (weight_norm,
    spectral_norm and other parametrizations) stays dense too, with a warning: zeros of what it is computed from need
    not be zeros of it.
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
            dict of densities by path or glob, the weights that it leaves out sharing the rest by ERK; a callable
            ``(shapes, density) -> {path: density}``; or `per_component` of one of these.
        skip: Weights to leave dense: paths of weights or of modules around them, globs (``'heads.*.fc'``), types of
            modules (``nn.Conv2d``: their weights and those of modules inside), predicates
            ``(path, module, parameter) -> bool``, the ready-made `first_layer`, `classifier`, `attention` and
            `depthwise`, or a list of any of these. A tied weight is meant if any of its names is. Paths that name no
            such weight are an error; the others, which may be meant for many models, give a warning then.
        seed: Seed of the masks. Each layer draws with a seed of its own made from this and its path, on the CPU, so
            that masks depend neither on the device nor on the other layers. The global random state is not used.
        include: Weights of other kinds that get masks too, named in the same ways: for example `embeddings`. They need
            two dimensions or more; not possible are recurrent layers, embeddings with ``sparse`` or ``max_norm``, and
            parameters that a graph module holds itself. A weight tied to an included one shares its mask.
        structure: Pattern of the masks: `NM` or `Blocks`; None for single weights. Only engines that leave masks as
            they are (`static`) keep it.

    Returns:
        The masks, a live view.

    Raises:
        AllocationError: The sparsity is not in [0, 1), or the allocation is unknown or can't be met.
        MaskError: The model has masks already or uninitialised parameters; a path in ``skip`` or ``include`` names
            nothing; or a weight does not fit the structure.

    Example:
        >>> import sparsity
        >>> net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> masks = sparsity.sparsify(net, 0.75)
        >>> masks.nonzeros, masks.total
        (160, 640)
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise MaskError(f"seed is an int, got {seed!r}.")
    pattern = Unstructured() if structure is None else structure

    def draw(candidate: Candidate, form: Geometry, nonzeros: int) -> Tensor:
        # Drawn on the CPU whatever the device, so that the same seed means the same masks everywhere.
        return pattern.draw(form, nonzeros, seeded("cpu", seed, candidate.path))

    return masked(model, sparsity, allocation, skip, include, pattern, draw)


def masked(
    model: nn.Module,
    sparsity: float,
    allocation: Allocation,
    skip: Selectors,
    include: Selectors,
    pattern: Structure,
    draw: Draw,
) -> Masks:
    """Do as `sparsify`, with the masks that ``draw`` returns; its warnings point to the caller's caller."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise MaskError(f"sparsify takes an nn.Module that is not scripted, got {type(model).__name__}.")
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise MaskError(
            "sparsify comes before DistributedDataParallel, which waits for gradients of the weights as they are when "
            "it wraps them: mask the model, then wrap it."
        )
    check_sparsity(sparsity)
    check_unsharded(model, "sparsify")
    model = unwrap(model)
    present = masks_of(model)
    if present:
        raise MaskError(
            f"The model has masks already, for {listed(present)}. Call sparsity.fold(model) first to make new ones."
        )
    selection = select(model, skip, include)
    if not selection.chosen:
        warnings.warn(
            NoEffectWarning(
                "sparsify changed nothing: the model has no linear, convolution or attention weight to mask"
                + (f" (left dense: {selection.left})." if selection.left else ".")
            ),
            stacklevel=3,
        )
        return present
    _warn_of_computed(selection)
    _check_fit(selection, pattern)
    shapes = {candidate.path: tuple(candidate.weight.shape) for candidate in selection.chosen}
    counts = pattern.counts(shapes, sparsity, allocation)
    # All of them first, because a draw may fail; each is freed where it is copied.
    drawn = {candidate.path: _drawn(candidate, counts[candidate.path], draw) for candidate in selection.chosen}
    for candidate in selection.chosen:
        _attach(candidate, counts[candidate.path], pattern, drawn.pop(candidate.path))
    return masks_of(model)


def _check_fit(selection: Selection, structure: Structure) -> None:
    if not isinstance(structure, Structure):
        raise MaskError(
            f"structure is None or a structure such as sparsity.NM(2, 4) or sparsity.Blocks((1, 4)), got {structure!r}."
        )
    reasons = {}
    for candidate in selection.chosen:
        # Tied layers may read one weight in different ways.
        for site in candidate.sites:
            reason = structure.misfit(geometry(site.module, candidate.weight.shape))
            if reason is not None:
                reasons[site.path] = reason
    if reasons:
        shown = "; ".join(f"{path!r}: {reason}" for path, reason in list(reasons.items())[:5])
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise MaskError(
            f"{structure} does not fit {len(reasons)} weights ({shown}{more}). To leave those dense, add "
            f"sparsity.{structure}.misfits to skip."
        )


def _warn_of_computed(selection: Selection) -> None:
    computed = [path for path, reason in selection.left.items() if reason == COMPUTED]
    if computed:
        warnings.warn(
            f"{len(computed)} weights stay dense, because they are computed from other parameters: {listed(computed)}. "
            "Remove their parametrizations (torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm) to "
            "mask them, or name them in skip.",
            SparsityWarning,
            stacklevel=4,
        )


def fold(model: nn.Module) -> nn.Module:
    """Take the masks off ``model``, in place: plain weights with exact zeros, under their original names.

    Parameter objects stay the same. Fold a deep copy to export a model that goes on training. A wrapper such as
    DistributedDataParallel can't run afterwards, as the masks that it knows are gone: use the module inside.

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
    check_unsharded(model, "fold")
    for path, module, name in sites:
        stacked = [type(each).__name__ for each in module.parametrizations[name]]  # pyright: ignore
        if len(stacked) > 1:
            raise MaskError(f"{path!r} has other parametrizations besides its mask: {stacked}. Remove those first.")
    masks.apply()
    # Positions were counted without the weights that had got masks before.
    for _, module, name in reversed(sites):
        own_class(module)
        position = getattr(module.parametrizations[name], "position", 0)  # pyright: ignore
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        _restore_position(module, name, position)
    return model


def _restore_position(module: nn.Module, name: str, position: int) -> None:
    """Undo the change of order that comes with registering a parameter again, for code that zips parameters."""
    parameters = module._parameters
    names = [each for each in parameters if each != name]
    for each in [*names[:position], name, *names[position:]]:
        parameters[each] = parameters.pop(each)


def _drawn(candidate: Candidate, nonzeros: int, draw: Draw) -> Tensor:
    weight, form = candidate.weight, geometry(candidate.sites[0].module, candidate.weight.shape)
    if weight.is_meta:
        return torch.zeros(form.shape, dtype=torch.bool, device="meta")
    return draw(candidate, form, nonzeros)


def _attach(candidate: Candidate, nonzeros: int, structure: Structure, drawn: Tensor) -> None:
    weight = candidate.weight
    # Laid out like the weight, so that a channels-last weight meets a channels-last mask.
    mask = torch.empty_like(weight, dtype=torch.bool, requires_grad=False).copy_(drawn)
    holder = Mask(mask, nonzeros, None if isinstance(structure, Unstructured) else structure)
    holder.train(candidate.sites[0].module.training)
    holder.zero(weight)
    # Registering assigns the weight, which would make another tensor of its size to zero it once more.
    holder.right_inverse = lambda weight: weight
    for site in candidate.sites:
        own_class(site.module)
        position = list(site.module._parameters).index(site.name)
        parametrize.register_parametrization(site.module, site.name, holder)
        chain = site.module.parametrizations[site.name]  # pyright: ignore
        chain.position = position  # pyright: ignore
        if site is not candidate.sites[0]:
            # By this name `save_pretrained` of transformers learns which of two names of one tensor to leave out.
            chain._tied_weights_keys = dict.fromkeys(("original", "0.mask"))  # pyright: ignore
    del holder.right_inverse
