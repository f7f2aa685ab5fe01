# Tests read weights of layers and fields that may be None, which pyright cannot know to be there.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

import copy
import io
from collections import Counter
from dataclasses import dataclass

import pytest
import timm
import torch
import transformers
from scipy import stats
from torch import nn

import sparsity
from sparsity import NM, AllocationError, Blocks, MaskError, Structure
from tests.checks import assert_unchanged, snapshot

CONV1D = transformers.pytorch_utils.Conv1D


def mask_of(layer: nn.Module, level: float, structure: Structure, seed: int = 0) -> torch.Tensor:
    return sparsity.sparsify(layer, level, seed=seed, structure=structure)["weight"]


@pytest.mark.parametrize(
    ("layer", "grouped"),
    [
        (nn.Linear(8, 6), lambda mask: mask.view(6, 2, 4)),
        (nn.Conv1d(8, 6, 3), lambda mask: mask.view(6, 2, 4, 3).transpose(2, 3)),
        (nn.Conv2d(8, 6, 3), lambda mask: mask.view(6, 2, 4, 9).transpose(2, 3)),
        (nn.Conv2d(16, 6, 1, groups=2), lambda mask: mask.view(6, 2, 4)),
        (nn.ConvTranspose2d(8, 6, 3), lambda mask: mask.view(2, 4, 54).transpose(1, 2)),
        (nn.ConvTranspose2d(8, 6, 3, groups=2), lambda mask: mask.view(2, 4, 27).transpose(1, 2)),
        (CONV1D(6, 8), lambda mask: mask.view(2, 4, 6).transpose(1, 2)),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_n_of_m_along_the_inputs(layer, grouped, n):
    mask = mask_of(copy.deepcopy(layer), 1 - n / 4, NM(n, 4))
    assert mask.shape == layer.weight.shape
    assert (grouped(mask).sum(-1) == n).all()


def test_every_choice_in_a_group_is_equally_likely():
    mask = mask_of(nn.Linear(4, 6000), 0.5, NM(2, 4))
    seen = Counter(tuple(row) for row in mask.int().tolist())
    assert len(seen) == 6
    assert stats.chisquare(list(seen.values())).pvalue > 0.001


def test_seed_and_path_decide():
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    state = torch.get_rng_state()
    first = sparsity.sparsify(net(), 0.5, seed=1, structure=NM(2, 4))
    again = sparsity.sparsify(net(), 0.5, seed=1, structure=NM(2, 4))
    other = sparsity.sparsify(net(), 0.5, seed=2, structure=NM(2, 4))
    assert torch.equal(first["0.weight"], again["0.weight"])
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert not torch.equal(first["0.weight"], first["1.weight"])
    assert not torch.equal(torch.get_rng_state(), state)  # by the nets
    state = torch.get_rng_state()
    mask_of(nn.utils.skip_init(nn.Linear, 8, 8), 0.5, NM(2, 4))
    mask_of(nn.utils.skip_init(nn.Linear, 8, 8), 0.5, Blocks((2, 2)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("layer", "blocks", "pooled"),
    [
        (nn.Linear(8, 6), (1, 4), lambda mask: mask.view(6, 2, 4).transpose(0, 1).reshape(12, 4)),
        (nn.Linear(8, 6), (3, 2), lambda mask: mask.view(2, 3, 4, 2).transpose(1, 2).reshape(8, 6)),
        (nn.Conv2d(4, 6, 3), (2, 2), lambda mask: mask.view(3, 2, 2, 2, 9).permute(0, 2, 4, 1, 3).reshape(54, 4)),
        (nn.Conv2d(4, 6, 3), (1, 1, 3, 3), lambda mask: mask.view(24, 9)),
        (nn.Conv2d(4, 6, 3), (1, 4, 1), lambda mask: mask.view(6, 4, 9).transpose(1, 2).reshape(54, 4)),
        (nn.ConvTranspose1d(4, 6, 2), (1, 4), lambda mask: mask.view(4, 12).T),
        (CONV1D(6, 8), (1, 4), lambda mask: mask.view(2, 4, 6).transpose(1, 2).reshape(12, 4)),
    ],
)
@pytest.mark.parametrize("level", [0.0, 0.5, 0.75])
def test_blocks_are_active_as_a_whole(layer, blocks, pooled, level):
    mask = mask_of(copy.deepcopy(layer), level, Blocks(blocks))
    assert mask.shape == layer.weight.shape
    active = pooled(mask).float().mean(1)
    assert set(active.tolist()) <= {0.0, 1.0}
    assert active.sum() == round((1 - level) * len(active))


def test_the_number_of_blocks_is_exact_over_all_layers():
    # 28 + 15 + 6 = 49 blocks of 4, of which round(0.3 x 49) = 15 stay; by density 8.57, 4.59 and 1.84.
    net = nn.Sequential(nn.Linear(16, 7), nn.Linear(12, 5), nn.Linear(8, 3))
    masks = sparsity.sparsify(net, 0.7, "uniform", structure=Blocks((1, 4)))
    assert [layer.nonzeros // 4 for layer in masks.layers] == [8, 5, 2]
    assert masks.nonzeros == 60


def test_blocks_with_other_allocations():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    masks = sparsity.sparsify(net, 0.5, {"0": 0.25}, structure=Blocks((2, 2)))
    assert [layer.nonzeros for layer in masks.layers] == [16, 48]


def test_every_choice_of_blocks_is_equally_likely():
    seen = Counter()
    for seed in range(2000):
        mask = mask_of(nn.utils.skip_init(nn.Linear, 4, 2), 0.5, Blocks((1, 2)), seed)
        seen[tuple(mask[:, ::2].flatten().tolist())] += 1
    assert len(seen) == 6
    assert stats.chisquare(list(seen.values())).pvalue > 0.001


@pytest.mark.parametrize(
    ("level", "options", "error", "message"),
    [
        (
            0.5,
            {"structure": NM(2, 4)},
            MaskError,
            r"fit 1 weights \('0.weight': 3 inputs are no multiple of 4\).*misfits",
        ),
        (0.5, {"structure": Blocks((1, 4))}, MaskError, "does not divide its 3 inputs"),
        (0.5, {"structure": Blocks((3, 3))}, MaskError, "does not divide its 8 outputs.*8 outputs and 8 inputs"),
        (0.5, {"structure": Blocks((2, 1, 3, 3, 3))}, MaskError, "it has 4 dimensions and a block 5"),
        (0.5, {"structure": Blocks((1, 1, 2, 1))}, MaskError, "does not divide its 3 kernel positions"),
        (0.8, {"structure": NM(2, 4), "skip": "0"}, AllocationError, r"sparsity of 0.5 in every layer, but 0.8"),
        (0.5, {"structure": NM(2, 4), "skip": "0", "allocation": "er"}, AllocationError, "leave out allocation='er'"),
        (0.5, {"structure": NM(2, 4), "skip": "0", "allocation": {"1": 0.5}}, AllocationError, "leave out"),
        (0.99, {"structure": Blocks((8, 1))}, AllocationError, "of 99 blocks of 8 weights, but each of the 2 layers"),
        (0.5, {"structure": "2:4"}, MaskError, "structure is None or .* got '2:4'"),
        (0.5, {"structure": NM}, MaskError, "structure is None or"),
    ],
)
def test_bad_structures_leave_the_model_untouched(level, options, error, message):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    before = snapshot(net)
    with pytest.raises(error, match=message):
        sparsity.sparsify(net, level, **options)
    assert_unchanged(before, net)


@pytest.mark.parametrize("arguments", [(4, 2), (0, 4), (4, 4), (2.0, 4), (True, 2), (-1, 4), ("2", 4)])
def test_bad_n_and_m(arguments):
    with pytest.raises(MaskError, match="0 < n < m"):
        NM(*arguments)


@pytest.mark.parametrize("shape", [4, (4,), (1, 1), (0, 4), (1, -4), [1, 4], (1, 4.0), "14", (True, 4)])
def test_bad_shapes_of_blocks(shape):
    with pytest.raises(MaskError, match="shape of a block"):
        Blocks(shape)


def test_the_hint_of_the_error_works():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(MaskError) as caught:
        sparsity.sparsify(net, 0.5, structure=NM(2, 4))
    hint = str(caught.value).rpartition("add ")[2].partition(" to skip")[0]
    masks = sparsity.sparsify(net, 0.5, structure=NM(2, 4), skip=eval(hint))
    assert list(masks) == ["1.weight"]
    assert masks.left == {"0.weight": "skipped on request"}


def test_masks_know_their_structure():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    masks = sparsity.sparsify(net, 0.5, structure=NM(2, 4))
    expected = {"0.weight": NM(2, 4), "1.weight": NM(2, 4)}
    assert masks.structures == expected
    assert sparsity.masks_of(copy.deepcopy(net)).structures == expected
    file = io.BytesIO()
    torch.save(masks.weights["0.weight"].holder, file)
    file.seek(0)
    assert torch.load(file, weights_only=False).structure == NM(2, 4)
    assert "structure=NM(n=2, m=4)" in str(net)
    assert sparsity.sparsify(sparsity.fold(net), 0.5).structures == {}
    assert "structure" not in str(net)


def test_tied_weights_that_are_read_in_two_ways():
    # The linear layer's inputs are the rows of the other: 6 of them are no multiple of 4.
    linear, conv1d = nn.Linear(8, 6, bias=False), CONV1D(8, 6)
    conv1d.weight = linear.weight
    with pytest.raises(MaskError, match=r"'1.weight': 6 inputs"):
        sparsity.sparsify(nn.Sequential(linear, conv1d), 0.5, structure=NM(2, 4))


def test_dtype_layout_and_meta():
    conv = nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last, dtype=torch.bfloat16)
    mask = mask_of(copy.deepcopy(conv), 0.5, NM(2, 4))
    assert mask.is_contiguous(memory_format=torch.channels_last)
    plain = mask_of(nn.Conv2d(8, 4, 3), 0.5, NM(2, 4))
    assert torch.equal(mask, plain)
    with torch.device("meta"):
        meta = nn.Conv2d(8, 4, 3)
    masks = sparsity.sparsify(meta, 0.5, structure=NM(2, 4))
    assert masks["weight"].is_meta
    assert masks.nonzeros == 4 * 8 * 9 // 2


def test_a_structure_of_ones_own():
    @dataclass(frozen=True)
    class Rows(Structure):
        """Whole outputs."""

        def misfit(self, weight):
            return None

        def counts(self, shapes, sparsity, allocation):
            return {path: round((1 - sparsity) * shape[0]) * shape[1] for path, shape in shapes.items()}

        def draw(self, weight, nonzeros, generator):
            order = torch.randperm(weight.shape[0], generator=generator)
            return (order < nonzeros // weight.shape[1])[:, None].expand(weight.shape)

    mask = mask_of(nn.Linear(5, 4), 0.25, Rows())
    assert sorted(mask.sum(1).tolist()) == [0, 5, 5, 5]


def test_static_training_keeps_the_structure():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    masks = sparsity.sparsify(net, 0.5, structure=NM(2, 4))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    sparsity.static(net, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(3, 8)).square().sum().backward()
        optimizer.step()
    assert ((net[0].weight.view(8, 2, 4) != 0).sum(2) == 2).all()
    assert masks.nonzeros == masks.total // 2


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_035", "test_vit"])
def test_models_of_timm(name):
    model = timm.create_model(name, num_classes=8)
    structure = NM(2, 4)
    masks = sparsity.sparsify(model, 0.5, skip=[structure.misfits, sparsity.classifier], structure=structure)
    assert masks.nonzeros * 2 == masks.total
    for path, mask in masks.items():
        groups = mask.flatten(2) if mask.ndim > 2 else mask[..., None]
        assert (groups.unflatten(1, (-1, 4)).sum(2) == 2).all(), path
    depthwise = [p for p in masks.left if model.get_parameter(p).shape[1] == 1]
    assert bool(depthwise) == (name == "mobilenetv2_035")
