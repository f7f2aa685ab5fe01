"""Which data a recipe is about, as settings, and in the one form that training and evaluation take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from recipes._require import require
from recipes.data import (
    Blocks,
    Bpe,
    Bytes,
    ImageData,
    Pretrained,
    StreamData,
    TextData,
    in_order,
    load_c4,
    load_images,
    load_text,
)
from recipes.training import Feed, Processes

Batches = Iterator[tuple[Tensor, Tensor]]


class Read(Protocol):
    """Reads a part of the data."""

    def __call__(self, part: str, processes: Processes, workers: int = 0) -> Batches:
        """Yield ``train``, ``validation`` or ``test`` once, in order, as one process of several.

        Args:
            part: Which.
            processes: Those that share it.
            workers: Processes that fetch in the background.
        """
        ...


@dataclass(frozen=True)
class Material:
    """Data, ready for training and evaluation.

    Args:
        data: What was loaded.
        outputs: Number of classes, or of tokens.
        channels: Channels of the images; 0 for text.
        example: Two inputs, to trace with.
        feed: Makes training batches from the batch size, the seed and the processes.
        read: Reads a part once.
        has_validation: Whether there is a validation part.
    """

    data: ImageData | TextData | StreamData
    outputs: int
    channels: int
    example: Tensor
    feed: Callable[[int, int, Processes, int], Feed]
    read: Read
    has_validation: bool


@dataclass(frozen=True)
class ImageSet:
    """Images of a data set of `recipes.data`.

    Args:
        name: Its name.
        validation: Share of the training images that is kept for validation; 0 for none.
        classes: Keep the first so many classes; None for all.
        images: Keep so many training images, classes in proportion; None for all.
        augment: Whether training images are varied.
    """

    name: str = "cifar100"
    validation: float = 0.0
    classes: int | None = None
    images: int | None = None
    augment: bool = True
    metric = ("accuracy", True)

    def load(self, root: Path | None) -> Material:
        """Load it from a folder.

        Raises:
            DataError: It is not there, or not what is asked for.
        """
        data = load_images(
            self.name,
            root or "data",
            validation=self.validation,
            classes=self.classes,
            images=self.images,
        )
        parts = {"train": data.train, "validation": data.validation, "test": data.test}

        def feed(batch_size: int, seed: int, processes: Processes, workers: int) -> Feed:
            return data.loader(
                batch_size,
                seed,
                augment=self.augment,
                rank=processes.rank,
                world=processes.world,
                workers=workers,
                device=processes.device,
            )

        def read(part: str, processes: Processes, workers: int = 0) -> Batches:
            chosen: Any = data.need_validation() if part == "validation" else parts[part]
            return in_order(
                chosen,
                prepare=data.prepare,
                rank=processes.rank,
                world=processes.world,
                workers=workers,
                device=processes.device,
            )

        channels = data.example.shape[1]
        return Material(data, data.classes, channels, data.example, feed, read, data.validation is not None)


@dataclass(frozen=True)
class TextSet:
    """A text of `recipes.data` that fits in memory.

    Args:
        name: Its name.
        tokenizer: How text becomes tokens.
        length: Tokens per example.
        tokens: Keep so many training tokens; None for all.
        validation_tokens: Validate on so many tokens; None for all.

    Raises:
        RecipeError: There are too few tokens for one example.
    """

    name: str = "wikitext2"
    tokenizer: Bpe | Bytes | Pretrained = field(default_factory=Bpe)
    length: int = 128
    tokens: int | None = None
    validation_tokens: int | None = None
    metric = ("nll", False)

    def __post_init__(self) -> None:
        require(self.length >= 2, "length", "be at least 2, or there is no next token to predict", self.length)
        for name in ("tokens", "validation_tokens"):
            value = getattr(self, name)
            enough = value is None or value >= self.length
            require(enough, name, f"be at least length={self.length}, the tokens of one example", value)

    def load(self, root: Path | None) -> Material:
        """Load it from a folder.

        Raises:
            DataError: It is not there, or not what is asked for.
        """
        data = load_text(self.name, root or "data", tokenizer=self.tokenizer, length=self.length, tokens=self.tokens)
        validation = Blocks(data.validation.tokens[: self.validation_tokens], self.length)
        return _text(dataclasses.replace(data, validation=validation))


@dataclass(frozen=True)
class C4:
    """C4, streamed from files of it or from the hub.

    Args:
        length: Tokens per example.
        tokenizer: How text becomes tokens.

    Raises:
        RecipeError: An example is too short.
    """

    length: int = 1024
    tokenizer: Bpe | Bytes | Pretrained = field(default_factory=lambda: Bpe(32_000))
    name = "c4"
    metric = ("nll", False)

    def __post_init__(self) -> None:
        require(self.length >= 2, "length", "be at least 2, or there is no next token to predict", self.length)

    def load(self, root: Path | None) -> Material:
        """Open the stream.

        Raises:
            DataError: It cannot be reached.
        """
        return _text(load_c4(root or "data", tokenizer=self.tokenizer, length=self.length))


DataSet = ImageSet | TextSet | C4


def _text(data: TextData | StreamData) -> Material:
    parts = {"validation": data.validation, "test": data.test}

    def feed(batch_size: int, seed: int, processes: Processes, workers: int) -> Feed:
        return data.loader(batch_size, seed, rank=processes.rank, world=processes.world, device=processes.device)

    def read(part: str, processes: Processes, workers: int = 0) -> Batches:
        # Tokens are in memory already.
        return in_order(parts[part], 16, rank=processes.rank, world=processes.world, device=processes.device)

    return Material(data, data.vocab, 0, data.example.to(torch.int64), feed, read, has_validation=True)
