"""How many active weights several sets of masks have in common, and how many they would by chance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity._errors import MaskError, listed
from sparsity._table import folded, html_table, text_table

_FOLD_ABOVE = 30
_HEAD = re.compile(r"heads\.(\d+)\.(.+)")


@dataclass(frozen=True, eq=False)
class LayerOverlap:
    """Weights that M sets of masks have in common, in one layer or several together.

    Independent random masks with the same numbers of active weights a_i, a_j of n have a number in common that follows
    the hypergeometric distribution, of mean a_i a_j / n.

    Attributes:
        path: Name of the layer.
        size: Number of weights in one of the sets, active or not.
        common: Int tensor ``[M, M]``: weights active in both; on the diagonal those active in one.
        expected: Float tensor ``[M, M]``: the mean of ``common`` for independent random masks.
        variance: Float tensor ``[M, M]``: the variance of the same; zero on the diagonal.
    """

    path: str
    size: int
    common: Tensor
    expected: Tensor
    variance: Tensor

    @property
    def jaccard(self) -> Tensor:
        """``[M, M]``: weights active in both over weights active in one of them at least; NaN if none is."""
        return self._jaccard(self.common.double())

    @property
    def expected_jaccard(self) -> Tensor:
        """``[M, M]``: the Jaccard index with as many weights in common as random masks have on average."""
        return self._jaccard(self.expected)

    @property
    def share(self) -> Tensor:
        """``[M, M]``: which share of the active weights of i is active in j too, in row i; NaN if i has none."""
        return self.common / self._active[:, None]

    @property
    def expected_share(self) -> Tensor:
        """``[M, M]``: the mean of ``share`` for independent random masks."""
        return self.expected / self._active[:, None]

    @property
    def deviation(self) -> Tensor:
        """``[M, M]``: ``common`` minus ``expected``, in standard deviations of ``common`` for independent random masks.

        These are within -2 and 2 for about 95 % of the pairs. NaN where there is only one possible value.
        """
        return (self.common - self.expected) / self.variance.sqrt()

    @property
    def _active(self) -> Tensor:
        return self.common.diagonal().double()

    def _jaccard(self, common: Tensor) -> Tensor:
        return common / (self._active[:, None] + self._active - common)


@dataclass(frozen=True, eq=False, repr=False)
class Overlap:
    """Common active weights of M sets of masks; prints as text and displays as HTML.

    Attributes:
        names: The sets.
        layers: What each layer has in common.
        total: All layers together.
        left: Weights that are not in all sets (such as those of a module that heads share), with the reason.
    """

    names: tuple[str, ...]
    layers: tuple[LayerOverlap, ...]
    total: LayerOverlap
    left: Mapping[str, str]

    def __str__(self) -> str:
        headers, rows = _matrix(self)
        parts = [f"{_CAPTION}\n{text_table(headers, rows)}", text_table(_LAYERS, _means(self))]
        return "\n\n".join(parts + [f"left out: {path}: {why}" for path, why in self.left.items()])

    def __repr__(self) -> str:
        return f"<Overlap of {len(self.names)} sets of {len(self.layers)} masks>"

    def _repr_html_(self) -> str:
        headers, rows = _matrix(self)
        layers = html_table(_LAYERS, [*_means(self)])
        shown = folded("layers", layers) if len(self.layers) > _FOLD_ABOVE else layers
        return f"<div>{html_table(headers, rows, caption=_CAPTION)}{shown}</div>"


def overlap(masks: Mapping[str, Tensor]) -> Overlap:
    """Compare the masks of the heads of a split model, weights at the same place in all heads.

    Heads that were drawn independently have no common order of their hidden units, so masks that compute the same may
    still overlap no more than by chance; only what every head numbers alike (what the trunk hands over, the classes)
    can be compared beyond doubt. Heads that were copied start with all units in the same order.

    Args:
        masks: Bool masks by path, such as `Masks`, with paths ``heads.<i>.<name>``; others are not looked at.

    Raises:
        MaskError: There are fewer than two heads with masks, or no weight is in all of them.

    Example:
        >>> import torch
        >>> one, two = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 1, 0]).bool()
        >>> found = overlap({"heads.0.fc.weight": one, "heads.1.fc.weight": two})
        >>> found.total.common.tolist(), found.total.expected[0, 1].item()
        ([[2, 1], [1, 2]], 1.0)
    """
    heads: dict[int, dict[str, Tensor]] = {}
    for path, mask in masks.items():
        found = _HEAD.fullmatch(path)
        if found:
            heads.setdefault(int(found[1]), {})[found[2]] = mask
    if len(heads) < 2:
        raise MaskError(
            f"Masks of at least two heads are compared, with paths heads.<i>.<name>; got {len(heads)} among "
            f"{listed(masks) or 'no masks'}. To compare other masks use overlap_of."
        )
    return overlap_of({f"heads.{number}": heads[number] for number in sorted(heads)})


def overlap_of(groups: Mapping[str, Mapping[str, Tensor]]) -> Overlap:
    """Compare several sets of masks: of networks trained apart, or of one network at different times.

    Args:
        groups: Bool masks by path, by the name of the set.

    Raises:
        MaskError: There are fewer than two sets, no path is in all of them, or shapes of the same path differ.

    Example:
        >>> import torch
        >>> before, after = torch.tensor([True, False]), torch.tensor([True, True])
        >>> overlap_of({"before": {"weight": before}, "after": {"weight": after}}).total.jaccard[0, 1].item()
        0.5
    """
    names, sets = tuple(groups), list(groups.values())
    paths = list(dict.fromkeys(path for each in sets for path in each))
    left = {
        path: f"only in {', '.join(holders)}"
        for path in paths
        if len(holders := [name for name, each in groups.items() if path in each]) < len(sets)
    }
    shared = [path for path in paths if path not in left]
    if len(sets) < 2 or not shared:
        raise MaskError(f"At least two sets that have a path in common are compared, got {len(sets)}: {listed(names)}.")
    for path in shared:
        shapes = {name: tuple(each[path].shape) for name, each in groups.items()}
        if len(set(shapes.values())) > 1:
            raise MaskError(f"The masks of {path!r} have different shapes: {shapes}.")
    counted = _common([[each[path] for each in sets] for path in shared])
    layers = tuple(_layer(path, sets[0][path].numel(), common) for path, common in zip(shared, counted, strict=True))
    sums = [torch.stack([getattr(each, kind) for each in layers]).sum(0) for kind in ("common", "expected", "variance")]
    return Overlap(names, layers, LayerOverlap("all layers", sum(each.size for each in layers), *sums), left)


@torch.no_grad()
def _common(layers: Sequence[Sequence[Tensor]]) -> Tensor:
    """Count for each layer the weights that each pair of masks has in common, in one transfer: ``[L, M, M]``."""
    device = layers[0][0].device
    sums = [(a & b.to(a.device)).count_nonzero().to(device) for masks in layers for a in masks for b in masks]
    heads = len(layers[0])
    return torch.stack(sums).cpu().view(len(layers), heads, heads)


def _layer(path: str, size: int, common: Tensor) -> LayerOverlap:
    active = common.diagonal().double()
    expected = active[:, None] * active / size
    # Of the hypergeometric distribution; a single weight leaves nothing to chance.
    variance = expected * ((size - active)[:, None] * (size - active)) / (size * max(size - 1, 1))
    # A mask compared with itself is not a matter of chance.
    own = torch.eye(len(active), dtype=torch.bool)
    return LayerOverlap(path, size, common, torch.where(own, active, expected), variance.masked_fill(own, 0))


_CAPTION = "Jaccard index of the masks, in parentheses that of independent random masks of these densities"
_LAYERS = ("layer", "weights", "density", "mean Jaccard", "by chance", "deviations")


def _matrix(found: Overlap) -> tuple[list[str], list[list[str]]]:
    real, chance = found.total.jaccard.tolist(), found.total.expected_jaccard.tolist()
    rows = [
        [name, *(f"{real[i][j]:.3f} ({chance[i][j]:.3f})" if i != j else "" for j in range(len(found.names)))]
        for i, name in enumerate(found.names)
    ]
    return ["", *found.names], rows


def _means(found: Overlap) -> list[list[str]]:
    """Rows of the layers and their total: means over pairs of different sets."""
    pairs = ~torch.eye(len(found.names), dtype=torch.bool)
    rows = []
    for each in (*found.layers, found.total):
        means = [float(of[pairs].mean()) for of in (each.jaccard, each.expected_jaccard, each.deviation)]
        density = float(each.common.diagonal().double().mean()) / each.size
        jaccard, chance, deviation = f"{means[0]:.3f}", f"{means[1]:.3f}", f"{means[2]:+.1f}"
        rows.append([each.path, f"{each.size:,}", f"{density:.4f}", jaccard, chance, deviation])
    return rows
