"""What finished runs leave, without the runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from recipes.cli._folder import Choice


def finish(out: Path, name: str, accuracies: Sequence[float], changes: Sequence[str] = (), flops: float = 1e6) -> None:
    """Leave a finished run of a row in the preset ``small``, a seed for each accuracy."""
    choice = Choice.of(name, "small", changes)
    for seed, accuracy in enumerate(accuracies):
        folder = choice.folder(out, seed)
        (folder / "network-0").mkdir(parents=True)
        costs = {"inference_flops_masks": flops, "inference_flops_dense": flops, "inference_flops_uniform": flops}
        result = {
            "row": name,
            "preset": "small",
            "changes": choice.changes,
            "seed": seed,
            "metrics": {"last": {"accuracy_prob": accuracy}},
            "costs": {**costs, "parameters": 1_234_567, "nonzeros": 1e6},
            "training_flops": {"dense": flops, "uniform": flops, "masks": flops},
        }
        (folder / "result.json").write_text(json.dumps(result))
        row = "epoch,validation_accuracy,validation_disagreement"
        (folder / "network-0" / "log.csv").write_text(f"{row}\n1,0.1,0.5\n2,0.3,0.2\n")
