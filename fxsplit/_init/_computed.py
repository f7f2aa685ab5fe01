"""Fresh values for what weights are computed from: the parameters and buffers of parametrizations and norm hooks.

These belong together: the magnitudes of weight_norm are the norms of its directions, the vectors of spectral_norm those
of its matrix. So they are drawn together, the way they came about: a plain weight first, then what it is computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from fxsplit._init._redraw import plan_redraw
from fxsplit._init._replica import Replica
from fxsplit._init._rules import RESET, reset_of
from fxsplit._parametrized import computed_weight, copy_apart, norm_hooks, parametrized_names

Drawn = dict[int, tuple[Tensor, str]]
Accepts = Callable[[int, Tensor], bool]
Strategy = Callable[["ComputedTensor", Replica, Mapping[int, Tensor]], Drawn]

_POWER_ITERATIONS = 15  # as many as torch makes when it registers spectral_norm
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ComputedTensor:
    """The tensor ``name`` of the module at ``host``; ``keys`` are the head tensors that it is computed from."""

    host: str
    name: str
    keys: tuple[int, ...]


def computed_tensors(replica: Replica) -> Iterator[ComputedTensor]:
    """Every computed tensor of a model of which a head owns a part."""
    for path, module in replica.modules():
        for name in parametrized_names(module):
            yield ComputedTensor(path, name, tuple(replica.below(_join(path, f"parametrizations.{name}"))))
        for hook in norm_hooks(module):
            parts = {_join(path, f"{hook.name}{suffix}") for suffix in ("_g", "_v", "_orig", "_u")}
            yield ComputedTensor(path, hook.name, tuple(replica.at(parts)))


class ComputedDraws:
    """Draws the parts of computed tensors together.

    Args:
        replica: Of the model.
        sources: The head tensors to draw, by key.
    """

    def __init__(self, replica: Replica, sources: Mapping[int, Tensor]) -> None:
        self._replica = replica
        self._sources = sources
        self._sites = [
            site
            for site in computed_tensors(replica)
            if site.keys and not any(sources[key].is_meta for key in site.keys)
        ]
        self._chosen: dict[ComputedTensor, Strategy] = {}

    def draw(self, accepts: Accepts) -> Drawn:
        """Values and rules of one head; ``accepts`` judges a draw by the layer's own initialiser, for the first."""
        drawn: Drawn = {}
        for site in self._sites:
            for strategy in [self._chosen[site]] if site in self._chosen else [_by_reset, _by_weight, _by_parts]:
                found = self._attempt(site, strategy)
                if found and (site in self._chosen or strategy is not _by_reset or self._fits(found, accepts)):
                    self._chosen[site] = strategy
                    drawn.update(found)
                    break
        return drawn

    def _attempt(self, site: ComputedTensor, strategy: Strategy) -> Drawn:
        """Foreign code may fail in any way, on meta tensors or in half precision; then the next strategy is tried."""
        self._replica.fill(site.host)
        try:
            return strategy(site, self._replica, self._sources)
        except Exception:
            return {}
        finally:
            self._replica.release(site.host)

    def _fits(self, drawn: Drawn, accepts: Accepts) -> bool:
        """Whether a draw is one of the source's distribution; what stays the same for every weight need not change."""
        changed = {key: value for key, (value, _) in drawn.items() if not torch.equal(value, self._sources[key])}
        return bool(changed) and all(accepts(key, value) for key, value in changed.items())


def _by_reset(site: ComputedTensor, replica: Replica, sources: Mapping[int, Tensor]) -> Drawn:
    """Let the plain layer draw a weight, and compute the parts from it, as when the layer was made."""
    host = replica.module(site.host)
    twin = _plain_twin(host)
    reset = reset_of(twin)
    if reset is None:
        return {}
    reset()
    _assign(host, site.name, getattr(twin, site.name).detach().clone())
    return {key: (replica.get(key), RESET) for key in site.keys}


