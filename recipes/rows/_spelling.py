"""One spelling for each change of a setting, so that a run has one folder however its settings were written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from recipes._errors import RecipeError
from recipes.rows._overrides import parsed, settings_of, texts_of, value_of, with_tokenizer
from recipes.rows._plain import plain
from recipes.rows._recipe import Recipe


def spelled(recipe: Recipe, changes: Iterable[str]) -> tuple[str, ...]:
    """Return changes in their one spelling, sorted; of several changes of one setting the last.

    Args:
        recipe: What is changed.
        changes: ``name=value`` each, as `overridden` takes them.

    Raises:
        RecipeError: There is no such setting, there are several, or the value is of the wrong type.

    Example:
        >>> from recipes.rows import find
        >>> spelled(find("table2/treenet-m3").recipe("paper"), ["lr=.2", "optimizer.lr=0.10", "drops=[0.5, 0.75]"])
        ('drops=(.5,.75)', 'lr=.1')
    """
    before = recipe
    recipe, changes = with_tokenizer(recipe, changes)
    known = settings_of(recipe)
    found = [
        f"{_shortest(path, known)}={_text(recipe, path, text, known[path])}"
        for path, text in texts_of(changes, known).items()
    ]
    if recipe is not before:
        found.append(f"tokenizer={recipe.data.tokenizer}")  # pyright: ignore
    return tuple(sorted(found))


def _shortest(path: str, known: Iterable[str]) -> str:
    """As much of the path's end as only this setting has."""
    names, others = path.split("."), [f".{other}" for other in known if other != path]
    endings = (".".join(names[start:]) for start in range(len(names) - 1, -1, -1))
    return next((name for name in endings if not any(other.endswith(f".{name}") for other in others)), path)


def _text(recipe: Recipe, path: str, text: str, hint: Any) -> str:
    value = value_of(recipe, path, text, hint)
    if text.startswith("*"):
        return f"*{plain(float(text[1:]))}"
    # A text that reads as a number, and the like, needs its quotes to stay one.
    for candidate in (plain(value), repr(value)):
        if not candidate.startswith("*") and candidate == candidate.strip() and _reads(candidate, value, path, hint):
            return candidate
    return text


def _reads(text: str, value: Any, path: str, hint: Any) -> bool:
    try:
        again = parsed(path, text, hint)
    except RecipeError:
        return False
    return type(again) is type(value) and again == value
