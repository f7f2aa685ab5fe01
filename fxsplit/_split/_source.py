"""What a split model remembers of the model it was made from: its configuration and the names in its state dict."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn


@dataclass(frozen=True)
class Source:
    """The original model, as far as a split model needs to know it.

    Attributes:
        name: Class of the model.
        config: Copy of the configuration of a transformers model, without a key-value cache; None for other models.
        generation_config: Likewise, its defaults for generation.
        main_input: Name of the first argument, as transformers models state it.
        names: Every name in the state dict, with the first of the names that belong to the same tensor.
    """

    name: str
    config: Any
    generation_config: Any
    main_input: str
    names: Mapping[str, str]


def describe_source(graph: fx.GraphModule) -> Source:
    """Describe the model that ``graph`` was traced from."""
    model: nn.Module = getattr(graph, "source", graph)
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    placeholder = next(str(node.target) for node in graph.graph.nodes if node.op == "placeholder")
    return Source(
        name=type(model).__name__,
        config=without_cache(getattr(model, "config", None)),
        generation_config=without_cache(getattr(model, "generation_config", None)),
        main_input=getattr(model, "main_input_name", placeholder),
        names={name: first.setdefault(id(tensor), name) for name, tensor in state.items()},
    )


def without_cache(config: Any) -> Any:
    """A copy of a configuration that asks for no key-value cache, which a graph can't hand out."""
    if config is None:
        return None
    copied = copy.deepcopy(config)
    for name, value in (("use_cache", False), ("cache_implementation", None)):
        if hasattr(copied, name):
            setattr(copied, name, value)
    return copied
