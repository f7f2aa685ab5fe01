# pyright: reportArgumentType=false

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fxsplit
import sparsity
from sparsity import AllocationError, allocate, by_component, per_component

SHAPES = {
    "trunk.a.weight": (10, 10),
    "trunk.b.weight": (4, 5),
    "heads.0.fc.weight": (3, 10),
    "heads.1.fc.weight": (3, 10),
}


def test_erk_in_each_component_by_hand():
    # Trunk: 0.3 x 120 = 36, scores times sizes 20 and 9: 36 x 20/29 = 24.8, and 11.2. Heads: 9 each.
    assert allocate(SHAPES, 0.7, per_component("erk")) == {
        "trunk.a.weight": 25,
        "trunk.b.weight": 11,
        "heads.0.fc.weight": 9,
        "heads.1.fc.weight": 9,
    }


def test_components_round_by_largest_remainder():
    # 0.35 x 180 = 63: trunk 42.0, heads 10.5 each; the one that is missing goes to the first.
    assert by_component(allocate(SHAPES, 0.65, per_component())) == {"trunk": 42, "heads.0": 11, "heads.1": 10}


def test_saturating_layers():
    # Trunk: 0.85 x 120 = 102 of scores 20 and 9: 102 x 9/29 = 31.7 is more than the 20 of b, so a holds 82.
    assert allocate(SHAPES, 0.15, per_component("erk"))["trunk.a.weight"] == 82
    assert allocate(SHAPES, 0.15, per_component("erk"))["trunk.b.weight"] == 20
    assert allocate(SHAPES, 0, per_component("er")) == {path: math.prod(shape) for path, shape in SHAPES.items()}


def test_dict_within_components():
    counts = allocate(SHAPES, 0.5, per_component({"trunk.b": 0.25, "heads.*.fc": 0.5}))
    assert counts == {"trunk.a.weight": 55, "trunk.b.weight": 5, "heads.0.fc.weight": 15, "heads.1.fc.weight": 15}


def test_callable_is_called_for_each_component():
    seen = []

    def own(shapes, density):
        seen.append((tuple(shapes), density))
        return sparsity.uniform(shapes, density)

    allocate(SHAPES, 0.5, per_component(own))
    assert seen == [
        (("trunk.a.weight", "trunk.b.weight"), 0.5),
        (("heads.0.fc.weight",), 0.5),
        (("heads.1.fc.weight",), 0.5),
    ]


def test_it_is_an_allocation_callable_itself():
    densities = per_component("erk")(SHAPES, 0.3)
    assert densities["trunk.a.weight"] == 25 / 100
    assert allocate(SHAPES, 0.7, lambda shapes, density: densities) == allocate(SHAPES, 0.7, per_component("erk"))


def test_a_net_without_components_is_one():
    shapes = {"a": (10, 10), "b": (4, 5)}
    for name in ("erk", "er", "uniform"):
        assert allocate(shapes, 0.7, per_component(name)) == allocate(shapes, 0.7, name)


def test_blocks():
    # 33 of 90 blocks of 2: trunk 22, heads 5.5 each.
    counts = by_component(allocate(SHAPES, 0.63, per_component("uniform"), block=2))
    assert counts == {"trunk": 44, "heads.0": 12, "heads.1": 10}


@pytest.mark.parametrize(("block", "message"), [(3, "'trunk.b.weight' are no multiples"), (0, "got 0")])
def test_bad_blocks(block, message):
    with pytest.raises(AllocationError, match=message):
        allocate(SHAPES, 0.5, block=block)


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        (lambda: per_component("ekr"), "Did you mean 'er' or 'erk'"),
        (lambda: per_component(3), "got 3 of type int"),
        (lambda: per_component({"trunkk": 0.5}), "names 'trunkk'"),
        (lambda: per_component({"trunk.b": 2.0}), r"in \(0, 1\]"),
        (lambda: per_component({"heads.0.fc": 0.9}), r"In the component 'heads.0': These densities amount to 27 of 30"),
        (lambda: per_component(lambda shapes, density: {}), "In the component 'trunk': The allocation callable"),
    ],
)
def test_bad_allocations(allocation, message):
    with pytest.raises(AllocationError, match=message):
        allocate(SHAPES, 0.5, allocation())


def test_a_component_that_is_too_small():
    shapes = {"trunk.a": (20, 20), "heads.0.a": (2, 2), "heads.0.b": (2, 2)}
    assert by_component(allocate(shapes, 0.9))["heads.0"] >= 2
    with pytest.raises(AllocationError, match=r"component 'heads.0' is 1 of its 8 weights, but each of its 2 layers"):
        allocate(shapes, 0.9, per_component())


def test_a_split_model():
    model = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3))
    net = fxsplit.split(fxsplit.trace(model, torch.zeros(2, 7)), "1", heads=3)
    masks = sparsity.sparsify(net, 0.6, per_component("erk"))
    total, active = by_component({e.path: e.total for e in masks.layers}), by_component(masks._counts())
    assert masks.nonzeros == round(0.4 * masks.total)
    assert total == {"trunk": 63, "heads.0": 60, "heads.1": 60, "heads.2": 60}
    # 97 of 243: 25.1, 23.95 thrice.
    assert active == {"trunk": 25, "heads.0": 24, "heads.1": 24, "heads.2": 24}
