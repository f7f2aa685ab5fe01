"""How users name weights: paths, globs, types of modules, predicates and ready-made kinds."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from sparsity._errors import MaskError, NoEffectWarning, near_matches

Predicate = Callable[[str, nn.Module, nn.Parameter], bool]


@dataclass(frozen=True)
class Site:
    """One place in a model that owns a weight.

    Attributes:
        path: Name of the weight there.
        module: The module that owns it.
        name: Its name in the module.
        weight: None if it is computed from other parameters.
    """

    path: str
    module: nn.Module
    name: str
    weight: nn.Parameter | None = None


@dataclass(frozen=True, repr=False)
class Kind:
    """A choice of weights for which the whole model has to be known, for ``skip`` and ``include`` of `sparsify`.

    Attributes:
        name: Name in messages.
        find: Function of the model and of all places with a weight that a mask could be made for; returns the paths of
            those that are meant.
    """

    name: str
    find: Callable[[nn.Module, Sequence[Site]], Collection[str]]

    def __repr__(self) -> str:
        return f"sparsity.{self.name}"


Selector = str | type[nn.Module] | Predicate | Kind
Selectors = Selector | Iterable[Selector]


def matches(pattern: str, path: str) -> bool:
    """Tell whether ``pattern`` (a path or a glob) names the weight ``path`` or a module around it.

    Example:
        >>> matches("heads.*.fc", "heads.0.fc.weight"), matches("fc", "fc2.weight")
        (True, False)
    """
    parts = path.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def checked(option: str, selectors: Selectors) -> tuple[Selector, ...]:
    """Return the selectors that the user gave for ``option``, one or several.

    Raises:
        MaskError: One is none of the kinds there are.
    """
    single = isinstance(selectors, (str, type, Kind)) or callable(selectors) or not isinstance(selectors, Iterable)
    found: tuple[Selector, ...] = (selectors,) if single else tuple(selectors)  # pyright: ignore
    for each in found:
        known = isinstance(each, (str, Kind)) or (
            issubclass(each, nn.Module) if isinstance(each, type) else callable(each)
        )
        if not known:
            raise MaskError(
                f"{option} takes paths such as 'conv1' or 'heads.*.fc', types of modules such as nn.Conv2d, predicates "
                f"(path, module, parameter) -> bool, kinds such as sparsity.classifier, or a list of these, got "
                f"{each!r} of type {type(each).__name__}."
            )
    return found


def selected(option: str, selectors: Selectors, model: nn.Module, sites: Sequence[Site], expected: str) -> set[str]:
    """Return the paths of those ``sites`` that one of the selectors means.

    Args:
        option: Name of the argument, for messages.
        selectors: What the user gave.
        model: The model, for what is around a weight.
        sites: All places that may be meant.
        expected: What the sites are, for messages.

    Raises:
        MaskError: A selector is of no known kind, or a path names none of the sites.
    """
    found: set[str] = set()
    for selector in checked(option, selectors):
        hits = _hits(selector, model, sites)
        if not hits and isinstance(selector, str):
            names = [site.path for site in sites]
            modules = [name.rpartition(".")[0] for name in names]
            raise MaskError(
                f"{option} names {selector!r}, but no {expected} has this path or lies in a module of this path."
                f"{near_matches(selector, [*modules, *names])}"
            )
        if not hits:
            shown = selector.__qualname__ if isinstance(selector, type) else repr(selector)
            warnings.warn(
                NoEffectWarning(f"{option}={shown} changed nothing: no {expected} is meant by it."), stacklevel=5
            )
        found |= hits
    return found


def _hits(selector: Selector, model: nn.Module, sites: Sequence[Site]) -> set[str]:
    if isinstance(selector, str):
        return {site.path for site in sites if matches(selector, site.path)}
    if isinstance(selector, type):
        around = tuple(path for path, module in model.named_modules() if isinstance(module, selector))
        return {site.path for site in sites if any(_within(path, site.path) for path in around)}
    if isinstance(selector, Kind):
        return set(selector.find(model, sites))
    if isinstance(selector, nn.Module):
        raise MaskError(f"A module is named by its path or its type, got a {type(selector).__name__} itself.")
    return {s.path for s in sites if s.weight is not None and selector(s.path, s.module, s.weight)}


def _within(module: str, path: str) -> bool:
    return not module or path.startswith(f"{module}.")
