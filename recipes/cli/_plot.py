"""Finished runs, drawn as the figures of the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fxsplit._errors import near_matches
from recipes._errors import RecipeError
from recipes.cli._collect import Runs, finished
from recipes.cli._elsewhere import elsewhere
from recipes.cli._fitting import check, fitting
from recipes.evaluation import Plot, blocks_plot, ensemble_size_plot, looks, sparsity_plot, training_plot
from recipes.methods import Tree
from recipes.rows import Recipe, Wrn, find, of_place
from recipes.training import read_rows

Point = tuple[str, float]


def plot(place: str, preset: str, out: Path, changes: Sequence[str] = ()) -> Plot:
    """Draw a figure of the paper from the runs that are finished.

    Args:
        place: ``figure3``, ``figure5``, ``figure6`` or ``figure7``.
        preset: Which runs.
        out: Folder of all runs.
        changes: Settings that the runs were changed by; each row takes those that it has.

    Raises:
        RecipeError: There is no such figure, or no run of it is finished.
    """
    name = f"figure{place}" if place.isdigit() else place
    if name not in _FIGURES:
        raise RecipeError(
            f"There is no plot of {name!r}; there are {', '.join(_FIGURES)}.{near_matches(name, _FIGURES)}"
        )
    check(name, preset, changes)
    found = [runs for row in of_place(name) if (runs := finished(row, preset, out, changes)).results]
    if not found:
        others = elsewhere(of_place(name), out)
        raise RecipeError(
            f"No run of {name} is finished in {out} with the preset {preset!r}{_as_changed(changes)}. List its rows: "
            f"python -m recipes list {name}; run one: python -m recipes run {of_place(name)[0].name} --preset {preset}."
            + (f"\n{others}" if others else "")
        )
    return _FIGURES[name](found, preset, out, changes)


def _as_changed(changes: Sequence[str]) -> str:
    return f" and {', '.join(changes)}" if changes else ""


def _sweep(
    found: Sequence[Runs], preset: str, changes: Sequence[str], point: Callable[[Recipe], Point]
) -> dict[str, dict[float, list[float]]]:
    accuracies: dict[str, dict[float, list[float]]] = {}
    for runs in found:
        label, x = point(fitting(runs.row, preset, changes).recipe)
        accuracies.setdefault(label, {})[x] = runs.metric("accuracy_prob", "last")
    return accuracies


def _blocks(recipe: Recipe) -> Point:
    assert isinstance(recipe.method, Tree)
    assert isinstance(recipe.model, Wrn)
    split = recipe.method.split
    if not isinstance(split, int):
        raise RecipeError(
            f"figure3 is drawn by blocks in the heads, so split must be a number of blocks, got {split!r}."
        )
    return recipe.method.rewiring.name, (recipe.model.depth - 4) // 2 - split


def _sparsity(recipe: Recipe) -> Point:
    assert isinstance(recipe.method, Tree)
    return "NeuroTrails", recipe.method.sparse.sparsity


def _size(recipe: Recipe) -> Point:
    return ("NeuroTrails" if isinstance(recipe.method, Tree) else "Full ensemble"), recipe.method.heads


def _figure3(found: Sequence[Runs], preset: str, out: Path, changes: Sequence[str]) -> Plot:
    accuracies = _sweep(found, preset, changes, _blocks)
    return blocks_plot(accuracies, looks(accuracies))


def _figure5(found: Sequence[Runs], preset: str, out: Path, changes: Sequence[str]) -> Plot:
    choice = fitting(found[0].row, preset, changes)
    log = choice.folder(out, found[0].results[0]["seed"]) / "network-0" / "log.csv"
    return training_plot([{name: float(value) for name, value in row.items()} for row in read_rows(log)])


def _figure6(found: Sequence[Runs], preset: str, out: Path, changes: Sequence[str]) -> Plot:
    accuracies = _sweep(found, preset, changes, _size)
    single = finished(find(found[0].row.reference), preset, out, changes).flops("inference", "dense")
    if single is None:
        reference = find(found[0].row.reference)
        others = elsewhere([reference], out)
        raise RecipeError(
            f"FLOPs are drawn relative to {reference.name}, which is not finished with the preset {preset!r}"
            f"{_as_changed(changes)}. Run it too." + (f"\n{others}" if others else "")
        )
    flops: dict[str, dict[int, float]] = {label: {} for label in accuracies}
    for runs in found:
        recipe = fitting(runs.row, preset, changes).recipe
        flops[_size(recipe)[0]][recipe.method.heads] = (runs.flops("inference", "masks") or 0) / single
    return ensemble_size_plot(accuracies, flops, looks(accuracies))


def _figure7(found: Sequence[Runs], preset: str, out: Path, changes: Sequence[str]) -> Plot:
    accuracies = _sweep(found, preset, changes, _sparsity)
    return sparsity_plot(accuracies, looks(accuracies))


_FIGURES: Mapping[str, Callable[[Sequence[Runs], str, Path, Sequence[str]], Plot]] = {
    "figure3": _figure3,
    "figure5": _figure5,
    "figure6": _figure6,
    "figure7": _figure7,
}
