"""Which layers a surgery is about: all, or those that the user names."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from torch import nn

from fxsplit._errors import SplitError, near_matches

Layers = Sequence[str] | Callable[[str, nn.Module], bool] | None


def choose(layers: Layers, known: dict[str, nn.Module], paths: set[str]) -> list[str]:
    """The layers that are meant.

    Args:
        layers: Paths of layers or of modules around them, globs, a predicate, or None for all.
        known: The layers that there are, by path; all of them for None.
        paths: All paths of the model's modules.

    Raises:
        SplitError: ``layers`` is of another kind, one of its paths names no layer, or no layer is meant.
    """
    if layers is None:
        chosen = list(known)
    elif callable(layers):
        chosen = [path for path, layer in known.items() if layers(path, layer)]
    elif isinstance(layers, str) or not all(isinstance(pattern, str) for pattern in layers):
        raise SplitError(
            f"layers must be a sequence of paths or globs, a function (path, module) -> bool or None, got {layers!r}."
        )
    else:
        hits = {pattern: {path for path in known if _meant(pattern, path)} for pattern in layers}
        for pattern, hit in hits.items():
            if not hit and pattern in paths:
                raise SplitError(f"layers: {pattern!r} is, and holds, no linear layer or convolution that runs.")
            if not hit:
                raise SplitError(f"layers: the model has no layer {pattern!r}.{near_matches(pattern, known)}")
        chosen = [path for path in known if any(path in hit for hit in hits.values())]
    if not chosen:
        found = f"none of these is meant: {', '.join(known)}" if known else "no linear layer or convolution runs there"
        raise SplitError(f"layers={layers!r} leaves nothing to do: {found}.")
    return chosen


def _meant(pattern: str, path: str) -> bool:
    return path == pattern or path.startswith(f"{pattern}.") or fnmatch.fnmatchcase(path, pattern)
