"""The active entries of one weight as a vector to make a step on, and the states that an optimizer has of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsity._errors import EngineError
from sparsity._masks import MaskedWeight
from sparsity._optimizer_state import first_value, state_of
from sparsity._places import Places


class Active:
    """The active entries of one weight.

    Attributes:
        path: Name of the weight.
        weight: Parameter and mask.
        places: Those that the optimizer's states are of; None if these were loaded, for the mask of the next step.
        names: Which states are of single weights.

    Args:
        path: Name of the weight.
        weight: Parameter and mask.
    """

    def __init__(self, path: str, weight: MaskedWeight) -> None:
        self.path = path
        self.weight = weight
        self.places: Places | None = None
        self.names: frozenset[str] = frozenset()
        # The same object in all steps, for those that are compiled; empty in between.
        self._vector: nn.Parameter | None = None
        self._taken = False
        self._version = 0

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter of the model."""
        return self.weight.parameter

    def settled(self, optimizer: Optimizer) -> tuple[Places, dict[str, Tensor]] | None:
        """Return the places of the mask as it is and the states of them, or None if nothing has changed.

        Entries that stay active keep their states, new ones have first values. States of the weight's shape, as before
        an engine was attached or from a checkpoint without one, lose what is not active.

        Raises:
            EngineError: The states are of another number of entries.
        """
        mask, old = self.weight.holder.mask, self.places
        if old is not None and old.are_of(mask):
            return None
        new = Places(mask)
        known = {name: value for name, value in state_of(optimizer, self.parameter).items() if name in self.names}
        whole = {name: new.read(value) for name, value in known.items() if value.shape == mask.shape}
        vectors = {name: value for name, value in known.items() if name not in whole}
        count = len(new if old is None else old)
        for name, value in vectors.items():
            if value.shape != (count,):
                raise EngineError(
                    f"The optimizer's state {name!r} of {self.path!r} has the shape {tuple(value.shape)}, but the "
                    f"weight has the shape {tuple(mask.shape)} and {count} active entries. Load the states of model "
                    "and optimizer together, so that the masks are those that the optimizer's state was saved with."
                )
        if old is not None:
            fill = {name: first_value(optimizer, self.parameter, name) for name in vectors}
            vectors = old.moved(new, vectors, fill)
        return new, {**whole, **vectors}

    def settle(self, optimizer: Optimizer, places: Places, states: Mapping[str, Tensor]) -> None:
        """Go over to other places."""
        if states:
            optimizer.state[self.parameter].update(states)
        self.places = places

    def read(self, places: Places) -> nn.Parameter:
        """Return the vector of the active entries, with their gradients."""
        values, gradient = places.read(self.parameter), self.parameter.grad
        if self._vector is None or self._vector.device != values.device:
            self._vector = nn.Parameter(values)
        self._vector.grad = None
        self._vector.data = values
        if gradient is not None:
            self._vector.grad = places.read(gradient)
            self._version = self._vector.grad._version
        self._taken = True
        return self._vector

    def write(self) -> None:
        """Take over the entries from the vector, if it was read since `drop` or the last time."""
        vector, places, gradient = self._vector, self.places, self.parameter.grad
        if self._taken and vector is not None and places is not None:
            places.write(self.parameter, vector.detach())
            # Fused kernels take the scale of a GradScaler out of gradients.
            if gradient is not None and vector.grad is not None and vector.grad._version != self._version:
                places.write(gradient, vector.grad)
        self.drop()

    def drop(self) -> None:
        """Forget the vector's entries."""
        self._taken = False
        if self._vector is not None:
            self._vector.grad = None
            self._vector.data = torch.empty(0, dtype=self._vector.dtype, device=self._vector.device)

    def check(self, optimizer: Optimizer) -> None:
        """Check states that the optimizer has just made.

        Raises:
            EngineError: One is of another kind than the optimizer had on small tensors; they are removed.
        """
        for name, value in state_of(optimizer, self.parameter).items():
            if isinstance(value, Tensor) and not (type(value) is Tensor and (value.numel() == 1 or name in self.names)):
                optimizer.state.pop(self.parameter)
                raise EngineError(
                    f"compact_state: {type(optimizer).__name__} keeps {name!r} as a {type(value).__name__} of shape "
                    f"{tuple(value.shape)}, {value.dtype}, for {self.path!r}, which is no state of single weights."
                )


class Spread(Mapping[str, Any]):
    """States of a weight in its shape, made when they are asked for, with first values where it is not active."""

    def __init__(self, optimizer: Optimizer, active: Active) -> None:
        self._optimizer, self._active = optimizer, active
        self._state = state_of(optimizer, active.parameter)

    def __getitem__(self, name: str) -> Any:
        value, places = self._state[name], self._active.places
        if name not in self._active.names or places is None or value.shape != (len(places),):
            return value
        return places.spread(value, first_value(self._optimizer, self._active.parameter, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)
