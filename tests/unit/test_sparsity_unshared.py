"""A gradient is masked in its own memory where nobody else can see that, and only there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sparsity
from sparsity import _gradient, _unshared

SHAPE = (4, 4, 3, 3)
Held = list[Any]


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What was decided about each gradient."""
    decided: list[bool] = []

    def noted(gradients: tuple[Tensor, ...]) -> bool:
        decided.append(_unshared.unshared(gradients))
        return decided[-1]

    monkeypatch.setattr(_gradient, "unshared", noted)
    return decided


def images() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def convolved(weight: Tensor) -> Tensor:
    return F.conv2d(images(), weight)


class Given(torch.autograd.Function):
    """Hands out the gradient that it was given."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, make: Callable[[], Tensor]) -> Tensor:
        ctx.make = make
        return weight.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.make(), None


class Saved(torch.autograd.Function):
    """Hands out a tensor that it saved."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, saved: Tensor) -> Tensor:
        ctx.save_for_backward(saved)
        return weight.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def hooked(keep: Callable[[Tensor], Any]) -> Callable[[Tensor, Held], None]:
    def train(weight: Tensor, held: Held) -> None:
        weight.register_hook(lambda gradient: held.append(keep(gradient)))
        convolved(weight).sum().backward()

    return train


def of_node(weight: Tensor, held: Held) -> None:
    node = weight.grad_fn
    assert node is not None
    node.register_prehook(lambda gradients: held.append(gradients[0]))
    convolved(weight).sum().backward()


def of_next_node(weight: Tensor, held: Held) -> None:
    output = convolved(weight)
    assert output.grad_fn is not None
    output.grad_fn.register_hook(lambda inputs, outputs: held.append(inputs[1]))
    output.sum().backward()


def replaced_by_a_hook(weight: Tensor, held: Held) -> None:
    def double(gradient: Tensor) -> Tensor:
        held.append(2 * gradient)
        return held[-1]

    weight.register_hook(double)
    convolved(weight).sum().backward()


def given(weight: Tensor, held: Held) -> None:
    held.append(torch.ones(SHAPE))
    weight.backward(held[0])


def from_a_function(weight: Tensor, held: Held) -> None:
    held.append(torch.ones(SHAPE))
    Given.apply(weight, lambda: held[0]).backward()  # pyright: ignore


def part_from_a_function(weight: Tensor, held: Held) -> None:
    held.append(torch.ones(2, *SHAPE))
    Given.apply(weight, lambda: held[0][1]).backward()  # pyright: ignore


def from_an_array(weight: Tensor, held: Held) -> None:
    held.append(np.ones(SHAPE, dtype=np.float32))
    Given.apply(weight, lambda: torch.from_numpy(held[0])).backward()  # pyright: ignore


def saved_and_held(weight: Tensor, held: Held) -> None:
    held.append(torch.ones(SHAPE))
    Saved.apply(weight, held[0]).backward()  # pyright: ignore


def saved_and_asked_for_again(weight: Tensor, held: Held) -> None:
    loss = Saved.apply(weight, torch.ones(SHAPE))
    loss.backward(retain_graph=True)  # pyright: ignore
    weight.register_hook(lambda gradient: held.append(gradient.clone()))
    loss.backward()  # pyright: ignore


def asked_for_besides(weight: Tensor, held: Held) -> None:
    held.append(torch.autograd.grad(convolved(weight).sum(), [weight, leaf_of(weight)])[0])


def retained(weight: Tensor, held: Held) -> None:
    weight.retain_grad()
    convolved(weight).sum().backward()
    held.append(weight.grad)


def leaf_of(weight: Tensor) -> Tensor:
    assert weight.grad_fn is not None
    return weight.grad_fn.next_functions[0][0].variable  # pyright: ignore


def sum_with(other: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Held], None]:
    """The gradients of both terms of a sum are one tensor, or views of it."""

    def train(weight: Tensor, held: Held) -> None:
        added = torch.zeros(SHAPE, requires_grad=True)
        (other(weight) + other(added)).mul(2).sum().backward()
        held.append(added.grad)

    return train


SHARED: dict[str, Callable[[Tensor, Held], None]] = {
    "kept by a hook": hooked(lambda gradient: gradient),
    "kept detached": hooked(Tensor.detach),
    "kept as a view": hooked(lambda gradient: gradient.view(-1)),
    "kept as storage": hooked(Tensor.untyped_storage),
    "kept as an array": hooked(Tensor.numpy),
    "kept by a hook of the node": of_node,
    "kept by a hook of the node before": of_next_node,
    "replaced by a hook": replaced_by_a_hook,
    "given": given,
    "of a function": from_a_function,
    "part of a function's": part_from_a_function,
    "an array's": from_an_array,
    "saved and held": saved_and_held,
    "saved and asked for again": saved_and_asked_for_again,
    "asked for besides": asked_for_besides,
    "retained": retained,
    "sum": sum_with(lambda term: term),
    "sum of views": sum_with(lambda term: term.view(-1)),
    "sum of transposed": sum_with(lambda term: term.transpose(0, 1)),
}


