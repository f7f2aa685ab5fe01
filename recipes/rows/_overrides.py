"""Settings of a recipe changed from the command line: ``lr=.05``, ``method.members=5``."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from fxsplit._errors import near_matches
from recipes._errors import RecipeError
from recipes.data import tokenizer_named
from recipes.rows._data import C4, TextSet
from recipes.rows._plain import plain
from recipes.rows._recipe import Recipe

_ALIASES = {
    "learning_rate": "lr",
    "rate": "lr",
    "wd": "weight_decay",
    "batch": "batch_size",
    "bs": "batch_size",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "num_heads": "members",
    "ensemble_size": "members",
    "amp": "precision",
    "dtype": "precision",
    "dataset": "name",
    "grad_clip": "clip",
    "milestones": "drops",
    "update_freq": "every",
}
"""Other names of settings."""

_TUPLES = {float: "(.25,.5)", int: "(1,2)", tuple[float, float]: "((.5,1),(1,.1))"}
"""Examples of tuples by what is in them, if it is no text."""


def overridden(recipe: Recipe, changes: Iterable[str]) -> Recipe:
    """Return a recipe with some settings changed, all at once.

    Args:
        recipe: What to change.
        changes: ``name=value`` each, of several for one setting the last; the name of a setting, with as much of the
            path in front (``optimizer.lr``) as it needs to be the only one. ``none`` is None; ``epochs=*.25`` a quarter
            of what the recipe has, so that the rows of a table keep their proportions; ``tokenizer=gpt2``, ``=bytes``
            or ``=bpe:8000`` another tokenizer.

    Raises:
        RecipeError: There is no such setting, there are several, or the value is of the wrong type or out of range.

    Example:
        >>> from recipes.rows import find
        >>> overridden(find("table2/treenet-m3").presets["paper"], ["lr=.05", "members=5"]).method.label
        'TreeNet (M=5)'
    """
    recipe, changes = with_tokenizer(recipe, changes)
    known = settings_of(recipe)
    values = {path: value_of(recipe, path, text, known[path]) for path, text in texts_of(changes, known).items()}
    return _replaced(recipe, values) if values else recipe


def with_tokenizer(recipe: Recipe, changes: Iterable[str]) -> tuple[Recipe, list[str]]:
    """Make the choice of a tokenizer, whose settings differ by its kind; return the other changes beside the recipe."""
    left = []
    for change in changes:
        if _names_tokenizer(recipe, change):
            tokenizer = tokenizer_named(change.partition("=")[2].strip())
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, tokenizer=tokenizer))
        else:
            left.append(change)
    return recipe, left


def takes(recipe: Recipe, change: str) -> bool:
    """Tell whether a recipe has the setting that a change names, or several; so does what is no ``name=value``."""
    name, equals, _ = change.partition("=")
    return not equals or _names_tokenizer(recipe, change) or bool(_matches(name.strip(), settings_of(recipe)))


def _names_tokenizer(recipe: Recipe, change: str) -> bool:
    name, equals, _ = (part.strip() for part in change.partition("="))
    return bool(equals) and name in ("tokenizer", "data.tokenizer") and isinstance(recipe.data, (TextSet, C4))


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


def texts_of(changes: Iterable[str], known: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts that changes give settings, by their paths; of several changes of one setting the last.

    Raises:
        RecipeError: One is no ``name=value``, or its name is that of no setting or of several.
    """
    texts = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise RecipeError(f"--set takes name=value, got {change!r}.")
        texts[_resolve(name.strip(), known)] = text.strip()
    return texts


def value_of(recipe: Recipe, path: str, text: str, hint: Any) -> Any:
    """Return the value that a text, ``.05`` or ``*.25``, gives a setting.

    Raises:
        RecipeError: It is of the wrong type.
    """
    return _scaled(recipe, path, text) if text.startswith("*") else parsed(path, text, hint)


def no_setting(name: str, known: Iterable[str], lead: str = "The recipe has no") -> RecipeError:
    """Make the error for a name that no setting has.

    Args:
        name: The name.
        known: Settings that there are.
        lead: Beginning of the message: what has none.
    """
    paths = list(known)
    short = dict.fromkeys(path.rpartition(".")[2] for path in paths)
    # Names that other programs have for a setting look like another setting of ours, or like none.
    others = {other: ours for other, ours in _ALIASES.items() if ours in short}
    alias = difflib.get_close_matches(name.lower().replace("-", "_"), others, n=1, cutoff=0.85)
    hint = f" Did you mean {others[alias[0]]!r}?" if alias else near_matches(name, [*short, *paths])
    hint = hint or f" There are {', '.join(paths)}."
    return RecipeError(f"{lead} setting {name!r}.{hint}")


def _matches(name: str, known: Iterable[str]) -> list[str]:
    return [path for path in known if path == name or path.endswith(f".{name}")]


def _resolve(name: str, known: Mapping[str, Any]) -> str:
    matches = _matches(name, known)
    if len(matches) == 1 or name in matches:
        return name if name in matches else matches[0]
    if matches:
        raise RecipeError(f"Several settings are called {name!r}: {', '.join(matches)}. Say which.")
    raise no_setting(name, known)


def parsed(path: str, text: str, hint: Any) -> Any:
    """Return the value that a text stands for.

    Raises:
        RecipeError: It is not of the setting's type, which ``hint`` is.
    """
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
    raise RecipeError(f"{path} must be of type {wanted}, got {text!r}.{_tuple_hint(path, value, options)}")


def _tuple_hint(path: str, value: Any, options: tuple[Any, ...]) -> str:
    kinds = [typing.get_args(option) for option in options if (typing.get_origin(option) or option) is tuple]
    if not kinds or isinstance(value, tuple):
        return ""
    name = path.rpartition(".")[2]
    several = _TUPLES.get(kinds[0][0], "('stages.0.0','stages.1.0')")
    alone = "" if typing.get_origin(kinds[0][0]) is tuple else f", of one value as {name}={plain((value,))}"
    return f" Write a tuple as {name}={several}{alone}."


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
