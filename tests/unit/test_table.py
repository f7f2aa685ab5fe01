from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from fxsplit._errors import FxSplitError
from fxsplit._table import html_table, human, text_table


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1k"),
        (9408, "9.41k"),
        (25_557_032, "25.6M"),
        (123_456_789, "123M"),
        (999_950, "1M"),
        (1.05e10, "10.5G"),
        (3e12, "3T"),
        (-1500, "-1.5k"),
        (0.25, "0.25"),
        (3.0, "3"),
    ],
)
def test_human_shortens_to_three_digits(value: float, shown: str) -> None:
    assert human(value) == shown


def test_text_aligns_numbers_right_and_text_left() -> None:
    assert text_table(["path", "params", "note"], [["fc", 10, "a"], ["conv1", 9408, None]]) == (
        "path   params  note\n"
        "fc         10  a\n"
        "conv1    9408"
    )  # fmt: skip


def test_shortened_numbers_count_as_numbers_but_words_do_not() -> None:
    text = text_table(["n", "w"], [["1.5k", "x"], ["25.6M", "10"]])
    assert text.splitlines() == ["    n  w", " 1.5k  x", "25.6M  10"]


def test_table_without_rows_is_its_header() -> None:
    assert text_table(["a", "b"], []) == "a  b"


def test_html_escapes_everything_the_user_can_name() -> None:
    html = html_table(["<h>"], [["<b>&"]], caption="</caption><script>")
    assert not [tag for tag in ("<b>", "<script>", "<h>") if tag in html]
    table = ET.fromstring(html)
    assert [cell.text for cell in table.iter("td")] == ["<b>&"]
    assert [cell.text for cell in table.iter("th")] == ["<h>"]
    assert [cell.text for cell in table.iter("caption")] == ["</caption><script>"]


def test_html_is_self_contained_and_readable_on_a_dark_page() -> None:
    html = html_table(["a"], [[1]], caption="words")
    assert not [part for part in ("class=", "<style", "<script") if part in html]
    text = {tag: next(ET.fromstring(html).iter(tag)).attrib["style"] for tag in ("caption", "th", "td")}
    assert "text-align:right" in text["td"]
    assert [tag for tag, style in text.items() if "color:#111;background:#fff" not in style] == []


@pytest.mark.parametrize("render", [text_table, html_table])
def test_ragged_rows_are_named(render) -> None:
    with pytest.raises(FxSplitError, match="row 1 has 1 cells, but there are 2 headers"):
        render(["a", "b"], [[1, 2], [3]])
