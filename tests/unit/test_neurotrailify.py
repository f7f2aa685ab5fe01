"""One call equals its parts."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import fxsplit
import sparsity
from fxsplit import SplitError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


def test_equals_trace_split_and_sparsify() -> None:
    net = fxsplit.neurotrailify(build(), "1", heads=2, sparsity=0.6, example=X, seed=3, vote="prob")
    parts = fxsplit.split(fxsplit.trace(build(), X), "1", heads=2, vote="prob", seed=3)
    masks = sparsity.sparsify(parts, 0.6, "erk", seed=3)
    assert net.state_dict().keys() == parts.state_dict().keys()
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in net.state_dict().items())
    assert sparsity.masks_of(net).nonzeros == masks.nonzeros
    assert torch.equal(net(X), parts(X))


def test_masks_are_chosen_and_shaped_as_sparsify_does() -> None:
    blocks = sparsity.Blocks((2, 1))
    options = {"skip": [sparsity.classifier, sparsity.first_layer], "structure": blocks}
    even = sparsity.per_component("uniform")
    net = fxsplit.neurotrailify(build(), "1", heads=2, sparsity=0.5, example=X, allocation=even, seed=3, **options)
    parts = fxsplit.split(fxsplit.trace(build(), X), "1", heads=2, seed=3)
    sparsity.sparsify(parts, 0.5, even, seed=3, **options)
    masks = sparsity.masks_of(net)
    assert list(masks) == ["heads.0.2.weight", "heads.1.2.weight"]
    assert list(masks.left) == ["trunk.0.weight", "heads.0.5.weight", "heads.1.5.weight"]
    assert masks.structures == dict.fromkeys(masks, blocks)
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in net.state_dict().items())


def test_embeddings_can_be_masked() -> None:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6))
    ids = torch.arange(6).view(2, 3)
    net = fxsplit.neurotrailify(model, "1", heads=2, sparsity=0.5, example=ids, include=nn.Embedding)
    assert "trunk.0.weight" in sparsity.masks_of(net)
    assert net(ids).shape == (2, 3, 6)


@pytest.mark.parametrize("dense", [0, 0.0, None])
def test_no_sparsity_is_a_dense_treenet(dense: float | None) -> None:
    net = fxsplit.neurotrailify(build(), "1", sparsity=dense, example=X, init="copy")
    assert not any(hasattr(module, "parametrizations") for module in net.modules())
    torch.testing.assert_close(net(X), build()(X))


def test_resnet50_by_name() -> None:
    model = timm.create_model("resnet50", num_classes=10)
    net = fxsplit.neurotrailify(model, split="layer3.2")
    assert net.num_heads == 3
    assert net.cut.path == "layer3.2"
    assert net.cut.index == 10
    assert sparsity.masks_of(net).sparsity == pytest.approx(0.8, abs=1e-6)
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


def test_arguments_are_checked_before_the_model_runs() -> None:
    class Untouchable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    with pytest.raises(SplitError, match="heads"):
        fxsplit.neurotrailify(Untouchable(), 1, heads=0, example=X)
    with pytest.raises(SplitError, match="init"):
        fxsplit.neurotrailify(Untouchable(), 1, init="none", example=X)


def test_an_impossible_sparsity_leaves_the_model_alone() -> None:
    model = build()
    with pytest.raises(ValueError, match="sparsity"):
        fxsplit.neurotrailify(model, "1", sparsity=1.5, example=X)
    assert not any(hasattr(module, "parametrizations") for module in model.modules())
