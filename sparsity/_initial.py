"""Values that grown weights start with, where zero is not wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from sparsity._drop import check_number
from sparsity._errors import EngineError, near_matches
from sparsity._layer import Layer
from sparsity._masks import unwrap

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
