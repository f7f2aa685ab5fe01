"""TreeNet and NeuroTrails, against networks that are written by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxsplit
import sparsity
from recipes.methods import Rigl, Sparse, Tree

M = 3
X = torch.linspace(-2, 2, 6 * 2 * 64).sin().view(6, 2, 8, 8)
Y = torch.tensor([0, 2, 1, 2, 4, 3])
EXAMPLE = torch.zeros(2, 2, 8, 8)
SPARSE = Sparse(0.6)


class Block(nn.Module):
    """A residual block, as a user writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.norm(self.conv1(x)).relu()) + x


class Net(nn.Module):
    """The dense network that the recipe splits after its first block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.fc(self.norm(x).relu().mean((2, 3)))


class Part(nn.Module):
    """Weights, and masks if there are any, by the names that they have in `Net`."""

    def __init__(self, state: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            place = name.replace(".", "__")
            if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                self.register_buffer(place, value.clone())
            else:
                self.register_parameter(place, nn.Parameter(value.clone()))
        self.masks = {name: mask.to(torch.float32) for name, mask in masks.items()}

    def get(self, name: str) -> Tensor:
        value = getattr(self, name.replace(".", "__"))
        return value * self.masks[name] if name in self.masks else value

    def conv(self, name: str, x: Tensor, bias: bool = True, **how: int) -> Tensor:
        return functional.conv2d(x, self.get(f"{name}.weight"), self.get(f"{name}.bias") if bias else None, **how)

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, var = self.get(f"{name}.running_mean"), self.get(f"{name}.running_var")
        return functional.batch_norm(
            x, mean, var, self.get(f"{name}.weight"), self.get(f"{name}.bias"), training=self.training
        )

    def block(self, name: str, x: Tensor) -> Tensor:
        inner = self.norm(f"{name}.norm", self.conv(f"{name}.conv1", x, bias=False, padding=1)).relu()
        return self.conv(f"{name}.conv2", inner, padding=1) + x


class Hand(nn.Module):
    """One trunk and three heads, without any of the library."""

    def __init__(self, parts: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]) -> None:
        super().__init__()
        self.trunk = Part(*parts["trunk"])
        self.heads = nn.ModuleList(Part(*parts[f"heads.{number}"]) for number in range(M))

    def forward(self, x: Tensor) -> list[Tensor]:
        shared = self.trunk.block("blocks.0", self.trunk.conv("stem", x, stride=2, padding=1))
        outputs = []
        for head in self.heads:
            assert isinstance(head, Part)
            last = head.norm("norm", head.block("blocks.1", shared)).relu()
            outputs.append(last.mean((2, 3)) @ head.get("fc.weight").T + head.get("fc.bias"))
        return outputs

    def part(self, name: str) -> Part:
        part = self.get_submodule(name)
        assert isinstance(part, Part)
        return part


PARTS = ("trunk", *(f"heads.{number}" for number in range(M)))


def owner(path: str) -> tuple[str, str]:
    """Split ``heads.1.fc.weight`` into the part and the name there."""
    part = next(part for part in PARTS if path.startswith(f"{part}."))
    return part, path.removeprefix(f"{part}.")


def originals(net: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the paths that they have without masks."""
    return {
        path.replace("parametrizations.", "").removesuffix(".original"): value for path, value in net.named_parameters()
    }


def effective(net: nn.Module) -> dict[str, Tensor]:
    """Weights as they are multiplied with, and buffers, by the paths that they have without masks."""
    copied = copy.deepcopy(net)
    return (sparsity.fold(copied) if sparsity.masks_of(net) else copied).state_dict()


def by_hand(net: nn.Module) -> Hand:
    parts: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {part: ({}, {}) for part in PARTS}
    for path, value in effective(net).items():
        part, name = owner(path)
        parts[part][0][name] = value
    for path, mask in sparsity.masks_of(net).items():
        part, name = owner(path)
        parts[part][1][name] = mask
    return Hand(parts)


