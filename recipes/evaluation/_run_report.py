"""One run on one page, with its numbers and figures as files beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes import _report as html
from recipes.evaluation._errors import EvaluationError
from recipes.evaluation._evidence import Evidence
from recipes.evaluation._merge import merged
from recipes.evaluation._sections import PARTS, Part

METRICS = "metrics.json"


def write_run_report(folder: Path, known: Evidence, earlier: Mapping[str, Any] | None = None) -> Path:
    """Write `report.html` (images inside), `metrics.json` and a PNG of each figure into a folder.

    Args:
        folder: Where to; made if it isn't there.
        known: What is known of the run.
        earlier: Content of a `metrics.json` of the same run, which the new one keeps what is not measured again of.

    Returns:
        The page's path.

    Raises:
        EvaluationError: There is nothing to report, parts don't fit each other, or two figures have one name. Nothing
            is written then.

    Example:
        >>> import tempfile
        >>> from recipes.evaluation import Predictions
        >>> test = Predictions(torch.randn(3, 40, 5), torch.randint(0, 5, (40,)))
        >>> write_run_report(Path(tempfile.mkdtemp()), Evidence("TreeNet, seed 0", test=test)).name
        'report.html'
    """
    parts = [part for make in PARTS if (part := make(known)) is not None]
    if not parts:
        raise EvaluationError("write_run_report: nothing is known of the run: no predictions, perplexity or settings.")
    plots = [plot for part in parts for plot, _ in part.plots]
    names = [plot.name for plot in plots]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EvaluationError(
            f"write_run_report: two figures are called {', '.join(twice)}; their files would collide."
        )
    images = {plot.name: plot.png() for plot in plots}
    page = html.page(known.title, known.lead, [_section(part, images) for part in parts])
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    numbers = {key: value for part in parts for key, value in part.numbers.items()}
    content = merged(earlier or {}, _plain(numbers))
    new = folder / f"{METRICS}.new"
    new.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(new, folder / METRICS)
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def _section(part: Part, images: dict[str, bytes]) -> html.Section:
    pictures = [(html.picture(images[plot.name], caption), caption) for plot, caption in part.plots]
    return html.Section(part.title, part.body + (html.figures(pictures) if pictures else ""))


def _plain(value: Any) -> Any:
    """Numbers as JSON has them: what is NaN or infinite is null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
