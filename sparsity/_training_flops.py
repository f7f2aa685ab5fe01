"""FLOPs of a training that runs, exact to the step: a callback that follows the masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sparsity._components import by_component
from sparsity._dense_steps import DenseSteps, never
from sparsity._errors import RecordError, listed
from sparsity._flops import missing
from sparsity._masks import Masks
from sparsity._report import Rewiring, check_active

_STATE = ("step", "active", "weights", "gradients")


class TrainingFlops:
    """Adds up the FLOPs of training from the masks that each step really had, by the convention of `training_flops`.

    To be an engine's ``callback``, made of the masks that training starts with. It counts steps times active weights,
    in integers, so that the sums are exact however long training is and whatever method moves the masks: also where
    densities change, as in gradual pruning, and where they move between layers.

    Args:
        masks: What `sparsify` returned, or `masks_of` of the model.
        layers: Dense FLOPs of the forward pass for one sample by weight path, as of `fxsplit.layer_flops`. Only the
            layers with a mask become cheaper, each by its own density.
        dense_steps: Tells in which steps the gradients of all weights are computed: ``sparsity.dense_steps.never``
            (fixed masks, SET), ``.updates(every, until)`` (RigL), ``.always`` (SNFS), or a function of one's own.
        rest: FLOPs of the forward pass that belong to no weight, as of `fxsplit.other_flops`.
        batch: Samples in an optimizer step, over all micro-batches and processes.

    Raises:
        RecordError: A masked weight has no FLOPs.

    Example:
        >>> import torch, sparsity
        >>> net = torch.nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> dense_steps = sparsity.dense_steps.updates(every=2)
        >>> flops = sparsity.TrainingFlops(masks, {"weight": 2 * 32}, dense_steps, batch=5)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = sparsity.rigl(net, optimizer, every=2, callback=flops)
        >>> for _ in range(5):
        ...     optimizer.zero_grad()
        ...     net(torch.randn(5, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> flops.total(engine.step), flops.dense(engine.step)
        (2720.0, 4800.0)
    """

    def __init__(
        self,
        masks: Masks,
        layers: Mapping[str, float],
        dense_steps: DenseSteps = never,
        *,
        rest: float = 0,
        batch: int = 1,
    ) -> None:
        found = masks.layers
        absent = next((layer.path for layer in found if layer.path not in layers), None)
        if absent is not None:
            raise RecordError(missing(absent, layers))
        self._layers = dict(layers)
        self._sizes = {layer.path: layer.total for layer in found}
        self._dense_steps = dense_steps
        self._rest = rest
        self._batch = batch
        self._step = 0
        self._active = {layer.path: layer.nonzeros for layer in found}
        # Sums over the steps before self._step of the weights in the forward pass, and of those with a gradient.
        self._weights = dict.fromkeys(self._sizes, 0)
        self._gradients = dict.fromkeys(self._sizes, 0)

    def __call__(self, update: Rewiring) -> None:
        """Take an update in; the engine calls this.

        Raises:
            RecordError: The update is of another model, or before the latest one that is known; or the masks were
                others before it than this knows.
        """
        unknown = [path for path in update.grown if path not in self._sizes]
        if unknown:
            raise RecordError(f"The update is of another model: {listed(unknown)} had no mask when this was made.")
        change = update.change
        check_active(update, {path: active + change.get(path, 0) for path, active in self._active.items()})
        # The step of the update had its forward and backward pass with the masks from before.
        self._weights, self._gradients = self._sums(update.step + 1)
        self._step = update.step + 1
        for path, number in change.items():
            self._active[path] += number

    def total(self, steps: int) -> float:
        """FLOPs of the first ``steps`` optimizer steps, such as ``engine.step``.

        Raises:
            RecordError: An update came later than that.
        """
        return sum(self.by_path(steps).values()) + 3 * self._rest * steps * self._batch

    def dense(self, steps: int) -> float:
        """FLOPs of as many steps without masks."""
        return float(3 * (sum(self._layers.values()) + self._rest) * steps * self._batch)

    def ratio(self, steps: int) -> float:
        """Share of `dense` that was needed; NaN of no steps."""
        return self.total(steps) / self.dense(steps) if steps else math.nan

    def by_path(self, steps: int) -> dict[str, float]:
        """`total` by weight path, without ``rest``."""
        weights, gradients = self._sums(steps)
        return {
            path: flops * self._batch * (2 * weights[path] + gradients[path]) / self._sizes[path]
            if path in weights
            else 3 * flops * steps * self._batch
            for path, flops in self._layers.items()
        }

    def by_component(self, steps: int) -> dict[str, float]:
        """`total` of ``trunk``, each of ``heads.<i>``, and ``model`` for weights outside of them; without ``rest``."""
        return by_component(self.by_path(steps))

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs: a few numbers for each layer."""
        return {
            "step": self._step,
            "active": dict(self._active),
            "weights": dict(self._weights),
            "gradients": dict(self._gradients),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            RecordError: ``state`` is not from `state_dict`, or of other masks.
        """
        wrong = set(state) ^ set(_STATE)
        if wrong:
            raise RecordError(f"Expected the state of TrainingFlops with {listed(_STATE)}, but {listed(wrong)} differ.")
        other = set(state["active"]) ^ set(self._sizes)
        if other:
            raise RecordError(f"The state is of other masks: {listed(sorted(other))} differ.")
        self._step = int(state["step"])
        self._active, self._weights, self._gradients = (dict(state[key]) for key in ("active", "weights", "gradients"))

    def _sums(self, steps: int) -> tuple[dict[str, int], dict[str, int]]:
        if steps < self._step:
            raise RecordError(
                f"The FLOPs of the first {steps} steps are not known: the latest update came in step {self._step - 1}. "
                "Going back to a checkpoint, load the state that this had there too."
            )
        new = steps - self._step
        full = sum(1 for step in range(self._step, steps) if self._dense_steps(step))
        weights = {path: count + new * self._active[path] for path, count in self._weights.items()}
        gradients = {
            path: count + (new - full) * self._active[path] + full * self._sizes[path]
            for path, count in self._gradients.items()
        }
        return weights, gradients
