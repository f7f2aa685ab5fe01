"""Settings of a recipe changed from the command line: ``lr=.05``, ``method.members=5``."""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from collections.abc import Iterable
from typing import Any

from fxsplit._errors import near_matches
from recipes._errors import RecipeError
from recipes.data import tokenizer_named
from recipes.rows._data import C4, TextSet
from recipes.rows._recipe import Recipe


def overridden(recipe: Recipe, changes: Iterable[str]) -> Recipe:
    """Return a recipe with some settings changed, all at once.

    Args:
        recipe: What to change.
        changes: ``name=value`` each; the name of a setting, with as much of the path in front (``optimizer.lr``) as it
            needs to be the only one. ``none`` is None; ``epochs=*.25`` a quarter of what the recipe has, so that the
            rows of a table keep their proportions; ``tokenizer=gpt2``, ``=bytes`` or ``=bpe:8000`` another tokenizer.

    Raises:
        RecipeError: There is no such setting, there are several, or the value is of the wrong type or out of range.

    Example:
        >>> from recipes.rows import find
        >>> overridden(find("table2/treenet-m3").presets["paper"], ["lr=.05", "members=5"]).method.label
        'TreeNet (M=5)'
    """
    recipe, changes = _with_tokenizer(recipe, changes)
    known = settings_of(recipe)
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise RecipeError(f"--set takes name=value, got {change!r}.")
        path = _resolve(name.strip(), known)
        text = text.strip()
        values[path] = _scaled(recipe, path, text) if text.startswith("*") else _parsed(path, text, known[path])
    return _replaced(recipe, values) if values else recipe


def _with_tokenizer(recipe: Recipe, changes: Iterable[str]) -> tuple[Recipe, list[str]]:
    """Take the choice of a tokenizer, whose settings differ by its kind, from the changes."""
    left = []
    for change in changes:
        name, equals, text = (part.strip() for part in change.partition("="))
        if equals and name in ("tokenizer", "data.tokenizer") and isinstance(recipe.data, (TextSet, C4)):
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, tokenizer=tokenizer_named(text)))
        else:
            left.append(change)
    return recipe, left


def settings_of(recipe: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of each setting of a recipe by its path."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(type(recipe))
    for field in dataclasses.fields(recipe):
        value, path = getattr(recipe, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            found |= settings_of(value, f"{path}.")
        else:
            found[path] = hints[field.name]
    return found


def _resolve(name: str, known: dict[str, Any]) -> str:
    matches = [path for path in known if path == name or path.endswith(f".{name}")]
    if len(matches) == 1 or name in matches:
        return name if name in matches else matches[0]
    if matches:
        raise RecipeError(f"Several settings are called {name!r}: {', '.join(matches)}. Say which.")
    short = [path.rpartition(".")[2] for path in known]
    hint = near_matches(name, [*short, *known]) or f" There are {', '.join(known)}."
    raise RecipeError(f"The recipe has no setting {name!r}.{hint}")


def _parsed(path: str, text: str, hint: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if text.lower() == "none" and type(None) in options:
        return None
    if text.lower() in ("true", "false") and bool in options:
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(value, list):
        value = tuple(value)
    for option in options:
        kind = typing.get_origin(option) or option
        if isinstance(kind, type) and type(value) is kind:
            return value
    if float in options and type(value) is int:
        return float(value)
    if str in options:
        return text
    wanted = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise RecipeError(f"{path} must be of type {wanted}, got {text!r}.")


def _scaled(recipe: Recipe, path: str, text: str) -> float:
    value: Any = recipe
    for name in path.split("."):
        value = getattr(value, name)
    try:
        factor = float(text[1:])
    except ValueError:
        factor = 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < factor < float("inf"):
        raise RecipeError(f"{path}={text} multiplies {value!r}: that takes a number, and a positive factor.")
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


def _replaced(part: Any, values: dict[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        inner = {path.partition(".")[2]: v for path, v in values.items() if path.startswith(f"{field.name}.")}
        if inner:
            changes[field.name] = _replaced(getattr(part, field.name), inner)
        elif field.name in values:
            changes[field.name] = values[field.name]
    return dataclasses.replace(part, **changes)
