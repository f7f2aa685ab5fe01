"""Asks a model, without recording it, whether it takes inputs of certain sizes."""

from __future__ import annotations

import torch
from torch import nn

from fxsplit._random import seed_everything
from fxsplit._trace._fit import Sizes
from fxsplit._trace._inputs import Inputs
from fxsplit._trace._preserve import preserved
from fxsplit._trace._shadow import shadowing


def refusal(model: nn.Module, inputs: Inputs, sizes: Sizes, *, attributes: bool) -> Exception | None:
    """Run the model in eval mode and return what it raises, or None.

    With ``attributes=False`` what it sets on itself, like a cache, stays.
    """
    args, kwargs, _ = inputs.make(sizes)
    with preserved(model, attributes=attributes), torch.no_grad(), shadowing(model):
        model.eval()
        seed_everything()
        try:
            model(*args, **kwargs)
        except Exception as error:
            return error
    return None
