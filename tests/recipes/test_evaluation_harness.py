"""The adapter to lm-evaluation-harness, on a task of a few lines in a local file."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsplit
from recipes.evaluation import (
    TABLE_5_TASKS,
    EvaluationError,
    harness_model,
    head_token_logits,
    mean_logit,
    mean_probability,
    perplexity,
    run_tasks,
)

LETTERS = " abcdefghijklmnopqrstuvwxyz?:"


class Letters:
    """A tokenizer of letters; token 0 ends a text."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        assert not add_special_tokens
        return [LETTERS.index(letter) + 1 for letter in text.lower()]

    def decode(self, tokens: list[int]) -> str:
        return "".join(LETTERS[token - 1] for token in tokens)


@pytest.fixture(scope="module")
def net() -> fxsplit.SplitModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(LETTERS) + 1, initializer_range=0.5, **sizes))
    return fxsplit.split(fxsplit.trace(model), 1, vote="prob", seed=1)


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def scored(net: fxsplit.SplitModel, tokens: list[int], count: int, vote: Any) -> tuple[float, bool]:
    """Log-likelihood of the last tokens of one sequence by itself, without batches or padding."""
    with torch.no_grad():
        log_probabilities = vote(torch.stack(head_token_logits(net.eval(), torch.tensor([tokens[:-1]]))))[0]
    rows, targets = log_probabilities[-count:], torch.tensor(tokens[-count:])
    value = rows[torch.arange(count), targets].sum().item()
    return value, bool((rows.argmax(-1) == targets).all())


@pytest.mark.parametrize("vote", [mean_probability, mean_logit])
def test_loglikelihood_of_sequences_of_any_length(net: fxsplit.SplitModel, vote: Any) -> None:
    model = harness_model(net, Letters(), vote, batch_size=2)
    pairs = [("the cat", " sat"), ("a", " b"), ("", "hello"), ("what is it? ", "no"), ("abc", "d")]
    found = model.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    encode = Letters().encode
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        text = context + continuation
        count = len(text) - len(context.rstrip())
        tokens = encode(text) if context else [0, *encode(text)]
        expected, chosen = scored(net, tokens, count if context else len(text), vote)
        assert value == pytest.approx(expected, rel=1e-4)
        assert greedy == chosen


def test_what_is_generated_is_greedy(net: fxsplit.SplitModel) -> None:
    model = harness_model(net, Letters())
    (text,) = model.generate_until([request("the", {"until": [], "max_gen_toks": 5})], disable_tqdm=True)
    expected = fxsplit.generate(
        net.eval(), torch.tensor([Letters().encode("the")]), max_new_tokens=5, do_sample=False, eos_token_id=0
    )
    tokens = [token for token in expected[0, 3:].tolist() if token != 0]
    assert text == Letters().decode(tokens)
    assert model.loglikelihood([request("the", text)], disable_tqdm=True)[0][1]
    assert len(text) > 1
    (short,) = model.generate_until([request("the", {"until": text[1], "max_gen_toks": 5})], disable_tqdm=True)
    assert short == text[: text.index(text[1])]
    with pytest.raises(EvaluationError, match="most probable token"):
        model.generate_until([request("the", {"do_sample": True})], disable_tqdm=True)


def test_rolling_loglikelihood_is_that_of_perplexity(net: fxsplit.SplitModel) -> None:
    text = "what is it that they ask"
    tokens = Letters().encode(text)
    (value,) = harness_model(net, Letters()).loglikelihood_rolling([request(text)], disable_tqdm=True)
    found = perplexity(net, [torch.tensor([[0, *tokens]])])
    assert math.exp(-value / len(tokens)) == pytest.approx(found.prob, rel=1e-5)
    (windows,) = harness_model(net, Letters(), max_length=8).loglikelihood_rolling([request(text)], disable_tqdm=True)
    parts = [scored(net, [0, *tokens[:8]], 8, mean_probability), scored(net, tokens[7:16], 8, mean_probability)]
    parts.append(scored(net, tokens[15:24], 8, mean_probability))
    assert windows == pytest.approx(sum(part for part, _ in parts), rel=1e-4)


def test_long_contexts_lose_their_beginning(net: fxsplit.SplitModel) -> None:
    model = harness_model(net, Letters(), max_length=6)
    ((value, _),) = model.loglikelihood([request("this is long", " yes")], disable_tqdm=True)
    tokens = Letters().encode("this is long yes")
    assert value == pytest.approx(scored(net, tokens[-7:], 4, mean_probability)[0], rel=1e-4)
    with pytest.raises(EvaluationError, match="has 7 tokens, but the network takes 6"):
        model.loglikelihood([request("a", " longer")], disable_tqdm=True)


