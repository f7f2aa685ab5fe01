"""Questions asked of a tensor's values: constant, structured, redrawn, drawn from the same distribution?

Most of them look at a fixed sample of a few thousand elements, so that they cost nothing next to drawing a tensor. They
compute in numpy: on arrays this small, torch's threads cost more than they bring.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SAMPLE = 2048
"""Elements looked at per tensor."""

_EDGED = 128  # elements of which a uniform draw shows its bounds
_PIECE = 1 << 20


def sample(tensor: Tensor, size: int = SAMPLE) -> np.ndarray:
    """Return ``size`` elements from fixed pseudo-random places (all of a small tensor): ``[n]``, float64."""
    if tensor.numel() <= size:
        return _to_numpy(tensor).reshape(-1)
    places = np.unravel_index(np.random.default_rng(0).integers(tensor.numel(), size=size), tensor.shape)
    # Indexing instead of flattening: flattening a channels_last tensor would copy it.
    return _to_numpy(tensor[tuple(torch.from_numpy(axis).to(tensor.device) for axis in places)])


def is_constant(tensor: Tensor) -> bool:
    """Whether all elements are equal."""
    if tensor.numel() < 2:
        return True
    few = sample(tensor, 64)
    if (few != few[0]).any():
        return False
    low, high = torch.aminmax(tensor.detach())
    return bool(low == high)


def is_independent(source: np.ndarray, drawn: np.ndarray) -> bool:
    """Whether a sample comes from a new draw: not the source's values, nor a scaled or partly overwritten copy.

    Args:
        source: Sample of the source's tensor ``[n]``.
        drawn: Sample of the new tensor, from the same places ``[n]``.
    """
    informative = (source != 0) | (drawn != 0)
    old, new = source[informative], drawn[informative]
    if len(old) == 0 or (old == new).mean() > 0.05:
        return False
    return len(old) < 16 or abs(_correlation(old, new)) < max(0.2, 5 / math.sqrt(len(old)))


def same_distribution(source: np.ndarray, drawn: np.ndarray, level: float) -> bool:
    """Whether two samples may come from one distribution, tested at ``level``.

    Initialisers differ in scale and in having a bound (uniform) or not (normal). The Kolmogorov-Smirnov test sees
    either only in large samples, so both are tested on their own too.
    """
    if len(source) == 1:
        return True
    scales = [math.sqrt(max(np.square(values).mean(), 1e-300)) for values in (source, drawn)]
    kurtosis = np.mean([(values**4).mean() / scale**4 for values, scale in zip((source, drawn), scales, strict=True)])
    # Standard error of the difference of two logarithms of scales.
    error = math.sqrt(max(kurtosis - 1, 1) / (2 * len(source)))
    if abs(math.log(scales[0] / scales[1])) > _deviations(level) * error:
        return False
    # The largest of a uniform sample is sqrt(3) times its scale, of which this is five standard errors more; that of a
    # normal sample of this size is well above.
    edge = math.sqrt(3) * math.exp(5 * math.sqrt(0.2 / len(source)))
    bounded = [np.abs(values).max() < edge * scale for values, scale in zip((source, drawn), scales, strict=True)]
    if len(source) >= _EDGED and bounded[0] != bounded[1]:
        return False
    return ks_p_value(source, drawn) > level


def same_extent(source: Tensor, drawn: Tensor, level: float) -> bool:
    """Whether all elements of two tensors may come from distributions of one width, tested at ``level``.

    A sample does not always tell Xavier's uniform bounds from torch's default ones, which are 9 % narrower in a layer
    that widens four times. A pass over all elements does, and takes a fraction of the time of drawing them.
    """
    n, resolution = source.numel(), torch.finfo(source.dtype).eps
    if n < _EDGED:
        return True
    extents = [_extent(source), _extent(drawn)]
    (mean, highest), (new_mean, new_highest) = extents
    if min(mean, new_mean) == 0:
        return mean == new_mean
    if n > SAMPLE:  # else samples are all there is
        values = np.abs(sample(source))
        error = float(values.std() / max(values.mean(), 1e-300)) * math.sqrt(2 / n)
        if abs(math.log(new_mean / mean)) > _deviations(level) * error + resolution:
            return False
    # The largest of n uniform values misses its bound by about 1 / n of it: no other statistic is as sharp.
    uniform = [abs(2 * m / h - 1) < 5 * math.sqrt(1 / (3 * n)) + resolution for m, h in extents]
    return not all(uniform) or abs(math.log(new_highest / highest)) <= -math.log(level) / n + 4 * resolution


def _extent(tensor: Tensor) -> tuple[float, float]:
    """The mean and the largest of the absolute values of all elements."""
    total, highest = 0.0, 0.0
    # In pieces, which need little memory, and keep float32 precise: one sum over 10^8 elements may be off by a third.
    for piece in tensor.detach().split(max(1, _PIECE * len(tensor) // tensor.numel())):
        values = piece.abs()
        total += float(values.sum(dtype=torch.promote_types(values.dtype, torch.float32)))
        highest = max(highest, float(values.max()))
    return total / tensor.numel(), highest


def ks_p_value(first: np.ndarray, second: np.ndarray) -> float:
    """Return the asymptotic p-value of the two-sample Kolmogorov-Smirnov test (Stephens' small-sample correction)."""
    first, second = np.sort(first), np.sort(second)
    both = np.concatenate([first, second])
    cdf1 = np.searchsorted(first, both, side="right") / len(first)
    cdf2 = np.searchsorted(second, both, side="right") / len(second)
    return _ks_p(float(np.abs(cdf1 - cdf2).max()), len(first) * len(second) / (len(first) + len(second)))


def looks_drawn(values: np.ndarray, level: float = 1e-3) -> bool:
    """Whether a sample ``[n]`` fits a centred normal, uniform or truncated normal (at two deviations) distribution.

    Initialisers draw from these. Training makes the tails of weights heavier, and moves their mean. Of draws, about the
    share ``level`` does not look so.
    """
    # torch's trunc_normal_ gives its distant bounds once in a few million draws.
    bound = 10 * float(np.median(np.abs(values)))
    values = np.sort(values.clip(-bound, bound))
    n, scale = len(values), math.sqrt(np.square(values).mean())
    if scale == 0 or abs(values.mean()) > 5 * scale / math.sqrt(n):
        return False
    # Of normal samples, the kurtosis itself is skewed: it needs a wider margin than its standard error suggests.
    if (values**4).mean() / scale**4 > 3 + 1.35 * _deviations(level) * math.sqrt(24 / n):
        return False
    ranks = np.arange(1, n + 1) / n
    for cdf in (_normal_cdf, _uniform_cdf, _truncated_cdf):
        expected = cdf(values / scale)
        if _ks_p(float(np.maximum(ranks - expected, expected - ranks + 1 / n).max()), n) > level:
            return True
    return False


def _deviations(level: float) -> float:
    """How many standard errors chance explains at ``level``."""
    return math.sqrt(-2 * math.log(level))


def _normal_cdf(z: np.ndarray) -> np.ndarray:
    return torch.special.ndtr(torch.from_numpy(z)).numpy()


def _uniform_cdf(z: np.ndarray) -> np.ndarray:
    return (0.5 + z / (2 * math.sqrt(3))).clip(0, 1)


def _truncated_cdf(z: np.ndarray) -> np.ndarray:
    mass = math.erf(math.sqrt(2))
    deviation = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / mass)
    return ((_normal_cdf(z * deviation) - 0.5) / mass + 0.5).clip(0, 1)


