"""The engine: keeps masked weights at zero and rewires the masks, from inside ``optimizer.step()``."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsity._attachment import check, claim, innermost, processes, release
from sparsity._errors import EngineError, NoEffectWarning, SparsityWarning, listed
from sparsity._gradient import DenseGradient
from sparsity._masks import masks_of
from sparsity._report import Rewiring
from sparsity._rewire import Layer, rewire
from sparsity._rule import Rule
from sparsity._seed import seeded
from sparsity._steps import StepCount, left_out


class Engine:
    """Dynamic (or static) sparse training of a masked model, attached to its optimizer.

    Attaching is all there is to do: a plain ``optimizer.step()`` in any loop then keeps masked weights exactly zero and
    makes the updates. Made by `rigl`, `set_` and `static`.

    An update happens at the start of an optimizer step, from the weights and the gradients of this step, summed over
    the micro-batches since ``.grad`` was last None. It sets the dropped and grown weights, their gradients of this step
    and every floating-point optimizer state of the weight's shape to zero there. A weight without a gradient in this
    step keeps its mask. If a gradient or weight is not finite, the update is left out.

    The optimizer keeps the engine alive; the engine does not keep the optimizer alive.

    Attributes:
        masks: The masks that the engine keeps, a live view.
        skipped: Number of updates left out because a gradient or weight was not finite.
        last: What the latest update did, or None before the first.

    Args:
        model: A model with masks (see `sparsify`).
        optimizer: The optimizer of its weights, or a wrapper that holds it as ``.optimizer``.
        rule: What an update does and when; None for fixed masks.
        seed: Seed of random growth, which depends on this, the layer's path and the step only.
        callback: Called with each update's `Rewiring` right after it.

    Raises:
        EngineError: The model has no masks, has an engine already, or weights that the optimizer doesn't hold.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        rule: Rule | None,
        *,
        seed: int = 0,
        callback: Callable[[Rewiring], None] | None = None,
    ) -> None:
        optimizer = innermost(optimizer)
        self.masks = masks_of(model)
        self._steps = StepCount()
        self.skipped = 0
        self.last: Rewiring | None = None
        self._rule = rule
        self._seed = seed
        self._callback = callback
        self._collectors: dict[str, DenseGradient] = {}
        check(self.masks.weights, optimizer)
        if rule is not None and rule.dense and processes() > 1:
            raise EngineError(
                f"Growing by gradient is not supported in {processes()} processes yet: each would grow other weights. "
                "Use sparsity.set_ or sparsity.static, whose masks are the same in every process."
            )
        if rule is not None and self.masks.nonzeros == self.masks.total:
            warnings.warn(NoEffectWarning("No mask has a zero, so there is nothing to rewire."), stacklevel=3)
        self._optimizer = weakref.ref(optimizer)
        self._handles = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        )
        claim(self, self.masks.weights)
        # An optimizer that trained the dense model has momentum where the masks are now False.
        for path, mask in self.masks.items():
            self._clear(optimizer, path, ~mask)
        self._collect_if_due()

    def detach(self) -> None:
        """Stop: masks stay on the model, but masked weights are not kept at zero any more."""
        if not self.attached:
            warnings.warn(NoEffectWarning("detach changed nothing: the engine is not attached."), stacklevel=2)
            return
        for handle in self._handles:
            handle.remove()
        release(self.masks.weights)
        self._stop_collecting()
        self._handles = ()

    @property
    def attached(self) -> bool:
        """Whether the optimizer still exists and runs this engine."""
        return bool(self._handles) and self._optimizer() is not None

    @property
    def step(self) -> int:
        """Number of optimizer steps made; those that a GradScaler leaves out don't count."""
        return self._steps.exact()

    def state_dict(self) -> dict[str, int]:
        """Return what resuming needs besides the model (with its masks) and the optimizer, between two steps."""
        return {"step": self.step, "skipped": self.skipped, "seed": self._seed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken; load model and optimizer too, in any order.

        Raises:
            EngineError: ``state`` is not from `state_dict`.
        """
        wrong = set(state) ^ {"step", "skipped", "seed"}
        if wrong:
            raise EngineError(
                f"Expected the state of an engine with step, skipped and seed, but {listed(wrong)} differ."
            )
        self._steps = StepCount(int(state["step"]))
        self.skipped, self._seed = int(state["skipped"]), int(state["seed"])
        self._collect_if_due()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if self._rule is None or not self._steps.satisfies(self._rule.due) or left_out(optimizer):
            return None
        closure = kwargs["closure"] if "closure" in kwargs else next(iter(args[1:2]), None)
        if closure is None:
            self._update(optimizer, self._rule)
            return None
        # With a closure the gradients of this step come into being inside the step, maybe more than once.
        pending = [self._rule]

        def closure_then_update() -> Any:
            loss = closure()
            if pending:
                self._update(optimizer, pending.pop())
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": closure_then_update}
        return (args[0], closure_then_update, *args[2:]), kwargs

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # Masked gradients and states keep zeros at zero under elementwise optimizers only, not under Muon or SOAP.
        self.masks.apply()
        self._steps.add(optimizer)
        self._collect_if_due()

    @torch.no_grad()
    def _update(self, optimizer: Optimizer, rule: Rule) -> None:
        layers = self._layers(rule)
        self._stop_collecting()
        nonzeros, finite = _survey(layers)
        if not finite:
            self.skipped += 1
            warnings.warn(
                SparsityWarning(f"Update at step {self.step} left out: a gradient or weight is not finite."),
                stacklevel=2,
            )
            return
        counts: dict[str, int] = {}
        for layer, active in zip(layers, nonzeros, strict=True):
            counts[layer.path] = rule.count(self.step, active, layer.mask.numel())
            dropped, grown = rewire(layer, counts[layer.path], rule.drop, rule.grow)
            changed = dropped | grown
            layer.mask.logical_xor_(changed)
            self._clear(optimizer, layer.path, changed)
        self.last = Rewiring(self.step, rule.share(self.step), dict(counts), dict(counts))
        if self._callback is not None:
            self._callback(self.last)

    def _layers(self, rule: Rule) -> list[Layer]:
        """Collect what the update may look at, for each weight that has a gradient in this step."""
        layers, idle = [], []
        for path, weight in self.masks.weights.items():
            if weight.parameter.grad is None:
                idle.append(path)
                continue
            dense = self._collectors[path].total if path in self._collectors else None
            if rule.dense and dense is None:
                raise EngineError(
                    f"{path!r} has a gradient at step {self.step}, but not from a backward pass through the masked "
                    "model since the last step, so the gradients of its zeros are unknown. Attach the engine, move the "
                    "model and load checkpoints between two steps, before the forward pass."
                )
            mask = weight.holder.mask
            generator = seeded(mask.device, self._seed, path, self.step)
            layers.append(Layer(path, weight.parameter.detach(), mask, dense, generator))
        if idle:
            warnings.warn(
                NoEffectWarning(f"No gradient in the step of an update, so these keep their masks: {listed(idle)}."),
                stacklevel=2,
            )
        return layers

    @torch.no_grad()
    def _clear(self, optimizer: Optimizer, path: str, places: Tensor) -> None:
        """Zero weight, gradient and optimizer state at the given places."""
        parameter = self.masks.weights[path].parameter
        states = optimizer.state.get(parameter, {}).values()
        same_shaped = [s for s in states if isinstance(s, Tensor) and s.shape == parameter.shape]
        for tensor in (parameter, parameter.grad, *same_shaped):
            # Quantised states are left alone: their code 0 need not mean zero.
            if tensor is not None and tensor.is_floating_point():
                tensor.masked_fill_(places.to(tensor.device), 0)

    def _collect_if_due(self) -> None:
        self._stop_collecting()
        if self._rule is not None and self._rule.dense and self._steps.satisfies(self._rule.due):
            for path, weight in self.masks.weights.items():
                self._collectors[path] = DenseGradient(weight.holder.mask, weight.parameter)

    def _stop_collecting(self) -> None:
        for collector in self._collectors.values():
            collector.close()
        self._collectors = {}


def _survey(layers: list[Layer]) -> tuple[list[int], bool]:
    """Count the active weights of each layer and check that all values are finite, in one transfer to the host."""
    if not layers:
        return [], True
    tensors = [t for layer in layers for t in (layer.weight, layer.gradient) if t is not None]
    device = layers[0].mask.device
    facts = [layer.mask.sum().to(device) for layer in layers] + [_is_finite(t).to(device) for t in tensors]
    *nonzeros, finite = torch.stack([*facts[: len(layers)], torch.stack(facts[len(layers) :]).all().long()]).tolist()
    return nonzeros, bool(finite)


def _is_finite(tensor: Tensor) -> Tensor:
    # The extremes of a tensor with NaN are NaN; unlike isfinite this allocates nothing of the tensor's size.
    return torch.stack(tensor.aminmax()).isfinite().all()
