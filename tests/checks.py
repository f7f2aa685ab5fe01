"""What the property tests compare: outputs bit for bit, everything a call may have changed in a model, storages."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def tensors(value: Any) -> list[Tensor]:
    """The tensors in ``value``, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def bits(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors must have in common to be the same: NaNs and the sign of zero included."""
    plain = tensor.detach()
    if plain.device.type == "meta":
        return plain.dtype, tuple(plain.shape), plain.device
    return plain.dtype, tuple(plain.shape), plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(actual: Any, expected: Any) -> None:
    """Same containers, same types, same bits."""
    left, left_spec = pytree.tree_flatten(actual)
    right, right_spec = pytree.tree_flatten(expected)
    assert left_spec == right_spec
    for a, b in zip(left, right, strict=True):
        assert type(a) is type(b)
        if isinstance(a, Tensor):
            assert bits(a) == bits(b), f"differ by {(a.double() - b.double()).abs().max()}, shapes {a.shape}, {b.shape}"
        else:
            assert a == b


def seeded(function: Callable[[], Any], seed: int = 7) -> Any:
    """Run ``function`` from a fixed state of the generator, without disturbing the one outside."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return function()


def scalar(outputs: Any) -> Tensor:
    """One differentiable number that depends on every floating leaf."""
    leaves = [leaf for leaf in tensors(outputs) if leaf.is_floating_point() and leaf.requires_grad]
    return torch.stack(
        [(leaf * torch.linspace(0.5, 1.5, leaf.numel(), device=leaf.device).view_as(leaf)).sum() for leaf in leaves]
    ).sum()


def generators() -> tuple[Any, ...]:
    """The state of every random generator that code on the CPU may use."""
    state: Any = numpy.random.get_state()  # noqa: NPY002 - the global generator is what must stay as it was
    return random.getstate(), (state[0], state[1].tobytes(), *state[2:]), torch.get_rng_state().numpy().tobytes()


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a call which promises not to touch it could change."""
    seen: dict[str, Any] = {"generators": generators(), "class": type(model)}
    for path, module in model.named_modules(remove_duplicate=False):
        seen[f"{path}: identity"] = id(module), type(module), module.training
        seen[f"{path}: hooks"] = {name: list(getattr(module, name)) for name in _HOOKS}
        own = {**module._parameters, **module._buffers}
        seen[f"{path}: tensors"] = {name: id(tensor) for name, tensor in own.items()}
        seen[f"{path}: attributes"] = {
            name: value if isinstance(value, (int, float, str, bool, type(None))) else id(value)
            for name, value in vars(module).items()
        }
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        seen[f"{name}: bits"] = bits(tensor)
        seen[f"{name}: gradient"] = tensor.requires_grad, None if tensor.grad is None else bits(tensor.grad)
    seen["writes"] = [parameter._version for parameter in model.parameters()]
    return seen


def assert_unchanged(before: dict[str, Any], model: nn.Module) -> None:
    after = snapshot(model)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert not changed, f"changed: {sorted(changed)}"


def storages(values: Iterable[Tensor]) -> set[int]:
    """Where the values live, to tell whether two sets of tensors share memory."""
    return {value.untyped_storage().data_ptr() for value in values if value.numel()}


def state_storages(module: nn.Module) -> set[int]:
    return storages([*module.parameters(), *module.buffers()])
