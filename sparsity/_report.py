"""Tables of densities, as text and as HTML for notebooks."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparsity._components import by_component
from sparsity._errors import RecordError
from sparsity._table import bar, folded, html_table, text_table

_FOLD_ABOVE = 30
_HEADERS = ("weight", "shape", "nonzeros", "density")


@dataclass(frozen=True)
class LayerDensity:
    """How many weights of one layer are active."""

    path: str
    shape: tuple[int, ...]
    nonzeros: int

    @property
    def total(self) -> int:
        """Number of weights, active or not."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Share of active weights."""
        return self.nonzeros / self.total


def masks_text(layers: Sequence[LayerDensity], left: Mapping[str, str]) -> str:
    """Return an aligned table of ``layers`` with their total, and what was left dense."""
    if not layers:
        return "no masks"
    table = text_table(_HEADERS, [*map(_cells, layers), _total_row(layers)])
    return "\n".join([table, *(f"left dense: {path}: {reason}" for path, reason in left.items())])


def masks_html(layers: Sequence[LayerDensity], left: Mapping[str, str]) -> str:
    """Return ``layers`` as one self-contained HTML table with density bars; long tables are folded."""
    if not layers:
        return "<p>no masks</p>"
    total = _total_row(layers)
    rows = [[*cells, bar(float(cells[3]))] for cells in (*map(_cells, layers), total)]
    table = html_table([*_HEADERS, ""], rows[:-1], foot=rows[-1])
    if left:
        items = "".join(f"<li><code>{html.escape(path)}</code>: {html.escape(why)}</li>" for path, why in left.items())
        table += f"<p>left dense:</p><ul>{items}</ul>"
    if len(layers) <= _FOLD_ABOVE:
        return f"<div>{table}</div>"
    return folded(f"{total[0]}: {total[2]} nonzeros, density {total[3]}", table)


def _cells(layer: LayerDensity) -> tuple[str, str, str, str]:
    return layer.path, " x ".join(map(str, layer.shape)), f"{layer.nonzeros:,}", f"{layer.density:.4f}"


def _total_row(layers: Sequence[LayerDensity]) -> tuple[str, str, str, str]:
    nonzeros, total = sum(each.nonzeros for each in layers), sum(each.total for each in layers)
    return f"{len(layers)} masked weights", f"{total:,}", f"{nonzeros:,}", f"{nonzeros / total:.4f}"


@dataclass(frozen=True)
class Rewiring:
    """What one update did.

    Attributes:
        step: Optimizer step, counted from 0, at whose start it happened.
        fraction: Share of active weights that it was asked to replace.
        dropped: Number of weights dropped, by path.
        grown: Number of weights grown, by path. With fixed densities as many as dropped; fewer while pruning, and
            others in each layer where scores are compared over layers.
        active: Number of active weights after it, by path; empty where that is not known.
    """

    step: int
    fraction: float
    dropped: dict[str, int]
    grown: dict[str, int]
    active: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def components(self) -> dict[str, int]:
        """Number of weights grown in ``trunk`` and each of ``heads.<i>``; ``model`` for weights outside of them."""
        return by_component(self.grown)

    @property
    def components_dropped(self) -> dict[str, int]:
        """Number of weights dropped in each component."""
        return by_component(self.dropped)

    @property
    def change(self) -> dict[str, int]:
        """Active weights after the update minus those before, by path, of the layers where that is not zero."""
        changes = {path: count - self.dropped.get(path, 0) for path, count in self.grown.items()}
        return {path: change for path, change in changes.items() if change}

    def __str__(self) -> str:
        dropped, grown = self.components_dropped, self.components
        if dropped == grown:
            counts = f"replaced {sum(grown.values())}"
            parts = ", ".join(f"{name}: {count}" for name, count in grown.items())
        else:
            counts = f"dropped {sum(dropped.values())} and grew {sum(grown.values())}"
            parts = ", ".join(f"{name}: -{dropped[name]} +{count}" for name, count in grown.items())
        return f"step {self.step}: {counts} weights, fraction {self.fraction:.4f} ({parts})"


def check_active(update: Rewiring, known: Mapping[str, int]) -> None:
    """Check that a record comes to the numbers of active weights after an update that the engine has told.

    Raises:
        RecordError: It doesn't, so it has missed something.
    """
    path = next((path for path, number in update.active.items() if known.get(path, number) != number), None)
    if path is not None:
        raise RecordError(
            f"After the update at step {update.step} {path!r} has {update.active[path]} active weights, but "
            f"{known[path]} by this record: masks were loaded or changed since it was made. Load the state that it had "
            "with the checkpoint, or make it after the model is loaded."
        )
