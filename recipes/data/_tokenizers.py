"""Tokenizers: bytes, byte-pair encoding trained on the text at hand, or one from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from recipes.data._errors import DataError, MissingDataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

END = "<|endoftext|>"
"""Stands between documents."""
_LINES = 4096


class Tokenizer(Protocol):
    """Turns text into token ids and back."""

    @property
    def vocab(self) -> int:
        """Number of tokens, the size of a model's embedding."""
        ...

    @property
    def end(self) -> int:
        """The token that stands between documents."""
        ...

    def encode(self, text: str) -> Tensor:
        """Return the token ids of a text, `[T]` int32."""
        ...

    def decode(self, ids: Tensor) -> str:
        """Return the text of token ids."""
        ...


class Recipe(Protocol):
    """How to get a tokenizer, as plain data for a config."""

    def fit(self, text: str) -> Tokenizer:
        """Return the tokenizer, trained on a text if it is of that kind."""
        ...


@dataclass(frozen=True)
class Bytes:
    """A token per byte of UTF-8: nothing to train, no unknown tokens, 257 tokens with the end of a document.

    Example:
        >>> tokenizer = Bytes().fit("")
        >>> tokenizer.encode("ab").tolist(), tokenizer.decode(torch.tensor([97, 98])), tokenizer.vocab
        ([97, 98], 'ab', 257)
    """

    vocab: int = 257
    end: int = 256

    def __str__(self) -> str:
        return "bytes"

    def fit(self, text: str) -> Tokenizer:
        """Return this tokenizer; it needs no training."""
        return self

    def encode(self, text: str) -> Tensor:
        """Return the bytes of a text, `[T]` int32."""
        return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).astype(np.int32))

    def decode(self, ids: Tensor) -> str:
        """Return the text of bytes; incomplete characters become a replacement character, ends vanish."""
        values = ids.cpu().numpy()
        return values[values < self.end].astype(np.uint8).tobytes().decode(errors="replace")


@dataclass(frozen=True)
class Bpe:
    """Byte-level byte-pair encoding (that of GPT-2), trained on the training text with the `tokenizers` library.

    Args:
        vocab: Number of tokens: 256 bytes, the end of a document, and merges.

    Raises:
        DataError: The vocabulary does not even hold the bytes.

    Example:
        >>> tokenizer = Bpe(vocab=260).fit("the cat and the hat and the rat")
        >>> tokenizer.decode(tokenizer.encode("the end")), tokenizer.vocab
        ('the end', 260)
    """

    vocab: int = 4096

    def __str__(self) -> str:
        return f"bpe:{self.vocab}"

    def __post_init__(self) -> None:
        if self.vocab < 257:
            raise DataError(f"vocab must be at least 257 (256 bytes and the end of a document), got {self.vocab}.")

    def fit(self, text: str) -> Tokenizer:
        """Train on a text; a small one may give fewer tokens than asked for.

        Raises:
            MissingDataError: The library is not installed.
        """
        try:
            from tokenizers import Tokenizer as Library
            from tokenizers import decoders, models, pre_tokenizers, trainers
        except ImportError as error:
            raise _not_installed(error) from error
        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab,
            special_tokens=[END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        library.train_from_iterator(text.splitlines(keepends=True), trainer)
        return Subwords(library, library.get_vocab()[END])


@dataclass(frozen=True)
class Pretrained:
    """A tokenizer of the Hugging Face hub, or of a folder that `save_pretrained` wrote.

    Args:
        name: Its name, say `gpt2`, or the path of the folder.
    """

    name: str

    def __str__(self) -> str:
        return self.name

    def fit(self, text: str) -> Tokenizer:
        """Load it; nothing is trained.

        Raises:
            MissingDataError: It is neither there nor can it be downloaded, or transformers is not installed.
            DataError: It has no fast implementation or no token for the end of a document.
        """
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise _not_installed(error) from error
        try:
            loaded = AutoTokenizer.from_pretrained(self.name)
        except (OSError, ValueError) as error:
            raise MissingDataError(
                f"the tokenizer {self.name!r} cannot be loaded ({error}). Get it with: hf download {self.name}; "
                "or use Bytes() or Bpe(vocab=4096), which need no download."
            ) from error
        if not loaded.is_fast or loaded.eos_token_id is None:
            raise DataError(f"the tokenizer {self.name!r} must be a fast one and have an end-of-text token.")
        return Subwords(loaded.backend_tokenizer, loaded.eos_token_id)


def tokenizer_named(text: str) -> Bytes | Bpe | Pretrained:
    """Return a tokenizer by its name: ``bytes``, ``bpe``, ``bpe:8000`` for so many tokens, or one of the hub.

    Raises:
        DataError: The number of tokens is none, or too small.

    Example:
        >>> tokenizer_named("bpe:8000"), str(tokenizer_named("gpt2"))
        (Bpe(vocab=8000), 'gpt2')
    """
    kind, colon, size = text.partition(":")
    if text == "bytes":
        return Bytes()
    if kind != "bpe":
        return Pretrained(text)
    if colon and not size.isdecimal():
        raise DataError(f"the tokenizer bpe takes a number of tokens, as in bpe:8000; got {text!r}.")
    return Bpe(int(size)) if colon else Bpe()


@dataclass(frozen=True)
class Subwords:
    """A tokenizer of the `tokenizers` library.

    Args:
        library: The tokenizer.
        end: The token that stands between documents.
    """

    library: Library
    end: int

    @property
    def vocab(self) -> int:
        """Number of tokens."""
        return self.library.get_vocab_size()

    def encode(self, text: str) -> Tensor:
        """Return the token ids of a text, `[T]` int32. Tokens do not reach over the end of a line."""
        pieces = [
            np.array(encoding.ids, dtype=np.int32)
            for lines in _portions(text.splitlines(keepends=True))
            for encoding in self.library.encode_batch_fast(lines, add_special_tokens=False)
        ]
        return torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *pieces]))

    def decode(self, ids: Tensor) -> str:
        """Return the text of token ids; ends of documents vanish."""
        return self.library.decode(ids.tolist())


def _not_installed(error: ImportError) -> MissingDataError:
    return MissingDataError(
        f"this tokenizer needs a library that is not installed ({error}). Get it with: pip install 'fxsplit[text]'; "
        "or use Bytes(), which needs none."
    )


def _portions(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield some lines at a time: encodings of a whole corpus at once would fill the memory."""
    for start in range(0, len(lines), _LINES):
        yield list(lines[start : start + _LINES])
