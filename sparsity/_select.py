"""Which weights carry a mask: the default rule, ties, and the user's ``include`` and ``skip``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sparsity._errors import MaskError
from sparsity._selectors import Selectors, Site, selected

COMPUTED = "computed from other parameters (a parametrization or weight normalisation)"
SKIPPED = "skipped on request"

_ATTENTION_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# Recurrent layers hand their parameters to one kernel, past any parametrization; a graph module can't get a new class.
_WITHOUT_MASKS = (nn.RNNBase, fx.GraphModule, parametrize.ParametrizationList, torch.jit.ScriptModule)


@dataclass(frozen=True)
class Candidate:
    """A weight that a mask can be made for, with every place that owns it (several if it is tied)."""

    weight: nn.Parameter
    sites: tuple[Site, ...]

    @property
    def path(self) -> str:
        """The first name of the weight."""
        return self.sites[0].path


@dataclass(frozen=True)
class Selection:
    """The weights to be masked, and those of a maskable kind that stay dense with the reason why.

    Attributes:
        chosen: The weights to be masked, in module order.
        left: Reason by path.
        sites: Every place with a weight of either kind, in module order.
    """

    chosen: tuple[Candidate, ...] = ()
    left: dict[str, str] = field(default_factory=dict)
    sites: tuple[Site, ...] = ()


def is_conv1d(module: nn.Module) -> bool:
    """Tell whether this is the ``Conv1D`` of transformers, known by its name so that transformers is not imported."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def weight_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the weights of ``module`` that masks are made for, whether set or not.

    These are the weights of linear layers, convolutions, the projections of ``nn.MultiheadAttention`` and the
    ``Conv1D`` of transformers.
    """
    if isinstance(module, nn.MultiheadAttention):
        return _ATTENTION_PROJECTIONS
    return ("weight",) if is_conv1d(module) or isinstance(module, (nn.Linear, _ConvNd)) else ()


def join(prefix: str, name: str) -> str:
    """Return the dotted path of ``name`` inside ``prefix``, which is empty for the root."""
    return f"{prefix}.{name}" if prefix else name


def maskable(model: nn.Module, include: Selectors = ()) -> Selection:
    """Apply the default rule to ``model``, in module order, with each tied weight once.

    A weight stays dense if no mask could reach each of its uses: when it is also an embedding or a bare parameter that
    is not included, or when it is computed from other parameters (weight normalisation and other parametrizations).

    Raises:
        MaskError: A parameter is not initialised yet, or ``include`` is wrong.
    """
    places = _places(model)
    owners: dict[int, list[Site]] = {}
    for place in places:
        if place.weight is not None:
            owners.setdefault(id(place.weight), []).append(place)
    wanted = _included(model, owners, include)
    chosen: dict[int, Candidate] = {}
    left: dict[str, str] = {}
    sites = [place for place in places if _is_default(place) or id(place.weight) in wanted]
    for place in sites:
        weight = place.weight
        if weight is None:
            left[place.path] = COMPUTED
            continue
        foreign = [site for site in owners[id(weight)] if not _is_default(site)]
        if foreign and id(weight) not in wanted:
            left[place.path] = f"tied to {foreign[0].path!r} of {type(foreign[0].module).__name__}, which takes no mask"
        elif not _is_matrix(weight):
            left[place.path] = f"not a floating-point matrix (shape {tuple(weight.shape)}, {weight.dtype})"
        else:
            chosen.setdefault(id(weight), Candidate(weight, tuple(owners[id(weight)])))
    return Selection(tuple(chosen.values()), left, tuple(sites))


def select(model: nn.Module, skip: Selectors = (), include: Selectors = ()) -> Selection:
    """Apply the default rule, ``include`` and ``skip``; a tied weight is meant if any of its names is.

    Raises:
        MaskError: ``skip`` or ``include`` is of no known kind, or one of its paths names no weight.
    """
    found = maskable(model, include)
    names = selected("skip", skip, model, found.sites, "weight that could be masked")
    skipped = [c for c in found.chosen if any(site.path in names for site in c.sites)]
    dense = {id(candidate) for candidate in skipped}
    return Selection(
        tuple(candidate for candidate in found.chosen if id(candidate) not in dense),
        {
            **found.left,
            **{path: SKIPPED for path in found.left if path in names},
            **{candidate.path: SKIPPED for candidate in skipped},
        },
        found.sites,
    )


def _places(model: nn.Module) -> list[Site]:
    """Return every place that owns a parameter or has a computed weight, in module order.

    Raises:
        MaskError: A parameter is not initialised yet.
    """
    places: list[Site] = []
    for prefix, module in model.named_modules():
        held = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        names = weight_names(module)
        for name in [*names, *(name for name in held if name not in names)]:
            weight = held.get(name)
            if weight is not None and is_lazy(weight):
                raise MaskError(
                    f"The parameter {join(prefix, name)!r} is not initialised yet, so its shape is unknown. "
                    "Run one forward pass on a batch before sparsify."
                )
            if weight is not None or _is_computed(module, name):
                places.append(Site(join(prefix, name), module, name, weight))
    return places


def _included(model: nn.Module, owners: Mapping[int, Sequence[Site]], include: Selectors) -> set[int]:
    able = [
        site
        for sites in owners.values()
        for site in sites
        if site.weight is not None and _is_matrix(site.weight) and all(map(_can_carry, sites))
    ]
    names = selected("include", include, model, able, "weight of two or more dimensions that can have a mask")
    return {id(site.weight) for site in able if site.path in names}


def _is_default(site: Site) -> bool:
    return site.name in weight_names(site.module)


def _is_matrix(weight: nn.Parameter) -> bool:
    return weight.ndim >= 2 and weight.numel() > 0 and weight.is_floating_point()


def _is_computed(module: nn.Module, name: str) -> bool:
    return parametrize.is_parametrized(module, name) or vars(module).get(name) is not None


def _can_carry(site: Site) -> bool:
    """Tell whether a mask on this place would be seen by whoever uses the weight."""
    names = weight_names(site.module)
    if names:
        return site.name in names
    # Sparse gradients can't be masked, and max_norm overwrites what the mask hands out.
    bound = getattr(site.module, "sparse", False) or getattr(site.module, "max_norm", None) is not None
    return not bound and not isinstance(site.module, _WITHOUT_MASKS)
