"""A stand-in for an optimizer: makes one step in its place, with other tensors in the place of some parameters.

The optimizer's own groups never change, so whatever looks at them, in the middle of a step or after a step that failed,
sees the parameters of the model.
"""

from __future__ import annotations

import functools
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

Exchange = Callable[[], Mapping[Tensor, nn.Parameter]]
_OWN = ("param_groups", "state")
_NEW = object()


class StandIn:
    """What a stand-in has besides all that the optimizer's class has; made by `stand_in`.

    Parameters are exchanged when the step first asks for them: after all pre-hooks, which may change gradients.
    """

    real: Optimizer
    _exchange: Exchange
    _back: dict[Any, Any] | None
    _groups: list[dict[str, Any]]
    _states: defaultdict[Any, dict[str, Any]]
    _first: dict[str, Any]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, with the other tensors in them."""
        self.enter()
        return self._groups

    @property
    def state(self) -> defaultdict[Any, dict[str, Any]]:
        """The optimizer's states, by the other tensors."""
        self.enter()
        return self._states

    @_disable_dynamo
    def enter(self) -> None:
        """Exchange parameters now, if they are not."""
        if self._back is None:
            taken = self._exchange()
            self._back = {other: parameter for parameter, other in taken.items()}
            # The same objects as before, if a closure was called in between: the step may hold them.
            self._groups += [{"params": []} for _ in self.real.param_groups[len(self._groups) :]]
            for group, other in zip(self.real.param_groups, self._groups, strict=True):
                other["params"][:] = [taken.get(each, each) for each in group["params"]]
                other.update((name, value) for name, value in group.items() if name != "params")
            self._states.clear()
            self._states.update((taken.get(key, key), state) for key, state in self.real.state.items())  # pyright: ignore

    def leave(self) -> bool:
        """Give the optimizer what the step made of states, options and attributes so far; False if there is nothing."""
        if self._back is None:
            return False
        for key, state in self._states.items():
            self.real.state[self._back.get(key, key)] = state
        for group, other in zip(self.real.param_groups, self._groups, strict=True):
            group.update((name, value) for name, value in other.items() if name != "params")
        changed = {
            name: value
            for name, value in vars(self).items()
            if name not in StandIn.__annotations__ and value is not self._first.get(name, _NEW)
        }
        vars(self.real).update(changed)
        self._first.update(changed)
        self._back = None
        return True


def stand_in(optimizer: Optimizer, exchange: Exchange) -> Any:
    """Make a stand-in.

    Args:
        optimizer: Whose step it makes.
        exchange: Returns what to put in the place of which parameters.
    """
    made: Any = object.__new__(_class_of(type(optimizer)))
    attributes = own_attributes(optimizer)
    vars(made).update(attributes)
    vars(made).update(real=optimizer, _exchange=exchange, _back=None, _groups=[], _states=defaultdict(dict))
    made._first = attributes
    return made


def own_attributes(optimizer: Optimizer) -> dict[str, Any]:
    """Return the attributes of an optimizer besides groups and states, without its hooks."""
    attributes = {name: value for name, value in vars(optimizer).items() if name not in _OWN}
    # A step that calls the one of its base class must not run the hooks again.
    hooks = [name for name in attributes if name.startswith("_optimizer_") and name.endswith("_hooks")]
    return {**attributes, **{name: OrderedDict() for name in hooks}}


@functools.cache
def _class_of(kind: type[Optimizer]) -> type:
    return type(kind.__name__, (StandIn, kind), {})
