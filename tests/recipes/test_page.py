from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from recipes import _plots as plots
from recipes import _report as html
from recipes.evaluation import looks, reliability_diagram

LOOK = looks(["a & b", "c"])
SERIES = {"a & b": [([0.5, 1.0], [0.4, 0.2])], "c": [([0.5, 1.0], [0.9, 0.8]), ([0.5, 1.0], [0.8, 0.7])]}
BINS = {"a & b": [(0.5, 0.4, 3), (0.9, 1.0, 9)], "c": [(0.7, 0.7, 1)]}

DRAWINGS = {
    "curves": lambda: plots.learning_curves("curves", "loss", SERIES, LOOK),
    "percent": lambda: plots.learning_curves("percent", "accuracy", SERIES, LOOK, shares=True),
    "reliability": lambda: reliability_diagram(BINS, LOOK).svg(),
    "trade_off": lambda: plots.trade_off({"a & b": (1.0, [0.9]), "c": (2.0, [0.8, 0.9])}, LOOK),
    "diversity": lambda: plots.diversity({"c": ([0.1, 0.2], [0.8, 0.9], [0.9, 0.9])}, LOOK),
    "density": lambda: plots.layer_densities([("conv.weight", 1.0), ("fc.weight", 0.1)], 0.2),
    "topology": lambda: plots.topology_updates({"trunk": ([10, 20], [5, 3]), "heads.0": ([10, 20], [4, 2])}),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_self_contained_svg(name: str) -> None:
    svg = DRAWINGS[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:url\(|href=")#([^)"]+)', svg)
    assert set(references) <= set(ids)
    assert not re.search(r'(?:href|src)="(?!#)', svg)


def test_drawings_are_reproducible() -> None:
    assert DRAWINGS["trade_off"]() == DRAWINGS["trade_off"]()


def test_ids_of_two_drawings_do_not_meet() -> None:
    ids = [set(re.findall(r'\bid="([^"]+)"', DRAWINGS[name]())) for name in ("curves", "percent")]
    assert not ids[0] & ids[1]


def test_a_page_escapes_text() -> None:
    sections = [
        html.Section("a < b", html.data_table(["x & y"], [["<i>"]])),
        html.Section("list", html.bullets(["1 < 2"]) + html.facts([("k<", "v<")])),
        html.Section("checks", html.checks([("good", True, "0 < 1"), ("bad", False, "2")])),
    ]
    page = html.page("T & T", "lead <b>", sections)
    for text in ("a &lt; b", "x &amp; y", "&lt;i&gt;", "1 &lt; 2", "k&lt;", "v&lt;", "T &amp; T", "lead &lt;b&gt;"):
        assert text in page
    assert page.count("FAIL") == 1
    assert "<i>" not in page