def test_any_network_of_tokens_will_do() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Embedding(len(LETTERS) + 1, 4), nn.Linear(4, len(LETTERS) + 1))
    model = harness_model(plain.train(), Letters())
    ((value, _),) = model.loglikelihood([request("a", " b")], disable_tqdm=True)
    logits: Tensor = plain(torch.tensor([Letters().encode("a ")])).log_softmax(-1)[0]
    one, other = Letters().encode(" b")
    assert value == pytest.approx((logits[0, one] + logits[1, other]).item(), rel=1e-5)
    assert plain.training


# --- whole tasks


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A task manager that knows a task of four questions with two answers each, and one without accuracy."""
    from datasets import config
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(config, "HF_DATASETS_OFFLINE", True)
    rows = [
        {"question": question, "choices": choices, "answer": answer}
        for question, choices, answer in (
            ("is it a cat", ["yes", "no"], 0),
            ("is it a dog", ["yes", "no"], 1),
            ("what is it", ["tree", "house"], 1),
            ("who is it", ["me", "you"], 0),
        )
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(
        f"""
task: tiny_questions
dataset_path: json
dataset_kwargs:
  data_files: {{test: {tmp_path / "rows.jsonl"}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}?"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
""",
        encoding="utf-8",
    )
    (tmp_path / "other.yaml").write_text(
        (tmp_path / "tiny.yaml").read_text().replace("tiny_questions", "tiny_f1").replace("metric: acc", "metric: f1")
    )
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


@pytest.mark.parametrize("vote", [mean_probability, mean_logit])
def test_a_task_from_beginning_to_end(net: fxsplit.SplitModel, tasks: Any, vote: Any) -> None:
    model = harness_model(net, Letters(), vote)
    found = run_tasks(model, ["tiny_questions"], task_manager=tasks)
    right = 0
    for question, choices, answer in (
        ("is it a cat?", ["yes", "no"], 0),
        ("is it a dog?", ["yes", "no"], 1),
        ("what is it?", ["tree", "house"], 1),
        ("who is it?", ["me", "you"], 0),
    ):
        values = [scored(net, Letters().encode(f"{question} {one}"), len(one) + 1, vote)[0] for one in choices]
        right += values.index(max(values)) == answer
    assert found == {"tiny_questions": right / 4, "average": right / 4}


def test_tasks_that_are_not_there_or_have_no_accuracy(net: fxsplit.SplitModel, tasks: Any) -> None:
    model = harness_model(net, Letters())
    with pytest.raises(EvaluationError, match="no task tiny_question"):
        run_tasks(model, ["tiny_question"], task_manager=tasks)
    with pytest.raises(EvaluationError, match="none was named"):
        run_tasks(model, [], task_manager=tasks)
    with pytest.raises(EvaluationError, match="measure no accuracy 'acc': tiny_f1"):
        run_tasks(model, ["tiny_f1"], task_manager=tasks)


def test_tasks_whose_data_are_missing(net: fxsplit.SplitModel, tasks: Any, tmp_path: Path) -> None:
    known = (tmp_path / "tiny.yaml").read_text()
    absent = known.replace("tiny_questions", "tiny_absent").replace("rows.jsonl", "nowhere.jsonl")
    (tmp_path / "absent.yaml").write_text(absent)
    tasks = type(tasks)(include_path=str(tmp_path), include_defaults=False)
    message = (
        r"The data of tiny_absent are not on this machine .*FileNotFoundError.*HF_HUB_OFFLINE not set: "
        r"python -c \".*TaskManager\(\)\.load\(\['tiny_absent'\]\)\""
    )
    with pytest.raises(EvaluationError, match=message):
        run_tasks(harness_model(net, Letters()), ["tiny_questions", "tiny_absent"], task_manager=tasks)


def test_other_errors_are_not_said_to_be_missing_data(
    net: fxsplit.SplitModel, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval

    def fail(**options: Any) -> None:
        raise ValueError("something else")

    monkeypatch.setattr(lm_eval, "simple_evaluate", fail)
    with pytest.raises(ValueError, match="something else"):
        run_tasks(harness_model(net, Letters()), ["tiny_questions"], task_manager=tasks)


@pytest.mark.slow
def test_the_harness_knows_the_tasks_of_table_5() -> None:
    from lm_eval.tasks import TaskManager

    assert set(TABLE_5_TASKS) <= set(TaskManager().all_tasks)


def test_what_is_missing_is_named(net: fxsplit.SplitModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="SimpleNamespace has no eos_token_id"):
        harness_model(net, SimpleNamespace())
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    with pytest.raises(EvaluationError, match=r"pip install 'fxsplit\[lm-eval\]'"):
        harness_model(net, Letters())
