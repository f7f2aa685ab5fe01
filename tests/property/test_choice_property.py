"""What holds for masks of any choice, allocation per component and structure, on random architectures and splits."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import fxsplit
import sparsity
from sparsity import NM, Blocks, SparsityError, Structure
from tests.checks import assert_unchanged, generators, snapshot
from tests.strategies import Case, cases, holds_for, split_cases

SPLIT_PATHS = ("trunk.a", "trunk.b.c", "heads.0.a", "heads.0.b", "heads.1.a", "heads.10.a", "other", "trunkless.a")
names = st.sampled_from(["erk", "er", "uniform"])
shapes = st.dictionaries(
    st.sampled_from(SPLIT_PATHS),
    st.one_of(
        st.tuples(st.integers(1, 30), st.integers(1, 30)),
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
)


@holds_for(shapes=shapes, level=st.floats(0, 0.95), name=names, block=st.sampled_from([1, 1, 2, 4]))
def test_each_component_meets_the_density(
    shapes: dict[str, tuple[int, ...]], level: float, name: str, block: int
) -> None:
    shapes = {path: (shape[0] * block, *shape[1:]) for path, shape in shapes.items()}
    sizes = {path: math.prod(shape) // block for path, shape in shapes.items()}
    total = round((1 - level) * sum(sizes.values()))
    try:
        counts = sparsity.allocate(shapes, level, sparsity.per_component(name), block)
    except sparsity.AllocationError:
        parts = sparsity.by_component(sizes)
        layers = sparsity.by_component(dict.fromkeys(sizes, 1))
        # Refused only if a component may have had to hold fewer than its layers.
        assert any(total * size / sum(sizes.values()) < layers[part] + 1 for part, size in parts.items())
        return
    assert list(counts) == list(shapes)
    assert all(count % block == 0 and block <= count <= sizes[path] * block for path, count in counts.items())
    assert sum(counts.values()) == block * total
    parts = sparsity.by_component(sizes)
    quotas = {part: total * size / sum(sizes.values()) for part, size in parts.items()}
    held = {part: count // block for part, count in sparsity.by_component(counts).items()}
    # Largest remainder, but for components so small that one weight was granted to them.
    if all(quota >= 1 for quota in quotas.values()):
        assert all(abs(held[part] - quota) < 1 for part, quota in quotas.items())
    for part in parts:
        inner = {path: shape for path, shape in shapes.items() if sparsity.by_component({path: 1}) == {part: 1}}
        alone = sparsity.allocate(inner, 1 - held[part] / parts[part], name, block)
        assert {path: counts[path] for path in inner} == alone


@holds_for(case=split_cases(max_blocks=2), level=st.floats(0.1, 0.8), name=names)
def test_split_models(case: tuple[Case, str], level: float, name: str) -> None:
    made, at = case
    net = fxsplit.split(fxsplit.trace(made.build(), made.example()), at, heads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sparsity.SparsityWarning)
        try:
            masks = sparsity.sparsify(net, level, sparsity.per_component(name), skip=sparsity.classifier)
        except sparsity.AllocationError:
            hypothesis.reject()
    if not masks:
        return
    assert masks.nonzeros == round((1 - level) * masks.total)
    totals = sparsity.by_component({layer.path: layer.total for layer in masks.layers})
    held = sparsity.by_component({layer.path: layer.nonzeros for layer in masks.layers})
    for part, size in totals.items():
        assert abs(held[part] - masks.nonzeros * size / masks.total) <= 1
    skipped = [path for path, reason in masks.left.items() if reason == "skipped on request"]
    assert sparsity.by_component(dict.fromkeys(skipped, 1)) in ({"heads.0": 1, "heads.1": 1}, {})


@holds_for(case=cases(max_blocks=3), level=st.floats(0.1, 0.8))
def test_every_weight_is_included_or_told_of(case: Case, level: float) -> None:
    net = case.build()
    try:
        masks = sparsity.sparsify(net, level, include=sparsity.embeddings)
    except sparsity.AllocationError:
        hypothesis.reject()
    except sparsity.NoEffectWarning:
        return  # no embedding in this one
    assert not any(reason.startswith("tied") and "Embedding" in reason for reason in masks.left.values())
    inside = {path for path, module in net.named_modules() if isinstance(module, nn.Embedding)}
    assert all(f"{path}.weight" in masks for path in inside)
    assert masks.nonzeros == round((1 - level) * masks.total)
    folded = sparsity.fold(copy.deepcopy(net))
    original = case.build()
    assert [name for name, _ in folded.named_parameters()] == [name for name, _ in original.named_parameters()]
    assert [id(p) for p in masks_parameters(masks)] == [id(p) for p in dict.fromkeys(masks_parameters(masks))]


def masks_parameters(masks: sparsity.Masks) -> list[nn.Parameter]:
    return [weight.parameter for weight in masks.weights.values()]


layers = st.sampled_from(
    [
        lambda i, o: nn.Linear(i, o),
        lambda i, o: nn.Conv2d(i, o, 3),
        lambda i, o: nn.ConvTranspose1d(i, o, 2),
        lambda i, o: nn.Conv1d(2 * i, 2 * o, 2, groups=2),
        lambda i, o: nn.ConvTranspose2d(2 * i, 2 * o, 1, groups=2),
    ]
)
structures = st.one_of(
    st.tuples(st.integers(1, 7), st.integers(2, 8)).filter(lambda nm: nm[0] < nm[1]).map(lambda nm: NM(*nm)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda rc: rc != (1, 1)).map(Blocks),
)


def in_groups(mask: Tensor, module: nn.Module, structure: Structure) -> Tensor:
    """The mask's units of the structure as rows, by moving the windows over it one at a time."""
    transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d))
    plane = mask.transpose(0, 1) if transposed else mask
    rows, columns = (1, structure.m) if isinstance(structure, NM) else structure.shape  # pyright: ignore
    units = [
        plane[r : r + rows, c : c + columns].flatten(2).permute(2, 0, 1).flatten(1)
        if plane.ndim > 2
        else plane[r : r + rows, c : c + columns].reshape(1, -1)
        for r in range(0, plane.shape[0], rows)
        for c in range(0, plane.shape[1], columns)
    ]
    return torch.cat(units)


@holds_for(
    make=st.lists(layers, min_size=1, max_size=3),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    structure=structures,
    level=st.floats(0, 0.9),
    seed=st.integers(0, 9),
)
def test_structures(make: list[Any], sizes: tuple[int, int], structure: Any, level: float, seed: int) -> None:
    net = nn.Sequential(*(layer(*sizes) for layer in make))
    level = 1 - structure.n / structure.m if isinstance(structure, NM) else level
    before, state = snapshot(net), generators()
    if any(structure.misfits("", module, module.get_parameter("weight")) for module in net):
        with pytest.raises(SparsityError, match="does not fit"):
            sparsity.sparsify(net, level, seed=seed, structure=structure)
        assert_unchanged(before, net)
        return
    try:
        masks = sparsity.sparsify(net, level, seed=seed, structure=structure)
    except sparsity.AllocationError:
        assert_unchanged(before, net)
        hypothesis.reject()
    assert generators() == state
    assert masks.structures == dict.fromkeys(masks, structure)
    active = [in_groups(masks[f"{i}.weight"], module, structure).sum(1) for i, module in enumerate(net)]
    if isinstance(structure, NM):
        assert all((each == structure.n).all() for each in active)
        return
    assert set(torch.cat(active).tolist()) <= {0, structure.size}
    blocks = masks.total // structure.size
    assert masks.nonzeros == structure.size * round((1 - level) * blocks)
