"""Questions asked of a tensor's values: constant, structured, redrawn, drawn from the same distribution?

All of them look at a fixed sample of a few thousand elements, so that they cost nothing next to drawing a tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLE = 4096
"""Elements looked at per tensor."""


def sample(tensor: Tensor, size: int = SAMPLE) -> Tensor:
    """Return ``size`` elements from fixed pseudo-random places, all of a smaller tensor: ``[n]``, float64 on the CPU."""
    tensor = tensor.detach()
    if tensor.numel() <= size:
        return tensor.reshape(-1).double().cpu()
    # Indexing instead of flattening: flattening a channels_last tensor would copy it.
    places = torch.randint(tensor.numel(), (size,), generator=torch.Generator().manual_seed(0)).to(tensor.device)
    return tensor[torch.unravel_index(places, tensor.shape)].double().cpu()


def is_constant(tensor: Tensor) -> bool:
    """Whether all elements are equal."""
    if tensor.numel() < 2:
        return True
    few = sample(tensor, 64)
    if bool((few != few[0]).any()):
        return False
    low, high = torch.aminmax(tensor.detach())
    return bool(low == high)


def is_independent(source: Tensor, drawn: Tensor) -> bool:
    """Whether ``drawn`` is a new draw: not the source's values, nor a scaled or partly overwritten copy of them."""
    old, new = sample(source), sample(drawn)
    informative = (old != 0) | (new != 0)
    old, new = old[informative], new[informative]
    if len(old) == 0 or float((old == new).double().mean()) > 0.05:
        return False
    if len(old) < 16:
        return True
    return abs(_correlation(old, new)) < max(0.2, 5 / math.sqrt(len(old)))


def same_distribution(source: Tensor, drawn: Tensor, level: float) -> bool:
    """Whether two tensors may be samples of one distribution: two-sample Kolmogorov-Smirnov test at ``level``.

    Small samples give the test little power, so their scales must also agree within a factor of 2.5.
    """
    old, new = sample(source), sample(drawn)
    if len(old) == 1:
        return True
    if len(old) < 512:
        ratio = float(old.square().mean().sqrt() / new.square().mean().sqrt().clamp_min(1e-300))
        bound = 2.5 if len(old) >= 8 else 6.0
        if not 1 / bound < ratio < bound:
            return False
    return ks_p_value(old, new) > level


def ks_p_value(first: Tensor, second: Tensor) -> float:
    """Return the asymptotic p-value of the two-sample Kolmogorov-Smirnov test (Stephens' small-sample correction)."""
    first, second = first.sort().values, second.sort().values
    both = torch.cat([first, second])
    cdf1 = torch.searchsorted(first, both, right=True).double() / len(first)
    cdf2 = torch.searchsorted(second, both, right=True).double() / len(second)
    distance = float((cdf1 - cdf2).abs().max())
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
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
    corner = tensor.detach()[tuple(slice(0, 64) for _ in tensor.shape)].double().cpu()
    if _repeats(corner, tensor.dtype):
        return True
    flat = corner.reshape(-1)
    if len(flat) < 16:
        return _is_progression(flat)
    return any(_is_smooth(corner, axis, 0.8 if trainable else 0.5) for axis in range(corner.dim()))


def has_uneven_rows(tensor: Tensor) -> bool:
    """Whether the rows differ in scale by more than sampling explains, as in per-row or fused q, k, v scalings."""
    if tensor.dim() < 2 or tensor.shape[0] < 2 or tensor[0].numel() < 32:
        return False
    step = max(1, tensor.shape[0] // 64)
    rows = tensor.detach()[::step].flatten(1)[:, :512].double().cpu()
    deviations = rows.std(dim=1)
    deviations = deviations[deviations > 0]
    if len(deviations) < 2:
        return False
    # The log of a normal sample's deviation has variance 1 / (2 n); heavier tails get a margin of 4.
    return float(deviations.log().var()) > 4 / (2 * rows.shape[1])


def is_orthogonal(tensor: Tensor) -> bool:
    """Whether the tensor, flattened to ``[rows, columns]``, has orthogonal rows (or columns) of one length."""
    if tensor.dim() < 2 or min(tensor.shape[0], tensor[0].numel()) < 4:
        return False
    matrix = tensor.detach().flatten(1)
    vectors = (matrix[:4] if matrix.shape[0] <= matrix.shape[1] else matrix[:, :4].T).double().cpu()
    gram = vectors @ vectors.T
    length = gram.diagonal().mean()
    return bool(length > 0) and bool((gram - length * torch.eye(4, dtype=gram.dtype)).abs().max() < 1e-3 * length)


def _repeats(corner: Tensor, dtype: torch.dtype) -> bool:
    for axis in range(corner.dim()):
        first = corner.narrow(axis, 0, 1)
        if corner.shape[axis] >= 2 and corner.numel() > corner.shape[axis] and bool((corner == first).all()):
            return True
    nonzero = corner[corner != 0]
    if len(nonzero) == 0:
        return True
    distinct = len(nonzero.unique())
    # Half precision has few values, so that even true draws collide there.
    coarse = torch.finfo(dtype).bits <= 16
    return distinct == 1 or (len(nonzero) >= 16 and distinct < min(len(nonzero) / 2, 24 if coarse else math.inf))


def _is_progression(flat: Tensor) -> bool:
    if len(flat) < 3:
        return False
    for values in (flat, flat.abs().clamp_min(1e-300).log()):
        steps = values.diff()
        if bool((steps - steps.mean()).abs().max() < 1e-3 * steps.mean().abs()):
            return True
    return len(flat) >= 8 and bool((flat.diff() > 0).all() or (flat.diff() < 0).all())


def _is_smooth(corner: Tensor, axis: int, bound: float) -> bool:
    length = corner.shape[axis]
    if length < 8:
        return False
    here, there = corner.narrow(axis, 0, length - 1).reshape(-1), corner.narrow(axis, 1, length - 1).reshape(-1)
    if len(here) < 64:
        return bool((there > here).all() or (there < here).all()) or abs(_correlation(here, there)) > 0.9
    return abs(_correlation(here, there)) > bound


def _correlation(first: Tensor, second: Tensor) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = float(first.norm() * second.norm())
    return float(first @ second) / scale if scale > 0 else 0.0
