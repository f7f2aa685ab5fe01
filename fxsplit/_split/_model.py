"""The split model: one trunk, M heads and a vote, as a graph module that replaces the original model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import fx, nn

from fxsplit._arguments import NamedInputs
from fxsplit._containers import mark_containers
from fxsplit._cuts._find import Cut
from fxsplit._errors import SplitError
from fxsplit._graph import keep_persistence
from fxsplit._parametrized import hold_computed, settle_copy
from fxsplit._split._report import SplitReport
from fxsplit._split._source import Source
from fxsplit._tied_state import give_own_memory

_STATE = "fxsplit_split"
SPEC = "fxsplit_spec"


@dataclass
class SplitState:
    """What a SplitModel knows about its making; copied with it."""

    head_outputs: fx.Graph
    cut: Cut
    report: SplitReport
    origin: dict[str, str]
    source_summary: Any
    source: Source


class SplitModel(NamedInputs):
    """Placeholders -> ``trunk`` -> ``heads.0`` ... ``heads.M-1`` -> ``vote`` -> output.

    Calling it returns what the original model returned, voted over the heads. Made by `fxsplit.split`; trunk and heads
    are graph modules in which every module has its original path: ``layer4.2`` of the second head is
    ``net.get_submodule('heads.1.layer4.2')``. The graphs call layers and not the blocks around them; hooks on layers
    work as usual, for blocks there is `fxsplit.hook_block`. Copy it with ``copy.deepcopy``; store it with
    `fxsplit.save`.
    """

    trunk: fx.GraphModule
    heads: nn.ModuleList
    vote: nn.Module
    _run_heads: Callable[..., list[Any]]

    @classmethod
    def build(
        cls,
        graph: fx.Graph,
        trunk: fx.GraphModule,
        heads: Sequence[fx.GraphModule],
        vote: nn.Module,
        state: SplitState,
        spec: dict[str, Any],
        training: bool,
    ) -> SplitModel:
        """Put the parts together under a graph that calls them."""
        root = nn.Module()
        root.trunk, root.vote = trunk, vote
        root.heads = nn.ModuleList(heads)
        net = cls(root, graph, class_name=cls.__name__)
        # The constructor makes a plain module of every container.
        net.heads = root.heads
        net.training = net.heads.training = vote.training = training
        net.meta[_STATE], net.meta[SPEC] = state, spec
        mark_containers(net)
        net._bind()
        return net

    def _bind(self) -> None:
        """Compile the graph behind `head_outputs` into a method, as fx does with the graph behind ``forward``."""
        code = self._state.head_outputs.python_code("self")
        namespace = dict(code.globals)
        exec(code.src, namespace)
        type(self)._run_heads = namespace["forward"]

    def __deepcopy__(self, memo: dict[int, Any]) -> SplitModel:
        hold_computed(self, memo)
        copied = cast(SplitModel, super().__deepcopy__(memo))
        settle_copy(copied)
        copied._bind()
        mark_containers(copied)
        keep_persistence(copied, self)
        # fx calls every copy GraphModule when it is printed.
        for part in ("", "trunk", *(f"heads.{index}" for index in range(self.num_heads))):
            type(copied.get_submodule(part)).__name__ = type(self.get_submodule(part)).__name__
        return copied

    def __reduce__(self) -> Any:
        # fx would trace the code again when it is unpickled, and lose everything but the graph.
        raise SplitError(
            "A split model cannot be pickled. Store it with fxsplit.save(net, path), or its weights with "
            "torch.save(net.state_dict(), path)."
        )

    @property
    def _state(self) -> SplitState:
        return self.meta[_STATE]

    def head_outputs(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Run the trunk once and return each head's output in the original model's structure.

        Args:
            *args: As for the model itself.
            **kwargs: As for the model itself.

        Returns:
            M outputs. What the trunk computes for the output is the same object in all of them.
        """
        return self.with_named_inputs(self._run_heads, args, kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As for any module, but entries of tied weights are copies, so that safetensors (HF Trainer) can store them.

        With ``keep_vars=True`` they are the parameters themselves.
        """
        state = super().state_dict(*args, **kwargs)
        if not kwargs.get("keep_vars", False):
            give_own_memory(self, state, kwargs.get("prefix", ""))
        return state

    @property
    def num_heads(self) -> int:
        """Number of heads M."""
        return len(self.heads)

    @property
    def cut(self) -> Cut:
        """Where the model was split."""
        return self._state.cut

    @property
    def report(self) -> SplitReport:
        """What the surgery did."""
        return self._state.report

    @property
    def origin(self) -> dict[str, str]:
        """Path in the original model of every module of trunk and heads: ``{'heads.0.fc': 'fc', ...}``."""
        return self._state.origin

    @property
    def source(self) -> Source:
        """Description of the original model: its class, configuration and names of tensors."""
        return self._state.source

    @property
    def config(self) -> Any:
        """Configuration of the original transformers model, a copy without key-value cache; others have none."""
        return _present(self._state.source.config, "config")

    @property
    def generation_config(self) -> Any:
        """Defaults for generation of the original transformers model; others have none."""
        return _present(self._state.source.generation_config, "generation_config")

    @property
    def source_summary(self) -> Any:
        """Size and cost of the original model, for comparison."""
        return self._state.source_summary

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from fxsplit._draw._drawing import mimebundle

        return mimebundle(self, include, exclude)


def _present(value: Any, name: str) -> Any:
    if value is None:
        raise AttributeError(f"The original model has no {name}.")
    return value
