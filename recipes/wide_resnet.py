"""Wide residual networks for small images (Zagoruyko & Komodakis 2016, arXiv:1605.07146)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(in_chans: int, out_chans: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps height and width at stride 1."""
    return nn.Conv2d(in_chans, out_chans, kernel, stride, padding=kernel // 2, bias=False)


class WideBlock(nn.Module):
    """Pre-activation block: BN, ReLU, conv 3x3, BN, ReLU, conv 3x3, plus the shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input; elsewhere it is the raw input.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chans)
        self.conv1 = conv(in_chans, out_chans, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.conv2 = conv(out_chans, out_chans, 3)
        changes_shape = stride != 1 or in_chans != out_chans
        self.shortcut = conv(in_chans, out_chans, 1, stride) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_chans, H, W]`` to ``[B, out_chans, H / stride, W / stride]``."""
        active = torch.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        out = torch.relu(self.bn2(self.conv1(active)))
        return self.conv2(out) + skip


class WRN(nn.Module):
    """WRN-depth-width: a 3x3 stem, three stages of pre-activation blocks, BN, ReLU, global mean, linear classifier.

    The blocks are ``stages.0.0`` ... ``stages.2.<n-1>``; WRN28-10 has 12 of them, so 4 blocks in the trunk is
    ``split='stages.0.3'`` or ``split=4``.

    Args:
        depth: Number of weight layers along the longest path, ``6 n + 4`` for ``n`` blocks per stage.
        width: Factor on the channels 16, 32, 64 of the three stages.
        num_classes: Number of logits.
        in_chans: Channels of the input image.

    Raises:
        ValueError: ``depth`` is not ``6 n + 4`` for an ``n >= 1``, or ``width`` is below 1.

    Example:
        >>> model = WRN(depth=10, width=1, num_classes=10)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, depth: int = 28, width: int = 10, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        per_stage, rest = divmod(depth - 4, 6)
        if rest or per_stage < 1:
            raise ValueError(f"WRN: depth must be 6 n + 4 with n >= 1 (10, 16, 22, 28, 40, ...), got {depth}.")
        if width < 1:
            raise ValueError(f"WRN: width must be at least 1, got {width}.")
        self.conv1 = conv(in_chans, 16, 3)
        self.stages = nn.Sequential()
        chans = 16
        for stage, base in enumerate((16, 32, 64)):
            blocks = nn.Sequential()
            for block in range(per_stage):
                blocks.append(WideBlock(chans, base * width, stride=2 if stage and not block else 1))
                chans = base * width
            self.stages.append(blocks)
        self.bn = nn.BatchNorm2d(chans)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(chans, num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw every parameter: He normal (fan out) for convolutions, the classifier as torch does with a zero bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        self.fc.reset_parameters()
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, in_chans, H, W]`` to logits ``[B, num_classes]``."""
        x = self.stages(self.conv1(x))
        return self.fc(self.pool(torch.relu(self.bn(x))).flatten(1))
