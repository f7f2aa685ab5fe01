"""What the functions of a rule are shown is the model's own, and what they keep is saved: checks of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from sparsity._errors import EngineError, described
from sparsity._layer import Layer
from sparsity._sharded import local

_SHOWN = ("weight", "mask", "gradient", "masked_gradient")


@contextmanager
def shown(layers: Sequence[Layer]) -> Iterator[None]:
    """Check that what runs inside writes to no tensor of the layers and keeps only tensors in their memory.

    Raises:
        EngineError: It does.
    """
    tensors = [(layer, name, getattr(layer, name)) for layer in layers for name in _SHOWN]
    before = [(layer, name, local(each), local(each)._version) for layer, name, each in tensors if each is not None]
    try:
        yield
    finally:
        written = next((each for each in before if each[2]._version != each[3]), None)
        if written is not None:
            layer, name, _, _ = written
            raise EngineError(
                f"A function of the rule has written to layer.{name} of {layer.path!r}, which is no copy. The training "
                "has changed by this; go back to a checkpoint, and compute without operations in place such as abs_()."
            )
    for layer in layers:
        for name, value in layer.memory.items():
            if not isinstance(value, Tensor):
                raise EngineError(
                    f"layer.memory holds tensors, which are saved with the engine; {name!r} of {layer.path!r} is "
                    f"{described(value)}. Keep it as torch.tensor(...)."
                )
