"""Which rule draws which tensor of a head: decided while the first head is drawn, repeated for the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fxsplit._init._computed import ComputedDraws
from fxsplit._init._redraw import KEPT_CONSTANT, Draw, plan_redraw
from fxsplit._init._replica import Replica, slots_of
from fxsplit._init._rules import (
    CONFIG_INIT,
    CREATED,
    RESET,
    construct_from_config,
    create_alike,
    fitting,
    model_initialisers,
    reset_of,
    run_model_initialiser,
    values_of,
)
from fxsplit._init._statistics import (
    is_constant,
    is_independent,
    looks_drawn,
    same_distribution,
    same_extent,
    sample,
)

META = "meta: holds no values"

# Hundreds of tensors are tested per model. A model's own initialiser is trusted unless the evidence is overwhelming; a
# layer's default one is easily replaced, because a permutation of the same values is at hand. What was trained gets the
# layer's default draw, fitting or not: so that takes overwhelming evidence, too.
_LEVEL_MODEL = 1e-7
_LEVEL_LAYER = 1e-3
_LEVEL_TRAINED = 1e-7
_TELLING = 512  # elements of a tensor that shows whether it was trained
_CLOSE = 16384  # elements looked at to see that
_VOTES = 32  # tensors looked at to see whether a model was trained


class Planner:
    """Draws heads of a model by the model's own initialisers where they apply, tensor by tensor where they don't.

    Tensors are known by the id of the source's tensor, so that tied ones are drawn once.

    Attributes:
        rule: How each tensor was drawn in the latest head.
    """

    def __init__(self, source: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.rule: dict[int, str] = {}
        self._source = source
        self._paths = tensors
        self._tensors = {id(tensor): tensor for tensor in tensors.values()}
        self._redraw: dict[int, Draw] = {}
        self._samples: dict[int, np.ndarray] = {}
        self._prints: dict[int, list[np.ndarray]] = {}
        for key, tensor in self._tensors.items():
            if tensor.is_meta:
                self._settle(key, META, lambda tensor: torch.empty_like(tensor.detach()))
            elif tensor.is_floating_point() and _starts_constant(tensor):
                self._settle(key, KEPT_CONSTANT, lambda tensor: tensor.detach().clone())
        self._replica = Replica(source, tensors) if len(self._redraw) < len(self._tensors) else None
        self._initialisers = model_initialisers(source)
        self._resets = self._replica.owned() if self._replica else {}
        self._computed = ComputedDraws(self._replica, self._tensors) if self._replica else None
        self._untrained = _looks_untrained(source)
        self._trained = not self._untrained and _looks_trained(source)
        self._created = self._trained
        self._constructed: set[str] = set()

    def draw(self) -> dict[int, Tensor]:
        """Return the tensors of the next head."""
        first = not self._prints
        values: dict[int, Tensor] = {}
        if self._replica is not None:
            self._create(values, first)
            self._run_initialisers(self._replica, values, first)
            self._draw_computed(values)
            self._run_resets(self._replica, values, first)
        for key, tensor in self._tensors.items():
            if key in values and self._repeats(key, values[key]):
                del values[key]
            if key not in values:
                if key not in self._redraw:
                    self._settle(key, *plan_redraw(tensor, isinstance(tensor, nn.Parameter)))
                values[key] = self._redraw[key](tensor)
        return values

    def _settle(self, key: int, rule: str, draw: Draw) -> None:
        self.rule[key] = rule
        self._redraw[key] = draw

    def _run_initialisers(self, replica: Replica, values: dict[int, Tensor], first: bool) -> None:
        useful = []
        for path, rule in self._initialisers:
            keys = [key for key in replica.below(path) if key not in self._redraw and key not in values]
            if keys and self._take(self._initialise(replica, path, rule, keys), values, rule, first):
                useful.append((path, rule))
        self._initialisers = useful

    def _initialise(self, replica: Replica, path: str, rule: str, keys: list[int]) -> dict[int, Tensor]:
        if path not in self._constructed:
            drawn = replica.run(lambda: run_model_initialiser(replica.module(path), rule), path)
            if drawn is not None:
                return {key: drawn[key] for key in keys if key in drawn}
            if rule != CONFIG_INIT:
                return {}
            self._constructed.add(path)
        part = self._source.get_submodule(path)
        wanted = {slot.path: tensor for slot, tensor in slots_of(part) if id(tensor) in keys}
        made = values_of(construct_from_config(part), wanted, f"{type(part).__name__}(config)")
        return {id(wanted[name]): value for name, value in made.items()}

    def _draw_computed(self, values: dict[int, Tensor]) -> None:
        drawn = self._computed.draw(lambda key, value: self._accepts(key, value, RESET)) if self._computed else {}
        for key, (value, rule) in drawn.items():
            self.rule[key] = rule
            values[key] = value

    def _create(self, values: dict[int, Tensor], first: bool) -> None:
        """Take what a trained model has from a new one of the same architecture, if its library can make one."""
        made = create_alike(self._source) if self._created else None
        wanted = {path: tensor for path, tensor in self._paths.items() if id(tensor) not in self._redraw}
        drawn = {} if made is None else values_of(made, fitting(made, wanted), CREATED)
        by_key = {id(wanted[path]): value for path, value in drawn.items()}
        self._created = self._take(by_key, values, CREATED, first)

    def _run_resets(self, replica: Replica, values: dict[int, Tensor], first: bool) -> None:
        useful = {}
        for path, keys in self._resets.items():
            open_keys = [key for key in keys if key not in values and key not in self._redraw]
            reset = reset_of(replica.module(path))
            if not open_keys or reset is None:
                continue
            drawn = replica.run(reset, path) or {}
            if self._take({key: drawn[key] for key in open_keys if key in drawn}, values, RESET, first):
                useful[path] = keys
        self._resets = useful

    def _take(self, drawn: dict[int, Tensor], values: dict[int, Tensor], rule: str, first: bool) -> bool:
        """Add the draws that belong to ``rule`` to ``values``; the first head decides which these are."""
        taken = False
        for key, value in drawn.items():
            if (first and self._accepts(key, value, rule)) or (not first and self.rule.get(key) == rule):
                self.rule[key] = rule
                values[key] = value
                taken = True
        return taken

    def _accepts(self, key: int, value: Tensor, rule: str) -> bool:
        source = self._tensors[key]
        if value.shape != source.shape or value.is_meta:
            return False
        if not isinstance(source, nn.Parameter) or not source.is_floating_point() or is_constant(value):
            # Constructors pass arguments to their initialisers: one that is called without may zero what was drawn.
            drawn = self._untrained and isinstance(source, nn.Parameter) and source.numel() > 1
            return not drawn and not torch.equal(source.detach(), value)
        if key not in self._samples:
            self._samples[key] = sample(source)
        old, new = self._samples[key], sample(value)
        if not is_independent(old, new):
            return False
        if rule == RESET:
            fits = same_distribution(old, new, _LEVEL_LAYER) and same_extent(source, value, _LEVEL_LAYER)
            return fits or self._is_trained(source)
        if not self._untrained:
            return True
        return same_distribution(old, new, _LEVEL_MODEL) and same_extent(source, value, _LEVEL_MODEL)

    def _is_trained(self, tensor: Tensor) -> bool:
        """Whether a tensor's values are not a draw, so that a new order of them would not be one either."""
        if self._untrained or tensor.numel() < _TELLING:
            return self._trained
        return _is_no_draw(tensor)

    def _repeats(self, key: int, value: Tensor) -> bool:
        """Whether an initialiser drew the same numbers for an earlier head (a generator of its own, seeded alike)."""
        if is_constant(value) or not isinstance(self._tensors[key], nn.Parameter):
            self._prints.setdefault(key, [])
            return False
        mine, earlier = sample(value, 64), self._prints.setdefault(key, [])
        repeated = any(np.array_equal(mine, other) for other in earlier)
        earlier.append(mine)
        return repeated


def _starts_constant(tensor: Tensor) -> bool:
    if tensor.numel() == 1:  # Any single value is constant; these two are what no draw gives.
        return isinstance(tensor, nn.Parameter) and float(tensor.detach()) in (0.0, 1.0)
    return is_constant(tensor)


def _looks_trained(model: nn.Module) -> bool:
    """Whether most of the weights don't look like draws."""
    weights = [p for p in model.parameters() if p.dim() > 1 and p.numel() >= _TELLING and not p.is_meta]
    weights = [p for p in weights[:: max(1, len(weights) // _VOTES)] if p.is_floating_point() and not is_constant(p)]
    return bool(weights) and sum(map(_is_no_draw, weights)) > len(weights) / 2


def _is_no_draw(weight: Tensor) -> bool:
    return not looks_drawn(sample(weight, _CLOSE), _LEVEL_TRAINED)


def _looks_untrained(model: nn.Module) -> bool:
    """Whether most vectors (biases, norm weights) are constant: they start so almost everywhere and never stay so."""
    vectors = [p for p in model.parameters() if p.dim() == 1 and p.numel() > 1 and not p.is_meta]
    return bool(vectors) and sum(map(is_constant, vectors)) > len(vectors) / 2
