"""Masked weights in a file: one bit per weight for the mask, and the values of the active weights only."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fxsplit._errors import SpecError

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class MaskedSite:
    """A weight with a mask: ``path`` is the name it had before, ``original`` and ``mask`` name what is stored now."""

    path: str
    original: str
    mask: str
    module: nn.Module
    name: str


def masked_sites(net: nn.Module, parametrized: Collection[str]) -> Iterator[MaskedSite]:
    """Yield every weight whose parametrization holds a bool buffer called ``mask``.

    Args:
        net: The split model.
        parametrized: Paths of the weights that had parametrizations when the model was split. These come with the
            model, and what they compute from is stored like any other tensor.

    Raises:
        SpecError: If a weight got a parametrization later that is not a mask: the surgery would not repeat it.
    """
    for owner, module in net.named_modules(remove_duplicate=False):
        if not parametrize.is_parametrized(module):
            continue
        prefix = f"{owner}." if owner else ""
        for name, chain in module.parametrizations.items():  # type: ignore[union-attr,operator]
            masks = [each for each in chain if _is_mask(each)]
            if f"{prefix}{name}" in parametrized and not masks:
                continue
            if len(chain) != 1 or not masks:
                kinds = ", ".join(type(each).__name__ for each in chain)
                raise SpecError(
                    f"'{prefix}{name}' is parametrized by {kinds}: only masks can be saved, and what the model had "
                    "before it was split. Parametrize the original model, or remove the others with "
                    "torch.nn.utils.parametrize.remove_parametrizations"
                )
            stored = f"{prefix}parametrizations.{name}"
            yield MaskedSite(f"{prefix}{name}", f"{stored}.original", f"{stored}.0.mask", module, name)


def _is_mask(parametrization: nn.Module) -> bool:
    mask = getattr(parametrization, "mask", None)
    return isinstance(mask, Tensor) and mask.dtype == torch.bool


def pack(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mask as bits ``[ceil(n / 8)]`` uint8 and the values to store.

    The values are those of the active weights ``[nonzeros]``, in row-major order. A weight that is not exactly +0
    wherever it is masked is returned whole, so that nothing is lost.
    """
    flat_mask = mask.detach().cpu().reshape(-1)
    flat = weight.detach().cpu().reshape(-1)
    bits = torch.from_numpy(np.packbits(flat_mask.numpy()))
    # Compared as bits: -0.0 equals 0.0, but would not come back.
    clean = not bool(flat.view(_BITS[flat.element_size()])[~flat_mask].any())
    return bits, flat[flat_mask] if clean else weight.detach().cpu().contiguous()


def unpack(bits: Tensor, values: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return weight and mask from what `pack` made."""
    mask = torch.from_numpy(np.unpackbits(bits.numpy(), count=shape.numel()).astype(bool)).view(shape)
    if values.shape == shape:
        return values, mask
    weight = torch.zeros(shape, dtype=values.dtype)
    weight[mask] = values
    return weight, mask
