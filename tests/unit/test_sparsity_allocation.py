# Tests read weights of layers and fields that may be None, which pyright cannot know to be there.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOptionalOperand=false

from __future__ import annotations

import math

import pytest
import torch
import torchvision

from sparsity import AllocationError, SparsityError, allocate, er, erk, uniform


def bisected(shapes: dict[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """ERK by another road: search the one scale at which the clipped densities meet the budget."""
    scores = {path: sum(shape) / math.prod(shape) for path, shape in shapes.items()}
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    low, high = 0.0, 1 / min(scores.values())
    for _ in range(200):
        scale = (low + high) / 2
        held = sum(min(1.0, scale * scores[path]) * sizes[path] for path in shapes)
        low, high = (scale, high) if held < density * sum(sizes.values()) else (low, scale)
    return {path: min(1.0, high * scores[path]) for path in shapes}


def resnet50() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        net = torchvision.models.resnet50()
    return {name: tuple(p.shape) for name, p in net.named_parameters() if p.ndim >= 2}


SHAPES = [
    {"a": (10, 20), "b": (300, 100), "c": (5, 300)},
    {"conv1": (16, 3, 3, 3), "conv2": (64, 16, 3, 3), "conv3": (64, 64, 1, 1), "fc": (10, 64)},
    {"only": (7, 9)},
    {"one": (1, 1), "depthwise": (32, 1, 3, 3), "volume": (8, 4, 3, 3, 3), "sequence": (8, 4, 5)},
]


@pytest.mark.parametrize("shapes", [*SHAPES, resnet50()], ids=lambda s: next(iter(s)) + str(len(s)))
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9, 0.999])
def test_erk_equals_bisection(shapes, density):
    expected = bisected(shapes, density)
    assert erk(shapes, density) == pytest.approx(expected, rel=1e-9)


def test_erk_by_hand():
    # Scores: a (2+3)/6, b (6+5)/30. Scale e with 6 e 5/6 + 30 e 11/30 = 16 e = 8, so e = 1/2.
    assert erk({"a": (2, 3), "b": (6, 5)}, 8 / 36) == pytest.approx({"a": 5 / 12, "b": 11 / 60})
    # At 20 of 36 the scale is 5/4: a would get 25/24, so it is dense and b holds the other 14.
    assert erk({"a": (2, 3), "b": (6, 5)}, 20 / 36) == pytest.approx({"a": 1.0, "b": 14 / 30})


def test_saturation_cascades():
    # Budget 22 of 30. First scale 22 / (2 + 4 + 10) = 1.375 saturates a (score 2) and b (score 1), leaving c
    # 22 - 1 - 4 = 17 of 25.
    shapes = {"a": (1, 1), "b": (2, 2), "c": (5, 5)}
    assert erk(shapes, 22 / 30) == pytest.approx({"a": 1.0, "b": 1.0, "c": 17 / 25})


def test_er_ignores_the_kernel_and_erk_does_not():
    shapes = {"conv": (4, 8, 3, 3), "fc": (10, 10)}
    # er: conv 12/32, fc 20/100; sum of score * size = 108 + 20. erk: conv 18/288, fc 20/100; 18 + 20.
    assert er(shapes, 64 / 388) == pytest.approx({"conv": 0.1875, "fc": 0.1})
    assert erk(shapes, 19 / 388) == pytest.approx({"conv": 18 / 288 / 2, "fc": 0.1})
    assert er({"a": (4, 5), "b": (6, 7)}, 0.3) == pytest.approx(erk({"a": (4, 5), "b": (6, 7)}, 0.3))


def test_uniform():
    assert uniform({"a": (2, 2), "b": (5, 5)}, 0.4) == {"a": 0.4, "b": 0.4}


def test_resnet50_costs_what_rigl_reports():
    """0.42 and 0.24 of the dense FLOPs at S=.8 and .9 with ERK, in the table of RigL's paper (Evci et al. 2020)."""
    with torch.device("meta"):
        net = torchvision.models.resnet50()
        flops: dict[str, int] = {}
        for name, module in net.named_modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):

                def count(module, _, output, name=name):
                    flops[f"{name}.weight"] = output.numel() // output.shape[1] * module.weight.numel()

                module.register_forward_hook(count)
        net(torch.zeros(1, 3, 224, 224))
    shapes = resnet50()
    for sparsity, share in ((0.8, 0.42), (0.9, 0.24)):
        counts = allocate(shapes, sparsity)
        sparse = sum(flops[path] * counts[path] / math.prod(shapes[path]) for path in shapes)
        assert sparse / sum(flops.values()) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("shapes", [*SHAPES, resnet50()], ids=lambda s: next(iter(s)) + str(len(s)))
