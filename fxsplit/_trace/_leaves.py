"""Which modules stay whole (leaves), and which are too large to be made leaves in silence."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from fxsplit._parametrized import own_children, parametrized_names, unparametrized_class

_CONTAINERS = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
_LEAF_CLASSES = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)
_LARGE_SHARE = 0.5
_LARGE_SHARE_OF_BLOCKS = 0.05


def is_leaf(module: nn.Module) -> bool:
    """Whether the default rules keep ``module`` whole.

    Leaves are modules of torch.nn that are not containers, subclasses of linear, convolution, norm and embedding
    layers, modules without children, and modules that own parameters while their children own none. Parametrizations
    are part of the module whose parameters they compute; where another module reads such a parameter, the list of its
    parametrizations is a leaf.
    """
    if isinstance(module, ParametrizationList):
        return True
    if isinstance(module, nn.TransformerEncoderLayer):
        # In eval mode without gradients torch fuses the whole layer, which rounds differently.
        return type(module).forward is nn.TransformerEncoderLayer.forward
    if isinstance(module, _CONTAINERS):
        return False
    if unparametrized_class(module).__module__.startswith("torch.nn.") or isinstance(module, _LEAF_CLASSES):
        return True
    children = list(own_children(module))
    if not children:
        return True
    owns = any(True for _ in module.parameters(recurse=False)) or bool(parametrized_names(module))
    return owns and not any(True for child in children for _ in child.parameters())


def is_large(root: nn.Module, path: str) -> bool:
    """Whether making the module at ``path`` a leaf would hide too much of the model to cut it sensibly."""
    if not path:
        return True
    module = root.get_submodule(path)
    total = _count(root)
    share = _count(module) / total if total else 0.0
    return share > _LARGE_SHARE or (share > _LARGE_SHARE_OF_BLOCKS and holds_blocks(module))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def holds_blocks(module: nn.Module) -> bool:
    """Whether a list inside ``module`` repeats one composite class: a stage, rather than a block."""
    for part in module.modules():
        if isinstance(part, (nn.ModuleList, nn.Sequential)):
            blocks = [
                type(child) for child in part if not is_leaf(child) or isinstance(child, nn.TransformerEncoderLayer)
            ]
            if len(blocks) > len(set(blocks)):
                return True
    return False
