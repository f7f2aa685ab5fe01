"""The dense networks that recipes take apart, each written as a plain function."""

from __future__ import annotations

from timm.models.resnet import BasicBlock, ResNet
from torch import nn


def digits_resnet(classes: int = 10, width: int = 16, blocks: int = 2) -> ResNet:
    """Build timm's ResNet for 8 x 8 grey images: three stages of basic blocks on 8 x 8, 4 x 4 and 2 x 2 maps.

    The stem keeps the full resolution, since the usual two halvings would leave 2 x 2 pixels, and there are three
    stages as in the CIFAR networks of He et al. (2016, sec. 4.2). Nothing else differs from timm's ResNet.

    Args:
        classes: Number of outputs.
        width: Channels of the first stage (an even number); the later ones have twice and four times as many.
        blocks: Residual blocks per stage.

    Returns:
        A network from `[B, 1, 8, 8]` to logits `[B, classes]`.

    Example:
        >>> import torch
        >>> tuple(digits_resnet()(torch.zeros(2, 1, 8, 8)).shape)
        (2, 10)
    """
    net = ResNet(
        BasicBlock,  # pyright: ignore[reportArgumentType] (timm annotates the class as an instance)
        layers=(blocks,) * 3,
        channels=(width, 2 * width, 4 * width),
        num_classes=classes,
        in_chans=1,
        stem_type="deep",
        stem_width=width // 2,
    )
    net.conv1[0].stride = (1, 1)  # pyright: ignore
    net.maxpool = nn.Identity()
    net.layer4 = nn.Identity()  # timm's forward calls four stages
    return net
