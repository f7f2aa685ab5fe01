"""What is known of one run when its page is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from recipes.evaluation._figure import Plot
from recipes.evaluation._language import Perplexity
from recipes.evaluation._predict import Predictions


@dataclass(frozen=True)
class Evidence:
    """What is known of one run. Each part but the title is optional, and gets a section of the page if it is there.

    Args:
        title: Heading of the page: method, data set, seed.
        lead: A sentence under it.
        test: Predictions on the test set.
        validation: Predictions on the validation set, for temperature scaling.
        outside: Logits `[M, L, K]` on other data sets, by name, for OOD detection.
        corrupted: Accuracy of the vote by corruption and severity, see `corruption_accuracy`.
        features: Features of every head by module, see `head_features`, for CKA; logits are compared anyway.
        history: A row per epoch, see `training_plot`.
        perplexity: Of a language model, by the name of the text.
        further: Further numbers by kind, ``tasks`` or ``sketch``, and name.
        costs: Names and texts: parameters, FLOPs by convention, wall time.
        settings: Names and texts: command, seed, versions.
        plots: Further figures, each with a caption.
    """

    title: str
    lead: str = ""
    test: Predictions | None = None
    validation: Predictions | None = None
    outside: Mapping[str, Tensor] = field(default_factory=dict)
    corrupted: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    features: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    perplexity: Mapping[str, Perplexity] = field(default_factory=dict)
    further: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    costs: Sequence[tuple[str, str]] = ()
    settings: Sequence[tuple[str, str]] = ()
    plots: Sequence[tuple[Plot, str]] = ()
