"""A convolutional net made of a list of blocks, each an idiom that real code uses."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 6
CLASSES = 5


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)


class Plain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = conv(width, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(width, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)  # one module, called twice

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class PreActivation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.bn(x), inplace=True))


class Concat(nn.Module):
    """As in DenseNet: the width grows."""

    growth = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), conv(width, self.growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.norm(x).relu())], dim=1)


class MultiPath(nn.Module):
    """As in Inception: several paths side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.three = conv(width, 2, 1), nn.Sequential(conv(width, 2, 1), nn.ReLU(), conv(2, width - 3))
        self.pooled = conv(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(F.avg_pool2d(x, 3, stride=1, padding=1))
        return torch.cat((self.one(x), self.three(x), pooled), 1)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.reduce, self.expand = conv(width, width), nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        scale = x.mean((2, 3), keepdim=True)
        return x * self.expand(self.act(self.reduce(scale))).sigmoid()


class Gated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv(x).chunk(2, dim=1)
        return value * torch.sigmoid(gate)


class Reused(nn.Module):
    """One convolution and one norm, each applied twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = conv(width, width), nn.GroupNorm(1, width)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.norm(self.conv(x))
        return x


class DropPath(nn.Module):
    """Stochastic depth: draws only in train mode, and then overwrites what it drew."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device) + 0.75
        return x.div(0.75) * keep.floor_()


class Dropped(nn.Module):
    """Dropout as a module and as a function, and stochastic depth."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.drop, self.path = conv(width, width), nn.Dropout2d(0.25), DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(F.dropout(self.conv(self.drop(x)), p=0.25, training=self.training))


class InplaceEntry(nn.Module):
    """Its first operation overwrites what it was given, which other heads also see."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.relu, self.conv = nn.ReLU(inplace=True), conv(width, width)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.conv(x).mul_(0.5).add_(x) * self.scale


class Scaled(nn.Module):
    """A bare parameter (layer scale) and a buffer that is no module's weight."""

    offset: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.gamma = conv(width, width), nn.Parameter(torch.full((width, 1, 1), 0.1))
        self.register_buffer("offset", torch.linspace(-1, 1, width).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.conv(x + self.offset)


class Shuffle(nn.Module):
    """Split in halves, one of them convolved, channels shuffled: sizes taken from the tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = conv(width - width // 2, width - width // 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, length = x.size()
        left, right = x.split([width // 2, width - width // 2], dim=1)
        x = torch.cat([left, self.conv(right)], dim=1)
        if width % 2:
            return x
        return x.view(batch, 2, width // 2, height, length).transpose(1, 2).reshape(batch, -1, height, length)


BLOCKS: dict[str, type[nn.Module]] = {
    "plain": Plain, "residual": Residual, "preact": PreActivation, "concat": Concat, "multipath": MultiPath,
    "squeeze": SqueezeExcite, "gated": Gated, "reused": Reused, "dropped": Dropped, "inplace": InplaceEntry,
    "scaled": Scaled, "shuffle": Shuffle,
}  # fmt: skip
ENDS_WITH_RELU = frozenset({"plain", "residual"})  # autograd keeps a ReLU's output: nothing may overwrite it


class Output(NamedTuple):
    logits: Tensor
    features: Tensor


class ConvNet(nn.Module):
    """Stem, blocks, pooling and classifier, with what makes cutting hard: long skips, late inputs, early outputs."""

    def __init__(
        self, blocks: tuple[str, ...], pool: str, output: str, long_skip: bool, second: str, auxiliary: bool
    ) -> None:
        super().__init__()
        width = 4
        self.pool, self.output, self.second_input = pool, output, second
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.second = nn.Conv2d(3, width, 1) if second == "early" else None
        modules = []
        for position, kind in enumerate(blocks):
            modules.append(BLOCKS[kind](width))
            width += Concat.growth * (kind == "concat")
            if position == 0:
                first = width
        self.blocks = nn.ModuleList(modules)
        self.skip = conv(first, width, 1) if long_skip else None
        self.auxiliary = nn.Linear(first, CLASSES) if auxiliary else None
        features = width * (SIDE * SIDE if pool == "flatten" else 1) + 3 * (second == "late")
        self.classifier = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Any:
        x = self.stem(x)
        if self.second is not None:
            x = x + self.second(other)
        skip = early = None
        for position, block in enumerate(self.blocks):
            x = block(x)
            if position == 0:
                skip = x
                if self.auxiliary is not None:
                    early = self.auxiliary(x.mean((2, 3)))
        if self.skip is not None:
            x = x + self.skip(skip)
        features = self.pooled(x)
        if self.second_input == "late" and other is not None:
            features = torch.cat([features, other], dim=1)
        return self.wrap(self.classifier(features), features, early)

    def pooled(self, x: Tensor) -> Tensor:
        if self.pool == "flatten":
            return x.reshape(x.size(0), -1)
        if self.pool == "adaptive":
            pooled = F.adaptive_avg_pool2d(x, 1)
            return pooled.view(pooled.shape[0], -1)
        return x.mean(dim=(2, 3))

    def wrap(self, logits: Tensor, features: Tensor, early: Tensor | None) -> Any:
        if self.output == "dict":
            return {"logits": logits, "features": features} | ({} if early is None else {"early": early})
        if self.output == "nested":
            return {"out": (logits, [features]), "label": logits.argmax(dim=-1), "early": early}
        if self.output == "namedtuple":
            return Output(logits, features if early is None else early)
        return logits if early is None else (logits, early)
