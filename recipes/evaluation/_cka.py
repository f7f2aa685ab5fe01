"""Linear CKA: how alike two representations are, up to rotation and scale (Kornblith et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recipes.evaluation._errors import EvaluationError


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Return the linear centred kernel alignment of two sets of features of the same inputs.

    Args:
        one: `[N, D]`; further dimensions are flattened.
        other: `[N, E]`.

    Returns:
        From 0 to 1; 1 if one is a rotated and scaled copy of the other. NaN if features are constant.

    Raises:
        EvaluationError: Different numbers of inputs, fewer than two, or numbers that are none.

    Example:
        >>> x = torch.randn(50, 3)
        >>> round(linear_cka(x, 2 * x[:, [2, 0, 1]] + 1), 4)
        1.0
    """
    return cka_matrix([one, other])[0, 1].item()


def cka_matrix(features: Sequence[Tensor] | Tensor) -> Tensor:
    """Return linear CKA between all heads, `[M, M]`, with ones on the diagonal.

    Args:
        features: M tensors `[N, D]`, see `head_features`; or logits `[M, N, K]`.

    Raises:
        EvaluationError: Different numbers of inputs, fewer than two, or numbers that are none.

    Example:
        >>> cka_matrix(torch.randn(3, 20, 5)).shape
        torch.Size([3, 3])
    """
    centred = [_centred(values) for values in features]
    counts = {len(values) for values in centred}
    if len(counts) != 1 or counts <= {0, 1}:
        raise EvaluationError(
            "CKA compares features of the same two or more inputs; got features of "
            f"{', '.join(str(len(values)) for values in centred) or 'no'} inputs."
        )
    similarity = torch.ones(len(centred), len(centred), dtype=torch.double)
    norms = [_overlap(values, values).sqrt() for values in centred]
    for row in range(len(centred)):
        for column in range(row):
            value = _overlap(centred[row], centred[column]) / (norms[row] * norms[column])
            similarity[row, column] = similarity[column, row] = value
    return similarity


def mean_cka(features: Sequence[Tensor] | Tensor) -> float:
    """Return linear CKA averaged over the pairs of heads.

    Args:
        features: M tensors `[N, D]`, M at least 2.

    Raises:
        EvaluationError: A single head, or as for `cka_matrix`.

    Example:
        >>> x = torch.randn(20, 5)
        >>> round(mean_cka([x, -x, 3 * x]), 4)
        1.0
    """
    count = len(features)
    if count < 2:
        raise EvaluationError(f"mean_cka compares pairs of heads, so it needs features of 2 or more; got {count}.")
    matrix = cka_matrix(features)
    return ((matrix.sum() - matrix.diagonal().sum()) / (count * (count - 1))).item()


def _centred(features: Tensor) -> Tensor:
    values = features.detach().flatten(1).double() if features.ndim > 1 else features.detach()[:, None].double()
    if not bool(values.isfinite().all()):
        raise EvaluationError(f"CKA: features {list(features.shape)} hold NaN or infinite numbers.")
    return values - values.mean(dim=0)


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """`||X^T Y||_F^2`, by whichever of the two products is smaller."""
    count = len(one)
    if count * count < one.shape[1] * other.shape[1]:
        return ((one @ one.T) * (other @ other.T)).sum()
    return (one.T @ other).square().sum()