def masked_weight() -> tuple[Tensor, Tensor, Tensor]:
    """The parameter, its mask, and what a layer computes with."""
    net = nn.Conv2d(4, 4, 3, bias=False)
    mask = sparsity.sparsify(net, 0.5)["weight"]
    return net.parametrizations.weight.original, mask, net.weight  # pyright: ignore


def content(held: Any) -> Tensor:
    if isinstance(held, torch.UntypedStorage):
        return torch.tensor([], dtype=torch.float32).set_(held)  # pyright: ignore
    return torch.as_tensor(held)


@pytest.mark.parametrize("how", SHARED)
def test_what_others_hold_stays_whole(how: str, in_place: list[bool]) -> None:
    parameter, mask, weight = masked_weight()
    held: Held = []
    SHARED[how](weight, held)
    assert len(in_place) in (1, 2)  # once in each backward pass
    [whole] = held
    assert content(whole).count_nonzero() == content(whole).numel()
    if parameter.grad is not None:
        assert torch.equal(parameter.grad != 0, mask)


def in_a_thread(weight: Tensor) -> None:
    thread = threading.Thread(target=convolved(weight).sum().backward)
    thread.start()
    thread.join()


def lower_precision(weight: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        convolved(weight).sum().backward()


def checkpointed(weight: Tensor) -> None:
    checkpoint(lambda x: F.conv2d(x, weight), images(), use_reentrant=False).sum().backward()


def channels_last(weight: Tensor) -> None:
    F.conv2d(images().to(memory_format=torch.channels_last), weight).sum().backward()


UNSHARED: dict[str, Callable[[Tensor], None]] = {
    "convolution": lambda weight: convolved(weight).sum().backward(),
    "channels last": channels_last,
    "twice": lambda weight: F.conv2d(convolved(weight), weight).sum().backward(),
    "product": lambda weight: (weight * torch.ones(SHAPE)).sum().backward(),
    "thread": in_a_thread,
    "autocast": lower_precision,
    "checkpoint": checkpointed,
}


@pytest.mark.parametrize("how", UNSHARED)
def test_what_nobody_holds_is_masked_in_place(how: str, in_place: list[bool]) -> None:
    parameter, mask, weight = masked_weight()
    UNSHARED[how](weight)
    assert in_place == [True]
    assert parameter.grad is not None
    assert torch.equal(parameter.grad != 0, mask)


def test_the_gradient_of_a_layer_takes_no_second_memory() -> None:
    net = nn.Conv2d(4, 4, 3, bias=False)
    sparsity.sparsify(net, 0.5)
    places: list[int] = []
    weight = net.weight
    weight.register_hook(lambda gradient: places.append(gradient.data_ptr()))
    convolved(weight).sum().backward()
    parameter = net.parametrizations.weight.original  # pyright: ignore
    assert isinstance(parameter.grad, Tensor)
    assert places == [parameter.grad.data_ptr()]


def test_without_known_numbers_every_gradient_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    def alike(hold: Callable[[Tensor], Any]) -> tuple[int, int, int, int]:
        return 1, 2, 5, 3

    def unknown(hold: Callable[[Tensor], Any]) -> tuple[int, int, int, int]:
        raise AttributeError("no _use_count")

    for counted in (alike, unknown):
        monkeypatch.setattr(_unshared, "_counted", counted)
        assert _unshared._alone.__wrapped__() is None
    monkeypatch.setattr(_unshared, "_alone", lambda: None)
    parameter, mask, weight = masked_weight()
    convolved(weight).sum().backward()
    assert parameter.grad is not None
    assert torch.equal(parameter.grad != 0, mask)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_shared_gradients_of_compiled_code(backend: str) -> None:
    first, second = (nn.Linear(3, 2, bias=False) for _ in range(2))
    masks = [sparsity.sparsify(net, 0.5)["weight"] for net in (first, second)]

    def added() -> Tensor:
        return 2 * (first.weight + second.weight)

    torch.compile(added, backend=backend, fullgraph=True)().sum().backward()
    for net, mask in zip((first, second), masks, strict=True):
        (parameter,) = net.parameters()
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, 2.0 * mask)
