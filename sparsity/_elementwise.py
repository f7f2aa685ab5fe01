"""Does an optimizer treat each weight by itself? Tried out on small tensors, with other weights beside and without."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsity._errors import EngineError
from sparsity._optimizer_state import COMPACT
from sparsity._stand_in import own_attributes

_STEPS = 8
# Beyond the sizes at which optimizers begin to factor, to precondition or to quantise; and odd, so that some entries
# are the last ones of a tensor, which kernels of the CPU may compute in another way than the rest.
_SIZES = ((131, 130), (5, 7), (9, 3))
_RATES = ("lr", "initial_lr")
_SCALER = ("grad_scale", "found_inf")
State = dict[str, Any]


def check_elementwise(optimizer: Optimizer, group: Mapping[str, Any], weights: Sequence[Tensor]) -> frozenset[str]:
    """Return the names of the states that ``optimizer`` keeps of single weights of this group.

    Its step is made twice on random tensors: on some entries among others, and on these alone, as vectors. Weights and
    states have to be the same bit for bit. The optimizer itself, its states and random numbers elsewhere stay as they
    are.

    Args:
        optimizer: Any one.
        group: One of its groups, whose options count.
        weights: Masked weights in it, whose dtypes, devices and numbers of dimensions count.

    Raises:
        EngineError: They are not, or the step fails.
    """
    devices = {weight.device for weight in weights if weight.device.type != "cpu"}
    names: set[str] = set()
    with torch.random.fork_rng(sorted(devices, key=str), device_type=next(iter(devices), torch.device("cuda")).type):
        for sample in {(each.ndim, each.dtype, each.device): each for each in weights}.values():
            for orthogonal in (False, True):
                names |= _Trial(optimizer, group, sample, orthogonal).run()
    return frozenset(names)


class _Trial:
    """One run of an optimizer on tensors like ``sample``, beside one on some of their entries."""

    def __init__(self, optimizer: Optimizer, group: Mapping[str, Any], sample: Tensor, orthogonal: bool) -> None:
        self._kind = type(optimizer).__name__
        self._where = f"{sample.dtype} on {sample.device}".replace("torch.", "")
        self._orthogonal = orthogonal
        self._generator = torch.Generator().manual_seed(0)
        self._sample = sample
        shapes = [(*size, *[1] * sample.ndim)[: sample.ndim] for size in _SIZES]
        self._among = [nn.Parameter(self._random(shape)) for shape in shapes]
        self._active = [torch.rand(shape, generator=self._generator).to(sample.device) < 0.5 for shape in shapes]
        self._alone = [nn.Parameter(each.detach()[on]) for each, on in zip(self._among, self._active, strict=True)]
        known = optimizer.state.get(sample, {})
        compact = COMPACT in group
        states = [{name: _cut(value, sample, each, compact) for name, value in known.items()} for each in self._among]
        chosen = [
            {name: _chosen(value, each, on) for name, value in state.items()}
            for state, each, on in zip(states, self._among, self._active, strict=True)
        ]
        self._known = [{name: (value, _version(value)) for name, value in state.items()} for state in states]
        self._start = [each.detach().clone() for each in self._alone]
        self._optimizers = _copy(optimizer, group, self._among, states), _copy(optimizer, group, self._alone, chosen)

    def run(self) -> set[str]:
        """Make the steps; return the names of states of single weights."""
        for _ in range(_STEPS):
            for whole, part, active in zip(self._among, self._alone, self._active, strict=True):
                whole.grad = self._gradient(whole.detach())
                part.grad = whole.grad[active]
            try:
                for each in self._optimizers:
                    _step(each)
            except Exception as error:
                raise EngineError(
                    f"compact_state: a step of {self._kind} on a small tensor, which tells whether it treats each "
                    f"weight by itself, failed: {error}"
                ) from error
        if any(torch.equal(one, other) for one, other in zip(self._alone, self._start, strict=True)):
            raise EngineError(
                f"compact_state: a step of {self._kind} changes other tensors than those in its groups, so it can't be "
                "made on active weights alone."
            )
        return self._compare()

    def _compare(self) -> set[str]:
        names = set()
        whole, part = (each.state for each in self._optimizers)
        for among, alone, active, known in zip(self._among, self._alone, self._active, self._known, strict=True):
            self._same("weights", among.detach()[active], alone.detach())
            for name in whole[among].keys() | part[alone].keys():
                one, other = whole[among].get(name), part[alone].get(name)
                if not isinstance(one, Tensor) or one.shape != among.shape:
                    self._same(name, one, other)
                elif not one.is_floating_point() or not isinstance(other, Tensor) or other.shape != alone.shape:
                    raise self._error(f"its state {name!r} has a form of its own")
                else:
                    self._same(name, one[active], other)
                    # What someone else keeps here, as Lookahead does, is none of its states.
                    before, version = known.get(name, (None, None))
                    if one is not before or _version(one) != version:
                        names.add(name)
        return names

    def _same(self, name: str, one: Any, other: Any) -> None:
        if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
            if torch.equal(_bytes(one), _bytes(other)):
                return
            difference, size = (one - other).abs().max(), one.abs().max()
            if one.is_floating_point() and difference <= 16 * torch.finfo(one.dtype).eps * size:
                raise EngineError(
                    f"compact_state: {self._kind} rounds an entry by its place in a tensor ({name}, {self._where}), as "
                    "fused kernels and those of 16-bit numbers on the CPU do, so states of active weights alone would "
                    "not be exact. Use float32 weights and fused=False there, or leave compact_state out."
                )
        elif type(one) is type(other) and not isinstance(one, Tensor) and one == other:
            return
        raise self._error(f"{name} of some depend on the others")

    def _error(self, reason: str) -> EngineError:
        return EngineError(
            f"compact_state: {self._kind} does not treat each weight by itself: {reason}. Use an optimizer that does, "
            "such as SGD, Adam or AdamW, or leave compact_state out."
        )

    def _random(self, shape: Sequence[int]) -> Tensor:
        drawn = torch.randn(tuple(shape), generator=self._generator)
        return drawn.to(self._sample.device, self._sample.dtype)

    def _gradient(self, weight: Tensor) -> Tensor:
        if not self._orthogonal:
            return self._random(weight.shape)
        # Some optimizers change what they do where weights and gradient are orthogonal, in a row or altogether.
        rows = weight.reshape(len(weight), -1)
        rows = rows[:, : rows.shape[1] // 2 * 2].view(len(rows), -1, 2)
        turned = torch.stack([rows[..., 1], -rows[..., 0]], -1).flatten(1)
        rest = torch.zeros_like(weight).reshape(len(weight), -1)
        rest[:, : turned.shape[1]] = turned
        return rest.view(weight.shape)


def _copy(optimizer: Optimizer, group: Mapping[str, Any], tensors: list[nn.Parameter], states: list[State]) -> Any:
    """Make an optimizer of the same kind and options for other tensors, whatever its class is made with."""
    made: Any = object.__new__(type(optimizer))
    # Never the model's own parameters, nor copies of them.
    memo: dict[int, Any] = {}
    for each in (each for group in optimizer.param_groups for each in group["params"]):
        memo[id(each)] = nn.Parameter(torch.empty_like(each[:0] if each.ndim else each), each.requires_grad)
    options = {name: copy.deepcopy(value, memo) for name, value in group.items() if name != "params"}
    options.update((name, _nonzero(options[name])) for name in _RATES if name in options)
    attributes = {name: value for name, value in own_attributes(optimizer).items() if name not in _SCALER}
    for name, value in attributes.items():
        vars(made)[name] = value if callable(value) else copy.deepcopy(value, memo)
    made.param_groups = [{**options, "params": tensors}]
    made.state = defaultdict(dict, {each: state for each, state in zip(tensors, states, strict=True) if state})
    return made


def _nonzero(rate: Any) -> Any:
    """Return a rate at which a step does something; a schedule may begin or end at zero."""
    if isinstance(rate, Tensor):
        return torch.where(rate == 0, 0.01, rate)
    return rate or 0.01


def _step(optimizer: Optimizer) -> None:
    step: Any = type(optimizer).step
    # Without hooks on all optimizers, which have nothing to do with this one.
    (step.__wrapped__ if getattr(step, "hooked", False) else step)(optimizer)


def _cut(value: Any, sample: Tensor, like: Tensor, compact: bool) -> Any:
    """Return a state for the tensor ``like`` from the state of ``sample``."""
    vector = compact and isinstance(value, Tensor) and value.ndim == 1
    if not isinstance(value, Tensor) or not (value.shape == sample.shape or vector):
        return copy.deepcopy(value)
    flat = value.detach().flatten()
    return flat.repeat(math.ceil(like.numel() / max(len(flat), 1)))[: like.numel()].view(like.shape)


def _chosen(value: Any, whole: Tensor, active: Tensor) -> Any:
    return value[active] if isinstance(value, Tensor) and value.shape == whole.shape else copy.deepcopy(value)


def _version(value: Any) -> int:
    return value._version if isinstance(value, Tensor) else 0


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().view(torch.uint8)
