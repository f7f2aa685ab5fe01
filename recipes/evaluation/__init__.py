"""Evaluation of any network with the protocol `net.head_outputs(x) -> [output, ...]`; any other is a single head.

`predict` collects logits `[M, N, K]` of all heads; `evaluate` measures them. A vote (`mean_probability`, `mean_logit`)
turns them into log-probabilities `[N, K]`, which the metrics of a single prediction take. Metrics of pairs of heads
refuse a single head; tables show NaN for it.
"""

from __future__ import annotations

from recipes.evaluation._calibration import ECE_BINS, calibration_bins, calibration_error
from recipes.evaluation._cka import cka_matrix, linear_cka, mean_cka
from recipes.evaluation._corruption import corruption_accuracy, mean_by_severity
from recipes.evaluation._diagrams import FEWEST, corruption_plot, reliability_diagram, risk_coverage_plot
from recipes.evaluation._errors import EvaluationError
from recipes.evaluation._evaluate import HEADLINE, evaluate, evaluate_heads, headline
from recipes.evaluation._evidence import Evidence
from recipes.evaluation._features import head_features
from recipes.evaluation._figure import Look, Looks, Plot, Series, looks, percent
from recipes.evaluation._harness import TABLE_5_TASKS, harness_model, run_tasks
from recipes.evaluation._language import Perplexity, head_token_logits, perplexity
from recipes.evaluation._ood import OOD_SCORES, entropy, max_probability, ood_auroc
from recipes.evaluation._pairs import (
    any_conflict,
    disagreement,
    diversity,
    double_fault,
    pairwise_kl,
    q_statistic,
    released_disagreement,
)
from recipes.evaluation._predict import Predictions, evaluation_mode, head_logits, head_outputs, logits_of, predict
from recipes.evaluation._quality import accuracy, brier, nll, quality
from recipes.evaluation._run_report import METRICS, write_run_report
from recipes.evaluation._sections import further_title
from recipes.evaluation._selective import aurc, risk_coverage
from recipes.evaluation._sweeps import blocks_plot, ensemble_size_plot, sparsity_plot, training_plot
from recipes.evaluation._temperature import Temperature, after_vote, before_vote, fit_temperature
from recipes.evaluation._votes import AGGREGATIONS, Vote, mean_logit, mean_probability

__all__ = [
    "AGGREGATIONS",
    "ECE_BINS",
    "FEWEST",
    "HEADLINE",
    "METRICS",
    "OOD_SCORES",
    "TABLE_5_TASKS",
    "EvaluationError",
    "Evidence",
    "Look",
    "Looks",
    "Perplexity",
    "Plot",
    "Predictions",
    "Series",
    "Temperature",
    "Vote",
    "accuracy",
    "after_vote",
    "any_conflict",
    "aurc",
    "before_vote",
    "blocks_plot",
    "brier",
    "calibration_bins",
    "calibration_error",
    "cka_matrix",
    "corruption_accuracy",
    "corruption_plot",
    "disagreement",
    "diversity",
    "double_fault",
    "ensemble_size_plot",
    "entropy",
    "evaluate",
    "evaluate_heads",
    "evaluation_mode",
    "fit_temperature",
    "further_title",
    "harness_model",
    "head_features",
    "head_logits",
    "head_outputs",
    "head_token_logits",
    "headline",
    "linear_cka",
    "logits_of",
    "looks",
    "max_probability",
    "mean_by_severity",
    "mean_cka",
    "mean_logit",
    "mean_probability",
    "nll",
    "ood_auroc",
    "pairwise_kl",
    "percent",
    "perplexity",
    "predict",
    "q_statistic",
    "quality",
    "released_disagreement",
    "reliability_diagram",
    "risk_coverage",
    "risk_coverage_plot",
    "run_tasks",
    "sparsity_plot",
    "training_plot",
    "write_run_report",
]
