"""Settings changed for all rows of a table or figure at once: each row takes those that it has."""

from __future__ import annotations

from collections.abc import Sequence

from recipes._errors import RecipeError
from recipes.cli._folder import Choice
from recipes.rows import Row, no_setting, of_place, settings_of, takes


def fitting(row: Row, preset: str, changes: Sequence[str]) -> Choice:
    """Return a row in a preset, changed by those of the changes that it has a setting for.

    Raises:
        RecipeError: The row has no such preset, or a value does not fit its setting.
    """
    recipe = row.recipe(preset)
    return Choice.of(row.name, preset, [change for change in changes if takes(recipe, change)])


def check(place: str, preset: str, changes: Sequence[str] = ()) -> None:
    """Make sure that each change is one of some row of a table, and that some row has the preset and takes them.

    Raises:
        RecipeError: There is no such table, or none of its rows has.
    """
    rows = of_place(place)
    recipes = [row.recipe(preset) for row in rows if preset in row.presets]
    known = dict.fromkeys(path for recipe in recipes for path in settings_of(recipe))
    for change in changes if known else ():
        if not any(takes(recipe, change) for recipe in recipes):
            raise no_setting(change.partition("=")[0].strip(), known, f"No row of {rows[0].place} has a")
    refusals = [refusal(row, preset, changes) for row in rows]
    if refusals[0] is not None and None not in refusals:
        raise refusals[0]


def refusal(row: Row, preset: str, changes: Sequence[str]) -> RecipeError | None:
    """Return why a row cannot be changed so, or None."""
    try:
        fitting(row, preset, changes)
    except RecipeError as error:
        return error
    return None