@pytest.mark.parametrize("allocation", ["erk", "er", "uniform"])
@pytest.mark.parametrize("sparsity", [0, 0.1, 0.5, 0.77])
def test_counts_add_up_and_stay_next_to_their_quota(shapes, allocation, sparsity):
    counts = allocate(shapes, sparsity, allocation)
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    total = round((1 - sparsity) * sum(sizes.values()))
    assert sum(counts.values()) == total
    densities = {"erk": erk, "er": er, "uniform": uniform}[allocation](shapes, total / sum(sizes.values()))
    for path, count in counts.items():
        assert 1 <= count <= sizes[path]
        assert abs(count - densities[path] * sizes[path]) < 1 + 1e-6


def test_largest_remainder_by_hand():
    # Quotas at density 7/16: 3.0625, 1.75, 2.1875; floors 3, 1, 2; the one missing goes to the largest remainder.
    assert allocate({"a": (7, 1), "b": (2, 2), "c": (5, 1)}, 9 / 16, "uniform") == {"a": 3, "b": 2, "c": 2}


def test_every_layer_keeps_a_weight():
    # Quotas at density 0.04: 4.0, 0.04, 0.04; the two ones come out of the large layer.
    assert allocate({"big": (10, 10), "s": (1, 1), "t": (1, 1)}, 1 - 4.08 / 102, "uniform") == {
        "big": 2,
        "s": 1,
        "t": 1,
    }


def test_dict_fixes_some_layers_and_the_rest_shares():
    shapes = {"stem.weight": (4, 5), "heads.0.fc.weight": (10, 4), "heads.1.fc.weight": (10, 4)}
    assert allocate(shapes, 0.5, {"stem": 1.0}) == {"stem.weight": 20, "heads.0.fc.weight": 15, "heads.1.fc.weight": 15}
    assert allocate(shapes, 0.7, {"heads.*.fc": 0.25}) == {
        "stem.weight": 10,
        "heads.0.fc.weight": 10,
        "heads.1.fc.weight": 10,
    }
    assert allocate(shapes, 0.8, {"stem.weight": 0.1, "heads": 0.225})["heads.1.fc.weight"] == 9


def test_callable_gets_shapes_and_density():
    seen = {}

    def half_and_rest(shapes, density):
        seen.update(shapes=dict(shapes), density=density)
        return {"a": 0.5, "b": 0.25}

    assert allocate({"a": (4, 2), "b": (4, 4)}, 2 / 3, half_and_rest) == {"a": 4, "b": 4}
    assert seen == {"shapes": {"a": (4, 2), "b": (4, 4)}, "density": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    "sparsity", [1, 1.0, -0.1, 80, math.nan, math.inf, True, False, "0.8", None, torch.tensor(0.5)]
)
def test_bad_sparsity(sparsity):
    with pytest.raises(AllocationError, match=r"in \[0, 1\)"):
        allocate({"a": (4, 4)}, sparsity)


def test_percentage_is_pointed_out():
    with pytest.raises(AllocationError, match="divided by 100"):
        allocate({"a": (4, 4)}, 80)


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        ("ekr", "Did you mean 'er' or 'erk'"),
        (3, "got 3 of type int"),
        ({"convv": 0.5}, "Did you mean 'conv.weight'"),
        ({"conv": 0.5, "conv.weight": 0.5}, "twice"),
        ({"conv": 0.0}, r"in \(0, 1\]"),
        ({"conv": 1.5}, r"in \(0, 1\]"),
        ({"conv": math.nan}, r"in \(0, 1\]"),
        ({"conv": "half"}, r"in \(0, 1\]"),
        ({"conv": 1.0}, "take 40 of 28 active weights"),
        ({"conv": 0.01}, "can hold 1 to 16"),
        ({"conv": 0.9, "fc": 0.9}, "a sparsity of 0.100000"),
        (lambda shapes, density: {"conv.weight": 0.5}, "each of the weights"),
        (lambda shapes, density: None, "got None"),
        (lambda shapes, density: dict.fromkeys(shapes, 2.0), r"in \(0, 1\]"),
    ],
)
def test_bad_allocation(allocation, message):
    with pytest.raises(AllocationError, match=message):
        allocate({"conv.weight": (4, 10), "fc.weight": (4, 4)}, 0.5, allocation)


def test_more_layers_than_nonzeros():
    with pytest.raises(AllocationError, match=r"at most 0\.875"):
        allocate({"a": (8, 1), "b": (8, 1)}, 0.95)


def test_errors_are_value_errors():
    assert issubclass(AllocationError, SparsityError)
    assert issubclass(AllocationError, ValueError)
