"""C4, read from the hub as it is trained on: documents become blocks of tokens one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.data._errors import DataError, MissingDataError
from recipes.data._loader import Batch, check_share
from recipes.data._text import Blocks
from recipes.data._tokenizers import Bpe, Recipe, Tokenizer


class BlockStream:
    """Blocks of tokens of a stream of documents, one after the other; each document ends with the end token.

    Args:
        documents: A `datasets.IterableDataset` with a column `text`.
        tokenizer: Makes the tokens.
        length: Tokens per block, L.
    """

    def __init__(self, documents: Any, tokenizer: Tokenizer, length: int) -> None:
        # A data set of its own: where it stands is not to depend on others that read the same documents.
        self.documents, self.tokenizer, self.length = documents.skip(0), tokenizer, length
        self.position = 0
        """Blocks given so far."""
        self._left = torch.zeros(0, dtype=torch.int32)
        self._source = iter(self.documents)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        pieces, count = [self._left], len(self._left)
        end = torch.tensor([self.tokenizer.end], dtype=torch.int32)
        while count < self.length:
            document = next(self._source, None)
            if document is None:
                raise StopIteration
            pieces += [self.tokenizer.encode(document["text"]), end]
            count += len(pieces[-2]) + 1
        tokens = torch.cat(pieces)
        self._left = tokens[self.length :].clone()
        self.position += 1
        return tokens[: self.length].long()

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is, so that another one can go on from there without reading what came before."""
        return {"position": self.position, "left": self._left, "documents": self.documents.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where another stream was."""
        self.documents.load_state_dict(state["documents"])
        self._source = iter(self.documents)
        self.position, self._left = state["position"], state["left"]


class StreamLoader:
    """Training batches of a stream, in its order: epoch `e` is what follows after epoch `e - 1`.

    Every process reads the whole stream and keeps its share of each batch. `epoch(e, start)` goes on where the last
    one ended, or reads over whatever comes before; a loader that was given the `state_dict` of an interrupted run
    need not.

    Args:
        documents: A `datasets.IterableDataset` with a column `text`.
        tokenizer: Makes the tokens.
        length: Tokens per block, L.
        batch_size: Blocks per step, of all processes together.
        steps: Steps per epoch.
        rank: Number of this process.
        world: Number of processes.
        device: Where batches are put.

    Raises:
        DataError: The batch cannot be shared evenly.
    """

    def __init__(
        self,
        documents: Any,
        tokenizer: Tokenizer,
        length: int,
        batch_size: int,
        steps: int,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        check_share(batch_size, rank, world)
        if steps < 1:
            raise DataError(f"an epoch of {steps} steps has no batch; use more tokens per epoch or a smaller batch.")
        self.batch_size, self.steps = batch_size, steps
        self._open = lambda: BlockStream(documents, tokenizer, length)
        self.stream = self._open()
        self.rank, self.world, self.device = rank, world, device

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process's share of each batch, `[B / world, L]` int64, as inputs and as targets.

        Args:
            epoch: Number of the epoch.
            start: Steps of it that are done already.

        Raises:
            DataError: The stream ends before the epoch does.
        """
        first = (epoch * self.steps + start) * self.batch_size
        if self.stream.position > first:
            self.stream = self._open()
        while self.stream.position < first:
            self._next()
        for _ in range(start, self.steps):
            blocks = [self._next() for _ in range(self.batch_size)]
            batch = torch.stack(blocks[self.rank :: self.world]).to(self.device)
            yield batch, batch

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is, for a checkpoint."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where a checkpoint was made."""
        self.stream.load_state_dict(state)

    def _next(self) -> Tensor:
        block = next(self.stream, None)
        if block is None:
            raise DataError(
                f"the stream of documents ended after {self.stream.position} blocks of {self.stream.length} tokens; "
                "train for fewer steps."
            )
        return block


@dataclass(frozen=True)
class StreamData:
    """A text whose training part is read as it is trained on.

    Args:
        name: What the data is called in reports.
        tokenizer: What made the tokens.
        documents: The training documents, a `datasets.IterableDataset` with a column `text`.
        validation: Blocks of the first training documents, which are not trained on.
        test: Blocks of C4's validation set, which the paper reports on.
        epoch_tokens: Training tokens that count as an epoch.
    """

    name: str
    tokenizer: Tokenizer
    documents: Any
    validation: Blocks
    test: Blocks
    epoch_tokens: int

    @property
    def vocab(self) -> int:
        """Number of tokens, the size of a model's embedding."""
        return self.tokenizer.vocab

    @property
    def length(self) -> int:
        """Tokens per block, L."""
        return self.test.length

    @property
    def example(self) -> Tensor:
        """Two blocks, `[2, L]`: what a network is traced with."""
        return self.validation.fetch(torch.arange(2))[0]

    def loader(
        self, batch_size: int, seed: int = 0, *, rank: int = 0, world: int = 1, device: torch.device | str = "cpu"
    ) -> StreamLoader:
        """Return the training batches, see `StreamLoader`; their order is that of the stream, whatever the seed."""
        check_share(batch_size, rank, world)
        steps = self.epoch_tokens // (batch_size * self.length)
        return StreamLoader(
            self.documents, self.tokenizer, self.length, batch_size, steps, rank=rank, world=world, device=device
        )


def load_c4(
    data_root: str | Path = "data",
    *,
    tokenizer: Recipe | None = None,
    length: int = 1024,
    epoch_tokens: int = 1_000_000_000,
    fitting_documents: int = 20_000,
    validation_documents: int = 2_000,
    test_tokens: int = 1_000_000,
    train: Any = None,
    test: Any = None,
) -> StreamData:
    """Stream the English part of C4 (`allenai/c4`) with the `datasets` library (extra `c4`).

    It is read from the files ``c4-train.*.json.gz`` and ``c4-validation.*.json.gz`` if some of both are here, and from
    the hub if not.

    Args:
        data_root: Folder that holds the files, or that has a folder `c4` with them, or with the hub's folder `en`.
        tokenizer: How to get a tokenizer; by default `Bpe(32_000)`, trained on the first documents after those for
            validation.
        length: Tokens per block, L.
        epoch_tokens: Training tokens that count as an epoch.
        fitting_documents: Documents that a tokenizer is trained on.
        validation_documents: Documents at the beginning of the training set that are kept for validation.
        test_tokens: Tokens of C4's own validation set that are tested on.
        train: An `IterableDataset` to use for the training set instead, say of files that are here already.
        test: One to use for the test set.

    Raises:
        MissingDataError: `datasets` is not installed, or C4 cannot be reached.
        DataError: A part has not one block.
    """
    if train is None or test is None:
        files = _files(Path(data_root))
        train, test = _open("train", files, data_root), _open("validation", files, data_root)
    recipe = Bpe(32_000) if tokenizer is None else tokenizer
    rest = train.skip(validation_documents)
    fitted = recipe.fit("\n".join(document["text"] for document in rest.take(fitting_documents)))
    held = _blocks(train.take(validation_documents), fitted, length, "validation", None)
    tested = _blocks(test, fitted, length, "test", test_tokens)
    return StreamData("c4", fitted, rest, held, tested, epoch_tokens)


def _blocks(documents: Iterable[Any], tokenizer: Tokenizer, length: int, part: str, limit: int | None) -> Blocks:
    end = torch.tensor([tokenizer.end], dtype=torch.int32)
    pieces, count = [], 0
    for document in documents:
        pieces += [tokenizer.encode(document["text"]), end]
        count += len(pieces[-2]) + 1
        if limit is not None and count >= limit:
            break
    if count < length:
        raise DataError(f"an empty {part} split: {count} tokens, but a block has {length}; use more documents.")
    return Blocks(torch.cat(pieces)[:limit], length)


def _files(root: Path) -> dict[str, list[str]] | None:
    """Return the files of each part, of the first folder that has some of both."""
    for folder in (root, root / "c4", root / "c4" / "en"):
        found = {part: sorted(map(str, folder.glob(f"c4-{part}.*.json.gz"))) for part in ("train", "validation")}
        if all(found.values()):
            return found
    return None


def _open(split: str, files: dict[str, list[str]] | None, root: str | Path) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDataError("C4 needs the datasets library. Get it with: pip install 'fxsplit[c4]'") from error
    if files is not None:
        return load_dataset("json", data_files=files[split], split="train", streaming=True)
    try:
        return load_dataset("allenai/c4", "en", split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise MissingDataError(
            f"C4 cannot be read from the Hugging Face hub ({type(error).__name__}: {error}). It is streamed from there "
            "as it is trained on, so it needs a network, and HF_HUB_OFFLINE must not be set; or files of it, of about "
            "150 million tokens each. Get ten of its 1024 with: hf download allenai/c4 --repo-type dataset --include "
            f"'en/c4-*.0000?-of-*.json.gz' --local-dir {Path(root) / 'c4'}; or take the preset small, which trains on "
            "WikiText-2."
        ) from error
