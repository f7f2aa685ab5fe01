"""The engine: keeps masked weights at zero and rewires the masks, from inside ``optimizer.step()``."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from sparsity import _engine_state
from sparsity._attachment import check, check_held, claim, innermost, release
from sparsity._bits import fill
from sparsity._closure import closure_in, with_closure
from sparsity._collection import Collection, has_gradient
from sparsity._compact import states_of
from sparsity._distributed import check_same, check_same_seed, size_of
from sparsity._errors import EngineError, NoEffectWarning, SparsityWarning, described, listed
from sparsity._initial import check_finite, start_values
from sparsity._layer import Layer
from sparsity._nested import is_nested
from sparsity._optimizer_state import clear, forget_curvature, state_of, warn_of_unclear
from sparsity._rehearsal import is_rehearsal
from sparsity._report import Rewiring
from sparsity._rewire import check_amounts, check_changes, limited, over_layers
from sparsity._rule import Rule
from sparsity._seed import seeded
from sparsity._sharded import is_sharded, local
from sparsity._sharding import shard_masks
from sparsity._shown import shown
from sparsity._steps import StepCount, left_out, unscaled
from sparsity._survey import count, survey, warn_of_empty

Callback = Callable[[Rewiring], None]
Callbacks = Callback | Iterable[Callback] | None


class Engine:
    """Dynamic (or static) sparse training of a masked model, attached to its optimizer.

    Attaching is all there is to do: a plain ``optimizer.step()`` in any loop then keeps masked weights exactly zero and
    makes the updates. Made by `rigl`, `set_`, `static` and other methods, or from a `Rule` of one's own.

    An update happens at the start of an optimizer step, from the weights and the gradients of this step, summed over
    the micro-batches since ``.grad`` was last None. It sets the dropped and grown weights, their gradients of this step
    and every floating-point optimizer state of the weight's shape to zero there; statistics of whole rows and columns,
    as Adafactor keeps, stay. A weight without a gradient in this step keeps its mask. If a gradient or weight is not
    finite, the update is left out; one with a ``target`` is made up for.

    In several processes (DistributedDataParallel) an update is made from the mean of their gradients, so that all come
    to the same masks; after each one they compare digests of them. Under FSDP2 (``fully_shard``, after `sparsify` and
    before the optimizer) masks are sharded as the weights (see `shard_masks`), and the choices are those of one process
    that has all.

    The optimizer keeps the engine alive; the engine does not keep the optimizer alive.

    Attributes:
        masks: The masks that the engine keeps, a live view.
        rule: What an update does and when; None for fixed masks.
        skipped: Number of updates left out because a gradient or weight was not finite.
        last: What the latest update did, or None before the first.

    Args:
        model: A model with masks (see `sparsify`).
        optimizer: The optimizer of its weights, or a wrapper that holds it as ``.optimizer``.
        rule: What an update does and when; None for fixed masks.
        seed: Seed of random growth, which depends on this, the layer's path and the step only.
        callback: Called with each update's `Rewiring` right after it; one function or several.
        group: The torch.distributed process group that trains this model together; None for all processes.
        compact_state: Keep the optimizer's states of active weights only, as vectors in row-major order, so that their
            memory is in proportion to density. Training is the same bit for bit. For optimizers that treat each weight
            by itself, such as SGD and AdamW, which is tried out on small tensors at once; not for sharded weights, and
            on the CPU not for fused kernels and 16-bit weights, whose rounding depends on the place in a tensor.
            `detach` brings back states of all weights. A checkpoint of plain states can be loaded; one of compact
            states needs an engine with this option.

    Raises:
        EngineError: The model has no masks, has an engine already, or weights that the optimizer doesn't hold; or its
            states can't be compact.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        rule: Rule | None,
        *,
        seed: int = 0,
        callback: Callbacks = None,
        group: Any = None,
        compact_state: bool = False,
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise EngineError(f"seed is an int, got {seed!r}.")
        if rule is not None and not isinstance(rule, Rule):
            raise EngineError(
                f"An engine takes a sparsity.Rule, or None for fixed masks, got {described(rule)}. Functions such as "
                "sparsity.rigl make an engine with the rule of their method."
            )
        optimizer = innermost(optimizer)
        self.masks = shard_masks(model, group)
        self.skipped = 0
        self.last: Rewiring | None = None
        self._steps = StepCount()
        self.rule = rule
        self._seed = seed
        self._callbacks = _several(callback)
        self._group = group
        self._collection = Collection(self.masks.weights, group)
        self._memory: dict[str, dict[str, Tensor]] = {}
        self._updated: int | None = None
        self._missed = False  # an update that a target still waits for
        self._warned, self._rehearses = compact_state, False  # others than states of single weights are refused
        check(self.masks.weights, optimizer)
        if rule is not None and self.masks.structures:
            raise EngineError(
                f"The masks of {listed(self.masks.structures)} have a structure, which moving single weights would "
                "break. Use sparsity.static."
            )
        if rule is not None and rule.target is None and self.masks.nonzeros == self.masks.total:
            warnings.warn(NoEffectWarning("No mask has a zero, so there is nothing to rewire."), stacklevel=3)
        self.check_processes()
        self._states = states_of(optimizer, self.masks.weights, compact_state)
        self._optimizer = weakref.ref(optimizer)
        self._handles = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        )
        self._states.run(optimizer)
        claim(self, self.masks.weights)
        # An optimizer that trained the dense model has momentum where the masks are now False.
        for path, mask in self.masks.items():
            self._clear(optimizer, path, ~local(mask))
        self._collect_if_due()

    def detach(self) -> None:
        """Stop: masks stay on the model, but masked weights are not kept at zero any more.

        Compact optimizer states are those of all weights again.
        """
        if not self.attached:
            warnings.warn(NoEffectWarning("detach changed nothing: the engine is not attached."), stacklevel=2)
            return
        for handle in self._handles:
            handle.remove()
        release(self.masks.weights)
        if self.optimizer is not None:
            self._states.remove(self.optimizer, self.masks.weights)
        self._collection.close()
        self._handles = ()

    @property
    def attached(self) -> bool:
        """Whether the optimizer still exists and runs this engine."""
        return bool(self._handles) and self.optimizer is not None

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer that runs this engine, or did before `detach`; None once it is gone."""
        return self._optimizer()

    @property
    def step(self) -> int:
        """Number of optimizer steps made; those that a GradScaler leaves out don't count."""
        return self._steps.exact()

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs besides the model (with its masks) and the optimizer.

        In the middle of an accumulation it holds what was collected of the gradients; their ``.grad`` has to be saved
        by whoever saves there. What a rule declares as its ``memory`` is in it from the start, as zeros, so that
        torch.distributed.checkpoint, which loads into tensors that are there, can load it into a new engine.
        """
        declared = self.rule.memory if self.rule is not None else {}
        memory = _engine_state.complete(self._memory, declared, self.masks.weights)
        collected = self._collection.state()
        return {
            "step": self.step,
            "skipped": self.skipped,
            "missed": self._missed,
            "seed": self._seed,
            "memory": memory,
            "collected": collected,
            "masks": {path: list(mask.shape) for path, mask in self.masks.items()},
            "start": dict(self.rule.start) if self.rule is not None else {},
            "tensors": _engine_state.names(memory, collected),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; load model and optimizer too, in any order.

        Raises:
            EngineError: ``state`` is not from `state_dict`, is of an engine with other masks, or lacks tensors that it
                was saved with.
        """
        _engine_state.check(state, self.masks)
        self._steps, self._updated = StepCount(int(state["step"])), None
        self.skipped, self._missed, self._seed = int(state["skipped"]), bool(state["missed"]), int(state["seed"])
        if self.rule is not None:
            self.rule.start.update(state["start"])
        self._memory = _engine_state.placed(state["memory"], self.masks)
        self._collect_if_due()
        self._collection.restore(state["collected"])

    def __repr__(self) -> str:
        rule = self.rule
        end = "" if rule is None or rule.until is None else f" until {rule.until}"
        what = "fixed masks" if rule is None else f"updates every {rule.every} steps{end}"
        return f"<Engine of {len(self.masks)} masks at step {self.step}: {what}{'' if self.attached else ', detached'}>"

    def check_processes(self) -> None:
        """Check that all processes have the same masks, as every update does; a no-op in one process.

        Of sharded masks replicas (HSDP) are compared, and the seeds.

        Raises:
            EngineError: They have not; it is raised in all of them.
        """
        if size_of(self._group) > 1:
            check_same(self.masks, self._group)
            sharded = next(filter(is_sharded, self.masks.values()), None)
            if sharded is not None:
                check_same_seed(self._seed, self._group, sharded.device)

    @_disable_dynamo
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if is_nested(optimizer):
            return None
        rule = self.rule
        self._states.settle(optimizer)
        self._rehearses = is_rehearsal(optimizer)
        if self._rehearses:
            return None
        check_held(self.masks.weights, optimizer)
        if rule is None or not self._works_at(rule) or left_out(optimizer):
            return None
        closure = closure_in(args, kwargs)
        if closure is None:
            self._work(optimizer, rule)
            return None
        # With a closure the gradients of this step come into being inside the step, maybe more than once.
        pending = [rule]

        def closure_then_work() -> Any:
            loss = closure()
            if pending:
                self._work(optimizer, pending.pop())
            return loss

        return with_closure(args, kwargs, closure_then_work)

    @_disable_dynamo
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if is_nested(optimizer):
            return
        # Masked gradients and states keep zeros at zero under elementwise optimizers only, not under Muon or SOAP.
        self.masks.apply()
        if self._rehearses:
            return
        self._steps.add(optimizer)
        self._collect_if_due(stepped=True)

    def _works_at(self, rule: Rule) -> bool:
        return rule.observe is not None or self._missed or self._steps.satisfies(rule.due)

    def _collect_if_due(self, *, stepped: bool = False) -> None:
        self._collection.close()
        if self.rule is not None and self.rule.dense and self._works_at(self.rule):
            self._collection.open(stepped=stepped)

    def _work(self, optimizer: Optimizer, rule: Rule) -> None:
        try:
            self._observe_and_update(optimizer, rule)
        finally:
            # After an exception, in here or in the optimizer, this step may be made again.
            self._collect_if_due()

    @torch.no_grad()
    def _observe_and_update(self, optimizer: Optimizer, rule: Rule) -> None:
        """Do what the rule wants in this step."""
        step = self.step
        dense = self._collection.take(step) if rule.dense else {}
        layers = [
            self._layer(optimizer, path, step, dense.get(path))
            for path, weight in self.masks.weights.items()
            if (path in dense if rule.dense else has_gradient(weight))
        ]
        if rule.observe is not None:
            with shown(layers):
                for layer in layers:
                    rule.observe(layer)
        if (rule.due(step) or self._missed) and step != self._updated:
            self._update(optimizer, rule, layers, step)

    def _layer(self, optimizer: Optimizer, path: str, step: int, dense: Tensor | None) -> Layer:
        weight, mask = self.masks.weights[path], self.masks[path]
        parameter, state = weight.parameter, self._states.view(optimizer, weight)
        generator = seeded(mask.device, self._seed, path, step)
        memory = self._memory.setdefault(path, {})
        gradient = unscaled(optimizer, parameter.grad)
        return Layer(path, parameter.detach(), mask, dense, generator, gradient, state, memory)

    def _update(self, optimizer: Optimizer, rule: Rule, layers: list[Layer], step: int) -> None:
        idle = set(self.masks) - {layer.path for layer in layers}
        if idle:
            unmoved = listed(path for path in self.masks if path in idle)
            text = f"No new gradient in the step of an update, so these keep their masks: {unmoved}."
            warnings.warn(NoEffectWarning(text), stacklevel=3)
        with shown(layers):
            ripe = {layer.path: rule.ripe_of(layer) for layer in layers} if rule.ripe is not None else {}
        active, due, infinite = survey(layers, ripe)
        if infinite:
            self.skipped += 1
            self._missed = rule.target is not None
            later = " It is made up for in the next step." if self._missed else ""
            text = f"Update at step {step} left out: a gradient or weight is not finite, in {listed(infinite)}.{later}"
            warnings.warn(SparsityWarning(text), stacklevel=3)
            return
        amounts = [
            rule.amount(step, layer.path, active[layer.path], layer.mask.numel(), due.get(layer.path))
            for layer in layers
        ]
        if idle and rule.target is not None and rule.scope is over_layers:
            amounts = limited(amounts, self._change_of(rule, step, idle))
        drop = (lambda layer: ~ripe[layer.path]) if ripe else rule.drop
        with shown(layers):
            changes = rule.scope(layers, amounts, drop, rule.grow, rule.regrow)
            check_changes(layers, changes)
            dropped, grown = count(layers, changes)
            check_amounts(step, amounts, dropped, grown, rule.regrow)
            starts = [start_values(rule.initial, *each) for each in zip(layers, changes, strict=True)]
        check_finite(layers, starts)
        # Nothing has changed so far, and nothing below depends on what users wrote.
        for layer, changed, start in zip(layers, changes, starts, strict=True):
            self._apply(optimizer, layer, changed, start)
        self._updated, self._missed = step, False
        forget_curvature(optimizer)
        self.check_processes()
        now = {path: number - dropped[path] + grown[path] for path, number in active.items()}
        self.last = Rewiring(step, rule.share(step), dropped, grown, now)
        empty = [path for path, number in active.items() if number and not now[path]]
        warn_of_empty(empty, f"the update at step {step}")
        for callback in self._callbacks:
            callback(self.last)

    def _change_of(self, rule: Rule, step: int, paths: Iterable[str]) -> int:
        """By how much the number of active weights of these layers would change to meet their targets."""
        layers = {layer.path: layer for layer in self.masks.layers}
        known = ((path, layers[path].nonzeros, layers[path].total) for path in paths)
        return sum(rule.amount(step, path, active, total, 0).change for path, active, total in known)

    def _apply(self, optimizer: Optimizer, layer: Layer, changed: Tensor, start: Tensor | None) -> None:
        self._clear(optimizer, layer.path, local(changed))
        local(layer.mask).logical_xor_(local(changed))  # the last use: a scope may have returned the mask itself
        if start is not None:
            local(layer.weight).add_(start)  # what was just cleared is zero there, and the start elsewhere

    @torch.no_grad()
    def _clear(self, optimizer: Optimizer, path: str, places: Tensor) -> None:
        """Zero weight, gradient and optimizer state at the given places, a local tensor."""
        parameter = self.masks.weights[path].parameter
        state = state_of(optimizer, parameter)
        for tensor in (parameter, parameter.grad):
            if tensor is not None:
                fill(local(tensor), places.to(tensor.device))
        clear(optimizer, parameter, places)
        self._warned = self._warned or warn_of_unclear(path, parameter, state, type(optimizer).__name__)


def _several(callback: Callbacks) -> tuple[Callback, ...]:
    if callback is None:
        return ()
    several = tuple(callback) if isinstance(callback, Iterable) and not callable(callback) else (callback,)
    wrong = [each for each in several if not callable(each)]
    if wrong:
        raise EngineError(f"callback is a function of a Rewiring, or several of them, got {wrong[0]!r}.")
    return several
