"""Values that grown weights start with, where zero is not wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsity._drop import check_number
from sparsity._errors import EngineError, listed, near_matches
from sparsity._layer import Layer
from sparsity._masks import unwrap
from sparsity._sharded import aligned, group_of, host, local
from sparsity._survey import is_infinite

Initial = Callable[[Layer], Tensor]


def initial_values(model: nn.Module) -> dict[str, Tensor]:
    """Copy the values of all parameters, before `sparsify` sets some to zero, for `original`.

    Example:
        >>> import sparsity
        >>> net = nn.Linear(8, 4)
        >>> values = initial_values(net)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> start = original(values)
    """
    named = unwrap(model).named_parameters(remove_duplicate=False)
    return {path: parameter.detach().clone() for path, parameter in named}


def original(values: Mapping[str, Tensor]) -> Initial:
    """Return what starts grown weights with the value that they had before they got a mask (see `initial_values`)."""

    def start(layer: Layer) -> Tensor:
        value = values.get(layer.path)
        if value is None or value.shape != layer.weight.shape:
            got = "none" if value is None else f"one of shape {tuple(value.shape)}"
            raise EngineError(
                f"Expected a value of shape {tuple(layer.weight.shape)} for the weight {layer.path!r}, got {got}."
                f"{near_matches(layer.path, values)}"
            )
        return value.to(layer.weight)

    return start


def descent(rate: float) -> Initial:
    """Return what starts grown weights with one step of gradient descent from zero, -rate g.

    Needs a rule with ``dense=True``. g has the scale of the gradients that the optimizer uses.

    Raises:
        EngineError: ``rate`` is not a finite number of at least 0.
    """
    check_number("rate", rate)
    return lambda layer: -rate * layer.scaled_gradient()


def start_values(initial: Initial | None, layer: Layer, changed: Tensor) -> Tensor | None:
    """Return what the weights start with that are grown, zero elsewhere, as this process has it; None without values.

    Raises:
        EngineError: They have another shape than the weight.
    """
    if initial is None:
        return None
    values: object = initial(layer)
    if not isinstance(values, Tensor) or values.shape != layer.weight.shape:
        got = f"one of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise EngineError(
            f"Initial values are a tensor of the weight's shape: expected {tuple(layer.weight.shape)} for "
            f"{layer.path!r}, got {got}."
        )
    start = local(aligned(values.detach(), layer.weight)).to(layer.weight.dtype)
    return torch.where(local(changed) & ~local(layer.mask), start, 0)


def check_finite(layers: Sequence[Layer], starts: Sequence[Tensor | None]) -> None:
    """Check that initial values are finite where weights are grown, in one transfer for all layers.

    Raises:
        EngineError: They are not.
    """
    pairs = [(layer, start) for layer, start in zip(layers, starts, strict=True) if start is not None]
    wrong = host([is_infinite(start) for _, start in pairs], [group_of(layer.weight) for layer, _ in pairs])
    paths = [layer.path for (layer, _), one in zip(pairs, wrong, strict=True) if one]
    if paths:
        raise EngineError(f"Initial values are not finite where weights are grown, in {listed(paths)}.")
