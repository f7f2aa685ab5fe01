"""What an engine will do to the masks, as far as it can be known beforehand."""

from __future__ import annotations

from fractions import Fraction

from sparsity import _dense_steps
from sparsity._engine import Engine
from sparsity._errors import EngineError
from sparsity._flops import Phase
from sparsity._rewire import per_layer


def training_plan(engine: Engine, steps: int) -> tuple[Phase, ...]:
    """Return the phases of a training of ``steps`` optimizer steps, from the engine's step on, for `training_flops`.

    Args:
        engine: An engine, before its first step or later.
        steps: Optimizer step at which training ends.

    Raises:
        EngineError: ``steps`` are over already; or the engine compares scores over layers, so that only training shows
            which layers lose and win weights: use `TrainingFlops` as its callback.

    Example:
        >>> import torch, sparsity
        >>> net = torch.nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.75)
        >>> engine = sparsity.rigl(net, torch.optim.SGD(net.parameters(), lr=0.1), every=10, until=75)
        >>> training_plan(engine, steps=100)
        (Phase(steps=100, densities={'weight': Fraction(1, 4)}, dense_gradients=7),)
    """
    start, rule = engine.step, engine.rule
    if steps < start:
        raise EngineError(f"The engine is at step {start}, so there is no training until step {steps} to plan.")
    if rule is not None and rule.scope is not per_layer:
        raise EngineError(
            "Scores are compared over layers, so which of them lose and win weights is known only while training. Use "
            "callback=sparsity.TrainingFlops(...)."
        )
    dense = _dense_steps.of(engine)
    active = {layer.path: layer.nonzeros for layer in engine.masks.layers}
    sizes = {layer.path: layer.total for layer in engine.masks.layers}
    phases: list[Phase] = []
    begun, gradients = start, 0
    for step in range(start, steps):
        # The masks change inside a step, after its forward and backward pass.
        gradients += dense(step)
        if rule is None or rule.target is None or not rule.due(step):
            continue
        after = {path: rule.target(step, path) for path in active}
        if after != active:
            phases.append(Phase(step + 1 - begun, _densities(active, sizes), gradients))
            active, begun, gradients = after, step + 1, 0
    if begun < steps:
        phases.append(Phase(steps - begun, _densities(active, sizes), gradients))
    return tuple(phases)


def _densities(active: dict[str, int], sizes: dict[str, int]) -> dict[str, float | Fraction]:
    return {path: Fraction(count, sizes[path]) for path, count in active.items()}
