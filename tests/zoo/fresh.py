"""Fresh heads of a model against the truth about its initialisation: what several constructions have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from fxsplit._init._fresh import HeadDraw, fresh_heads
from fxsplit._random import random_state_kept, seed_everything
from tests.zoo.catalogue.entry import Entry

Make = Callable[[int], nn.Module]

ROUNDS = 5
_LARGE = 30_000_000  # parameters
_SAMPLE = 2048  # elements looked at per tensor and construction
_OUTLIER = 10  # median absolute values
_FEW = 16  # values that say nothing about a distribution
_LEVEL = 1e-6  # of one test; a zoo has tens of thousands
_COLLISIONS = 1e-5  # share of the elements of two draws that are equal by chance
_SPREADS = 6  # standard errors
_OTHERS = 100  # seeds of the constructions that the truth is taken from


@dataclass
class Pool:
    """What one tensor looked like in several independent models: a sample, and the squares of its rows."""

    values: list[np.ndarray] = field(default_factory=list)
    squares: Tensor | float = 0.0

    def add(self, tensor: Tensor, free: Tensor) -> None:
        values = _some(tensor.detach()[free])
        # torch's trunc_normal_ gives its distant bounds, 2.0 where all else is 0.02, once in a few million draws.
        bound = _OUTLIER * float(np.median(np.abs(values)))
        self.values.append(values.clip(-bound, bound))
        if tensor.dim() > 1:
            self.squares = self.squares + tensor.detach().flatten(1).clamp(-bound, bound).square().mean(1).double()


@dataclass(frozen=True)
class Verdict:
    """The result for one model.

    Attributes:
        faults: What is wrong, one line per tensor.
        rules: How each tensor was drawn.
        p_values: Of the Kolmogorov-Smirnov tests, one per random tensor.
        unset: Tensors of uninitialised memory, which nothing can be said about.
    """

    faults: list[str]
    rules: dict[str, str]
    p_values: list[float]
    unset: list[str]


def maker(entry: Entry) -> Make:
    """Build the model of an entry from any seed; also where the catalogue fixes the seed."""
    if entry.zoo in ("timm", "torchvision"):
        return seeded(entry.build)
    model = entry.build()
    return seeded(lambda: type(model)(copy.deepcopy(model.config)))  # type: ignore[call-arg,arg-type]


def check_fresh(make: Make, rounds: int = ROUNDS) -> Verdict:
    """Compare fresh heads of everything in a model with models that are constructed anew.

    A tensor is random where its elements differ between constructions. There the heads must differ from the model and
    from one another, and be distributed as the constructions are; everywhere else they must hold the same values.
    """
    source = make(0)
    if sum(p.numel() for p in source.parameters()) > _LARGE:
        rounds = 2
    named = dict(_unique(source))
    unset = _unset(make, named)
    named = {path: tensor for path, tensor in named.items() if path not in unset}
    free = _random_elements(make, source, list(named))
    theirs, ours = ({path: Pool() for path, mask in free.items() if mask is not None} for _ in range(2))
    heads = _draw(source, named, 3, seed=0)
    faults = [fault for path in named for fault in _compare(path, named[path], heads, free[path])]
    for seed in range(rounds):
        if seed:
            model = make(seed)
            drawn = _draw(model, dict(_unique(model)), 1, seed)[0].values
        else:
            drawn = heads[0].values
        other = dict(_unique(make(_OTHERS + seed)))
        for path in ours:
            mask = cast(Tensor, free[path])
            ours[path].add(drawn[path], mask)
            theirs[path].add(other[path], mask)
    tests = {path: _distributions(path, named[path], ours[path], theirs[path], heads[0].rule[path]) for path in ours}
    faults += [fault for _, found in tests.values() for fault in found]
    return Verdict(faults, heads[0].rule, [p for p, _ in tests.values() if p is not None], unset)


def seeded(build: Callable[[], nn.Module]) -> Make:
    """Build a model in eval mode from any seed, and leave the random state as it was."""

    def make(seed: int) -> nn.Module:
        with random_state_kept():
            seed_everything(seed)
            return build().eval()

    return make


def _unique(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _draw(model: nn.Module, named: dict[str, Tensor], heads: int, seed: int) -> list[HeadDraw]:
    return list(fresh_heads(model, list(named), heads, seed))


def _unset(make: Make, named: dict[str, Tensor]) -> list[str]:
    """Tensors that a constructor leaves as memory was: torch can fill it with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        filled = dict(_unique(make(0)))
    finally:
        torch.use_deterministic_algorithms(before)
    return [path for path in named if filled[path].is_floating_point() and bool(filled[path].isnan().any())]


