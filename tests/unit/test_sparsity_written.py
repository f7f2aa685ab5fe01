"""A forward pass uses masked weights, also after someone wrote to them past the engine."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sparsity
from sparsity import _masks
from sparsity._masks import Mask


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))


def sparse() -> nn.Module:
    net = dense()
    sparsity.sparsify(net, 0.5)
    return net


def images() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def written(net: nn.Module) -> bool:
    return any((weight.parameter[~weight.holder.mask] != 0).any() for weight in sparsity.masks_of(net).weights.values())


def fill(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.5)


def load(net: nn.Module) -> None:
    state = net.state_dict()
    net.load_state_dict(
        {name: torch.randn_like(each) if each.is_floating_point() else each for name, each in state.items()}
    )


def step(net: nn.Module) -> None:
    """Of a plain optimizer with noise, which no engine follows."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def replace(net: nn.Module) -> None:
    for module in net.modules():
        if hasattr(module, "original"):
            module.original = nn.Parameter(torch.ones_like(module.original))  # pyright: ignore


def mask(net: nn.Module) -> None:
    """Other masks with the weights as they are."""
    for each in sparsity.masks_of(net).values():
        each.copy_(each.flip(0))


EDITS: dict[str, Callable[[nn.Module], None]] = {
    "filled": fill, "loaded": load, "stepped": step, "replaced": replace, "other masks": mask,
}  # fmt: skip


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("edit", EDITS)
def test_forward_after_an_edit(edit: str, grad: bool) -> None:
    net = sparse()
    net(images())
    EDITS[edit](net)
    assert written(net)
    reference = dense()
    for path, weight in sparsity.masks_of(net).weights.items():
        reference.get_parameter(path).data = weight.parameter.detach() * weight.holder.mask
    for name in ("0.bias", "3.bias"):
        reference.get_parameter(name).data = net.get_parameter(name).detach().clone()
    with torch.set_grad_enabled(grad):
        assert torch.equal(net(images()), reference(images()))
    assert not written(net)


def test_copies_are_looked_at_by_themselves() -> None:
    net = sparse()
    net(images())
    twin = copy.deepcopy(net)
    fill(twin)
    twin(images())
    assert not written(twin)
    assert not written(net)


def test_nothing_is_written_unless_someone_else_did(monkeypatch: pytest.MonkeyPatch) -> None:
    net = sparse()
    optimizer = torch.optim.AdamW(net.parameters())
    sparsity.rigl(net, optimizer, every=2, until=100)
    net(images())
    zeroed: list[Tensor] = []
    by_mask = Mask.zero

    def noted(self: Mask, weight: Tensor) -> None:
        zeroed.append(weight)
        by_mask(self, weight)

    monkeypatch.setattr(_masks.Mask, "zero", noted)
    for _ in range(5):
        before = len(zeroed)
        loss = net(images()).square().sum() + net(images()).sum()
        assert len(zeroed) == before
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert len(zeroed) == before + 2  # after the step, once for each weight


def test_a_pending_backward_pass_is_not_disturbed() -> None:
    """What was saved for it is as it was, since nobody wrote to the weights."""
    net = sparse()
    fill(net)
    first = net(images()).sum()
    second = net(images()).sum()
    first.backward()
    second.backward()
    assert not written(net)


def test_parameters_that_callers_pass_stay_theirs() -> None:
    net = sparse()
    own = {name: torch.ones_like(parameter) for name, parameter in net.named_parameters()}
    torch.func.functional_call(net, own, (images(),))
    assert all(bool((each == 1).all()) for each in own.values())


def test_inference_mode() -> None:
    net = sparse()
    fill(net)
    with torch.inference_mode():
        net(images())
        inside = sparse()
        inside(images())
    assert not written(net)
    net(images()).sum().backward()
