"""The loss of section 3: the mean over heads of each head's loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import fxsplit
from fxsplit import SplitError

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
Y = torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture
def net() -> Any:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    return fxsplit.split(fxsplit.trace(model, X), "1")


def test_mean_of_the_heads_losses(net: Any) -> None:
    features = net.trunk(X)
    losses = [
        F.cross_entropy(F.linear(features, head._modules["2"].weight, head._modules["2"].bias), Y) for head in net.heads
    ]
    loss = fxsplit.head_loss(net, F.cross_entropy, X, Y)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    assert not torch.allclose(loss, F.cross_entropy(net(X), Y), rtol=1e-4)


def test_gradients_are_those_of_the_formula(net: Any) -> None:
    fxsplit.head_loss(net, F.cross_entropy, X, Y).backward()
    actual = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    for output in net.head_outputs(X):
        (F.cross_entropy(output, Y) / 3).backward(retain_graph=True)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, actual[name])


def test_the_criterion_may_keep_the_batch(net: Any) -> None:
    loss = fxsplit.head_loss(net, lambda output, y: F.cross_entropy(output, y, reduction="none"), X, Y)
    assert loss.shape == (5,)


def test_the_trunk_runs_once(net: Any) -> None:
    calls: list[int] = []
    net.trunk.register_forward_hook(lambda *_: calls.append(1))
    fxsplit.head_loss(net, F.cross_entropy, X, Y)
    assert calls == [1]


def test_labels_of_a_language_model_give_the_same_loss() -> None:
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(1, 20, (2, 6))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    net = fxsplit.split(fxsplit.trace(model, batch), "model.layers.0")

    def next_token(output: Any, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    loss = fxsplit.head_loss(net, next_token, ids, torch.ones_like(ids), ids, ids)
    torch.testing.assert_close(net(**batch).loss, loss)


def test_wrong_calls(net: Any) -> None:
    with pytest.raises(SplitError, match="needs at least one input"):
        fxsplit.head_loss(net, F.cross_entropy, X)
    with pytest.raises(SplitError, match="needs a split model, got Linear"):
        fxsplit.head_loss(nn.Linear(4, 3), F.cross_entropy, X, Y)
    with pytest.raises(SplitError, match="pass the model inside"):
        fxsplit.head_loss(nn.DataParallel(net), F.cross_entropy, X, Y)
