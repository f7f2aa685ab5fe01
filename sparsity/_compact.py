"""Optimizer states of active weights alone: the optimizer makes its steps on vectors of the active entries.

Between steps its groups hold the parameters of the model as ever, so that loops, schedulers and scalers see no
difference; only its states of masked weights are vectors, of the active entries in row-major order.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from sparsity._active import Active, Spread
from sparsity._closure import closure_in, with_closure
from sparsity._elementwise import check_elementwise
from sparsity._errors import EngineError, listed
from sparsity._masks import Mask, MaskedWeight
from sparsity._optimizer_state import COMPACT, keeper_of, state_of
from sparsity._sharded import is_sharded
from sparsity._stand_in import StandIn, stand_in

# Neither which tensors are in a group nor how fast it learns tells what is done with single weights.
_APART = ("params", "param_names", "lr", "initial_lr", COMPACT)


class PlainStates:
    """States as the optimizer keeps them."""

    def run(self, optimizer: Optimizer) -> None:
        """Do nothing."""

    def remove(self, optimizer: Optimizer, weights: Mapping[str, MaskedWeight]) -> None:
        """Do nothing."""

    def view(self, optimizer: Optimizer, weight: MaskedWeight) -> Mapping[str, Any]:
        """Return the states of a weight."""
        return state_of(optimizer, weight.parameter)

    def settle(self, optimizer: Optimizer) -> None:
        """Check that states which were saved as compact ones are not used as if they were of all weights.

        Raises:
            EngineError: They are.
        """
        if optimizer not in _running and any(COMPACT in group for group in optimizer.param_groups):
            raise EngineError(
                "The optimizer's state was saved under an engine with compact_state=True and is of active weights only."
                " Attach an engine with compact_state=True; to have the states of all weights, load it, call the "
                "engine's detach(), and attach another one."
            )


class CompactStates:
    """Keeps the states of one optimizer compact, for all engines on it that want so."""

    def __init__(self) -> None:
        self._active: dict[Mask, Active] = {}
        self._names: dict[Any, frozenset[str]] = {}
        self._handles: list[Any] = []

    def add(self, optimizer: Optimizer, weights: Mapping[str, MaskedWeight]) -> None:
        """Make the states of these weights compact, or raise an `EngineError` and change nothing."""
        added = {weight.holder: Active(path, weight) for path, weight in weights.items()}
        self._settle(optimizer, added.values())
        self._active.update(added)

    def run(self, optimizer: Optimizer) -> None:
        """Make the optimizer's steps on active weights from now on; call it after hooks that change closures."""
        self._stop()
        self._handles = [
            optimizer.register_step_pre_hook(self._begin),
            optimizer.register_step_post_hook(self._end),
            optimizer.register_state_dict_pre_hook(self._save),
            optimizer.register_load_state_dict_post_hook(self._forget),
        ]
        # The weights have to be there before anyone else looks at them.
        end = self._handles[1]
        end.hooks_dict_ref().move_to_end(end.id, last=False)
        _running[optimizer] = self

    def remove(self, optimizer: Optimizer, weights: Mapping[str, MaskedWeight]) -> None:
        """Make the states of these weights those of all entries again."""
        self.settle(optimizer)
        for weight in weights.values():
            if optimizer.state.get(weight.parameter):
                optimizer.state[weight.parameter].update(self.view(optimizer, weight))
            del self._active[weight.holder]
        compact = [id(group) for group, _ in _grouped(optimizer, self._active.values())]
        for group in optimizer.param_groups:
            if id(group) not in compact:
                group.pop(COMPACT, None)
        if not self._active:
            self._stop()
            del _running[optimizer]

    def view(self, optimizer: Optimizer, weight: MaskedWeight) -> Mapping[str, Any]:
        """Return the states of a weight in its shape, with first values where it is not active."""
        active = self._active.get(weight.holder)
        return state_of(optimizer, weight.parameter) if active is None else Spread(optimizer, active)

    def settle(self, optimizer: Optimizer) -> None:
        """Bring states to the masks as they are now, and make those compact that are not, as after a load."""
        self._settle(optimizer, self._active.values())

    @torch.no_grad()
    def _settle(self, optimizer: Optimizer, active: Iterable[Active]) -> None:
        grouped = list(_grouped(optimizer, active))
        settled = []
        for group, inside in grouped:
            names = self._names_in(optimizer, group, inside)
            for each in inside:
                each.names = names
                settled.append((each, each.settled(optimizer)))
        for each, changed in settled:
            if changed is not None:
                each.settle(optimizer, *changed)
        for group, _ in grouped:
            group[COMPACT] = True

    def _names_in(self, optimizer: Optimizer, group: Mapping[str, Any], inside: list[Active]) -> frozenset[str]:
        weights = [each.parameter for each in inside]
        options = tuple((name, _kind(value)) for name, value in group.items() if name not in _APART)
        key = options, frozenset((each.ndim, each.dtype, each.device) for each in weights)
        if key not in self._names:
            self._names[key] = check_elementwise(optimizer, group, weights)
        return self._names[key]

    @_disable_dynamo
    def _begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        made = stand_in(optimizer, lambda: self._take(optimizer))
        args, closure = (made, *args[1:]), closure_in(args, kwargs)
        if closure is None:
            return args, kwargs

        def around() -> Any:
            # It uses the model's weights, and makes their gradients.
            self._leave(made)
            loss = closure()
            made.enter()
            return loss

        return with_closure(args, kwargs, around)

    @torch.no_grad()
    def _take(self, optimizer: Optimizer) -> dict[Tensor, nn.Parameter]:
        self.settle(optimizer)
        taken = {}
        for each in self._active.values():
            each.drop()  # what a step that failed has left
            if each.parameter.grad is not None and each.places is not None:
                taken[each.parameter] = each.read(each.places)
        return taken

    @torch.no_grad()
    def _leave(self, made: StandIn) -> None:
        optimizer = made.real
        fresh = [each for each in self._active.values() if not optimizer.state.get(each.parameter)]
        if made.leave():
            for each in self._active.values():
                each.write()
            for each in fresh:
                each.check(optimizer)

    @_disable_dynamo
    def _end(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if isinstance(args[0], StandIn):
            self._leave(args[0])

    def _save(self, optimizer: Optimizer) -> None:
        if all(each.places is not None for each in self._active.values()):
            self.settle(optimizer)

    def _forget(self, optimizer: Optimizer) -> None:
        # The masks that belong to the loaded states may be loaded later.
        for each in self._active.values():
            each.places = None

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


_running: weakref.WeakKeyDictionary[Optimizer, CompactStates] = weakref.WeakKeyDictionary()


def states_of(optimizer: Optimizer, weights: Mapping[str, MaskedWeight], compact: bool) -> PlainStates | CompactStates:
    """Return what keeps the states of these weights, made compact if wanted.

    Raises:
        EngineError: They can't be made so, and nothing was changed: weights are sharded or without values, or the
            optimizer does not treat each weight by itself. Or they are compact, but not wanted so.
    """
    if not isinstance(compact, bool):
        raise EngineError(f"compact_state is True or False, got {compact!r}.")
    if not compact:
        states = PlainStates()
        states.settle(optimizer)
        return states
    if keeper_of(optimizer) is not optimizer:
        raise EngineError(
            f"compact_state is not for {type(optimizer).__name__}, which spreads the states over the processes "
            "already. Leave it out."
        )
    sharded = [path for path, weight in weights.items() if is_sharded(weight.parameter)]
    if sharded:
        raise EngineError(
            f"compact_state is not for sharded weights (FSDP2), as {listed(sharded)} are. Leave it out: the states are "
            "spread over the processes already."
        )
    empty = [path for path, weight in weights.items() if weight.parameter.is_meta]
    if empty:
        raise EngineError(f"compact_state needs weights with values, but {listed(empty)} are on the meta device.")
    states = _running.get(optimizer, CompactStates())
    states.add(optimizer, weights)
    return states


def _kind(value: Any) -> Any:
    """Return what of an option may decide which computations are made; numbers change by schedules."""
    if isinstance(value, (bool, int, float)):
        return bool(value)
    if isinstance(value, (tuple, list)):
        return tuple(map(_kind, value))
    return value if value is None or isinstance(value, str) else type(value)


def _grouped(optimizer: Optimizer, active: Iterable[Active]) -> Iterator[tuple[dict[str, Any], list[Active]]]:
    """Yield the groups of an optimizer that hold some of these weights, with them."""
    known = {id(each.parameter): each for each in active}
    for group in optimizer.param_groups:
        inside = [known[id(each)] for each in group["params"] if id(each) in known]
        if inside:
            yield group, inside
