"""The drawing is parsed as XML: what it says, and that nothing lies on top of anything else."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import pytest
import torch
from torch import nn

import fxsplit
from fxsplit._draw._drawing import Drawing, draw, mimebundle
from fxsplit._draw._layout import Scene, render
from fxsplit._draw._svg import shorten
from fxsplit._errors import FxSplitError
from fxsplit._summary._ledger import Cost
from fxsplit._summary._totals import Row, Summary

SVG = "{http://www.w3.org/2000/svg}"


def cost(params: int, density: float = 1.0) -> Cost:
    kept = round(params * density)
    return Cost(params, kept, params, kept, 10 * params, 10 * kept)


def scene(heads: int, trunk: int, in_head: int, path: str = "layer", density: float = 0.25) -> Scene:
    def rows(component: str, count: int) -> list[Row]:
        return [Row(component, f"{path}.{i}", True, 3, (2, 64, 8, 8), cost(1000, density)) for i in range(count)]

    parts = {"trunk": trunk, **{f"heads.{i}": in_head for i in range(heads)}} if heads else {"model": trunk}
    every = [row for part, count in parts.items() for row in rows(part, count)]
    sizes = {part: cost(1000 * count, density) for part, count in parts.items()}
    total = cost(1000 * len(every), density)
    crossing = ["cut after layer.1", "add 2x64x8x8 float32", "mask 2x1 bool (side input)"] if heads else []
    single = cost(1000 * (trunk + in_head))
    return Scene(["title"], Summary(tuple(every), sizes, total, single, heads), "x", crossing, "MeanVote of M heads")


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def boxes(svg: str, fill: str = "#f1f3f5") -> list[tuple[float, float, float, float]]:
    rects = [r.attrib for r in ET.fromstring(svg).iter(f"{SVG}rect") if r.attrib["fill"] == fill]
    return [(float(r["x"]), float(r["y"]), float(r["width"]), float(r["height"])) for r in rects]


def overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


@pytest.mark.parametrize(("heads", "trunk", "in_head"), [(1, 2, 2), (3, 4, 5), (8, 3, 7), (2, 0, 4), (0, 5, 0)])
def test_every_block_has_a_box_and_none_overlap(heads: int, trunk: int, in_head: int) -> None:
    svg = render(scene(heads, trunk, in_head))
    found = boxes(svg)
    assert len(found) == trunk + heads * in_head
    assert not [pair for pair in itertools.combinations(found, 2) if overlap(*pair)]
    width, height = (float(ET.fromstring(svg).attrib[side]) for side in ("width", "height"))
    assert all(x >= 0 and x + w <= width and y >= 0 and y + h <= height for x, y, w, h in found)


@pytest.mark.parametrize("heads", [1, 4, 6, 8])
def test_text_stays_inside_its_box(heads: int) -> None:
    svg = render(scene(heads, 2, 2, path="model.encoder.a_rather_long_name_for_a_container.layers"))
    groups = [group for group in ET.fromstring(svg).iter(f"{SVG}g") if "#f1f3f5" in ET.tostring(group, "unicode")]
    assert len(groups) == 2 + 2 * heads
    for group in groups:
        rect = next(group.iter(f"{SVG}rect"))
        for text in group.iter(f"{SVG}text"):
            end = float(text.attrib["x"]) + 0.605 * float(text.attrib["font-size"]) * len(text.text or "")
            assert end <= float(rect.attrib["x"]) + float(rect.attrib["width"])


@pytest.mark.parametrize("blocks", [8, 60])
def test_long_chains_show_their_ends_and_fold_the_rest(blocks: int) -> None:
    svg = render(scene(2, blocks, 3))
    said = texts(svg)
    assert f"{blocks - 6} blocks" in said
    assert said.count(f"{3 * (blocks - 6)} ops, 2x64x8x8") == 1
    assert f"layer.{blocks - 1}" in said
    assert "layer.3" not in said[: said.index(f"{blocks - 6} blocks")]
    tooltips = [title.text or "" for title in ET.fromstring(svg).iter(f"{SVG}title")]
    hidden = next(text for text in tooltips if text.startswith(f"{blocks - 6} blocks"))
    assert [f"layer.{i}:" in hidden for i in (2, 3, blocks - 4, blocks - 3)] == [False, True, True, False]


def test_filled_share_is_the_density() -> None:
    svg = render(scene(1, 1, 1, density=0.25))
    assert [fill[2] / back[2] for fill, back in zip(boxes(svg, "#a9cdf0"), boxes(svg), strict=True)] == [0.25, 0.25]
    assert "250 of 1k 25%" in texts(svg)


def test_dense_blocks_are_full_and_blocks_without_parameters_empty() -> None:
    plain = scene(0, 1, 0, density=1.0)
    assert "1k params" in texts(render(plain))
    empty = Summary((Row("model", "relu", True, 1, None, cost(0)),), {"model": cost(0)}, cost(0), cost(0), 0)
    svg = render(Scene(["title"], empty, "x", [], ""))
    assert "no parameters" in texts(svg)
    assert boxes(svg, "#a9cdf0") == []


def test_the_cut_is_red_and_names_what_crosses() -> None:
    root = ET.fromstring(render(scene(3, 2, 2)))
    red = [text.text for text in root.iter(f"{SVG}text") if text.attrib["fill"] == "#c62828"]
    assert red == ["cut after layer.1", "add 2x64x8x8 float32", "mask 2x1 bool (side input)"]
    edges = [path for path in root.iter(f"{SVG}path") if path.attrib.get("stroke") == "#c62828"]
    assert len(edges) == 1 + 3  # trunk to cut, cut to every head


def test_a_document_of_its_own_readable_on_dark_pages() -> None:
    svg = render(scene(2, 2, 2))
    root = ET.fromstring(svg)
    assert root[0].attrib == {"width": "100%", "height": "100%", "fill": "#fff"}
    assert not [part for part in ("<script", "href", "url(", "class=", "onload") if part in svg]


def test_names_are_escaped() -> None:
    evil = Summary((Row("model", "<b>&", True, 1, None, cost(1)),), {"model": cost(1)}, cost(1), cost(1), 0)
    assert "<b>&" in texts(render(Scene(["</svg>"], evil, "x", [], "")))


def test_shorten_keeps_the_end() -> None:
    assert shorten("layer1.0.conv1", 14) == "layer1.0.conv1"
    assert shorten("layer1.0.conv1", 8) == "…0.conv1"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(4)))
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.blocks(x))


@pytest.fixture(scope="module")
def net() -> fxsplit.SplitModel:
    return fxsplit.neurotrailify(Net(), split="blocks.1", heads=2, sparsity=0.5, example=torch.zeros(2, 4))


def test_a_split_model_displays_itself(net: fxsplit.SplitModel) -> None:
    bundle = net._repr_mimebundle_()
    assert bundle == mimebundle(net)
    assert set(bundle) == {"text/html", "image/svg+xml", "text/plain"}
    said = texts(bundle["image/svg+xml"])
    assert [name for name in ("heads.0", "heads.1") if name in said] == ["heads.0", "heads.1"]
    assert any(line.startswith("cut after blocks.1") for line in said)
    assert any("2x4 float32" in line for line in said)
    assert "MeanVote of 2 heads" in said
    assert set(mimebundle(net, include={"text/plain"})) == {"text/plain"}
    assert set(mimebundle(net, exclude={"text/html"})) == {"image/svg+xml", "text/plain"}


def test_a_model_that_is_not_split_is_one_chain(net: fxsplit.SplitModel) -> None:
    svg = draw(Net(), example=torch.zeros(2, 4)).svg
    assert "output" in texts(svg)
    assert not [line for line in texts(svg) if "cut" in line or "heads" in line]


def test_saving(tmp_path, net: fxsplit.SplitModel) -> None:
    drawing = draw(net)
    drawing.save(tmp_path / "net.svg")
    assert (tmp_path / "net.svg").read_text(encoding="utf-8") == drawing.svg == drawing._repr_svg_()
    with pytest.raises(FxSplitError, match=r"called \*.svg, got .*net.png"):
        drawing.save(tmp_path / "net.png")
    assert not (tmp_path / "net.png").exists()
    assert str(Drawing("<svg/>", "words")) == "words"
