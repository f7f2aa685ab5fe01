"""The page of a run: its numbers and figures in one HTML file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from recipes.cli._folder import Choice
from recipes.evaluation import Evidence, Perplexity, Predictions, write_run_report
from recipes.rows import C4, TextSet, settings_of
from recipes.training import read_rows


def write_report(
    folder: Path, choice: Choice, seed: int, result: dict[str, Any], measured: Any, validation: Predictions | None
) -> None:
    """Write ``report.html`` with what was measured on the test part by the last state.

    Args:
        folder: Of the run.
        choice: What was run.
        seed: Its seed.
        result: Content of ``result.json``.
        measured: Predictions or perplexity.
        validation: Predictions on the validation part, which temperatures are fitted to.
    """
    flops, cost = result["training_flops"], result["costs"]
    language = isinstance(measured, Perplexity)
    recipe = choice.recipe
    data = recipe.data
    evidence = Evidence(
        f"{choice.row.label}, seed {seed}",
        f"{choice.title}: the state after the last step, on the test part.",
        test=None if language else measured,
        validation=validation,
        perplexity={recipe.data.name: measured} if language else {},
        history=_history(folder) if recipe.method.networks == 1 and recipe.method.heads > 1 else (),
        costs=[
            *([("perplexity is per token of", str(data.tokenizer))] if isinstance(data, (C4, TextSet)) else []),
            ("parameters", f"{cost['parameters']:,}"),
            ("nonzero", f"{cost['nonzeros']:,}"),
            ("inference FLOPs, dense", f"{cost['inference_flops_dense']:.4g}"),
            ("inference FLOPs, uniform density (the paper's convention)", f"{cost['inference_flops_uniform']:.4g}"),
            ("inference FLOPs, actual masks", f"{cost['inference_flops_masks']:.4g}"),
            ("training FLOPs, uniform density", f"{flops['uniform']:.4g}"),
            ("training FLOPs, actual masks of every step", f"{flops['masks']:.4g}"),
            ("seconds of training", f"{result['seconds']:.0f} on {result['device']}"),
        ],
        settings=[
            ("command", command(choice)),
            *((path, str(setting(recipe, path))) for path in settings_of(recipe)),
            ("torch", result["torch"]),
        ],
    )
    with warnings.catch_warnings():
        # Every run is calibrated, small and untrained ones too; the page shows at which temperature that ended.
        warnings.filterwarnings("ignore", "The NLL on .* has no lowest point", UserWarning)
        write_run_report(folder, evidence)


def command(choice: Choice) -> str:
    """Return the command line that runs a choice."""
    return f"python -m recipes run {choice.row.name} {choice.options}"


def setting(recipe: Any, path: str) -> Any:
    """Return the value of a setting by its path."""
    for name in path.split("."):
        recipe = getattr(recipe, name)
    return recipe


def _history(folder: Path) -> list[dict[str, float]]:
    rows = [{key: float(value) for key, value in row.items()} for row in read_rows(folder / "network-0" / "log.csv")]
    return rows if rows and "validation_accuracy" in rows[0] else []
