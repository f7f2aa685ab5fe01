"""The dense networks of the paper and their small stand-ins, as settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from recipes._errors import RecipeError
from recipes._require import require


class Model(Protocol):
    """What makes a dense network."""

    def make(self, outputs: int, channels: int) -> nn.Module:
        """Make it, for this number of classes or tokens and of input channels."""
        ...


@dataclass(frozen=True)
class Wrn:
    """A wide residual network for small images.

    Args:
        depth: Number of weight layers, 6 n + 4 for n blocks in each of three stages.
        width: Factor on the channels.
    """

    depth: int = 28
    width: int = 10

    def make(self, outputs: int, channels: int) -> nn.Module:
        """Make it."""
        from recipes.wide_resnet import WRN

        try:
            return WRN(self.depth, self.width, outputs, channels)
        except ValueError as error:
            raise RecipeError(str(error)) from error


@dataclass(frozen=True)
class Timm:
    """Any classifier of timm, without pretrained weights.

    Args:
        name: Its name.
    """

    name: str = "resnet50"

    def make(self, outputs: int, channels: int) -> nn.Module:
        """Make it.

        Raises:
            RecipeError: timm has no such model.
        """
        import timm

        from fxsplit._errors import near_matches

        if not timm.is_model(self.name):
            raise RecipeError(f"timm has no model {self.name!r}.{near_matches(self.name, timm.list_models())}")
        return timm.create_model(self.name, num_classes=outputs, in_chans=channels)


@dataclass(frozen=True)
class DigitsResnet:
    """The small ResNet of the demo, for 8 x 8 images: three stages.

    Args:
        width: Channels of the first stage.
        blocks: Residual blocks per stage.
    """

    width: int = 16
    blocks: int = 2

    def make(self, outputs: int, channels: int) -> nn.Module:
        """Make it.

        Raises:
            RecipeError: The images have colours.
        """
        from recipes._models import digits_resnet

        if channels != 1:
            raise RecipeError(f"This network is for grey images, but these have {channels} channels.")
        return digits_resnet(outputs, self.width, self.blocks)


@dataclass(frozen=True)
class Llama:
    """A decoder of the Llama family, as transformers implements it; embeddings and output weights are not tied.

    Args:
        layers: Transformer blocks.
        hidden: Width.
        intermediate: Width inside of the MLPs.
        heads: Attention heads.
        positions: Longest sequence.

    Raises:
        RecipeError: A setting is below 1, or attention heads don't divide the width into even parts.
    """

    layers: int = 12
    hidden: int = 768
    intermediate: int = 2048
    heads: int = 12
    positions: int = 1024

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "intermediate", "heads", "positions"):
            require(getattr(self, name) >= 1, name, "be at least 1", getattr(self, name))
        # Rotary embeddings turn pairs of numbers.
        if self.hidden % (2 * self.heads):
            raise RecipeError(
                f"hidden must be a multiple of 2 x heads, an even width for each attention head; got "
                f"hidden={self.hidden} and heads={self.heads}."
            )

    def make(self, outputs: int, channels: int) -> nn.Module:
        """Make it, for ``outputs`` tokens."""
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=outputs,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.positions,
            tie_word_embeddings=False,
            use_cache=False,
        )
        return LlamaForCausalLM(config)


LLAMA_130M = Llama()
LLAMA_250M = Llama(layers=24, intermediate=2560, heads=16)
LLAMA_350M = Llama(layers=24, hidden=1024, intermediate=2736, heads=16)
