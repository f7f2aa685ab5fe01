"""How the networks are built: random weights and masks, and normalisations with statistics as after training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fxsplit
from recipes.wide_resnet import WRN

CLASSES = 100
LLAMA_130M = {  # appendix C of the paper: 12 blocks, 768 hidden states, 12 attention heads; the rest as in GaLore's
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
LLAMA_TINY = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


class Ensemble(nn.Module):
    """Independent networks whose outputs are averaged.

    Args:
        nets: Networks with outputs ``[B, K]``.
    """

    def __init__(self, nets: list[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the networks' outputs, ``[B, K]``."""
        first, *others = [net(x) for net in self.nets]
        for other in others:
            first = first + other
        return first / len(self.nets)


def wide_resnet(size: tuple[int, int]) -> nn.Module:
    """One dense WRN of (depth, width) for 32 x 32 images."""
    torch.manual_seed(0)
    return settled(fxsplit.trace(WRN(*size, CLASSES), _IMAGES), _IMAGES)


def wide_resnet_ensemble(size: tuple[int, int], heads: int) -> nn.Module:
    """Independent dense WRNs, averaged."""
    torch.manual_seed(0)
    return settled(fxsplit.trace(Ensemble([WRN(*size, CLASSES) for _ in range(heads)]), _IMAGES), _IMAGES)


def wide_resnet_trails(
    size: tuple[int, int], split: int, heads: int, sparsity: float, allocation: str
) -> fxsplit.SplitModel:
    """WRN with ``split`` blocks in the trunk and ``heads`` sparse heads."""
    torch.manual_seed(0)
    net = fxsplit.neurotrailify(
        WRN(*size, CLASSES), split, heads, sparsity=sparsity, example=_IMAGES, allocation=allocation
    )
    return settled(net, _IMAGES)


def timm_net(name: str, pixels: int) -> nn.Module:
    """One dense network of timm, for images of so many pixels in height and width."""
    import timm

    torch.manual_seed(0)
    images = torch.randn(2, 3, pixels, pixels)
    return settled(fxsplit.trace(timm.create_model(name), images), images)


def timm_trails(name: str, pixels: int, split: str, heads: int, sparsity: float) -> fxsplit.SplitModel:
    """A network of timm with sparse heads."""
    import timm

    torch.manual_seed(0)
    images = torch.randn(2, 3, pixels, pixels)
    net = fxsplit.neurotrailify(timm.create_model(name), split, heads, sparsity=sparsity, example=images)
    return settled(net, images)


def llama(config: dict[str, int]) -> nn.Module:
    """One dense Llama, without a cache of keys and values."""
    return fxsplit.trace(_causal_lm(config), _token_example(config)).eval()


def llama_trails(config: dict[str, int], split: int, heads: int, sparsity: float) -> fxsplit.SplitModel:
    """A Llama with ``split`` blocks in the trunk and sparse heads."""
    return fxsplit.neurotrailify(
        _causal_lm(config), split, heads, sparsity=sparsity, example=_token_example(config)
    ).eval()


def settled(net: nn.Module, x: Tensor) -> Any:
    """Give every BatchNorm scales and shifts of its own, and the statistics of ``x``; return the net in eval mode.

    Left at its initial values, a normalisation does nothing, and no engine could show that it folds it rightly.

    Args:
        net: Changed in place.
        x: Inputs ``[B, ...]``.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        net(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net.eval()


def _causal_lm(config: dict[str, int]) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**config, max_position_embeddings=1024, use_cache=False))  # pyright: ignore


def _token_example(config: dict[str, int]) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(config["vocab_size"], (2, 8))}


_IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