def build(sparse: bool, **settings: Any) -> tuple[Tree, fxsplit.SplitModel, Hand]:
    method = Tree("blocks.0", M, SPARSE if sparse else Sparse(0.0), Rigl(every=100), **settings)
    net = method.network(Net, EXAMPLE, seed=3)
    assert isinstance(net, fxsplit.SplitModel)
    hand = by_hand(net)
    assert bool(sparsity.masks_of(net)) == sparse
    # The classifier of each head was drawn on its own, so a head in the wrong place would be seen.
    assert not torch.equal(hand.part("heads.0").get("fc.weight"), hand.part("heads.1").get("fc.weight"))
    return method, net, hand


systems = pytest.mark.parametrize("sparse", [False, True], ids=["treenet", "neurotrails"])


@systems
@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_those_of_the_one_by_hand(sparse: bool, training: bool) -> None:
    _, net, hand = build(sparse)
    expected = hand.train(training)(X)
    outputs = net.train(training).head_outputs(X)
    assert len(outputs) == len(expected) == M
    for output, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, other, rtol=0, atol=1e-6)


@systems
def test_votes_are_those_of_the_one_by_hand(sparse: bool) -> None:
    _, net, hand = build(sparse)
    expected = torch.stack(hand.eval()(X)).softmax(-1).mean(0)
    torch.testing.assert_close(net.eval()(X).softmax(-1), expected, rtol=0, atol=1e-6)
    _, net, hand = build(sparse, vote="mean")
    torch.testing.assert_close(net.eval()(X), torch.stack(hand.eval()(X)).mean(0), rtol=0, atol=1e-6)


@systems
@pytest.mark.parametrize("total", [False, True], ids=["mean", "sum"])
def test_a_training_step_is_that_of_the_one_by_hand(sparse: bool, total: bool) -> None:
    method, net, hand = build(sparse, total=total)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    method.attach(net, optimizer, 200, [], seed=0)
    for _ in range(2):  # the second step has momentum
        loss = method.loss(net, functional.cross_entropy, X, Y)
        losses = [functional.cross_entropy(output, Y) for output in hand(X)]
        other = torch.stack(losses).sum() if total else torch.stack(losses).mean()
        torch.testing.assert_close(loss, other, rtol=1e-6, atol=1e-6)
        loss.backward()
        hand.zero_grad()
        other.backward()
        parameters = originals(net)
        assert len(parameters) == len(list(hand.parameters()))
        before = {path: value.detach().clone() for path, value in parameters.items()}
        for path, value in parameters.items():
            part, name = owner(path)
            twin = hand.part(part).get_parameter(name.replace(".", "__"))
            assert value.grad is not None
            assert twin.grad is not None
            assert twin.grad.any()
            torch.testing.assert_close(value.grad, twin.grad, rtol=1e-5, atol=1e-6, msg=path)
        optimizer.step()
        optimizer.zero_grad()
        assert all(not torch.equal(before[path], value) for path, value in parameters.items())
        step_by_hand(hand)
        compare_state(net, hand)


def step_by_hand(hand: Hand) -> None:
    """SGD with momentum and weight decay, from its formula."""
    with torch.no_grad():
        for parameter in hand.parameters():
            assert parameter.grad is not None
            push = parameter.grad + 0.01 * parameter
            velocity = getattr(parameter, "velocity", None)
            velocity = push if velocity is None else 0.9 * velocity + push
            parameter.velocity = velocity  # pyright: ignore[reportAttributeAccessIssue]
            parameter -= 0.1 * velocity


def compare_state(net: nn.Module, hand: Hand) -> None:
    """Weights, as they are multiplied with, and the statistics of BatchNorm."""
    for path, value in effective(net).items():
        part, name = owner(path)
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, hand.part(part).get(name).detach(), rtol=1e-5, atol=1e-6, msg=path)
