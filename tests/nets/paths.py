"""Nets in which several tensors carry the computation at once: branches, U-Nets, encoder-decoders, two towers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WIDTH = 6
CLASSES = 3


class Cell(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.act = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8), nn.GELU()
        self.fc2 = nn.Linear(8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


class Exchange(nn.Module):
    """A cell for each branch, then something of every branch to all others, as in HRNet and CrossViT."""

    def __init__(self, branches: int, exchange: bool) -> None:
        super().__init__()
        self.cells = nn.ModuleList([Cell() for _ in range(branches)])
        self.mix = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(branches)]) if exchange else None

    def forward(self, branches: Sequence[Tensor]) -> list[Tensor]:
        made = [cell(x) for cell, x in zip(self.cells, branches, strict=True)]
        if self.mix is None:
            return made
        total = torch.stack([mix(x) for mix, x in zip(self.mix, made, strict=True)]).sum(0)
        return [x + total for x in made]


class Branches(nn.Module):
    def __init__(self, depth: int, branches: int, exchange: bool) -> None:
        super().__init__()
        self.stems = nn.ModuleList([nn.Linear(4, WIDTH) for _ in range(branches)])
        self.blocks = nn.ModuleList([Exchange(branches, exchange) for _ in range(depth)])
        self.head = nn.Linear(WIDTH * branches, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        branches = [stem(x) for stem in self.stems]
        for block in self.blocks:
            branches = block(branches)
        return self.head(torch.cat(branches, -1))


class Join(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.cell = nn.Linear(2 * WIDTH, WIDTH), Cell()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.cell(self.fc(torch.cat([x, skip], -1)))


class UNet(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Linear(4, WIDTH)
        self.downs = nn.ModuleList([Cell() for _ in range(depth)])
        self.bottom = Cell()
        self.ups = nn.ModuleList([Join() for _ in range(depth)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.stem(x), []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        x = self.bottom(x)
        for up in self.ups:
            x = up(x, skips.pop())
        return self.head(x)


class Layer(nn.Module):
    """A decoder layer: it looks at what the encoder made."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.cell = nn.Linear(WIDTH, WIDTH), Cell()

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.cell(x + self.memory(memory))


class EncoderDecoder(nn.Module):
    """The decoder starts from a second input, or from learned queries as in DETR."""

    def __init__(self, depth: int, queries: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.encoder = nn.ModuleList([Cell() for _ in range(depth)])
        self.queries = nn.Parameter(torch.randn(WIDTH)) if queries else None
        self.target = None if queries else nn.Linear(4, WIDTH)
        self.decoder = nn.ModuleList([Layer() for _ in range(depth)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        x = self.embed(x)
        for cell in self.encoder:
            x = cell(x)
        y = self.queries if self.target is None else self.target(target)
        for layer in self.decoder:
            y = layer(y, x)
        return self.head(y)


class Towers(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, WIDTH), nn.Linear(4, WIDTH)
        self.left = nn.ModuleList([Cell() for _ in range(depth)])
        self.right = nn.ModuleList([Cell() for _ in range(depth)])
        self.out = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, other: Tensor) -> dict[str, Tensor]:
        x, y = self.first(x), self.second(other)
        for cell in self.left:
            x = cell(x)
        for cell in self.right:
            y = cell(y)
        y = self.out(y)
        return {"similarity": self.out(x) @ y.T, "second": y}