def _random_elements(make: Make, source: nn.Module, paths: list[str]) -> dict[str, Tensor | None]:
    """Masks of the elements that differ between constructions; None where none does."""
    one, named = dict(_unique(make(_OTHERS))), dict(_unique(source))
    masks: dict[str, Tensor | None] = {}
    for path in paths:
        mask = one[path].detach() != named[path].detach()
        if mask.numel() >= 1000 and int((~mask).sum()) <= 2 + _COLLISIONS * mask.numel():
            mask.fill_(True)
        masks[path] = mask if bool(mask.any()) else None
    return masks


def _compare(path: str, source: Tensor, heads: list[HeadDraw], free: Tensor | None) -> Iterator[str]:
    """One model and its heads, element by element."""
    rules = {head.rule[path] for head in heads}
    rule = heads[0].rule[path]
    kept = rule.startswith(("kept", "NOT"))
    values = [source.detach(), *(head.values[path] for head in heads)]
    label = f"{path} {tuple(source.shape)} [{rule}]"
    if len(rules) > 1:
        yield f"{label}: rules differ between heads, {rules}"
    if any((v.shape, v.dtype, v.device) != (source.shape, source.dtype, source.device) for v in values):
        yield f"{label}: shape, dtype or device differ"
        return
    if free is None:
        if not all(torch.equal(values[0], v) for v in values[1:]):
            yield f"{label}: fixed by the constructor, but drawn anew"
        return
    if kept:
        yield f"{label}: random, but kept"
        return
    if not all(torch.equal(values[0][~free], v[~free]) for v in values[1:]):
        yield f"{label}: {int((~free).sum())} of its elements are fixed by the constructor, and not kept"
    if not source.is_floating_point():
        return
    for i, one in enumerate(values):
        for two in values[i + 1 :]:
            equal, n = int((one[free] == two[free]).sum()), int(free.sum())
            # A permutation leaves one element in its place, on average.
            if equal > 0.1 * n + min(5, n // 3):
                yield f"{label}: {equal} of {n} values are equal in two heads, or in a head and the model"
                return


def _distributions(path: str, source: Tensor, ours: Pool, theirs: Pool, rule: str) -> tuple[float | None, list[str]]:
    """Location, scale, shape, scale by rows, and orthogonality, over independent models."""
    a, b = (np.concatenate(pool.values) for pool in (ours, theirs))
    label = f"{path} {tuple(source.shape)} [{rule}]"
    faults: list[str] = []
    if len(a) < _FEW:
        return None, faults
    error = _SPREADS * (2 / len(a)) ** 0.5
    if abs(a.mean() - b.mean()) > error * b.std():
        faults.append(f"{label}: mean {a.mean():.4g}, expected {b.mean():.4g}")
    if len(a) >= 100 and abs(a.std() / b.std() - 1) > error + 0.02:
        faults.append(f"{label}: deviation {a.std():.4g}, expected {b.std():.4g}")
    p = ks_p(a, b)
    if p < _LEVEL:
        faults.append(f"{label}: Kolmogorov-Smirnov p = {p:.1g}")
    if isinstance(ours.squares, Tensor) and isinstance(theirs.squares, Tensor):
        faults += _row_scales(label, source, ours.squares, theirs.squares, len(ours.values))
    if _orthogonal(ours.values[0], source) != _orthogonal(theirs.values[0], source):
        faults.append(f"{label}: orthogonal in one of model and head only")
    return p, faults


def ks_p(a: np.ndarray, b: np.ndarray) -> float:
    """The p-value of scipy's two-sample Kolmogorov-Smirnov test."""
    result: Any = stats.ks_2samp(a, b, method="asymp")
    return float(result.pvalue)


def _row_scales(label: str, source: Tensor, ours: Tensor, theirs: Tensor, models: int) -> Iterator[str]:
    """Fused weights (q, k, v) may have parts of different scale."""
    for parts in (2, 3, 4):
        elements = source.numel() // parts * models
        if len(ours) % parts or elements < 2000:
            continue
        scales = (ours.view(parts, -1).mean(1) / theirs.view(parts, -1).mean(1).clamp(min=1e-30)).sqrt()
        worst = float((scales - 1).abs().max())
        if worst > _SPREADS * (2 / elements) ** 0.5 + 0.02:
            yield f"{label}: scales of {parts} parts are {[round(s, 3) for s in scales.tolist()]} of what is expected"
            return


def _orthogonal(values: np.ndarray, source: Tensor) -> bool:
    """Whether a small matrix, all of which is in the sample, has orthogonal rows or columns."""
    if source.dim() < 2 or len(values) != source.numel() or min(len(source), source[0].numel()) < 4:
        return False
    matrix = values.reshape(len(source), -1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return bool(np.abs(gram / gram.diagonal().mean() - np.eye(len(gram))).max() < 1e-3)


def _some(values: Tensor) -> np.ndarray:
    if values.numel() > _SAMPLE:
        places = np.unique(np.random.default_rng(1).integers(values.numel(), size=_SAMPLE))
        values = values[torch.from_numpy(places)]
    return values.double().cpu().numpy()