def _by_weight(site: ComputedTensor, replica: Replica, sources: Mapping[int, Tensor]) -> Drawn:
    """Redraw the weight and compute the parts from it, if the source's parts are computed from its weight."""
    host = replica.module(site.host)
    weight = _weight(host, site.name)
    rule, draw = plan_redraw(nn.Parameter(weight), True)
    if rule.startswith(("kept", "NOT")):
        return {}
    _assign(host, site.name, weight)
    parts = [key for key in site.keys if isinstance(sources[key], nn.Parameter)]
    if not all(_close(replica.get(key), sources[key]) for key in parts):
        return {}
    _assign(host, site.name, draw(weight))
    return {key: (replica.get(key), f"{rule}, as {site.name}") for key in site.keys}


def _by_parts(site: ComputedTensor, replica: Replica, sources: Mapping[int, Tensor]) -> Drawn:
    """Redraw every parameter on its own, and compute the buffers that follow from them."""
    host = replica.module(site.host)
    rules = {}
    for key in site.keys:
        parameter = isinstance(sources[key], nn.Parameter)
        rules[key], draw = plan_redraw(sources[key], parameter)
        if parameter:
            replica.get(key).copy_(draw(sources[key]))
    before = {key: replica.get(key).clone() for key in site.keys}
    _settle(host, site.name)
    settled = {key for key in site.keys if not torch.equal(replica.get(key), before[key])}
    return {key: (replica.get(key), "power iteration" if key in settled else rules[key]) for key in site.keys}


def _plain_twin(host: nn.Module) -> nn.Module:
    """A copy of a module in which no tensor is computed."""
    twin = copy_apart(host, {})
    for name in parametrized_names(twin):
        parametrize.remove_parametrizations(twin, name, leave_parametrized=True)
    for hook in norm_hooks(twin):
        (remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm)(twin, hook.name)
    return twin


def _weight(host: nn.Module, name: str) -> Tensor:
    hook = _hook(host, name)
    return (getattr(host, name) if hook is None else computed_weight(host, hook)).detach().clone()


def _assign(host: nn.Module, name: str, weight: Tensor) -> None:
    """Store what the module computes ``weight`` from, as torch does when it registers a parametrization."""
    hook = _hook(host, name)
    if isinstance(hook, WeightNorm):
        _store(host, f"{name}_g", torch.norm_except_dim(weight, 2, hook.dim))
        _store(host, f"{name}_v", weight)
    elif isinstance(hook, SpectralNorm):
        _store(host, f"{name}_orig", weight)
    else:
        chain: Any = host.parametrizations[name]  # type: ignore[index]
        value: Any = weight
        for parametrization in reversed(chain):
            if hasattr(parametrization, "right_inverse"):
                value = parametrization.right_inverse(value)
        values: Sequence[Tensor] = [value] if chain.is_tensor else value
        for original, new in zip(_originals(chain), values, strict=True):
            _store(chain, original, new)
    _settle(host, name)


def _settle(host: nn.Module, name: str) -> None:
    """Bring the vectors of spectral_norm in line with its matrix."""
    hook = _hook(host, name)
    if isinstance(hook, SpectralNorm):
        for _ in range(_POWER_ITERATIONS):
            hook.compute_weight(host, do_power_iteration=True)
    if hook is not None:
        return
    chain: Any = host.parametrizations[name]  # type: ignore[index]
    value: Any = tuple(getattr(chain, original) for original in _originals(chain))
    for parametrization in chain:
        if isinstance(parametrization, parametrizations._SpectralNorm):
            mode = parametrization.training
            parametrization.train()
            for _ in range(_POWER_ITERATIONS):
                parametrization(*value)
            parametrization.train(mode)
        value = (parametrization(*value),)


def _originals(chain: Any) -> list[str]:
    return ["original"] if chain.is_tensor else [f"original{index}" for index in range(chain.ntensors)]


def _store(owner: nn.Module, name: str, value: Tensor) -> None:
    """Replace what a parameter or buffer holds by a copy of ``value``."""
    held = getattr(owner, name)
    held.data = value.detach().to(held.dtype).clone()


def _hook(host: nn.Module, name: str) -> WeightNorm | SpectralNorm | None:
    return next((hook for hook in norm_hooks(host) if hook.name == name), None)


def _close(value: Tensor, expected: Tensor) -> bool:
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    return value.shape == expected.shape and torch.allclose(value, expected.detach(), rtol=0, atol=_TOLERANCE * scale)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
