"""A token net (sequence or patches) made of a list of blocks, each an idiom that real code uses."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets.conv import DropPath

WIDTH = 8
HEADS = 2
LENGTH = 5
VOCABULARY = 11
CLASSES = 5
Rotary = tuple[Tensor, Tensor] | None


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    if rotary is None:
        return x
    cos, sin = rotary
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Block(nn.Module):
    """What all token blocks share: ``x`` plus what ``inner`` makes of its norm."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, bias: Tensor | None = None, rotary: Rotary = None) -> Tensor:
        return x + self.inner(self.norm(x), bias, rotary)

    def inner(self, x: Tensor, bias: Tensor | None, rotary: Rotary) -> Tensor:
        raise NotImplementedError


class Mlp(Block):
    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH)

    def inner(self, x: Tensor, bias: Tensor | None, rotary: Rotary) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class FusedAttention(Block):
    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def inner(self, x: Tensor, bias: Tensor | None, rotary: Rotary) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(rotate(q, rotary), rotate(k, rotary), v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(batch, length, -1))


class SoftmaxAttention(Block):
    """Written by hand, with dropout on the weights and a causal mask that is a buffer."""

    causal: Tensor

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.drop, self.out = nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("causal", torch.ones(length, length).tril().bool(), persistent=False)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), HEADS, -1).transpose(1, 2)

    def inner(self, x: Tensor, bias: Tensor | None, rotary: Rotary) -> Tensor:
        q, k, v = rotate(self.heads(self.q(x)), rotary), rotate(self.heads(self.k(x)), rotary), self.heads(self.v(x))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        scores = scores.masked_fill(~self.causal[: x.size(1), : x.size(1)], torch.finfo(scores.dtype).min)
        if bias is not None:
            scores = scores + bias
        mixed = torch.einsum("bhij,bhjd->bihd", self.drop(scores.softmax(dim=-1)), v)
        return self.out(mixed.flatten(2))


class LibraryAttention(Block):
    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def inner(self, x: Tensor, bias: Tensor | None, rotary: Rotary) -> Tensor:
        out, _ = self.attention(x, x, x, need_weights=False)
        return out


class GatedMlp(Block):
    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def inner(self, x: Tensor, bias: Tensor | None, rotary: Rotary) -> Tensor:
        gate, value = torch.chunk(self.wide(x), 2, dim=-1)
        return self.narrow(F.silu(gate) * value)


class Mixer(Block):
    """Mixes along the sequence."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.along = nn.Linear(length, length)

    def inner(self, x: Tensor, bias: Tensor | None, rotary: Rotary) -> Tensor:
        return F.relu_(self.along(x.transpose(1, 2))).transpose(1, 2)


class PostNorm(Mlp):
    """The norm comes last, the residual sum is in place, with stochastic depth before it."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.path = DropPath()

    def forward(self, x: Tensor, bias: Tensor | None = None, rotary: Rotary = None) -> Tensor:
        update = self.path(self.inner(x, bias, rotary))
        update += x
        return self.norm(update)


class ScaledReuse(Block):
    """A bare parameter (layer scale), one projection used twice, functional dropout."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.proj, self.gamma = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.full((WIDTH,), 0.1))

    def inner(self, x: Tensor, bias: Tensor | None, rotary: Rotary) -> Tensor:
        return self.gamma * F.dropout(self.proj(self.proj(x)), 0.2, self.training)


class InplaceEntry(Block):
    """Its first operation overwrites what it was given, which other heads also see."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.shift, self.proj = nn.Parameter(torch.zeros(WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, bias: Tensor | None = None, rotary: Rotary = None) -> Tensor:
        x.add_(self.shift)
        return x + self.proj(self.norm(x))


BLOCKS: dict[str, type[Block]] = {
    "mlp": Mlp, "fused": FusedAttention, "softmax": SoftmaxAttention, "library": LibraryAttention, "gated": GatedMlp,
    "mixer": Mixer, "postnorm": PostNorm, "scaled": ScaledReuse, "inplace": InplaceEntry,
}  # fmt: skip


class TokenNet(nn.Module):
    """Embedding, blocks, norm and decoder, with what crosses every cut: masks, rotary angles, tied weights."""

    angles: Tensor

    def __init__(
        self, blocks: tuple[str, ...], source: str, cls: bool, position: str, rotary: bool, decoder: str, passes: int
    ) -> None:
        super().__init__()
        length = LENGTH + cls
        self.source, self.rotary, self.decoder_kind, self.passes = source, rotary, decoder, passes
        if source == "ids":
            self.embed = nn.Embedding(VOCABULARY, WIDTH)
        else:
            self.embed = nn.Linear(3, WIDTH) if source == "floats" else nn.Conv2d(3, WIDTH, (2, 2), stride=(2, 2))
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH)) if cls else None
        self.position = nn.Parameter(torch.randn(1, length, WIDTH)) if position == "parameter" else None
        if position == "buffer":
            self.register_buffer("angles", torch.arange(length * WIDTH).view(length, WIDTH).sin())
        self.add_angles = position == "buffer"
        self.blocks = nn.ModuleList([BLOCKS[kind](length) for kind in blocks])
        self.norm = nn.LayerNorm(WIDTH)
        if decoder == "pooled":
            self.classifier = nn.Linear(WIDTH, CLASSES)
        elif decoder != "functional":
            self.decoder = nn.Linear(WIDTH, VOCABULARY, bias=decoder == "linear")
            if decoder == "tied":
                self.decoder.weight = self.embed.weight

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        x = self.embed(x)
        if self.source == "image":
            x = x.flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        if self.position is not None:
            x = x + self.position[:, : x.shape[1]]
        if self.add_angles:
            x = x + self.angles[: x.size(1)]
        bias = None
        if attention_mask is not None:
            bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -1e4
        rotary = self.turn(x) if self.rotary else None
        for _ in range(self.passes):
            for block in self.blocks:
                x = block(x, bias, rotary=rotary)
        return self.decode(self.norm(x), labels)

    def turn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        angles = torch.outer(places, 100.0 ** -torch.linspace(0, 1, WIDTH // HEADS // 2, device=x.device))
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def decode(self, x: Tensor, labels: Tensor | None) -> Any:
        if self.decoder_kind == "pooled":
            logits = self.classifier(x[:, 0] if self.cls is not None else x.mean(1))
        elif self.decoder_kind == "functional":
            logits = F.linear(x, self.embed.weight)
        else:
            logits = self.decoder(x)
        if labels is None:
            return logits
        return {"loss": F.cross_entropy(logits.flatten(0, -2), labels.flatten()), "logits": logits, "hidden": (x,)}
