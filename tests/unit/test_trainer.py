"""Models of transformers with labels: the loss of a split model, and its training by transformers' Trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor, nn

import fxsplit
import sparsity
from fxsplit import InputError
from tests.checks import assert_same

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
WORDS: dict[str, Any] = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama(**options: Any) -> nn.Module:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, **WORDS, **options))


def t5() -> nn.Module:
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    start: dict[str, Any] = {"decoder_start_token_id": 0}
    return tf.T5ForConditionalGeneration(tf.T5Config(**sizes, **start, **WORDS))


def bert(cls: Any, **options: Any) -> nn.Module:
    return cls(tf.BertConfig(vocab_size=20, **SIZES, **options))


def vit() -> nn.Module:
    options: dict[str, Any] = {"num_labels": 3, **SIZES}
    return tf.ViTForImageClassification(tf.ViTConfig(image_size=16, patch_size=8, **options))


def text(kind: str, batch: int, length: int = 9) -> dict[str, Tensor]:
    ids = torch.randint(3, 20, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    labels = {
        "tokens": ids.masked_fill(mask == 0, -100),
        "some": ids.masked_fill(torch.arange(length) % 3 > 0, -100),
        "classes": torch.randint(3, (batch,)),
        "several": torch.randint(2, (batch, 3)).float(),
        "other tokens": ids[:, : length - 3].flip(1),
    }
    return {"input_ids": ids, "attention_mask": mask, "labels": labels[kind]}


def picture(kind: str, batch: int, length: int = 9) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 16, 16), "labels": torch.randint(3, (batch,))}


LABELLED: dict[str, tuple[Any, Any, str]] = {
    "causal": (llama, text, "tokens"),
    "masked": (lambda: bert(tf.BertForMaskedLM), text, "some"),
    "classes": (lambda: bert(tf.BertForSequenceClassification, num_labels=3), text, "classes"),
    "several": (
        lambda: bert(tf.BertForSequenceClassification, num_labels=3, problem_type="multi_label_classification"),
        text,
        "several",
    ),
    "sequences": (t5, text, "other tokens"),
    "images": (vit, picture, "classes"),
}


@pytest.mark.parametrize("vote", ["mean", "prob"])
@pytest.mark.parametrize("name", LABELLED)
def test_the_loss_is_the_mean_of_the_heads_losses(name: str, vote: str) -> None:
    build, make, kind = LABELLED[name]
    model = build().eval()
    net = fxsplit.split(fxsplit.trace(model, make(kind, 2)), 0.5, heads=3, vote=vote).eval()
    batch = make(kind, 3, 12)
    original = model(
        **batch, **({} if name == "images" else {"use_cache": False} if name in ("causal", "sequences") else {})
    )
    found = net(**batch)
    heads = net.head_outputs(**batch)
    losses = torch.stack([head.loss for head in heads])
    assert losses.unique().numel() == 3
    assert type(found) is type(original)
    assert list(found.keys()) == list(original.keys())
    assert all(found[key].shape == original[key].shape for key in found)
    torch.testing.assert_close(found.loss, losses.mean())
    logits = torch.stack([head.logits for head in heads])
    expected = logits.mean(0) if vote == "mean" else logits.softmax(-1).mean(0).log()
    torch.testing.assert_close(found.logits, expected, atol=1e-6, rtol=1e-5)
    if vote == "prob":
        torch.testing.assert_close(found.logits.log_softmax(-1), expected, atol=1e-6, rtol=1e-5)
    found.loss.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_arguments_that_were_not_traced_are_named() -> None:
    net = fxsplit.split(fxsplit.trace(llama(), text("tokens", 2)), 1)
    batch = text("tokens", 3)
    with pytest.raises(InputError, match=r"inputs 'input_ids', 'attention_mask', 'labels': 'labels' is missing\."):
        net(batch["input_ids"], batch["attention_mask"])
    with pytest.raises(InputError, match="it takes no 'token_type_ids'"):
        net(**batch, token_type_ids=batch["input_ids"])
    with pytest.raises(InputError, match="'attention_mask', 'labels' are missing"):
        net.head_outputs(batch["input_ids"])
    with pytest.raises(InputError, match="got 4 positional arguments"):
        net(*batch.values(), None)
    with pytest.raises(InputError, match="got 'input_ids' twice"):
        fxsplit.trace(llama(), text("tokens", 2))(batch["input_ids"], **batch)


def test_errors_inside_of_the_model_stay_what_they_are() -> None:
    class Strict(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and x.shape[0] == 7:
                raise TypeError("not seven")
            return x + 1

    model = nn.Sequential(nn.Linear(2, 2), Strict(), nn.Linear(2, 2))
    net = fxsplit.split(fxsplit.trace(model, torch.randn(2, 2), leaf=["1"]), 1).train()
    with pytest.raises(TypeError, match="not seven"):
        net(torch.randn(7, 2))


# Training.


def rows(kind: str, count: int = 32, length: int = 12) -> list[dict[str, Tensor]]:
    """Counting upwards from a random start: the start decides everything. A column that no model takes comes along."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        start = int(torch.randint(5, (1,), generator=generator))
        ids = (torch.arange(length) + start) % 17 + 3
        labels = {"tokens": ids.clone(), "classes": torch.tensor(start % 2), "other tokens": ids.flip(0)[:7]}[kind]
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "extra": ids[:1]})
    return found


