"""A recipe: all that decides what a run computes, as plain data; and a row of the paper with its recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxsplit._errors import near_matches
from recipes._errors import RecipeError
from recipes.methods import Method
from recipes.rows._data import DataSet
from recipes.rows._models import DigitsResnet, Llama, Timm, Wrn
from recipes.training import Training


@dataclass(frozen=True)
class Recipe:
    """What a run computes.

    Args:
        data: Data set.
        model: Dense network.
        method: What is made of it.
        training: How each network is trained.
    """

    data: DataSet
    model: Wrn | Timm | DigitsResnet | Llama
    method: Method
    training: Training

    @property
    def language(self) -> bool:
        """Whether this is about tokens."""
        return isinstance(self.model, Llama)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it: every part with the name of its class as ``kind``.

        Example:
            >>> from recipes.rows import find
            >>> find("table2/treenet-m3").presets["paper"].as_dict()["model"]
            {'kind': 'Wrn', 'depth': 28, 'width': 10}
        """
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        parts = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **parts}
    return [_plain(each) for each in value] if isinstance(value, (tuple, list)) else value


@dataclass(frozen=True)
class Paper:
    """The numbers that the paper prints for a row; None where it prints none.

    Args:
        accuracy: Test accuracy, percent.
        nll: Negative log-likelihood, nats.
        ece: Expected calibration error.
        perplexity: Validation perplexity.
        disagreement: Prediction disagreement, percent.
        train: Training FLOPs, relative to the single dense network of the table.
        inference: Inference FLOPs, likewise.
        parameters: Number of parameters.
        source: Where the paper has them from, if it isn't its own run.
    """

    accuracy: float | None = None
    nll: float | None = None
    ece: float | None = None
    perplexity: float | None = None
    disagreement: float | None = None
    train: float | None = None
    inference: float | None = None
    parameters: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a table, or point of a figure.

    Args:
        name: Where it is and what: ``table2/neurotrails-m3-s0.8``.
        label: Its name in tables.
        presets: Recipes: ``paper`` as its text says, ``released`` as the authors' code runs it where there is such
            code, ``small`` for two cores.
        paper: The paper's numbers.
        reference: The row whose FLOPs are 1x.
        note: What to know about it.
    """

    name: str
    label: str
    presets: Mapping[str, Recipe]
    paper: Paper = field(default_factory=Paper)
    reference: str = ""
    note: str = ""

    @property
    def place(self) -> str:
        """The table or figure: ``table2``."""
        return self.name.partition("/")[0]

    def recipe(self, preset: str) -> Recipe:
        """Return the recipe of a preset.

        Raises:
            RecipeError: The row has no such preset.
        """
        if preset not in self.presets:
            known = ", ".join(self.presets)
            if preset == "released":
                raise RecipeError(
                    f"{self.name} has no preset 'released': the authors' code does not run it"
                    f"{f' (numbers from {self.paper.source})' if self.paper.source else ''}. Presets: {known}."
                )
            raise RecipeError(f"Unknown preset {preset!r}. Presets: {known}.{near_matches(preset, self.presets)}")
        return self.presets[preset]
