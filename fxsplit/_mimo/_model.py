"""The MIMO network: a split model whose heads take their parts of one wide output."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch import Tensor

from fxsplit._errors import FxSplitWarning, InputError
from fxsplit._split._model import SplitModel
from fxsplit._trace._guards import InputGuard, Rule, TensorRule, attach


class MimoModel(SplitModel):
    """A MIMO network, made by `fxsplit.mimo`: the trunk is the whole network, each head a member's part of its output.

    ``net(x)`` gives all members the same input ``[B, ...]`` and returns their vote. ``net.head_outputs(x)`` also takes
    an input for each member, ``[B, M, ...]``, as `mimo_batch` makes it. Everything else is as for any `SplitModel`.
    """

    def head_targets(self, target: Tensor, *inputs: Any) -> list[Tensor]:
        """The target of each head, for `head_loss`.

        Args:
            target: ``[B, M, ...]`` if every member has an input of its own, else ``[B, ...]``.
            *inputs: What `head_outputs` is called with.

        Returns:
            M targets ``[B, ...]``.

        Raises:
            InputError: The members have inputs of their own, and ``target`` is not for M members.
        """
        place, ndim = self.meta["mimo"]["position"], self.meta["mimo"]["ndim"]
        if len(inputs) <= place or inputs[place].ndim == ndim:
            if self.training:
                warnings.warn(
                    "All members of this MIMO network are trained on the same inputs, so that nothing makes them "
                    "differ. Give each its own: x, y = fxsplit.mimo_batch(x, y, members).",
                    FxSplitWarning,
                    stacklevel=3,
                )
            return [target] * self.num_heads
        if target.ndim < 2 or target.shape[1] != self.num_heads:
            raise InputError(
                f"The input holds a sample for each of {self.num_heads} members, so the target has to be "
                f"[B, {self.num_heads}, ...]; got {list(target.shape)}. fxsplit.mimo_batch makes both."
            )
        return list(target.unbind(1))

    def answer_with(self, guard: InputGuard) -> None:
        """Check what `head_outputs` is called with by ``guard``."""
        attach(self._state.head_outputs, guard)
        self._bind()


class MembersRule:
    """An input as it was traced, or one for each member with the members as dimension 1."""

    def __init__(self, rule: TensorRule, members: int) -> None:
        self.name = rule.name
        self.shared = rule
        self.members = members
        self.separate = copy.copy(rule)
        self.separate.shape = (rule.shape[0], members, *rule.shape[1:])

    def check(self, value: Any, sizes: dict[str, tuple[int, str]]) -> None:
        """Compare with whichever of the two has as many dimensions."""
        ndim = len(self.separate.shape)
        if isinstance(value, Tensor) and value.ndim == ndim and value.shape[1] != self.members:
            raise InputError(
                f"input {self.name!r} has {ndim} dimensions, so dimension 1 has to be the {self.members} members of "
                f"this MIMO network; got {list(value.shape)}. Make it with fxsplit.mimo_batch(x, y, {self.members})."
            )
        rule = self.separate if isinstance(value, Tensor) and value.ndim == ndim else self.shared
        rule.check(value, sizes)


class OneInputRule:
    """An input as it was traced: the vote of all members is about the same sample."""

    def __init__(self, rule: TensorRule) -> None:
        self.name = rule.name
        self.shared = rule

    def check(self, value: Any, sizes: dict[str, tuple[int, str]]) -> None:
        """Refuse one input for each member."""
        if isinstance(value, Tensor) and value.ndim == len(self.shared.shape) + 1:
            raise InputError(
                f"net(x) votes over members that have seen the same input {self.name!r}, but this one has a dimension "
                f"more, {list(value.shape)}: a sample for each member. Call net.head_outputs(x), or train with "
                "fxsplit.head_loss(net, criterion, x, y)."
            )
        self.shared.check(value, sizes)


def with_rule(rules: tuple[Rule, ...], name: str, make: Any) -> list[Rule]:
    """The rules of all inputs, with another one for the input of that name."""
    return [make(rule) if getattr(rule, "name", None) == name else rule for rule in rules]
