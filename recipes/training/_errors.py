"""The exception of the trainer."""

from __future__ import annotations

from recipes._errors import RecipeError


class TrainingError(RecipeError):
    """A training cannot be started, gone on with, or brought to an end; what was finished before is kept."""
