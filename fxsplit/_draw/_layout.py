"""Where everything goes in a drawing: from plain data to an SVG document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxsplit._draw._svg import Canvas, text_width
from fxsplit._summary._ledger import Cost
from fxsplit._summary._totals import Row, Summary
from fxsplit._table import human

_MARGIN, _GAP, _STEP, _BOX, _PAD = 16.0, 16.0, 18.0, 48.0, 6.0
_RED, _LINE, _BACK, _FILL = "#c62828", "#666", "#f1f3f5", "#a9cdf0"
_SHOWN = 7  # boxes per chain; a longer chain shows its ends


@dataclass(frozen=True)
class Scene:
    """All that a drawing shows.

    Attributes:
        title: Lines above the diagram.
        summary: Rows and totals.
        inputs: Names of the inputs.
        crossing: One line per tensor that passes the cut; empty for a model that is not split.
        vote: What joins the heads.
    """

    title: Sequence[str]
    summary: Summary
    inputs: str
    crossing: Sequence[str]
    vote: str


@dataclass(frozen=True)
class _Box:
    label: str
    ops: int
    output: str
    cost: Cost
    tooltip: str
    folded: bool = False


def render(scene: Scene) -> str:
    """Draw title, inputs, trunk, cut, heads side by side, vote and legend, from top to bottom."""
    chains = {
        part: _chain([row for row in scene.summary.rows if row.component == part]) for part in scene.summary.parts
    }
    heads = [part for part in chains if part.startswith("heads.")]
    width = 208.0 if len(heads) <= 4 else 168.0 if len(heads) <= 6 else 142.0
    span = len(heads) * (width + _GAP) - _GAP
    lines = [*scene.title, *scene.crossing, *_LEGEND]
    canvas = Canvas(2 * _MARGIN + max(span, width, *(text_width(line, 11) for line in lines)))
    middle = canvas.width / 2

    y = _MARGIN
    for number, line in enumerate(scene.title):
        y += 16
        canvas.text(_MARGIN, y, line, bold=number == 0)
    y += 30
    canvas.text(middle, y, scene.inputs, anchor="middle")
    y += 6
    for part in ("model", "trunk"):
        y = _draw_chain(canvas, chains.get(part, []), middle, y, width)
    if heads:
        y = _draw_cut(canvas, scene.crossing, middle, y)
        centres = [middle - span / 2 + width / 2 + i * (width + _GAP) for i in range(len(heads))]
        ends = []
        for part, centre in zip(heads, centres, strict=True):
            canvas.arrow((middle, y), (centre, y + 44), _RED, wide=True)
            top = _draw_head_title(canvas, part, scene.summary.parts[part], centre, y + 44, width)
            ends.append(_draw_chain(canvas, chains[part], centre, top, width))
        y = max(ends) + 44
        for centre, end in zip(centres, ends, strict=True):
            canvas.arrow((centre, end), (middle, y), _LINE)
        y = _draw_vote(canvas, scene.vote, middle, y)
    canvas.arrow((middle, y), (middle, y + _STEP), _LINE)
    y += _STEP + 14
    canvas.text(middle, y, "output", anchor="middle")
    y += 10
    for line in _LEGEND:
        y += 14
        canvas.text(_MARGIN, y, line, size=10, color=_LINE)
    return canvas.render(y + _MARGIN)


_LEGEND = (
    "box: path / operations, output shape as recorded / nonzeros of parameters",
    "filled share of a box: its density; hover for FLOPs",
)


def _chain(rows: Sequence[Row]) -> list[_Box]:
    boxes = [_box(row) for row in rows]
    if len(rows) <= _SHOWN:
        return boxes
    ends = _SHOWN // 2
    hidden = rows[ends:-ends]
    return [*boxes[:ends], _fold(hidden), *boxes[-ends:]]


def _box(row: Row) -> _Box:
    shape = "" if row.shape is None else "x".join(map(str, row.shape))
    return _Box(
        row.path,
        row.ops,
        shape,
        row.cost,
        f"{row.component} {row.path}\n{row.ops} ops, output {shape}\n{_costs(row.cost)}",
    )


def _fold(rows: Sequence[Row]) -> _Box:
    blocks = sum(row.is_block for row in rows)
    cost = Cost(*(sum(values) for values in zip(*(_numbers(row.cost) for row in rows), strict=True)))
    label = f"{blocks} blocks" if blocks == len(rows) else f"{blocks} blocks, {len(rows) - blocks} others"
    last = _box(rows[-1])
    listed = "\n".join(f"{row.path}: {human(row.cost.params)} params, density {row.cost.density:.3f}" for row in rows)
    return _Box(
        label, sum(row.ops for row in rows), last.output, cost, f"{label}\n{_costs(cost)}\n{listed}", folded=True
    )


def _numbers(cost: Cost) -> tuple[int, ...]:
    return (cost.params, cost.nonzeros, cost.maskable, cost.active, cost.flops, cost.flops_masked, cost.other)


def _costs(cost: Cost) -> str:
    return (
        f"{cost.params:,} parameters, {cost.nonzeros:,} nonzeros, density {cost.density:.4f}\n"
        f"FLOPs per sample (2 x MAC, conv and linear): {human(cost.flops)} dense, {human(cost.flops_masked)} with masks"
    )


def _size(cost: Cost) -> str:
    if not cost.params:
        return "no parameters"
    if cost.nonzeros == cost.params:
        return f"{human(cost.params)} params"
    return f"{human(cost.nonzeros)} of {human(cost.params)} {cost.density:.0%}"


def _draw_chain(canvas: Canvas, boxes: Sequence[_Box], centre: float, y: float, width: float) -> float:
    """Boxes one under the other, each with an arrow to it; returns where the last one ends."""
    left, room = centre - width / 2, width - 2 * _PAD
    for box in boxes:
        canvas.arrow((centre, y), (centre, y + _STEP), _LINE)
        y += _STEP
        canvas.open(box.tooltip)
        if box.folded:
            for offset in (6, 3):
                canvas.rect(left + offset, y + offset, width, _BOX, "#fff", _LINE)
        canvas.rect(left, y, width, _BOX, _BACK)
        if box.cost.params:
            canvas.rect(left, y, width * box.cost.density, _BOX, _FILL)
        canvas.rect(left, y, width, _BOX, "none", _LINE)
        canvas.text(left + _PAD, y + 15, box.label, room=room, bold=True)
        canvas.text(left + _PAD, y + 29, f"{box.ops} ops, {box.output}", size=10, room=room)
        canvas.text(left + _PAD, y + 42, _size(box.cost), size=10, room=room)
        canvas.close()
        y += _BOX + (6 if box.folded else 0)
    return y


def _draw_cut(canvas: Canvas, crossing: Sequence[str], middle: float, y: float) -> float:
    width = max(text_width(line, 11) for line in crossing) + 2 * _PAD
    height = 14.0 * len(crossing) + 8
    canvas.arrow((middle, y), (middle, y + _STEP), _RED, wide=True)
    y += _STEP
    canvas.open("the cut: these tensors pass from the trunk to every head")
    canvas.rect(middle - width / 2, y, width, height, "#fdecea", _RED)
    for number, line in enumerate(crossing, start=1):
        canvas.text(middle, y + 14 * number, line, color=_RED, anchor="middle", bold=number == 1)
    canvas.close()
    return y + height


def _draw_head_title(canvas: Canvas, part: str, cost: Cost, centre: float, y: float, width: float) -> float:
    canvas.open(f"{part}\n{_costs(cost)}")
    canvas.rect(centre - width / 2, y, width, 36, "#fff", _RED)
    canvas.text(centre, y + 15, part, anchor="middle", bold=True)
    canvas.text(centre, y + 29, _size(cost), size=10, room=width - 2 * _PAD, anchor="middle")
    canvas.close()
    return y + 36


def _draw_vote(canvas: Canvas, vote: str, middle: float, y: float) -> float:
    width = text_width(vote, 11) + 4 * _PAD
    canvas.rect(middle - width / 2, y, width, 26, "#fff", _LINE)
    canvas.text(middle, y + 17, vote, anchor="middle", bold=True)
    return y + 26
