"""Logits and features of real networks, temperature scaling, and perplexity."""

from __future__ import annotations

import math
import warnings
from typing import cast

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, fx, nn

import fxsplit
from recipes.evaluation import (
    EvaluationError,
    after_vote,
    before_vote,
    calibration_error,
    fit_temperature,
    head_features,
    head_logits,
    head_outputs,
    head_token_logits,
    mean_logit,
    mean_probability,
    nll,
    perplexity,
    predict,
)


def cnn() -> nn.Module:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


X = torch.randn(7, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def split() -> fxsplit.SplitModel:
    return fxsplit.split(fxsplit.trace(cnn(), X[:2]), "0")


# --- predictions


def test_predict_puts_batches_and_networks_together() -> None:
    net, single = split(), cnn()
    batches = [(X[:3], Y[:3]), (X[3:], Y[3:])]
    found = predict([net, single], batches)
    assert found.logits.shape == (4, 7, 3)
    assert torch.equal(found.labels, Y)
    with torch.no_grad():
        torch.testing.assert_close(found.logits[:3], torch.stack(net.eval().head_outputs(X)))
        torch.testing.assert_close(found.logits[3], single.eval()(X))
    torch.testing.assert_close(head_logits(net, X, batch_size=2), found.logits[:3])


@pytest.mark.parametrize("kind", ["ensemble", "mimo", "batch_ensemble"])
def test_every_kind_of_ensemble_has_the_protocol(kind: str) -> None:
    make = {
        "ensemble": lambda: fxsplit.ensemble(cnn(), members=3, example=X[:2]),
        "mimo": lambda: fxsplit.mimo(cnn(), members=3, example=X[:2]),
        "batch_ensemble": lambda: fxsplit.batch_ensemble(cnn(), members=3, example=X[:2]),
    }
    net = make[kind]()
    assert predict(net, [(X, Y)]).logits.shape == (3, 7, 3)


def test_every_module_is_left_in_its_mode_and_without_statistics_of_the_test_set() -> None:
    net = split().train()
    frozen = net.get_submodule("heads.1.1.1")
    frozen.eval()
    modes = {name: module.training for name, module in net.named_modules()}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    head_logits(net, X)
    head_features(net, "1", X)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_modes_are_put_back_after_an_error() -> None:
    net = split().train()
    with pytest.raises(RuntimeError, match="to have 1 channels"):
        head_logits(net, torch.zeros(2, 3, 6, 6))
    assert net.training
    assert net.heads[0].training


@pytest.mark.parametrize("output", [{"logits": Y}, (Y, None), [Y], Y])
def test_logits_are_found_in_an_output(output: object) -> None:
    net = nn.Identity()
    assert head_outputs(net, output)[0] is Y


def test_outputs_without_logits_and_hidden_heads() -> None:
    with pytest.raises(EvaluationError, match="returned dict, in which there are no logits"):
        head_outputs(nn.Identity(), {"loss": Y})

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    with pytest.raises(EvaluationError, match=r"Wrapper hides the heads.*Pass net\.module"):
        head_outputs(Wrapper(split()), X)


def test_nothing_to_evaluate() -> None:
    with pytest.raises(EvaluationError, match="1 networks and 0 batches"):
        predict(cnn(), iter(()))
    with pytest.raises(EvaluationError, match=r"x is \[0, 1, 6, 6\]"):
        head_logits(cnn(), X[:0])


# --- features


def test_features_of_a_layer_and_of_a_block_in_every_head() -> None:
    net = split().eval()
    with torch.no_grad():
        trunk = net.trunk(X)
        for path in ("1", "1.0", "4"):
            found = head_features(net, path, X, batch_size=3)
            assert len(found) == 3
            for head, features in zip(net.heads, found, strict=True):
                seen = []
                with fxsplit.hook_block(cast(fx.GraphModule, head), path, lambda block, value: seen.append(value)):  # noqa: B023
                    head(trunk)
                torch.testing.assert_close(features, seen[0].flatten(1))
    assert torch.equal(torch.stack(head_features(net, "4", X)), head_logits(net, X))


def test_features_of_separate_networks() -> None:
    nets = [cnn(), cnn().eval()]
    with torch.no_grad():
        expected = [nn.Sequential(*net.eval()[:2])(X).flatten(1) for net in nets]  # type: ignore[index]
    for found, values in zip(head_features(nets, "1", X, batch_size=4), expected, strict=True):
        torch.testing.assert_close(found, values)


def test_features_that_are_not_there() -> None:
    with pytest.raises(EvaluationError, match=r"no head has a module 'layer9'.*'heads.0.layer9'"):
        head_features(split(), "layer9", X)
    with pytest.raises(EvaluationError, match="Sequential has no heads"):
        head_features(cnn(), "0", X)
    net = split()
    graphs = [str(head.graph) for head in net.heads]  # type: ignore[union-attr]
    with pytest.raises(EvaluationError):
        head_features(net, "1.9", X)
    assert [str(head.graph) for head in net.heads] == graphs  # type: ignore[union-attr]


# --- temperature


def calibrated(seed: int, count: int = 4000) -> tuple[Tensor, Tensor]:
    """Logits `[1, N, K]` whose softmax is the truth, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(count, 4))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = np.array([rng.choice(4, p=row) for row in p])
    return torch.from_numpy(logits)[None], torch.from_numpy(labels)


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(truth: float) -> None:
    logits, labels = calibrated(0)
    temperature = fit_temperature(logits * truth, labels)
    assert temperature.value == pytest.approx(truth, rel=0.05)
    held_out, truths = calibrated(1)
    assert calibration_error(temperature(held_out * truth), truths) < 0.03


@pytest.mark.parametrize("vote", [mean_probability, mean_logit])
@pytest.mark.parametrize("place", [before_vote, after_vote])
def test_the_temperature_is_the_lowest_point_of_nll(vote, place) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (300,), generator=generator)
    logits = 4 * torch.randn(3, 300, 4, generator=generator, dtype=torch.double)
    logits[:, torch.arange(300), labels] += 3
    temperature = fit_temperature(logits, labels, vote, place)

    def loss(parameter: np.ndarray) -> float:
        scaled = logits.numpy() / (parameter[0] if place is before_vote else 1.0)
        p = np.exp(scaled) / np.exp(scaled).sum(-1, keepdims=True)
        voted = p.mean(0) if vote is mean_probability else np.exp(scaled.mean(0))
        voted = voted ** (1.0 if place is before_vote else 1 / parameter[0])
        voted = voted / voted.sum(-1, keepdims=True)
        return -np.log(voted[np.arange(300), labels]).mean()

    found = scipy.optimize.minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12})
    assert temperature.value == pytest.approx(found.x[0], rel=1e-3)
    assert nll(temperature(logits), labels) == pytest.approx(found.fun, rel=1e-6)


def test_places_agree_for_the_mean_logit_and_differ_for_the_mean_probability() -> None:
    logits = torch.tensor([[[8.0, 0.0, 0.0]], [[0.0, 4.0, 0.0]]])
    torch.testing.assert_close(before_vote(mean_logit, logits, 3.0), after_vote(mean_logit, logits, 3.0))
    one, other = before_vote(mean_probability, logits, 3.0), after_vote(mean_probability, logits, 3.0)
    assert (one - other).abs().max() > 0.05
    assert torch.equal(after_vote(mean_probability, logits, 9.0).argsort(), mean_probability(logits).argsort())


def test_a_validation_set_that_says_nothing_about_the_temperature_warns() -> None:
    logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
    with pytest.warns(UserWarning, match="no lowest point at temperatures from 0.0156 to 64"):
        cold = fit_temperature(logits, torch.tensor([0, 1]))
    assert cold.value < 0.02
    with pytest.warns(UserWarning, match="2 validation inputs"):
        assert fit_temperature(logits, torch.tensor([1, 0])).value > 60
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_temperature(logits[:, [0, 0, 0]], torch.tensor([0, 0, 1]))


# --- language models


class Bigram(nn.Module):
    """Logits of the next token from a table."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(6, 6, generator=generator))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table[input_ids]


class Heads(nn.Module):
    """The protocol by hand."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def head_outputs(self, input_ids: Tensor) -> list[Tensor]:
        return [model(input_ids) for model in self.models]


def test_perplexity_is_weighted_by_token_and_counts_padding_out() -> None:
    models = [Bigram(seed) for seed in range(3)]
    ids = torch.tensor([[0, 1, 2, 3, 4], [5, 4, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    batches = [{"input_ids": ids, "attention_mask": mask}, torch.tensor([[1, 1]])]
    found = perplexity(Heads(*models), batches)
    steps = [(0, 1), (1, 2), (2, 3), (3, 4), (5, 4), (4, 3), (1, 1)]
    tables = np.stack([model.table.detach().double().softmax(-1).numpy() for model in models])
    p = np.array([[table[a, b] for a, b in steps] for table in tables])
    assert found.tokens == 7
    assert found.heads == pytest.approx(np.exp(-np.log(p).mean(1)), rel=1e-5)
    assert found.prob == pytest.approx(np.exp(-np.log(p.mean(0)).mean()), rel=1e-5)
    geometric = np.exp(np.log(tables).mean(0))
    geometric /= geometric.sum(-1, keepdims=True)
    assert found.logit == pytest.approx(np.exp(-np.mean([np.log(geometric[a, b]) for a, b in steps])), rel=1e-5)
    choices = np.array([[table[a].argmax() for a, _ in steps] for table in tables])
    assert found.disagreement == pytest.approx(np.mean([choices[i] != choices[j] for i, j in ((0, 1), (0, 2), (1, 2))]))
    assert found.prob <= np.mean(found.heads)


def test_labels_choose_what_counts() -> None:
    ids = torch.tensor([[0, 1, 2, 3]])
    found = perplexity(Bigram(0), [{"input_ids": ids, "labels": torch.tensor([[-100, -100, 5, -100]])}])
    table = Bigram(0).table.detach()
    assert found.tokens == 1
    assert found.prob == pytest.approx(math.exp(torch.nn.functional.cross_entropy(table[1][None], torch.tensor([5]))))
    assert found.prob == found.logit == found.heads[0]
    assert math.isnan(found.disagreement)


def test_perplexity_of_a_split_llama_against_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=19, **sizes))  # type: ignore[arg-type]
    net = fxsplit.split(fxsplit.trace(model), 1, init="copy", vote="prob").train()
    ids = torch.randint(0, 19, (4, 9), generator=torch.Generator().manual_seed(0))
    found = perplexity(net, [ids])
    with torch.no_grad():
        loss = model.eval()(input_ids=ids, labels=ids).loss
    assert [found.prob, found.logit, *found.heads] == pytest.approx([math.exp(loss)] * 5, rel=1e-5)
    assert found.disagreement == 0
    assert net.training
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    padded = head_token_logits(net.eval(), ids, mask)[0][0, :5]
    torch.testing.assert_close(padded, head_token_logits(net, ids[:1, :5])[0][0])


def test_what_perplexity_refuses() -> None:
    model = Bigram(0)
    with pytest.raises(EvaluationError, match="no token to predict"):
        perplexity(model, [torch.tensor([[1], [2]])])
    with pytest.raises(EvaluationError, match="no batches"):
        perplexity(model, [])
    with pytest.raises(EvaluationError, match=r"tokens \[B, T\].*got \[3\]"):
        perplexity(model, [torch.tensor([1, 2, 3])])
    with pytest.raises(EvaluationError, match=r"got \['tokens'\]"):
        perplexity(model, [{"tokens": torch.tensor([[1, 2]])}])
    with pytest.raises(EvaluationError, match="labels are unshifted"):
        perplexity(model, [{"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[2]])}])
    with torch.no_grad():
        model.table[0, 0] = math.nan
    with pytest.raises(EvaluationError, match="logits of head 0 are NaN"):
        perplexity(model, [torch.tensor([[0, 2]])])
