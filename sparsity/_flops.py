"""FLOPs of a training step per sample and of a whole training, by the convention of RigL (Evci et al. 2020, app. H).

The backward pass costs twice the forward pass: gradients with respect to the activations and to the weights. ``dense``
and ``sparse`` are the FLOPs of the forward pass of the dense and of the masked network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from sparsity._errors import RecordError, near_matches


def dense_training_flops(dense: float) -> float:
    """Dense training: 3 f_D."""
    return 3 * dense


def sparse_training_flops(sparse: float) -> float:
    """Training with fixed masks, or with updates that need no dense gradient (static, SET): 3 f_S."""
    return 3 * sparse


def rigl_training_flops(sparse: float, dense: float, every: int) -> float:
    """RigL, on average over steps: (3 f_S dT + 2 f_S + f_D) / (dT + 1).

    In one of ``every`` + 1 steps the gradient of the weights is dense, which costs f_D instead of f_S.

    Example:
        >>> rigl_training_flops(sparse=1.0, dense=5.0, every=3)
        4.0
    """
    return (3 * sparse * every + 2 * sparse + dense) / (every + 1)


@dataclass(frozen=True)
class Phase:
    """Neighbouring optimizer steps in which the masks stay as they are.

    Attributes:
        steps: Number of steps.
        densities: Share of active weights by path; a weight that is not named is dense. A `Fraction` is exact.
        dense_gradients: In how many of the steps the gradients of all weights are computed.
    """

    steps: int
    densities: Mapping[str, float | Fraction] = field(default_factory=dict)
    dense_gradients: int = 0


def training_flops(layers: Mapping[str, float], phases: Iterable[Phase], *, rest: float = 0, batch: int = 1) -> float:
    """FLOPs of a whole training, from the masks in each of its phases (Evci et al. 2020, app. H).

    A layer of f FLOPs forward and density d takes d f for the forward pass, d f for the gradients of its inputs and
    d f for those of its weights, but f in a step that computes the gradients of all weights. So with constant
    densities T steps cost 3 f_S T for fixed masks and SET, (2 f_S + f_D) T for SNFS, and for RigL the same in the steps
    that make an update and 3 f_S in the others. (The formula in the paper, `rigl_training_flops`, has one update for
    each ``every`` other steps instead of each ``every``-th step.) Not counted are, as there, what the choice of weights
    costs, and that the first layer needs no gradient of its inputs.

    Args:
        layers: Dense FLOPs of the forward pass for one sample by weight path, as of `fxsplit.layer_flops`.
        phases: The training, as of `training_plan`, or written by hand.
        rest: FLOPs of the forward pass that belong to no weight, as of `fxsplit.other_flops`; three times as many are
            counted in each step.
        batch: Samples in an optimizer step.

    Raises:
        RecordError: A path is not in ``layers``, a density not in [0, 1], or a number of steps is out of range.

    Example:
        >>> layers = {"masked": 100, "dense": 10}
        >>> training_flops(layers, [Phase(steps=4, densities={"masked": 0.5}, dense_gradients=1)])
        770.0
    """
    total = Fraction(0)
    for phase in phases:
        check_phase(phase, layers)
        for path, flops in layers.items():
            density = Fraction(phase.densities.get(path, 1))
            weights = density * (phase.steps - phase.dense_gradients) + phase.dense_gradients
            total += Fraction(flops) * (2 * density * phase.steps + weights)
        total += 3 * Fraction(rest) * phase.steps
    return float(total * batch)


def check_phase(phase: Phase, layers: Mapping[str, float]) -> None:
    """Check that a phase makes sense for ``layers``.

    Raises:
        RecordError: It doesn't.
    """
    if not 0 <= phase.dense_gradients <= phase.steps:
        raise RecordError(f"dense_gradients is a number from 0 to steps={phase.steps}, got {phase.dense_gradients}.")
    for path, density in phase.densities.items():
        if path not in layers:
            raise RecordError(missing(path, layers))
        if not 0 <= density <= 1:
            raise RecordError(f"The density of {path!r} is in [0, 1], got {density}.")


def missing(path: str, layers: Mapping[str, float]) -> str:
    """Return what is wrong when a masked weight has no FLOPs."""
    return (
        f"No FLOPs are given for the masked weight {path!r}.{near_matches(path, layers)} Take them of the same model "
        "that has the masks, with fxsplit.layer_flops; for a weight that the forward pass does not use add 0."
    )
