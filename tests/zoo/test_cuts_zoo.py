"""Block cuts of the zoos: which tensors carry the computation, and copied heads that are the model at every one."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import fxsplit
from tests.checks import assert_same, seeded
from tests.strategies import call
from tests.zoo.catalogue.entry import Entry
from tests.zoo.catalogue.hugging_face import transformers_entries
from tests.zoo.catalogue.vision import timm_entries, torchvision_entries

# How many tensors carry the computation after each block.
MAINS = {
    "transformers/t5": [1] * 6,
    "transformers/clip": [1] * 6,
    "transformers/canine": [1, 2, 2, 2, 1],
    "transformers/squeezebert": [1] * 3,
    "transformers/segformer": [1, 2, 3, 3, 4],
    "transformers/dpt": [1, 2, 3, 4, 1, 1, 1, 1],
    "transformers/conditional_detr": [1] * 8 + [2, 2, 1],
    "timm/crossvit_tiny_240": [2] * 3,
}
# What has one block or none: one layer that runs several times, or one convolution after another.
FEW = {"transformers/albert"}
LARGE = 60e6


@cache
def entries() -> dict[str, Entry]:
    return {str(entry): entry for entry in (*timm_entries(), *torchvision_entries(), *transformers_entries())}


def batch_of(example: Any) -> Any:
    """An example as arguments for `call`."""
    return example if isinstance(example, (dict, tuple)) else (example,)


def check_block_cuts(model: nn.Module, inputs: Any, every: int = 1, most: int | None = None) -> list[int]:
    """Split at every so many block cuts, or at so many spread evenly; how many tensors carry on at each cut."""
    with warnings.catch_warnings():
        # What a trace assumes in train mode is the matter of other tests.
        warnings.simplefilter("ignore", fxsplit.FxSplitWarning)
        traced = fxsplit.trace(model, inputs(2))
    cuts = fxsplit.find_cuts(traced)
    every = every if most is None else max(1, -(-len(cuts) // most))
    feed = batch_of(inputs(3))
    with torch.no_grad():
        expected = seeded(lambda: call(model, feed))
        for cut in cuts[::every]:
            net = fxsplit.split(traced, cut.path, heads=2, init="copy")
            assert sum(p.numel() for p in net.parameters()) == cut.params_before + 2 * cut.params_after
            for output in seeded(lambda net=net: call(net.head_outputs, feed)):
                assert_same(output, expected)
    return [sum(tensor.main for tensor in cut.crossing) for cut in cuts]


@pytest.mark.parametrize("name", MAINS)
def test_every_block_of_a_model_with_several_streams_is_a_cut(name: str) -> None:
    entry = entries()[name]
    model = entry.build()
    assert check_block_cuts(model, entry.inputs(model), every=2) == MAINS[name]


def test_hrnet_is_cut_between_its_stages() -> None:
    entry = entries()["timm/hrnet_w18_small"]
    cuts = fxsplit.find_cuts(entry.build(), torch.randn(2, 3, 64, 64))
    assert [cut.path for cut in cuts] == ["stage2", "stage3", "stage4"]
    sizes = [sorted(c.shape[-1] for c in cut.crossing if c.main and c.shape) for cut in cuts]
    assert sizes == [[8, 16], [4, 8, 16], [2, 4, 8, 16]]


def families() -> list[tuple[str, str]]:
    found = (*timm_entries(), *torchvision_entries())
    return sorted({(entry.zoo, entry.family) for entry in found})


def smallest(zoo: str, family: str) -> tuple[int, str]:
    """Parameters and name of the smallest model of a family."""
    sizes = []
    for name, entry in entries().items():
        if (entry.zoo, entry.family) == (zoo, family):
            with torch.device("meta"):
                sizes.append((sum(p.numel() for p in entry.build().parameters()), name))
    return min(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", [str(entry) for entry in transformers_entries()])
def test_transformers(name: str) -> None:
    entry = entries()[name]
    model = entry.build()
    assert len(check_block_cuts(model, entry.inputs(model))) > 1 or name in FEW


@pytest.mark.slow
@pytest.mark.parametrize(("zoo", "family"), families())
def test_the_smallest_model_of_every_family(zoo: str, family: str) -> None:
    size, name = smallest(zoo, family)
    if size > LARGE:
        pytest.skip(f"{name} has {size / 1e6:.0f}M parameters; benchmarks.coverage has it")
    entry = entries()[name]
    model = entry.build()
    assert len(check_block_cuts(model, entry.inputs(model), most=6)) > 1
