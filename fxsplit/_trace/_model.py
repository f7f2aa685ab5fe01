"""The traced model: a torch.fx GraphModule that knows where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from fxsplit._arguments import NamedInputs
from fxsplit._containers import mark_containers
from fxsplit._errors import TraceError
from fxsplit._graph import keep_persistence
from fxsplit._parametrized import hold_computed, settle_copy
from fxsplit._trace._inputs import Example
from fxsplit._trace._report import TraceReport

META_KEY = "fxsplit"


@dataclass
class Provenance:
    """Report, source model and example; one object shared by all copies of a traced model."""

    report: TraceReport
    source: nn.Module
    example: Example

    def __deepcopy__(self, memo: dict[int, Any]) -> Provenance:
        return self


class TracedModel(NamedInputs):
    """A flat graph of a model whose submodules keep their original paths.

    The submodules and parameters are the model's own, as in torch.fx: training one trains the other. Copy with
    ``copy.deepcopy``; it cannot be pickled.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedModel:
        hold_computed(self, memo)
        copied = cast(TracedModel, super().__deepcopy__(memo))
        settle_copy(copied)
        mark_containers(copied)
        keep_persistence(copied, self)
        return copied

    def __reduce__(self) -> Any:
        # fx would trace the code again when it is unpickled, and lose everything but the graph.
        raise TraceError(
            "A traced model cannot be pickled. Pickle the original (traced.source) and trace it again, or store its "
            "weights with torch.save(traced.state_dict(), path); fxsplit.save stores split models. copy.deepcopy works."
        )

    @property
    def report(self) -> TraceReport:
        """What the trace assumed."""
        return self.meta[META_KEY].report

    @property
    def source(self) -> nn.Module:
        """The model that was traced."""
        return self.meta[META_KEY].source

    @property
    def example(self) -> Example:
        """``(args, kwargs)`` that was traced, as given or inferred."""
        return self.meta[META_KEY].example


class ModeSwitch(nn.Module):
    """Returns one constant in train mode and another in eval mode."""

    def __init__(self, train: Any, evaluation: Any) -> None:
        super().__init__()
        self.in_train = train
        self.in_eval = evaluation

    def forward(self) -> Any:
        """The value for the current mode."""
        return self.in_train if self.training else self.in_eval

    def extra_repr(self) -> str:
        """Show both values."""
        return f"train={self.in_train!r}, eval={self.in_eval!r}"


class FunctionLeaf(nn.Module):
    """A ``torch.autograd.Function`` as a module, so that a graph can call it whole."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        """Apply the function."""
        return self.function.apply(*args)

    def extra_repr(self) -> str:
        """Name the function."""
        return self.function.__name__
