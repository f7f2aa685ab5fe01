"""Remembers which masked weights hold zeros, so that a forward pass notices that someone has written to one since."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

# By parameter and not in the mask's module, so that a copy of a model is looked at anew.
_zeroed: WeakIdKeyDictionary = WeakIdKeyDictionary()


def zeroed(weight: Tensor, mask: Tensor) -> None:
    """Note that ``weight`` is zero now where ``mask`` is False."""
    if _countable(weight, mask):
        _zeroed[weight] = (weight._version, mask._version)


def is_written(weight: Tensor, mask: Tensor) -> bool:
    """Tell whether a parameter or its mask was written to, loaded or replaced since `zeroed`.

    What goes past the version counter, as writing to ``weight.data`` does, is not noticed.
    """
    return _countable(weight, mask) and _zeroed.get(weight) != (weight._version, mask._version)


def _countable(weight: Tensor, mask: Tensor) -> bool:
    # Other tensors than parameters are passed in by callers, such as torch.func.functional_call, whose they are.
    return type(weight) is nn.Parameter and not (weight.is_meta or weight.is_inference() or mask.is_inference())
