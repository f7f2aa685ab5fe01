"""Shares a network's weights out: every position of a weight belongs to one of its versions."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from fxsplit._errors import SplitError, near_matches
from fxsplit._random import derive_seed
from fxsplit._split._model import SplitModel


def versions(net: SplitModel) -> dict[str, list[str]]:
    """Paths of the weights that stand for each weight of the original: in the trunk, or in some of the heads."""
    found: dict[str, list[str]] = {}
    for path, original in net.origin.items():
        for name, _ in net.get_submodule(path).named_parameters(recurse=False):
            found.setdefault(f"{original}.{name}", []).append(f"{path}.{name}")
    return found


def check_kept(kept: Mapping[str, Tensor], weights: Mapping[str, Sequence[str]], net: SplitModel) -> None:
    """Refuse masks that don't belong to the weights of the original.

    Raises:
        SplitError: One names no weight, is no bool tensor, or has another shape.
    """
    for path, mask in kept.items():
        if path not in weights:
            raise SplitError(f"masks: the graph of the model has no weight {path!r}.{near_matches(path, weights)}")
        shape = tuple(net.get_parameter(weights[path][0]).shape)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise SplitError(f"masks: {path!r} needs a bool tensor {list(shape)}, got {got}.")


def share_out(
    net: SplitModel,
    shared: Collection[str],
    kept: Mapping[str, Tensor],
    seed: int,
    weights: Mapping[str, Sequence[str]],
) -> None:
    """Put masks on a model, in place, by which the versions of a weight own different positions, all alike many.

    Args:
        net: Without masks.
        shared: Weights of the original to share out.
        kept: Masks of the original; what they hold at zero belongs to nobody.
        seed: Of the shares.
        weights: The versions of the original's weights.
    """
    from sparsity import SparsityWarning, sparsify

    wanted = {path for original in (*shared, *kept) for path in weights[original]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparsityWarning)  # of weights that need no mask
        masks = sparsify(
            net,
            0.0,
            skip=lambda path, module, parameter: path not in wanted,
            include=lambda path, module, parameter: path in wanted,
        )
    for original in dict.fromkeys((*shared, *kept)):
        paths = weights[original]
        own = kept[original] if original in kept else torch.ones_like(masks[paths[0]])
        generator = torch.Generator().manual_seed(derive_seed(seed, zlib.crc32(original.encode())))
        parts = _parts(own, len(paths), generator) if original in shared else [own] * len(paths)
        for path, part in zip(paths, parts, strict=True):
            masks[path].copy_(part)
    masks.apply()


def _parts(kept: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """Divide the True positions of a mask at random into masks whose numbers of positions differ by one at most."""
    positions = kept.cpu().flatten().nonzero().view(-1)
    positions = positions[torch.randperm(len(positions), generator=generator)]
    parts = []
    for index in range(count):
        part = torch.zeros(kept.numel(), dtype=torch.bool)
        part[positions[index::count]] = True
        parts.append(part.view(kept.shape))
    return parts
