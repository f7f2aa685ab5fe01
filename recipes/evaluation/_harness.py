"""Downstream tasks of language models, by lm-evaluation-harness: the seven of NeuroTrails, Table 5."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from recipes.evaluation._errors import EvaluationError
from recipes.evaluation._votes import Vote, mean_probability

if TYPE_CHECKING:
    from recipes.evaluation._harness_model import HarnessModel

# The paper writes "ARC"; its 40 % are those of the easy set.
TABLE_5_TASKS = ("mmlu", "boolq", "arc_easy", "piqa", "hellaswag", "openbookqa", "winogrande")


def harness_model(
    net: nn.Module, tokenizer: Any, vote: Vote = mean_probability, max_length: int = 1024, batch_size: int = 8
) -> HarnessModel:
    """Make a model of lm-evaluation-harness from a split language model; the vote gives every token's probability.

    Args:
        net: A causal language model, split or not, on its device.
        tokenizer: Its tokenizer, as transformers has them: `encode`, `decode`, `eos_token_id`.
        vote: From all heads' logits `[M, ..., V]` to log-probabilities `[..., V]`: `mean_probability` or `mean_logit`.
        max_length: Most tokens the network takes; longer texts lose their beginning.
        batch_size: Sequences per forward pass.

    Returns:
        For `lm_eval.simple_evaluate(model=...)`.

    Raises:
        EvaluationError: lm-eval is not installed, or the tokenizer doesn't say how a text ends.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise EvaluationError("Downstream tasks need lm-evaluation-harness: pip install 'fxsplit[lm-eval]'.")
    from recipes.evaluation._harness_model import HarnessModel

    return HarnessModel(net, tokenizer, vote, max_length, batch_size)


def run_tasks(model: HarnessModel, tasks: Sequence[str] = TABLE_5_TASKS, **options: Any) -> dict[str, float]:
    """Run downstream tasks without examples in the prompt, and return their accuracies.

    Args:
        model: From `harness_model`.
        tasks: Names of tasks; the seven of Table 5 are downloaded by the `datasets` library.
        **options: Of `lm_eval.simple_evaluate`: `limit`, `task_manager`, `num_fewshot`, ...

    Returns:
        For each task its `acc`, as in the paper, and under `average` their mean.

    Raises:
        EvaluationError: A task is unknown, its data are missing, or it has no accuracy.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    from fxsplit._errors import near_matches

    manager = options.pop("task_manager", None) or TaskManager()
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown or not tasks:
        hints = "".join(near_matches(task, manager.all_tasks) for task in unknown)
        raise EvaluationError(
            f"lm-evaluation-harness has no task {', '.join(unknown) or 'to run: none was named'}.{hints}"
        )
    simple_evaluate: Any = lm_eval.simple_evaluate  # imported lazily there, so that its signature can't be read
    settings = {"num_fewshot": 0, "bootstrap_iters": 0, **options}
    try:
        found = simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, **settings)
    except (OSError, ValueError) as error:
        absent = [task for task in tasks if not _has_data(task, manager)]
        if not absent:
            raise
        raise EvaluationError(
            f"The data of {', '.join(absent)} are not on this machine and cannot be downloaded "
            f"({type(error).__name__}: {' '.join(str(error).split())}). Get them where there is a network, with "
            f'HF_HUB_OFFLINE not set: python -c "from lm_eval.tasks import TaskManager; TaskManager().load({absent})"'
        ) from error
    # A group such as mmlu has its mean among the groups.
    results = {**found["results"], **found.get("groups", {})}
    missing = [task for task in tasks if "acc,none" not in results.get(task, {})]
    if missing:
        raise EvaluationError(f"These tasks measure no accuracy 'acc': {', '.join(missing)}.")
    accuracies = {task: float(results[task]["acc,none"]) for task in tasks}
    return {**accuracies, "average": sum(accuracies.values()) / len(accuracies)}


def _has_data(task: str, manager: Any) -> bool:
    try:
        manager.load([task])
    except (OSError, ValueError):
        return False
    return True
