"""The rows of the paper's tables and the points of its figures, each a recipe that one command runs."""

from __future__ import annotations

from recipes.rows._data import C4, DataSet, ImageSet, Material, TextSet
from recipes.rows._models import DigitsResnet, Llama, Model, Timm, Wrn
from recipes.rows._overrides import no_setting, overridden, settings_of, takes
from recipes.rows._recipe import Paper, Recipe, Row
from recipes.rows._registry import PLACES, all_rows, find, home, matching, of_place
from recipes.rows._spelling import spelled

__all__ = [
    "C4",
    "PLACES",
    "DataSet",
    "DigitsResnet",
    "ImageSet",
    "Llama",
    "Material",
    "Model",
    "Paper",
    "Recipe",
    "Row",
    "TextSet",
    "Timm",
    "Wrn",
    "all_rows",
    "find",
    "home",
    "matching",
    "no_setting",
    "of_place",
    "overridden",
    "settings_of",
    "spelled",
    "takes",
]
