from __future__ import annotations

import pytest
import torch

from recipes.wide_resnet import WRN, WideBlock


def test_wrn28_10_has_the_published_size() -> None:
    with torch.device("meta"):
        model = WRN(28, 10, num_classes=100)
    # Zagoruyko & Komodakis 2016, table 4: 36.5M parameters
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 36.5
    assert [name for name, m in model.named_modules() if isinstance(m, WideBlock)] == [
        f"stages.{stage}.{block}" for stage in range(3) for block in range(4)
    ]
    assert [n for n, p in model.named_parameters() if n.endswith("bias") and "conv" in n] == []


def test_block_equals_its_formula() -> None:
    torch.manual_seed(0)
    block = WideBlock(4, 8, stride=2).eval()
    x = torch.randn(2, 4, 6, 6)
    active = torch.relu(x / (1 + block.bn1.eps) ** 0.5)  # fresh running statistics: mean 0, variance 1
    hidden = torch.nn.functional.conv2d(active, block.conv1.weight, stride=2, padding=1)
    hidden = torch.relu(hidden / (1 + block.bn2.eps) ** 0.5)
    expected = torch.nn.functional.conv2d(hidden, block.conv2.weight, padding=1)
    expected = expected + torch.nn.functional.conv2d(active, block.get_parameter("shortcut.weight"), stride=2)
    torch.testing.assert_close(block(x), expected)


def test_stages_halve_the_image_twice_and_other_sizes_work() -> None:
    model = WRN(10, 1, num_classes=7, in_chans=1)
    assert model.stages(model.conv1(torch.zeros(1, 1, 32, 32))).shape == (1, 64, 8, 8)
    assert model(torch.zeros(2, 1, 64, 48)).shape == (2, 7)


@pytest.mark.parametrize("kwargs", [{"depth": 27}, {"depth": 4}, {"width": 0}])
def test_impossible_shapes_are_refused(kwargs) -> None:
    with pytest.raises(ValueError, match=r"WRN: (depth|width)"):
        WRN(**kwargs)
