"""The exception of the recipes: a setting that cannot work, said before any training starts."""

from __future__ import annotations


class RecipeError(ValueError):
    """A recipe got a setting it cannot work with."""
