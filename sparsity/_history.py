"""What happened to the masks over a whole training: a callback that keeps the numbers of every update."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from sparsity._components import by_component
from sparsity._errors import RecordError, listed
from sparsity._explored import Explored
from sparsity._history_view import history_html, history_text
from sparsity._masks import Masks
from sparsity._report import Rewiring, check_active

_STATE = ("first", "steps", "fractions", "dropped", "grown", "counts", "explored")


class History:
    """Keeps how many weights every update dropped and grew in each layer, and on request which were ever active.

    To be an engine's ``callback``, made of the masks that training starts with. An update takes 16 bytes for each
    layer, 24 with ``explored``.

    With ``explored`` it also keeps which weights have been active at any time. Their share of all maskable weights is
    the in-time over-parameterisation rate R_s of Liu et al. (2021, "Do we actually need dense over-parameterization?",
    sec. 3): 1 when every weight of the dense network has been tried. That takes one byte for each masked weight, on
    the device of its mask, and as much in `state_dict`. Of a sharded model (``fully_shard``) each process keeps its
    rows and counts are made together, so that all processes need the callback.

    Attributes:
        masks: The masks, a live view.

    Args:
        masks: What `sparsify` returned, or `masks_of` of the model.
        explored: Whether to keep which weights have been active.

    Example:
        >>> import torch, sparsity
        >>> net = torch.nn.Linear(8, 4)
        >>> history = sparsity.History(sparsity.sparsify(net, 0.5), explored=True)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = sparsity.rigl(net, optimizer, every=2, fraction=0.25, callback=history)
        >>> for _ in range(5):
        ...     optimizer.zero_grad()
        ...     net(torch.randn(5, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> [(row["step"], row["dropped"], row["grown"]) for row in history.rows()]
        [(2, 4, 4), (4, 4, 4)]
        >>> 0.5 < history.explored <= 0.75
        True
    """

    def __init__(self, masks: Masks, *, explored: bool = False) -> None:
        layers = masks.layers
        self.masks = masks
        self._sizes = {layer.path: layer.total for layer in layers}
        self._first = {layer.path: layer.nonzeros for layer in layers}
        self._active = dict(self._first)
        self._steps: list[int] = []
        self._fractions: list[float] = []
        self._dropped: list[array[int]] = []
        self._grown: list[array[int]] = []
        self._explored = Explored(masks) if explored else None
        self._counts: list[array[int]] = [array("q", self._first.values())] if explored else []

    def __call__(self, update: Rewiring) -> None:
        """Take an update in; the engine calls this.

        Raises:
            RecordError: The update is of another model, or before the latest one that is known; or the masks were
                others before it than this knows.
        """
        unknown = [path for path in {**update.dropped, **update.grown} if path not in self._sizes]
        if unknown:
            raise RecordError(f"The update is of another model: {listed(unknown)} had no mask when this was made.")
        if self._steps and update.step <= self._steps[-1]:
            raise RecordError(
                f"An update at step {update.step} came after that of step {self._steps[-1]}. Going back to a "
                "checkpoint, load the state that this history had there too."
            )
        # A layer without a gradient is not in the update.
        dropped = array("q", (update.dropped.get(path, 0) for path in self._sizes))
        grown = array("q", (update.grown.get(path, 0) for path in self._sizes))
        active = _after(self._active, dropped, grown)
        check_active(update, active)
        self._steps.append(update.step)
        self._fractions.append(update.fraction)
        self._dropped.append(dropped)
        self._grown.append(grown)
        self._active = active
        if self._explored is not None:
            self._explored.add()
            self._counts.append(array("q", self._explored.counts()))

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def updates(self) -> list[Rewiring]:
        """All updates in order, as the engine reported them but for layers without a gradient, which have zeros."""
        return [self._update(number) for number in range(len(self))]

    @property
    def last(self) -> Rewiring | None:
        """The latest update, or None before the first."""
        return self._update(len(self) - 1) if self._steps else None

    @property
    def explored(self) -> float:
        """Share of all maskable weights that have been active at any time: R_s, or ITOP rate; 1.0 without masks.

        Raises:
            RecordError: This was made without ``explored=True``, as for everything about it.
        """
        return sum(self._seen()) / max(sum(self._sizes.values()), 1) if self._sizes else 1.0

    @property
    def explored_by_path(self) -> dict[str, float]:
        """The same for every layer."""
        return {path: seen / self._sizes[path] for path, seen in zip(self._sizes, self._seen(), strict=True)}

    @property
    def explored_by_component(self) -> dict[str, float]:
        """The same for ``trunk`` and each of ``heads.<i>``, and ``model`` for weights outside of them."""
        sizes = by_component(self._sizes)
        seen = by_component(dict(zip(self._sizes, self._seen(), strict=True)))
        return {component: seen[component] / size for component, size in sizes.items()}

    @property
    def explored_masks(self) -> Mapping[str, Tensor]:
        """By path a bool tensor of the weight's shape, True where it has been active; not a copy."""
        return self._record().seen

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each update and component: a table for ``csv.DictWriter`` or ``pandas.DataFrame``.

        Returns:
            Dicts of ``step``, ``fraction``, ``component``, ``dropped``, ``grown``, ``active`` (weights after the
            update), ``total``, ``density`` and, if they are kept, ``explored`` (share of weights ever active).
        """
        return [row for number, active in self._numbered() for row in self._rows(number, active, by_layer=False)]

    def layer_rows(self) -> list[dict[str, Any]]:
        """Return a row for each update and layer: as `rows`, with ``path`` instead of ``component``."""
        return [row for number, active in self._numbered() for row in self._rows(number, active, by_layer=True)]

    def latest_rows(self) -> list[dict[str, Any]]:
        """Return those of `rows` that are about the latest update."""
        return self._rows(len(self) - 1, self._active, by_layer=False) if self._steps else []

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs, a copy; numbers and, with ``explored``, a bool tensor for each layer."""
        return {
            "first": dict(self._first),
            "steps": list(self._steps),
            "fractions": list(self._fractions),
            "dropped": [each.tolist() for each in self._dropped],
            "grown": [each.tolist() for each in self._grown],
            "counts": [each.tolist() for each in self._counts],
            "explored": None if self._explored is None else self._explored.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; load engine, model and optimizer too, in any order.

        Raises:
            RecordError: ``state`` is not from `state_dict`, of other masks, or only one of both has ``explored``.
        """
        wrong = set(state) ^ set(_STATE)
        if wrong:
            raise RecordError(f"Expected the state of a History with {listed(_STATE)}, but {listed(wrong)} differ.")
        if list(state["first"]) != list(self._sizes):
            other = set(state["first"]) ^ set(self._sizes)
            raise RecordError(f"The state is of other masks: {listed(sorted(other) or self._sizes)} differ.")
        if (state["explored"] is None) != (self._explored is None):
            has = "no" if state["explored"] is None else "a"
            raise RecordError(
                f"The state has {has} record of the explored weights, and this History was made with "
                f"explored={self._explored is not None}. Make it with explored={state['explored'] is not None}."
            )
        if self._explored is not None:
            self._explored.restore(state["explored"])
        self._first = dict(state["first"])
        self._steps, self._fractions = list(state["steps"]), list(state["fractions"])
        self._dropped = [array("q", each) for each in state["dropped"]]
        self._grown = [array("q", each) for each in state["grown"]]
        self._counts = [array("q", each) for each in state["counts"]]
        self._active = dict(self._first)
        for _, active in self._numbered():
            self._active = active

    def _update(self, number: int) -> Rewiring:
        dropped, grown = (dict(zip(self._sizes, each[number], strict=True)) for each in (self._dropped, self._grown))
        return Rewiring(self._steps[number], self._fractions[number], dropped, grown)

    def _record(self) -> Explored:
        if self._explored is None:
            raise RecordError("The explored weights are not known; make it as History(masks, explored=True).")
        return self._explored

    def _seen(self) -> array[int]:
        self._record()
        return self._counts[-1]

    def _numbered(self) -> Iterator[tuple[int, dict[str, int]]]:
        """Yield the number of each update and the active weights after it, by path."""
        active = self._first
        for number in range(len(self)):
            active = _after(active, self._dropped[number], self._grown[number])
            yield number, active

    def _rows(self, number: int, active: Mapping[str, int], *, by_layer: bool) -> list[dict[str, Any]]:
        columns = {
            "dropped": dict(zip(self._sizes, self._dropped[number], strict=True)),
            "grown": dict(zip(self._sizes, self._grown[number], strict=True)),
            "active": active,
            "total": self._sizes,
        }
        if self._explored is not None:
            columns["explored"] = dict(zip(self._sizes, self._counts[number + 1], strict=True))
        kind = "path" if by_layer else "component"
        if not by_layer:
            columns = {name: by_component(values) for name, values in columns.items()}
        start = {"step": self._steps[number], "fraction": self._fractions[number]}
        return [{**start, kind: name, **values} for name, values in _turned(columns).items()]

    def __str__(self) -> str:
        return history_text(self)

    def __repr__(self) -> str:
        last = f", the last at step {self._steps[-1]}" if self._steps else ""
        return f"<History of {len(self)} updates of {len(self._sizes)} masks{last}>"

    def _repr_html_(self) -> str:
        return history_html(self)


def _after(active: Mapping[str, int], dropped: Iterable[int], grown: Iterable[int]) -> dict[str, int]:
    counts = zip(active.items(), dropped, grown, strict=True)
    return {path: count - lost + new for (path, count), lost, new in counts}


def _turned(columns: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
    """Turn columns into rows by name, with the density besides and the number of explored weights as a share."""
    rows: dict[str, dict[str, float]] = {}
    for name, total in columns["total"].items():
        row: dict[str, float] = {column: values[name] for column, values in columns.items()}
        row["density"] = row["active"] / total
        if "explored" in row:
            row["explored"] /= total
        rows[name] = row
    return rows
