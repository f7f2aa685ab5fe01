"""Published and recomputed sizes to their printed digits, and small cases by hand."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrize

import fxsplit
import sparsity
from fxsplit._errors import FxSplitError
from fxsplit._summary._totals import Summary, summary
from recipes.wide_resnet import WRN


class Block(nn.Module):
    """40 weights, 9 biases; at 7 positions 2 x 7 x 40 = 560 FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 5)
        self.down = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Small(nn.Module):
    """Two blocks, and an output of 12 weights and 3 biases at one position, 24 FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.blocks(x).mean(1))


X = torch.zeros(2, 7, 4)


def small(heads: int = 2, **options) -> fxsplit.SplitModel:
    return fxsplit.split(fxsplit.trace(Small(), X), "blocks.0", heads=heads, **options)


def quarter(shape: tuple[int, ...]) -> torch.Tensor:
    """A mask whose first quarter is active."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[: mask.numel() // 4] = True
    return mask


def test_a_dense_single_model_by_hand() -> None:
    sizes = summary(fxsplit.trace(Small(), X))
    assert sizes.heads == 0
    assert sizes.total.params == sizes.total.nonzeros == 2 * 49 + 15
    assert sizes.total.flops == sizes.total.flops_masked == 2 * 560 + 24
    assert sizes.total.maskable == 2 * 40 + 12
    assert [(row.component, row.path, row.is_block, row.cost.params) for row in sizes.rows] == [
        ("model", "blocks.0", True, 49),
        ("model", "blocks.1", True, 49),
        ("model", "out", False, 15),
    ]
    assert sizes.rows[0].shape == (2, 7, 4)
    assert (sizes.parameter_ratio, sizes.dense_flops_ratio, sizes.masked_flops_ratio) == (1, 1, 1)
    assert summary(Small(), example=X) == sizes


def test_a_split_model_by_hand() -> None:
    sizes = summary(small())
    assert sizes.heads == 2
    assert {part: (cost.params, cost.flops) for part, cost in sizes.parts.items() if part != "vote"} == {
        "trunk": (49, 560),
        "heads.0": (64, 584),
        "heads.1": (64, 584),
    }
    assert (sizes.total.params, sizes.total.flops) == (49 + 2 * 64, 560 + 2 * 584)
    assert (sizes.single.params, sizes.single.flops) == (113, 1144)
    assert sizes.parameter_ratio == 177 / 113
    assert sizes.dense_flops_ratio == sizes.uniform_flops_ratio == sizes.masked_flops_ratio == 1728 / 1144
    assert [(row.component, row.path) for row in sizes.rows if row.component != "vote"] == [
        ("trunk", "blocks.0"),
        ("heads.0", "blocks.1"),
        ("heads.0", "out"),
        ("heads.1", "blocks.1"),
        ("heads.1", "out"),
    ]


def test_uniform_density_and_actual_masks_differ_where_cheap_weights_are_masked() -> None:
    sizes = summary(small(), {"heads.0.out.weight": quarter((3, 4))})
    assert sizes.total.nonzeros == 177 - 9
    assert (sizes.total.active, sizes.total.maskable) == (144 - 9, 144)
    assert sizes.total.flops_masked == 1728 - 2 * 9
    assert sizes.flops_uniform == 1728 * 135 / 144
    assert [row.cost.nonzeros for row in sizes.rows if row.path == "out"] == [6, 15]
    assert (sizes.parts["heads.0"].nonzeros, sizes.parts["heads.1"].nonzeros) == (55, 64)


class Masked(nn.Module):
    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.get_buffer("mask")


def test_masks_are_found_on_the_weights_also_after_deepcopy() -> None:
    net = small()
    mask = quarter((3, 4))
    parametrize.register_parametrization(net.get_submodule("heads.0.out"), "weight", Masked(mask))
    sizes = summary(net)
    assert sizes == summary(small(), {"heads.0.out.weight": mask})
    assert summary(copy.deepcopy(net)) == sizes


def test_a_module_shared_by_the_heads_counts_once_in_total() -> None:
    sizes = summary(small(share=("out",)))
    assert sizes.parts["heads.0"].params == sizes.parts["heads.1"].params == 64
    assert sizes.total.params == 49 + 2 * 49 + 15
    assert sizes.total.flops == 560 + 2 * 584


def test_an_empty_trunk_is_a_full_ensemble() -> None:
    net = fxsplit.split(fxsplit.trace(Small(), X), 0, heads=3)
    sizes = summary(net)
    assert sizes.parameter_ratio == sizes.dense_flops_ratio == 3
    assert "heads.0" in sizes.parts


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"heads.0.ou.weight": quarter((3, 4))}, r"mask for 'heads.0.ou.weight'.*Did you mean 'heads.0.out.weight'"),
        ({"heads.0.out.weight": quarter((4, 3))}, r"'heads.0.out.weight' has shape \(4, 3\), but the weight \(3, 4\)"),
        ({"heads.0.out.weight": quarter((3, 4)).to("meta")}, "pass the result of sparsify"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message: str) -> None:
    with pytest.raises(FxSplitError, match=message):
        summary(small(), masks)


