"""Which weights carry a mask: the default rule, ties, and the user's ``skip``."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sparsity._errors import MaskError, near_matches

Skip = Callable[[str, nn.Module, nn.Parameter], bool]

COMPUTED = "computed from other parameters (a parametrization or weight normalisation)"

_ATTENTION_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Site:
    """One place in a model that owns a weight."""

    path: str
    module: nn.Module
    name: str


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
    """The weights to be masked, and those of a maskable kind that stay dense with the reason why."""

    chosen: tuple[Candidate, ...] = ()
    left: dict[str, str] = field(default_factory=dict)


def weight_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the weights of ``module`` that masks are made for, whether set or not.

    These are the weights of linear layers, convolutions, the projections of ``nn.MultiheadAttention`` and the
    ``Conv1D`` of transformers, which is known by its class name so that transformers is not imported.
    """
    if isinstance(module, nn.MultiheadAttention):
        return _ATTENTION_PROJECTIONS
    is_conv1d = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    return ("weight",) if is_conv1d or isinstance(module, (nn.Linear, _ConvNd)) else ()


def join(prefix: str, name: str) -> str:
    """Return the dotted path of ``name`` inside ``prefix``, which is empty for the root."""
    return f"{prefix}.{name}" if prefix else name


def matches(pattern: str, path: str) -> bool:
    """Tell whether ``pattern`` (a path or a glob) names the weight ``path`` or a module around it.

    Example:
        >>> matches("heads.*.fc", "heads.0.fc.weight"), matches("fc", "fc2.weight")
        (True, False)
    """
    parts = path.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def maskable(model: nn.Module) -> Selection:
    """Apply the default rule to ``model``, in module order, with each tied weight once.

    A weight stays dense if no mask could reach each of its uses: when it is also an embedding or a bare parameter,
    or when it is computed from other parameters (weight normalisation and other parametrizations).

    Raises:
        MaskError: A parameter is not initialised yet.
    """
    owners: dict[int, list[Site]] = {}
    for prefix, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False):
            if is_lazy(weight):
                raise MaskError(
                    f"The parameter {join(prefix, name)!r} is not initialised yet, so its shape is unknown. "
                    "Run one forward pass on a batch before sparsify."
                )
            owners.setdefault(id(weight), []).append(Site(join(prefix, name), module, name))
    chosen: dict[int, Candidate] = {}
    left: dict[str, str] = {}
    for prefix, module in model.named_modules():
        for name in weight_names(module):
            path, weight = join(prefix, name), module._parameters.get(name)
            if weight is None:
                if parametrize.is_parametrized(module, name) or vars(module).get(name) is not None:
                    left[path] = COMPUTED
                continue
            foreign = [site for site in owners[id(weight)] if site.name not in weight_names(site.module)]
            if foreign:
                left[path] = f"tied to {foreign[0].path!r} of {type(foreign[0].module).__name__}, which takes no mask"
            elif weight.ndim < 2 or weight.numel() == 0 or not weight.is_floating_point():
                left[path] = f"not a floating-point matrix (shape {tuple(weight.shape)}, {weight.dtype})"
            else:
                chosen.setdefault(id(weight), Candidate(weight, tuple(owners[id(weight)])))
    return Selection(tuple(chosen.values()), left)


def select(model: nn.Module, skip: Iterable[str] | Skip = ()) -> Selection:
    """Apply the default rule and then ``skip``; a tied weight is skipped if any of its names is.

    Raises:
        MaskError: ``skip`` is neither paths nor a callable, or one of its paths names no maskable weight.
    """
    found = maskable(model)
    if callable(skip):
        skipped = [c for c in found.chosen if any(skip(site.path, site.module, c.weight) for site in c.sites)]
    else:
        patterns = _patterns(skip)
        names = [site.path for candidate in found.chosen for site in candidate.sites]
        for pattern in patterns:
            if not any(matches(pattern, name) for name in [*names, *found.left]):
                modules = [name.rpartition(".")[0] for name in names]
                raise MaskError(
                    f"skip names {pattern!r}, but no weight that could be masked has this path or lies in a module "
                    f"of this path.{near_matches(pattern, [*modules, *names])}"
                )
        skipped = [c for c in found.chosen if any(matches(p, site.path) for p in patterns for site in c.sites)]
        named = [path for path in found.left if any(matches(pattern, path) for pattern in patterns)]
        found.left.update(dict.fromkeys(named, "skipped on request"))
    dense = {id(candidate) for candidate in skipped}
    return Selection(
        tuple(candidate for candidate in found.chosen if id(candidate) not in dense),
        {**found.left, **{candidate.path: "skipped on request" for candidate in skipped}},
    )


def _patterns(skip: Iterable[str]) -> tuple[str, ...]:
    if isinstance(skip, str):
        return (skip,)
    patterns = list(skip) if isinstance(skip, Iterable) else [skip]
    wrong = [each for each in patterns if not isinstance(each, str)]
    if wrong:
        raise MaskError(
            f"skip takes paths such as ['conv1', 'heads.*.fc'] or a callable (path, module, parameter) -> bool, "
            f"got {wrong[0]!r} of type {type(wrong[0]).__name__}."
        )
    return tuple(patterns)
