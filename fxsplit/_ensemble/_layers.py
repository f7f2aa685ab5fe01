"""Layers with a weight matrix: how many features go in and come out, and in which dimensions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from fxsplit._graph import fetch, named_tensors
from fxsplit._init._replica import slots_of


@dataclass(frozen=True)
class Features:
    """The features of a linear layer or a convolution.

    Attributes:
        inputs: Number of features that go in.
        outputs: Number of features that come out.
        dim: Their dimension in the layer's input and output.
        weight_inputs: Dimension of the weight that has the inputs (those of one group).
        weight_outputs: Dimension of the weight that has the outputs.
        groups: Groups of a convolution.
        names: Attributes of the layer that hold the two numbers.
    """

    inputs: int
    outputs: int
    dim: int
    weight_inputs: int
    weight_outputs: int
    groups: int
    names: tuple[str, str]


def features_of(module: object) -> Features | None:
    """Describe a Linear, a Conv1d/2d/3d or a transposed one, a subclass, or transformers' Conv1D; None for others."""
    if isinstance(module, nn.Linear):
        return Features(module.in_features, module.out_features, -1, 1, 0, 1, ("in_features", "out_features"))
    if isinstance(module, nn.modules.conv._ConvNd):
        order = (0, 1) if module.transposed else (1, 0)
        return Features(
            module.in_channels, module.out_channels, 1, *order, module.groups, ("in_channels", "out_channels")
        )
    # transformers' Conv1D is a linear layer with a transposed weight; it must not become a dependency.
    if any(cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers.") for cls in type(module).__mro__):
        return Features(module.nx, module.nf, -1, 0, 1, 1, ("nx", "nf"))  # type: ignore[attr-defined]
    return None


def has_parameters(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node computes with parameters, its own or such as it is given by name."""
    sources = [node, *(value for value in node.all_input_nodes if value.op == "get_attr")]
    return any(isinstance(tensor, nn.Parameter) for _, tensor in named_tensors(root, sources))


def shown(root: nn.Module, node: fx.Node) -> str:
    """A node by what a user knows of it: ``'patch_embed.proj' (Conv2d)``."""
    if node.op == "call_module":
        return f"{str(node.target)!r} ({type(fetch(root, str(node.target))).__name__})"
    return f"{node.name!r} in {node.meta.get('path') or 'the model itself'!r}"


def other_owners(root: nn.Module, path: str) -> list[str]:
    """Paths of tensors elsewhere that are tensors of the module at ``path``: what they hold can't change its shape."""
    module = root.get_submodule(path)
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    return [slot.path for slot, tensor in slots_of(root) if id(tensor) in own and not slot.path.startswith(f"{path}.")]
