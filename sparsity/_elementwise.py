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
_SIZES = ((131, 130), *[(7, 9)] * 8)
_LAST = 15
_RATES = ("lr", "initial_lr")
_SCALER = ("grad_scale", "found_inf")
State = dict[str, Any]


def check_elementwise(optimizer: Optimizer, group: Mapping[str, Any], weights: Sequence[Tensor]) -> frozenset[str]:
    """Return the names of the states that ``optimizer`` keeps of single weights of this group.

    Its step is made on random tensors: on some entries among others, among still others, and on these alone as vectors.
    Weights and states have to be the same bit for bit. The optimizer, its states and the random numbers of torch stay
    as they are.

    Args:
        optimizer: Any one.
        group: One of its groups, whose options count.
        weights: Masked weights in it, whose dtypes, devices and numbers of dimensions count.

    Raises:
        EngineError: They are not, or the step fails.
    """
    _check_kernels(type(optimizer).__name__, group, weights)
    devices = {weight.device for weight in weights if weight.device.type != "cpu"}
    names: set[str] = set()
    with torch.random.fork_rng(sorted(devices, key=str), device_type=next(iter(devices), torch.device("cuda")).type):
        for sample in {(each.ndim, each.dtype, each.device): each for each in weights}.values():
            for orthogonal in (False, True):
                names |= _trial(optimizer, group, sample, orthogonal)
    return frozenset(names)


def _check_kernels(kind: str, group: Mapping[str, Any], weights: Sequence[Tensor]) -> None:
    # Seldom enough for trials to miss it.
    here = [weight for weight in weights if weight.device.type == "cpu"]
    short = next((weight for weight in here if weight.itemsize < 4), None)
    if (here and group.get("fused")) or short is not None:
        what = "its fused kernels" if short is None else f"kernels for {short.dtype}".replace("torch.", "")
        raise EngineError(
            f"compact_state: {kind} can't be exact on active weights alone, since on the CPU {what} round the last "
            "entries of a tensor otherwise than the rest. Use float32 weights and fused=False, or leave compact_state "
            "out."
        )


def _trial(optimizer: Optimizer, group: Mapping[str, Any], sample: Tensor, orthogonal: bool) -> set[str]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(*size, *[1] * sample.ndim)[: sample.ndim] for size in _SIZES]
    active = [_active(shape, generator).to(sample.device) for shape in shapes]
    among, beside = ([nn.Parameter(_normal(shape, sample, generator)) for shape in shapes] for _ in range(2))
    _copy_active(among, beside, active)
    alone = [nn.Parameter(each.detach()[on]) for each, on in zip(among, active, strict=True)]
    start = [each.detach().clone() for each in alone]
    known = optimizer.state.get(sample, {})
    states = [{name: _cut(value, sample, each, COMPACT in group) for name, value in known.items()} for each in among]
    before = [{name: (value, copy.deepcopy(value)) for name, value in state.items()} for state in states]
    others = copy.deepcopy(states)
    vectors = [
        {name: value[on] if _is_like(value, on) else copy.deepcopy(value) for name, value in state.items()}
        for state, on in zip(states, active, strict=True)
    ]
    tried = [
        _copy(optimizer, group, tensors, of) for tensors, of in ((among, states), (beside, others), (alone, vectors))
    ]
    for _ in range(_STEPS):
        for one, other, vector, on in zip(among, beside, alone, active, strict=True):
            one.grad, other.grad = (_gradient(each.detach(), orthogonal, generator) for each in (one, other))
            other.grad[on] = one.grad[on]
            vector.grad = one.grad[on]
        for each in tried:
            _step(each)
    kind = type(optimizer).__name__
    if any(torch.equal(each, first) for each, first in zip(alone, start, strict=True)):
        raise EngineError(
            f"compact_state: a step of {kind} changes other tensors than those in its groups, so it can't be made on "
            "active weights alone."
        )
    names: set[str] = set()
    for one, other, vector, on, first in zip(among, beside, alone, active, before, strict=True):
        results = [
            {"weights": each, **made.state[each]} for made, each in zip(tried, (one, other, vector), strict=True)
        ]
        _check_same(kind, [{n: v[on] if _is_like(v, on) else v for n, v in result.items()} for result in results])
        for name, value in tried[0].state[one].items():
            # What someone else keeps here, as Lookahead does, is none of its states.
            if _is_like(value, on) and not (value is first.get(name, (None,))[0] and _equal(value, first[name][1])):
                names.add(name)
    return names


def _check_same(kind: str, results: Sequence[Mapping[str, Any]]) -> None:
    among, beside, alone = results
    depends = [name for name in among if name not in beside or not _equal(among[name], beside[name])]
    if depends:
        raise EngineError(
            f"compact_state: {kind} does not treat each weight by itself: {depends[0]} of some depend on others. Use "
            "an optimizer that does, such as SGD, Adam or AdamW, or leave compact_state out."
        )
    differs = [name for name in among if name not in alone or not _equal(among[name], alone[name])]
    if differs:
        raise EngineError(
            f"compact_state: {kind} gets other {differs[0]} of a weight in a tensor of another shape, if only by "
            "rounding. Use an optimizer that does not, such as SGD, Adam or AdamW, or leave compact_state out."
        )


def _step(optimizer: Optimizer) -> None:
    step: Any = type(optimizer).step
    try:
        # Without hooks on all optimizers, which have nothing to do with this one.
        (step.__wrapped__ if getattr(step, "hooked", False) else step)(optimizer)
    except Exception as error:
        raise EngineError(
            f"compact_state: a step of {type(optimizer).__name__} on small tensors, which tells whether it treats each "
            f"weight by itself, failed: {error}"
        ) from error


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


def _cut(value: Any, sample: Tensor, like: Tensor, compact: bool) -> Any:
    """Return a state for the tensor ``like`` from the state of ``sample``."""
    vector = compact and isinstance(value, Tensor) and value.ndim == 1
    if not isinstance(value, Tensor) or not (value.shape == sample.shape or vector):
        return copy.deepcopy(value)
    flat = value.detach().flatten()
    return flat.repeat(math.ceil(like.numel() / max(len(flat), 1)))[: like.numel()].view(like.shape)


def _active(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return half of all places, with the last ones, which are not among the last of a vector then."""
    active = torch.rand(tuple(shape), generator=generator) < 0.5
    active.view(-1)[-_LAST:] = True
    active.view(-1)[0] = False
    return active


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator).to(like.device, like.dtype)


@torch.no_grad()
def _copy_active(source: Sequence[Tensor], target: Sequence[Tensor], active: Sequence[Tensor]) -> None:
    for one, other, on in zip(source, target, active, strict=True):
        other[on] = one[on]


def _gradient(weight: Tensor, orthogonal: bool, generator: torch.Generator) -> Tensor:
    if not orthogonal:
        return _normal(weight.shape, weight, generator)
    # Some optimizers change what they do where weights and gradient are orthogonal, in a row or altogether.
    rows = weight.reshape(len(weight), -1)
    pairs = rows[:, : rows.shape[1] // 2 * 2].view(len(rows), -1, 2)
    turned = torch.zeros_like(rows)
    turned[:, : pairs[0].numel()] = torch.stack([pairs[..., 1], -pairs[..., 0]], -1).flatten(1)
    return turned.view(weight.shape)


def _is_like(value: Any, active: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == active.shape


def _equal(one: Any, other: Any) -> bool:
    """Tell whether two states are the same, tensors bit for bit."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and one == other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(*(each.detach().flatten().view(torch.uint8) for each in (one, other)))