def test_every_number_that_is_shown_has_a_convention() -> None:
    sizes = summary(small(heads=3), {"heads.0.out.weight": quarter((3, 4))})
    text = str(sizes)
    lines = text.splitlines()
    header = next(line for line in lines if "FLOPs uniform" in line)
    assert [name for name in ("FLOPs dense", "FLOPs uniform", "FLOPs masks", "density") if name in header] == [
        "FLOPs dense",
        "FLOPs uniform",
        "FLOPs masks",
        "density",
    ]
    for name in ("FLOPs:", "FLOPs dense:", "FLOPs uniform:", "FLOPs masks:", "density:", "nonzeros:"):
        assert name in text
    # 49 + 3 x 64 = 241 parameters, 232 of them nonzero; 560 + 3 x 584 = 2312 FLOPs; 187 of 196 weights active
    row = next(line for line in lines if line.startswith("all / dense single")).split()[4:]
    assert row == ["2.133x", "2.053x", "2.021x", "1.928x", "2.005x"]
    row = next(line for line in lines if line.startswith("all / ensemble of 3")).split()[5:]
    assert row == ["0.711x", "0.684x", "0.674x", "0.643x", "0.668x"]
    assert "same blocks" in text
    html = sizes._repr_html_()
    assert "FLOPs uniform: FLOPs dense x density" in " ".join("".join(ET.fromstring(html).itertext()).split())
    assert {"heads.0", "heads.1", "heads.2", "blocks.1"} <= {cell.text for cell in ET.fromstring(html).iter("td")}


# Published and recomputed numbers. Everything runs on the meta device, where masks are counted but have no values.


def on_meta(name: str, split: int, heads: int, s: float = 0.0, allocation: str = "erk") -> Summary:
    shape = (2, 3, 32, 32) if name == "wrn" else (2, 3, 224, 224)
    with torch.device("meta"):
        model = WRN(28, 10, num_classes=100) if name == "wrn" else timm.create_model(name)
        net = fxsplit.split(fxsplit.trace(model, torch.zeros(shape)), split, heads=heads, init="copy")
    return summary(net, sparsity.sparsify(net, s, allocation) if s else None)


def test_wrn28_10_dense_single() -> None:
    with torch.device("meta"):
        sizes = summary(WRN(28, 10, num_classes=100), example=torch.zeros(2, 3, 32, 32))
    assert f"{sizes.total.flops:.2e}" == "1.05e+10"
    assert sum(row.is_block for row in sizes.rows) == 12


@pytest.mark.parametrize(
    ("name", "split", "params", "flops"), [("wrn", 4, "2.910", "2.36"), ("resnet50", 6, "2.909", "2.22")]
)
def test_treenet_of_three(name: str, split: int, params: str, flops: str) -> None:
    sizes = on_meta(name, split, 3)
    assert f"{sizes.parameter_ratio:.3f}" == params
    assert f"{sizes.dense_flops_ratio:.2f}" == flops


@pytest.mark.parametrize(
    ("name", "split", "heads", "s", "uniform", "erk"),
    [
        ("wrn", 4, 3, 0.8, "0.472", "0.683"),
        ("wrn", 4, 5, 0.9, "0.372", "0.502"),
        ("resnet50", 6, 3, 0.7, "0.67", "1.05"),
    ],
)
def test_neurotrails_under_both_conventions(
    name: str, split: int, heads: int, s: float, uniform: str, erk: str
) -> None:
    sizes = on_meta(name, split, heads, s)
    digits = len(uniform) - 2
    assert f"{sizes.uniform_flops_ratio:.{digits}f}" == uniform
    assert f"{sizes.masked_flops_ratio:.{digits}f}" == erk
    assert sizes.total.maskable_density == pytest.approx(1 - s, abs=1e-7)


@pytest.mark.slow
def test_llama_130m_as_a_treenet_of_three() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12)
    graph = fxsplit.trace(LlamaForCausalLM(config))
    found = summary(fxsplit.split(graph, 1 / 3, heads=3, init="copy"))
    assert f"{found.parameter_ratio:.3f}" == "2.211"
    assert f"{found.dense_flops_ratio:.2f}" == "2.48"


def test_under_uniform_allocation_the_two_conventions_agree() -> None:
    sizes = on_meta("wrn", 4, 3, 0.8, "uniform")
    assert sizes.masked_flops_ratio == pytest.approx(sizes.uniform_flops_ratio, rel=1e-4)