def stacked(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key] for row in examples]) for key in examples[0] if key != "extra"}


def arguments(folder: Path, **options: Any) -> tf.TrainingArguments:
    defaults: dict[str, Any] = {
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 2e-2,
        "logging_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "log_level": "error",
        "save_strategy": "no",
        "seed": 0,
    }
    return tf.TrainingArguments(str(folder), **{**defaults, **options})


TRAINED: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "causal": (llama, "tokens", {}),
    "tied": (lambda: llama(tie_word_embeddings=True), "tokens", {"tied": "share", "vote": "prob"}),
    "classes": (lambda: bert(tf.BertForSequenceClassification, num_labels=2), "classes", {}),
    "sequences": (t5, "other tokens", {}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "sequences" else name for name in TRAINED]
)
def test_trainer(name: str, tmp_path: Path) -> None:
    build, kind, options = TRAINED[name]
    torch.manual_seed(0)
    data = rows(kind)
    net = fxsplit.split(fxsplit.trace(build(), stacked(data[:2])), 0.5, heads=2, **options)
    if name == "classes":
        sparsity.sparsify(net, 0.5)
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = tf.Trainer(net, arguments(tmp_path, **best), train_dataset=data, eval_dataset=data[:8])  # type: ignore[arg-type]
    assert trainer.label_names == ["labels"]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    for weight in sparsity.masks_of(net).weights.values():
        assert not weight.parameter[~weight.holder.mask].any()
    with torch.no_grad():
        expected = net.eval()(**stacked(data[:8]))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected.loss), rel=1e-5)
    predicted = trainer.predict(data[:8])  # type: ignore[arg-type]
    logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    torch.testing.assert_close(torch.from_numpy(logits), expected.logits)
    assert torch.equal(torch.from_numpy(predicted.label_ids), stacked(data[:8])["labels"])
    trainer.save_model(str(tmp_path / "final"))
    again = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.fill_(0.5)
    again.load_state_dict(load_file(tmp_path / "final" / "model.safetensors"))
    with torch.no_grad():
        assert_same(again(**stacked(data[:8])), expected)


class InOrder(tf.Trainer):
    """Takes the rows as they come: which ones follow after resuming is the trainer's affair."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def test_trainer_resumes(tmp_path: Path) -> None:
    data = rows("tokens")

    def trained(folder: Path, resume: str | None = None, **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = fxsplit.split(fxsplit.trace(llama(), stacked(data[:2])), 1, heads=2)
        trainer = InOrder(net, arguments(folder, max_steps=6, **options), train_dataset=data)  # type: ignore[arg-type]
        trainer.train(resume_from_checkpoint=resume)
        return net.state_dict()

    whole = trained(tmp_path, save_strategy="steps", save_steps=3)
    resumed = trained(tmp_path / "again", resume=str(tmp_path / "checkpoint-3"))
    assert_same(resumed, whole)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """A split model is not told the number of labels in the whole batch, so the mean over micro-batches is taken."""
    data = rows("classes", 8)
    torch.manual_seed(0)
    net = fxsplit.split(fxsplit.trace(bert(tf.BertForSequenceClassification, num_labels=2), stacked(data[:2])), 1)
    net = net.eval()
    results = []
    for size in (8, 2):
        copied = copy.deepcopy(net)
        options: dict[str, Any] = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        plain = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
        for module in copied.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trainer = tf.Trainer(copied, arguments(tmp_path, **options, **plain), train_dataset=data)  # type: ignore[arg-type]
        trainer.train()
        results.append(copied.state_dict())
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, results[0][name])]
    assert changed
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-6, rtol=1e-5)


def test_entries_of_tied_weights_have_memory_of_their_own() -> None:
    traced = fxsplit.trace(llama(tie_word_embeddings=True))
    net = fxsplit.split(traced, 1, heads=2, tied="share")
    state = net.state_dict()
    pointers = [value.untyped_storage().data_ptr() for value in state.values()]
    assert len(set(pointers)) == len(pointers)
    embedding = net.trunk.get_parameter("model.embed_tokens.weight")
    assert torch.equal(state["heads.1.lm_head.weight"], embedding)
    assert state["trunk.model.embed_tokens.weight"].data_ptr() == embedding.data_ptr()
    kept = net.state_dict(keep_vars=True)
    assert kept["heads.1.lm_head.weight"] is kept["trunk.model.embed_tokens.weight"] is embedding
    outer = nn.Sequential(net).state_dict()
    assert list(outer) == [f"0.{name}" for name in state]
    assert outer["0.heads.1.lm_head.weight"].data_ptr() != embedding.data_ptr()


def test_the_wrapper_for_generation_trains_too(tmp_path: Path) -> None:
    data = rows("tokens")
    torch.manual_seed(0)
    net = fxsplit.split(fxsplit.trace(llama(), stacked(data[:2])), 1, heads=2)
    model = fxsplit.as_generator(net)
    trainer = tf.Trainer(model, arguments(tmp_path), train_dataset=data)  # type: ignore[arg-type]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    ids = data[0]["input_ids"][None, :5]
    assert torch.equal(fxsplit.generate(net.eval(), ids, max_new_tokens=4)[0], data[0]["input_ids"][:9])
