"""A new draw of one tensor when no initialiser of the model can give it: only the tensor's own values are used."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fxsplit._init._statistics import has_uneven_rows, is_constant, is_orthogonal, is_structured, sample

KEPT_CONSTANT = "kept: constant"
KEPT_STRUCTURED = "kept: structured"
PERMUTED = "permuted"
NORMAL_FIT = "normal fit"
ORTHOGONAL = "orthogonal"

Draw = Callable[[Tensor], Tensor]

_CHUNK = 32  # elements moved together: two cache lines of float32, and much less than a row of a large weight
_LARGE = 1 << 15


def plan_redraw(source: Tensor, is_parameter: bool) -> tuple[str, Draw]:
    """Return the rule for one tensor and the function that draws it.

    Args:
        source: The tensor of the user's model.
        is_parameter: Buffers hold statistics and tables more often than draws: they are kept.
    """
    if source.numel() == 1:
        if not source.is_floating_point() or not is_parameter or _is_round_number(source):
            return KEPT_CONSTANT, _clone
        return "NOT redrawn: a single value, which may be a constant as well as a draw", _clone
    if is_constant(source):
        return KEPT_CONSTANT, _clone
    if not source.is_floating_point():
        return KEPT_STRUCTURED, _clone
    if is_parameter and not np.isfinite(sample(source)).all():
        return "NOT redrawn: holds infinite or NaN values", _clone
    if is_structured(source, is_parameter and source.requires_grad):
        return KEPT_STRUCTURED, _clone
    if not is_parameter:
        if source.numel() < 16:  # rotary frequencies of tiny heads; too few to be features
            return KEPT_STRUCTURED, _clone
        return "NOT redrawn: a buffer whose meaning is not known", _clone
    if source.numel() < 16:
        return NORMAL_FIT, _normal_fit
    if is_orthogonal(source):
        return ORTHOGONAL, _orthogonal
    return PERMUTED, _permute_within_rows if has_uneven_rows(source) else permute


def permute(source: Tensor) -> Tensor:
    """Return the values of ``source`` in a new random order; rows of zeros (padding) stay where they are."""
    if source.dim() < 2:
        return _like(source, _shuffle(source.detach()))
    rows = source.detach().flatten(1)
    # Rows that start with a zero are few, so that looking for zero rows among them costs no pass over the tensor.
    suspects = (rows[:, 0] == 0).nonzero().view(-1)
    empty = suspects[~rows[suspects].any(dim=1)]
    if len(empty) == 0:
        return _like(source, _shuffle(rows.reshape(-1)))
    filled = torch.ones(len(rows), dtype=torch.bool, device=rows.device).index_fill_(0, empty, False)
    out = torch.zeros_like(rows)
    out[filled] = _shuffle(rows[filled].view(-1)).view(-1, rows.shape[1])
    return _like(source, out)


def _shuffle(flat: Tensor) -> Tensor:
    n = flat.numel()
    if n < _LARGE:
        return flat[torch.randperm(n, device=flat.device)]
    # A uniform permutation of a large tensor is one cache miss per element. For independent values any permutation
    # chosen without looking at them is as good, as long as heads don't line up: short chunks go anywhere, from one
    # random offset to another. The few values outside the chunks go to the places left over.
    chunks = n // _CHUNK - 1
    origin, target = (slice(offset, offset + chunks * _CHUNK) for offset in torch.randint(_CHUNK, (2,)).tolist())
    out = torch.empty_like(flat)
    order = torch.randperm(chunks, device=flat.device)
    torch.index_select(flat[origin].view(chunks, _CHUNK), 0, order, out=out[target].view(chunks, _CHUNK))
    rest = torch.cat([flat[: origin.start], flat[origin.stop :]])
    rest = rest[torch.randperm(len(rest), device=flat.device)]
    out[: target.start], out[target.stop :] = rest[: target.start], rest[target.start :]
    return out


def _permute_within_rows(source: Tensor) -> Tensor:
    rows = source.detach().flatten(1)
    order = torch.rand(rows.shape, device=rows.device).argsort(dim=1)
    return _like(source, rows.gather(1, order))


def _normal_fit(source: Tensor) -> Tensor:
    values = source.detach().double()
    mean, std = float(values.mean()), float(values.std())
    # A mean within two standard errors of zero is taken for zero: most initialisers are centred.
    centre = mean if abs(mean) > 2 * std / math.sqrt(values.numel()) else 0.0
    return torch.empty_like(source.detach()).normal_(centre, std)


def _orthogonal(source: Tensor) -> Tensor:
    matrix = source.detach().flatten(1)
    vector = matrix[0] if matrix.shape[0] <= matrix.shape[1] else matrix[:, 0]
    drawn = torch.empty(matrix.shape, dtype=torch.float32, device=source.device)
    nn.init.orthogonal_(drawn, gain=float(vector.double().norm()))
    return _like(source, drawn)


def _clone(source: Tensor) -> Tensor:
    return source.detach().clone()


def _like(source: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` with the shape, dtype and memory layout of ``source``."""
    shaped = values.view(source.shape).to(source.dtype)
    return shaped if source.is_contiguous() else torch.empty_like(source.detach()).copy_(shaped)


def _is_round_number(source: Tensor) -> bool:
    """Whether a person could have written the value: few decimal digits, or the logarithm of such a number."""
    value = float(source.detach())
    digits = 5 if torch.finfo(source.dtype).bits > 16 else 2
    if value == float(torch.tensor(float(f"{value:.{digits}g}"), dtype=source.dtype)):
        return True
    powers = [math.exp(v) for v in (value, -value) if abs(v) < 20]
    return any(abs(power - float(f"{power:.3g}")) <= 1e-6 * power for power in powers)
