"""What to know of the numbers of a table."""

from __future__ import annotations

from collections.abc import Sequence

from recipes._errors import RecipeError
from recipes.cli._fitting import fitting
from recipes.rows import C4, TextSet, of_place


def tokenizer_note(place: str, preset: str, changes: Sequence[str] = ()) -> str:
    """Say which tokens the perplexities of a table are counted in; nothing for a table of images.

    Args:
        place: As of a row.
        preset: Which runs.
        changes: Settings that the runs were changed by.

    Example:
        >>> tokenizer_note("table4", "paper", ["tokenizer=gpt2"])
        'Perplexities are per token of gpt2; they do not compare with those of another tokenizer.'
    """
    found = set()
    for row in of_place(place):
        try:
            data = fitting(row, preset, changes).recipe.data
        except RecipeError:
            continue  # no such preset, and no runs
        if isinstance(data, (TextSet, C4)):
            found.add(str(data.tokenizer))
    if not found:
        return ""
    return (
        f"Perplexities are per token of {', '.join(sorted(found))}; they do not compare with those of another "
        "tokenizer."
    )
