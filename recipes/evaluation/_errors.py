"""The exception of the evaluation."""

from __future__ import annotations

from recipes._errors import RecipeError


class EvaluationError(RecipeError):
    """What is to be evaluated is not what the metric needs: shapes, labels, numbers or parts of a network."""
