"""Training loops of other libraries, as their users write them, with an engine attached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import lightning
import pytest
import torch
import transformers as tf
from accelerate.state import AcceleratorState
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.models import model_parameters
from timm.optim import create_optimizer_v2  # pyright: ignore
from timm.scheduler import create_scheduler_v2  # pyright: ignore
from timm.utils import ModelEmaV3, NativeScaler  # pyright: ignore
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sparsity
from sparsity._attachment import innermost
from tests.unit._watch import Watch


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def data(size: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 6, generator=generator)
    return TensorDataset(x, x[:, :3].argmax(1))


def loader(batch: int = 4) -> DataLoader[Any]:
    return DataLoader(data(), batch)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# transformers: Trainer.


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class InOrder(tf.Trainer):
    """Takes the rows as they come: which ones follow after resuming is the trainer's affair."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def trainer(
    folder: Path, resume: Path | None = None, **options: Any
) -> tuple[Watch, dict[str, Tensor], sparsity.Engine]:
    model = Classifier()
    sparsity.sparsify(model, 0.6)
    defaults: dict[str, Any] = {
        "max_steps": 11,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "weight_decay": 0.1,
        "logging_steps": 4,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "log_level": "error",
        "save_strategy": "no",
        "seed": 0,
    }
    rows = [{"x": x, "labels": y} for x, y in data()]
    made = InOrder(model, tf.TrainingArguments(str(folder), **{**defaults, **options}), train_dataset=rows)  # type: ignore[arg-type]
    optimizer = made.create_optimizer()
    engine = sparsity.save_with_optimizer(sparsity.rigl(model, optimizer, every=3))
    watch = Watch(model, optimizer)
    made.train(resume_from_checkpoint=None if resume is None else str(resume))
    return watch, model.state_dict(), engine


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_trainer(optim: str, bf16: bool, tmp_path: Path) -> None:
    watch, _, engine = trainer(tmp_path, optim=optim, bf16=bf16)
    assert watch.steps == engine.step == 11
    assert watch.moved == [3, 6, 9]


@pytest.mark.parametrize("save", [3, 5])
def test_trainer_resumes(save: int, tmp_path: Path) -> None:
    one, whole, _ = trainer(tmp_path, save_strategy="steps", save_steps=save)
    other, resumed, engine = trainer(tmp_path / "again", resume=tmp_path / f"checkpoint-{save}")
    assert engine.step == 11
    assert same(resumed, whole)
    assert all(same(a, b) for a, b in zip(one.path[save:], other.path, strict=True))


