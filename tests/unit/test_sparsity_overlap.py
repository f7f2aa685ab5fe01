"""Overlap of masks, by hand and against masks drawn at random."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxsplit
import sparsity
from sparsity import MaskError, overlap, overlap_of


def bits(text: str) -> torch.Tensor:
    return torch.tensor([char == "1" for char in text])


def test_two_layers_of_three_heads_by_hand():
    found = overlap(
        {
            "trunk.a": bits("11110000"),
            "heads.0.a": bits("11110000"),
            "heads.1.a": bits("11000000"),
            "heads.2.a": bits("00001111"),
            "heads.0.b": bits("1100"),
            "heads.1.b": bits("0110"),
            "heads.2.b": bits("1111"),
        }
    )
    assert found.names == ("heads.0", "heads.1", "heads.2")
    first, second = found.layers
    assert (first.path, first.size, second.path, second.size) == ("a", 8, "b", 4)
    assert first.common.tolist() == [[4, 2, 0], [2, 2, 0], [0, 0, 4]]
    assert first.expected.tolist() == [[4, 1, 2], [1, 2, 1], [2, 1, 4]]
    assert first.jaccard.tolist() == [[1, 1 / 2, 0], [1 / 2, 1, 0], [0, 0, 1]]
    assert first.expected_jaccard.tolist() == [[1, 1 / 5, 1 / 3], [1 / 5, 1, 1 / 5], [1 / 3, 1 / 5, 1]]
    # Which share of row i's weights is active in column j.
    assert first.share.tolist() == [[1, 1 / 2, 0], [1, 1, 0], [0, 0, 1]]
    assert first.expected_share.tolist() == [[1, 1 / 4, 1 / 2], [1 / 2, 1, 1 / 2], [1 / 2, 1 / 4, 1]]
    # 4 x 2 of 8: variance 4 x 2 x 4 x 6 / (64 x 7).
    assert first.variance[0, 1].item() == pytest.approx(3 / 7)
    assert first.deviation[0, 1].item() == pytest.approx((2 - 1) / (3 / 7) ** 0.5)
    assert found.total.common.tolist() == [[6, 3, 2], [3, 4, 2], [2, 2, 8]]
    assert found.total.expected.tolist() == [[6, 2, 4], [2, 4, 3], [4, 3, 8]]
    assert found.total.jaccard[0].tolist() == [1, 3 / 7, 2 / 12]
    assert found.total.size == 12
    assert found.left == {}


def test_chance_is_what_random_masks_do():
    generator = torch.Generator().manual_seed(0)
    size, many, few = 60, 24, 15

    def draw(count: int) -> torch.Tensor:
        mask = torch.zeros(size, dtype=torch.bool)
        mask[torch.randperm(size, generator=generator)[:count]] = True
        return mask

    found = [overlap_of({"a": {"w": draw(many)}, "b": {"w": draw(few)}}).total for _ in range(2000)]
    common = torch.tensor([each.common[0, 1] for each in found]).double()
    assert common.mean().item() == pytest.approx(found[0].expected[0, 1].item(), rel=0.02)
    assert common.var().item() == pytest.approx(found[0].variance[0, 1].item(), rel=0.1)
    within = torch.tensor([each.deviation[0, 1].abs() < 2 for each in found]).double().mean()
    assert 0.9 < within < 1


def test_equal_and_disjoint_and_dense_and_empty_masks():
    half, other = bits("1100"), bits("0011")
    groups = {
        "a": {"equal": half, "disjoint": half, "dense": bits("1111"), "empty": bits("0000")},
        "b": {"equal": half, "disjoint": other, "dense": bits("1111"), "empty": bits("0000")},
    }
    equal, disjoint, dense, empty = overlap_of(groups).layers
    assert (equal.jaccard[0, 1], disjoint.jaccard[0, 1], dense.jaccard[0, 1]) == (1, 0, 1)
    assert dense.expected_jaccard[0, 1] == 1
    assert dense.deviation.isnan().all()
    assert empty.jaccard.isnan().all()
    assert overlap_of(groups).total.common.tolist() == [[8, 6], [6, 8]]


def test_a_single_weight():
    found = overlap_of({"a": {"w": bits("1")}, "b": {"w": bits("0")}}).total
    assert (found.common[0, 1], found.expected[0, 1], found.variance[0, 1]) == (0, 0, 0)


def test_split_model_with_a_shared_module():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    net = fxsplit.split(fxsplit.trace(model, torch.randn(2, 6)), "0", heads=3, share=["4"])
    masks = sparsity.sparsify(net, 0.5)
    found = overlap(masks)
    assert [each.path for each in found.layers] == ["2.weight"]
    assert found.left == {"4.weight": "only in heads.0"}
    first, second = masks["heads.0.2.weight"], masks["heads.1.2.weight"]
    assert found.total.common[0, 1] == (first & second).sum()
    assert found.total.jaccard[0, 1] == (first & second).sum().double() / (first | second).sum()
    assert found.total.common.dtype == torch.int64


def test_heads_are_in_order_of_their_number():
    masks = {f"heads.{i}.w": bits("1" * (i + 1) + "0" * (11 - i)) for i in (10, 2, 0)}
    assert overlap(masks).names == ("heads.0", "heads.2", "heads.10")
    assert overlap(masks).total.common.diagonal().tolist() == [1, 3, 11]


def test_one_network_at_two_times():
    net = nn.Linear(8, 4)
    masks = sparsity.sparsify(net, 0.5)
    before = {path: mask.clone() for path, mask in masks.items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.set_(net, optimizer, every=1, fraction=0.25, until=None)
    for _ in range(2):
        net(torch.randn(5, 8)).square().mean().backward()
        optimizer.step()
    assert engine.last is not None
    assert overlap_of({"before": before, "after": masks}).total.common.tolist() == [[16, 12], [12, 16]]


def test_what_cannot_be_compared():
    with pytest.raises(MaskError, match=r"paths heads.<i>.<name>; got 1 among 'heads\.0\.w', 'trunk\.w'.*overlap_of"):
        overlap({"heads.0.w": bits("10"), "trunk.w": bits("10")})
    with pytest.raises(MaskError, match="got 0 among no masks"):
        overlap({})
    with pytest.raises(MaskError, match="in common are compared, got 2: 'a', 'b'"):
        overlap_of({"a": {"v": bits("10")}, "b": {"w": bits("10")}})
    with pytest.raises(MaskError, match="got 1: 'a'"):
        overlap_of({"a": {"v": bits("10")}})
    with pytest.raises(MaskError, match=r"masks of 'w' have different shapes: .*'b': \(3,\)"):
        overlap_of({"a": {"w": bits("10")}, "b": {"w": bits("101")}})


def test_shows_itself():
    found = overlap_of({"a": {"w": bits("1100"), "x": bits("1")}, "b": {"w": bits("1010")}})
    assert str(found).splitlines() == [
        "Jaccard index of the masks, in parentheses that of independent random masks of these densities",
        "               a              b",
        "a                 0.333 (0.333)",
        "b  0.333 (0.333)",
        "",
        "layer       weights  density  mean Jaccard  by chance  deviations",
        "w                 4   0.5000         0.333      0.333        +0.0",
        "all layers        4   0.5000         0.333      0.333        +0.0",
        "",
        "left out: x: only in a",
    ]
    assert found._repr_html_().count("<tr>") == 3 + 3
