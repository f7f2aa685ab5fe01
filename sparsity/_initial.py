"""Values that grown weights start with, where zero is not wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from sparsity._drop import check_number
from sparsity._errors import EngineError, near_matches
from sparsity._layer import Layer
from sparsity._masks import unwrap
from sparsity._rewire import Choice
from sparsity._sharded import aligned, local

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


def start_values(initial: Initial | None, layer: Layer, choice: Choice) -> Tensor | None:
    """Return what the weights start with that this process grows, a vector in row-major order; None for zeros.

    Raises:
        EngineError: They have another shape, or are not finite.
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
    grown = local(choice.grow) & ~local(choice.drop)
    start = local(aligned(values.detach(), layer.weight)).to(layer.weight.dtype)[grown]
    if not start.isfinite().all():
        raise EngineError(f"Initial values of {layer.path!r} are not finite where weights are grown.")
    return start