def test_trainer_accumulates_as_much_as_one_batch(tmp_path: Path) -> None:
    """The first update comes from gradients that are equal up to rounding, so nearly all choices are."""
    parts, _, _ = trainer(tmp_path, max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    whole, _, _ = trainer(tmp_path, max_steps=4, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert parts.moved == whole.moved == [3]
    assert same(parts.path[-1], whole.path[-1])


def test_trainer_saves_tied_weights_with_masks(tmp_path: Path) -> None:
    """The output layer shares weight and mask with the embedding, and safetensors refuses two names of one tensor."""

    def run(folder: Path, resume: Path | None = None, **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        config = tf.GPT2Config(
            n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=16, bos_token_id=1, eos_token_id=1
        )
        model = tf.GPT2LMHeadModel(config)
        masks = sparsity.sparsify(model, 0.7, include=sparsity.embeddings)
        assert masks.tied == {"lm_head.weight": "transformer.wte.weight"}
        ids = torch.randint(40, (24, 8), generator=torch.Generator().manual_seed(0))
        rows = [{"input_ids": row, "labels": row} for row in ids]
        arguments: dict[str, Any] = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "seed": 0}
        quiet: dict[str, Any] = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "log_level": "error"}
        others: dict[str, Any] = {"dataloader_pin_memory": False, "save_strategy": "no"}
        made = InOrder(
            model,
            tf.TrainingArguments(str(folder), **{**arguments, **quiet, **others, **options}),
            train_dataset=rows,  # type: ignore[arg-type]
        )
        sparsity.save_with_optimizer(sparsity.rigl(model, made.create_optimizer(), every=2))
        made.train(resume_from_checkpoint=None if resume is None else str(resume))
        return model.state_dict()

    whole = run(tmp_path, save_strategy="steps", save_steps=3)
    assert same(run(tmp_path / "again", resume=tmp_path / "checkpoint-3"), whole)


# Old names of arguments, which older versions know too.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*` is deprecated:FutureWarning")
def test_trainer_with_checkpointed_activations(tmp_path: Path) -> None:
    def run(checkpointing: bool) -> Watch:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
        config = tf.BertConfig(vocab_size=20, num_hidden_layers=2, **sizes)
        model = tf.BertForSequenceClassification(config)
        sparsity.sparsify(model, 0.7)
        ids = torch.randint(3, 20, (32, 9), generator=torch.Generator().manual_seed(0))
        rows = [{"input_ids": each, "labels": each[0] % 2} for each in ids]
        options: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
        arguments = tf.TrainingArguments(
            str(tmp_path),
            max_steps=5,
            per_device_train_batch_size=4,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            dataloader_pin_memory=False,
            **options,
        )
        made = InOrder(model, arguments, train_dataset=rows)  # type: ignore[arg-type]
        optimizer = made.create_optimizer()
        sparsity.rigl(model, optimizer, every=2)
        watch = Watch(model, optimizer)
        made.train()
        return watch

    plain, checkpointed = run(False), run(True)
    assert plain.moved == checkpointed.moved == [2, 4]
    assert all(same(a, b) for a, b in zip(plain.path, checkpointed.path, strict=True))


# accelerate.


@pytest.fixture
def _own_state() -> Iterator[None]:
    """Accelerators of one process share settings, which can't be changed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_own_state")
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_accelerate(precision: str, when: str, tmp_path: Path) -> None:
    def run(stop: int | None, start: str | None) -> tuple[Watch, dict[str, Tensor]]:
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
        model = network()
        sparsity.sparsify(model, 0.6)
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        if when == "before":
            sparsity.save_with_optimizer(sparsity.rigl(model, optimizer, every=3))
        wrapped, optimizer, scheduler, batches = accelerator.prepare(model, optimizer, scheduler, loader())
        if when == "after":
            sparsity.save_with_optimizer(sparsity.rigl(wrapped, optimizer, every=3))
        if start is not None:
            accelerator.load_state(start)
            batches = accelerator.skip_first_batches(batches, 8)
        watch = Watch(model, optimizer.optimizer)
        for step, (x, y) in enumerate(batches):
            if step == stop:
                accelerator.save_state(str(tmp_path / "state"))
            with accelerator.accumulate(wrapped):
                accelerator.backward(nn.functional.cross_entropy(wrapped(x), y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapped.parameters(), 0.5)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        return watch, model.state_dict()

    one, whole = run(8, None)
    assert one.steps == 8
    assert one.moved == [3, 6]
    other, resumed = run(None, str(tmp_path / "state"))
    assert other.moved == [2]
    assert same(whole, resumed)


# Lightning.


class Automatic(lightning.LightningModule):
    def __init__(self, attach: str = "configure_optimizers") -> None:
        super().__init__()
        self.net = network()
        sparsity.sparsify(self.net, 0.6)
        self.attach = attach
        self.watch: Any = None

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch: Any, index: int) -> Any:
        return self.loss(batch)

    def start(self, optimizer: Any) -> None:
        sparsity.save_with_optimizer(sparsity.rigl(self.net, optimizer, every=3))
        self.watch = Watch(self.net, innermost(optimizer))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        if self.attach == "configure_optimizers":
            self.start(optimizer)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2), "interval": "step"}]

    def on_train_start(self) -> None:
        if self.attach == "on_train_start":
            self.start(self.optimizers())


class Manual(Automatic):
    def __init__(self, attach: str = "configure_optimizers") -> None:
        super().__init__(attach)
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(self.loss(batch) / 2)
        if index % 2:
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()


def fit(module: Automatic, folder: Path, resume: Path | None = None, **options: Any) -> lightning.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "callbacks": [ModelCheckpoint(folder, filename="{step}", save_on_train_epoch_end=True, save_top_k=-1)],
    }
    made = lightning.Trainer(**{**defaults, **options})
    made.fit(module, loader(), ckpt_path=resume)
    return made


AUTOMATIC: dict[str, Any] = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
of_lightning = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated",  # how Lightning uses torch
    "ignore:The dirpath has changed from",  # the resumed run saves beside the whole one
)


@of_lightning
@pytest.mark.parametrize("attach", ["configure_optimizers", "on_train_start"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Automatic, AUTOMATIC),
        (Automatic, {**AUTOMATIC, "precision": "bf16-mixed"}),
        (Automatic, {**AUTOMATIC, "gradient_clip_algorithm": "value"}),
        (Manual, {}),
    ],
    ids=["automatic", "bf16", "clipped by value", "manual"],
)
def test_lightning(kind: type[Automatic], options: dict[str, Any], attach: str, tmp_path: Path) -> None:
    module = kind(attach)
    fit(module, tmp_path, **options)
    assert module.watch.steps == 8
    assert module.watch.moved == [3, 6]


@of_lightning
@pytest.mark.parametrize(("kind", "options"), [(Automatic, AUTOMATIC), (Manual, {})], ids=["automatic", "manual"])
def test_lightning_resumes(kind: type[Automatic], options: dict[str, Any], tmp_path: Path) -> None:
    whole = kind()
    fit(whole, tmp_path, max_epochs=2, **options)
    resumed = kind()
    fit(resumed, tmp_path / "again", tmp_path / "step=8.ckpt", max_epochs=2, **options)
    assert whole.watch.moved == [3, 6, 9, 12, 15]
    assert all(same(a, b) for a, b in zip(whole.watch.path[8:], resumed.watch.path, strict=True))
    assert same(whole.state_dict(), resumed.state_dict())


# timm's training script.


@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("opt", ["adamw", "lamb", "sgd"])
def test_timm(opt: str, amp: torch.dtype | None, mode: str) -> None:
    model = network()
    sparsity.sparsify(model, 0.6)
    optimizer = create_optimizer_v2(model, opt=opt, lr=1e-2, weight_decay=0.05, momentum=0.9)
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=2, warmup_epochs=1)
    engine = sparsity.rigl(model, optimizer, every=3)
    ema = ModelEmaV3(model, decay=0.9)
    averaged = sparsity.follow(ema, model)
    watch = Watch(model, optimizer)
    scaler = NativeScaler("cpu")
    scaler._scaler = torch.amp.GradScaler("cpu", init_scale=16.0, enabled=amp is torch.float16)
    for epoch in range(2):
        for index, (x, y) in enumerate(loader()):
            with torch.autocast("cpu", amp or torch.bfloat16, enabled=amp is not None):
                loss = nn.functional.cross_entropy(model(x), y) / 4
            update = index % 4 == 3
            scaler(
                loss,
                optimizer,
                clip_grad=0.5,
                clip_mode=mode,
                parameters=model_parameters(model, exclude_head="agc" in mode),
                need_update=update,
            )
            if update:
                optimizer.zero_grad()
                ema.update(model, step=epoch * 4 + index // 4)
                for path, mask in watch.masks.items():
                    assert torch.equal(mask, averaged[f"module.{path}"])
                    assert not averaged.weights[f"module.{path}"].parameter[~mask].any()
                scheduler.step_update(epoch * 4 + index // 4)  # pyright: ignore
        scheduler.step(epoch + 1)  # pyright: ignore
    assert watch.steps == engine.step == 8
    assert watch.moved == [3, 6]