def _ks_p(distance: float, n: float) -> float:
    root = math.sqrt(n)
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.3:  # The series below converges slowly here, where the p-value is 1 to five digits.
        return 1.0
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * scaled * scaled) for k in range(1, 101)))


def is_structured(tensor: Tensor, trainable: bool) -> bool:
    """Whether the values look computed (tables, grids, one-hot patterns, repeated rows) rather than drawn.

    A trainable parameter needs stronger evidence: after training, real draws are smooth to some degree too.
    """
    if not tensor.is_floating_point():
        return True
    corner = _to_numpy(tensor[tuple(slice(0, 64) for _ in tensor.shape)])
    coarse = torch.finfo(tensor.dtype).bits <= 16
    if _repeats(corner, coarse) or (not coarse and _is_written(corner.reshape(-1)[:64])):
        return True
    if corner.size < 16:
        return _is_progression(corner.reshape(-1))
    return any(_is_smooth(corner, axis, 0.8 if trainable else 0.5) for axis in range(corner.ndim))


def has_uneven_rows(tensor: Tensor) -> bool:
    """Whether the rows differ in scale by more than sampling explains, as in per-row or fused q, k, v scalings."""
    if tensor.dim() < 2 or tensor.shape[0] < 2 or tensor[0].numel() < 32:
        return False
    rows = _to_numpy(tensor[:: max(1, tensor.shape[0] // 64)].flatten(1)[:, :512])
    deviations = rows.std(axis=1, ddof=1)
    deviations = deviations[deviations > 0]
    if len(deviations) < 2:
        return False
    # The log of a normal sample's deviation has variance 1 / (2 n); heavier tails get a margin of 4.
    return bool(np.log(deviations).var(ddof=1) > 4 / (2 * rows.shape[1]))


def is_orthogonal(tensor: Tensor) -> bool:
    """Whether the tensor, flattened to ``[rows, columns]``, has orthogonal rows (or columns) of one length."""
    if tensor.dim() < 2 or min(tensor.shape[0], tensor[0].numel()) < 4:
        return False
    matrix = tensor.detach().flatten(1)
    vectors = _to_numpy(matrix[:4] if matrix.shape[0] <= matrix.shape[1] else matrix[:, :4].T)
    gram = vectors @ vectors.T
    length = gram.diagonal().mean()
    return bool(length > 0 and np.abs(gram - length * np.eye(4)).max() < 1e-3 * length)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _repeats(corner: np.ndarray, coarse: bool) -> bool:
    for axis, length in enumerate(corner.shape):
        if length >= 2 and corner.size > length and (corner == corner.take([0], axis)).all():
            return True
    nonzero = corner[corner != 0]
    if len(nonzero) == 0:
        return True
    distinct = len(np.unique(nonzero))
    # Half precision has few values, so that even true draws collide there.
    return distinct == 1 or (len(nonzero) >= 16 and distinct < min(len(nonzero) / 2, 24 if coarse else math.inf))


def _is_written(values: np.ndarray) -> bool:
    """Whether a person could have written the values: four decimal digits each."""
    return all(np.float32(f"{value:.4g}") == np.float32(value) for value in values)


def _is_progression(flat: np.ndarray) -> bool:
    if len(flat) < 3:
        return False
    for values in (flat, np.log(np.abs(flat).clip(1e-300))):
        steps = np.diff(values)
        if np.abs(steps - steps.mean()).max() < 1e-3 * abs(steps.mean()):
            return True
    return len(flat) >= 8 and _is_monotone(flat[:-1], flat[1:])


def _is_smooth(corner: np.ndarray, axis: int, bound: float) -> bool:
    length = corner.shape[axis]
    if length < 8:
        return False
    here = corner.take(range(length - 1), axis).reshape(-1)
    there = corner.take(range(1, length), axis).reshape(-1)
    if len(here) < 64:
        return _is_monotone(here, there) or abs(_correlation(here, there)) > 0.9
    return abs(_correlation(here, there)) > bound


def _is_monotone(here: np.ndarray, there: np.ndarray) -> bool:
    return bool((there > here).all() or (there < here).all())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt(np.square(first).sum() * np.square(second).sum())
    return float((first * second).sum() / scale) if scale > 0 else 0.0
