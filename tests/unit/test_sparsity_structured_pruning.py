"""Pruning in patterns: the best weights of each group, the best blocks of each layer, against a search by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import sparsity
from sparsity import NM, AllocationError, Blocks, MaskError, Structure
from sparsity._structure import Geometry, Unstructured


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def test_two_of_four_by_hand() -> None:
    net = nn.Linear(8, 2, bias=False)
    values = torch.tensor([[1.0, -4.0, 2.0, 3.0, 0.0, 0.0, 0.0, 5.0], [1.0, 1.0, -1.0, 1.0, -9.0, 8.0, 7.0, 6.0]])
    with torch.no_grad():
        net.weight.copy_(values)
    masks = sparsity.prune(net, 0.5, structure=NM(2, 4))
    # Of equal ones the first.
    expected = [[0, 1, 0, 1, 1, 0, 0, 1], [1, 1, 0, 0, 1, 1, 0, 0]]
    assert masks["weight"].int().tolist() == expected
    assert torch.equal(net.weight, values * torch.tensor(expected))
    assert masks.structures == {"weight": NM(2, 4)}


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (nn.Conv2d(8, 3, 3), 1),
        (nn.Conv2d(16, 4, 1, groups=2), 1),
        (nn.ConvTranspose2d(8, 3, 2), 0),
        (nn.Linear(12, 5), 1),
    ],
)
def test_groups_keep_the_largest_sum(module: nn.Module, inputs: int) -> None:
    weight = filled(module).weight.detach().clone()  # pyright: ignore
    mask = sparsity.prune(module, 0.75, structure=NM(1, 4))["weight"]
    groups = weight.abs().movedim(inputs, -1).reshape(-1, 4)
    kept = mask.movedim(inputs, -1).reshape(-1, 4)
    assert (kept.sum(1) == 1).all()
    assert torch.equal(groups[kept], groups.max(1).values)


def test_blocks_keep_the_largest_sum_of_any_choice() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Conv2d(2, 4, 2))
    weights = [filled(net[0]).weight.detach().clone(), filled(net[1], 1).weight.detach().clone()]  # pyright: ignore
    masks = sparsity.prune(net, 0.5, structure=Blocks((2, 2)))
    for weight, (path, mask) in zip(weights, masks.items(), strict=True):
        blocks = weight.abs().unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).sum((1, 3)).flatten()
        best = max(sum(choice) for choice in itertools.combinations(blocks.tolist(), len(blocks) // 2))
        assert mask.sum() == mask.numel() // 2, path
        assert (weight.abs() * mask).sum().item() == pytest.approx(best)
        assert set(mask.unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).sum((1, 3)).flatten().tolist()) == {0, 4}


def test_a_score_of_ones_own_and_single_weights() -> None:
    net = nn.Linear(8, 4, bias=False)
    weight = filled(net).weight.detach().clone()  # pyright: ignore
    mask = sparsity.prune(net, 0.5, lambda layer: layer.weight, structure=NM(2, 4))["weight"]
    lowest = weight.view(4, 2, 4).sort().values[..., 2]
    assert torch.equal(mask.view(4, 2, 4), weight.view(4, 2, 4) >= lowest[..., None])
    single = Unstructured().best(Geometry((4, 8), 1, 8), 5, weight)
    assert torch.equal(single, weight >= weight.flatten().sort().values[-5])


def test_trained_on_with_fixed_masks() -> None:
    net = filled(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)))
    masks = sparsity.prune(net, 0.5, structure=NM(2, 4))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    engine = sparsity.static(net, optimizer)
    net(torch.ones(3, 8)).square().mean().backward()
    optimizer.step()
    assert engine.step == 1
    for path, weight in masks.weights.items():
        assert not weight.parameter[~masks[path]].any()
    engine.detach()
    with pytest.raises(MaskError, match="have a structure, which pruning single weights would break"):
        sparsity.prune(net, 0.8)


class Odd(Structure):
    def misfit(self, weight: Geometry) -> str | None:
        return None

    def counts(self, shapes: sparsity.Shapes, sparsity: float, allocation: sparsity.Allocation) -> dict[str, int]:  # pyright: ignore
        return dict.fromkeys(shapes, 2)

    def draw(self, weight: Geometry, nonzeros: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(weight.shape, dtype=torch.bool)

    def __str__(self) -> str:
        return "Odd()"


def test_what_cannot_be_leaves_the_model_as_it_was() -> None:
    net = filled(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)))
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def nan(layer: sparsity.Layer) -> Tensor:
        return layer.weight * (torch.nan if layer.path == "1.weight" else 1)

    taylor = sparsity.drop.taylor
    wrong: list[tuple[type[Exception], str, dict[str, object]]] = [
        (MaskError, "does not fit 1 weights .*6 inputs are no multiple of 4", {"structure": NM(2, 4)}),
        (AllocationError, "sparsity of 0.5 in every layer", {"sparsity": 0.7, "structure": NM(2, 4), "skip": ["1"]}),
        (MaskError, "structure is None or a structure", {"structure": "2:4"}),
        (MaskError, "'1.weight' is NaN", {"score": nan, "structure": Blocks((2, 2))}),
        (sparsity.EngineError, "gradient of '0.weight' is needed", {"score": taylor, "structure": NM(1, 2)}),
        (MaskError, r"Odd\(\) has no method best", {"structure": Odd()}),
    ]
    for kind, message, options in wrong:
        with pytest.raises(kind, match=message):
            sparsity.prune(net, **{"sparsity": 0.5, **options})  # pyright: ignore
        assert {name: value.tolist() for name, value in net.state_dict().items()} == {
            name: value.tolist() for name, value in before.items()
        }
    sparsity.sparsify(net, 0.5)
    with pytest.raises(MaskError, match="has masks already"):
        sparsity.prune(net, 0.5, structure=NM(1, 2))
    with pytest.raises(MaskError, match="on the meta device"):
        sparsity.prune(nn.Linear(8, 4, device="meta"), 0.5, structure=NM(1, 2))
