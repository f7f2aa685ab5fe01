"""Text as blocks of tokens for language models: WikiText-2, or any text file."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recipes.data._errors import DataError, MissingDataError
from recipes.data._loader import Loader
from recipes.data._tokenizers import Bytes, Recipe, Tokenizer

_PARTS: dict[str, tuple[str, ...]] = {
    "train": ("train.txt", "train.txt.xz", "wiki.train.tokens"),
    "validation": ("valid.txt", "valid.txt.xz", "wiki.valid.tokens", "validation.txt", "validation.txt.xz"),
    "test": ("test.txt", "test.txt.xz", "wiki.test.tokens"),
}


@dataclass(frozen=True)
class Blocks:
    """A stream of tokens cut into blocks of equal length; what is left at the end is dropped.

    Args:
        tokens: The stream, `[T]` int32.
        length: Tokens per block, L.

    Example:
        >>> from recipes.data import Blocks
        >>> blocks = Blocks(torch.arange(7, dtype=torch.int32), length=3)
        >>> len(blocks), blocks.fetch(torch.tensor([1]))[0]
        (2, tensor([[3, 4, 5]]))
    """

    tokens: Tensor
    length: int

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def fetch(self, indices: Tensor, key: int | None = None) -> tuple[Tensor, Tensor]:
        """Return blocks `[B, L]` int64, as inputs and as targets; transformers' models shift the targets themselves."""
        places = indices[:, None] * self.length + torch.arange(self.length)
        blocks = self.tokens[places].long()
        return blocks, blocks


@dataclass(frozen=True)
class TextData:
    """A text in three parts, as blocks of tokens.

    Args:
        name: What the data is called in reports.
        tokenizer: What made the tokens.
        train: What networks are fitted to.
        validation: What settings and checkpoints are chosen on.
        test: What is reported, once.
    """

    name: str
    tokenizer: Tokenizer
    train: Blocks
    validation: Blocks
    test: Blocks

    @property
    def vocab(self) -> int:
        """Number of tokens, the size of a model's embedding."""
        return self.tokenizer.vocab

    @property
    def length(self) -> int:
        """Tokens per block, L."""
        return self.train.length

    @property
    def example(self) -> Tensor:
        """Two training blocks, `[2, L]`: what a network is traced with."""
        return self.train.fetch(torch.arange(2))[0]

    def loader(
        self,
        batch_size: int,
        seed: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
    ) -> Loader:
        """Return the training batches, see `Loader`."""
        return Loader(self.train, batch_size, seed, rank=rank, world=world, device=device)


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, plain or compressed (`.xz`).

    Raises:
        DataError: It is not one.
    """
    try:
        if path.suffix == ".xz":
            with lzma.open(path, "rt", encoding="utf-8", newline="") as file:
                return file.read()
        return path.read_bytes().decode("utf-8")
    except (OSError, lzma.LZMAError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a text in UTF-8: {error}") from error


def find_texts(folder: Path) -> dict[str, Path]:
    """Return the files of the three parts that are in a folder, by name of the part."""
    return {
        part: found[0]
        for part, names in _PARTS.items()
        if (found := [folder / name for name in names if (folder / name).is_file()])
    }


def read_wikitext2(root: Path) -> list[str]:
    """Read the three parts of WikiText-2 from a folder, or from `wikitext2/` in it.

    Raises:
        MissingDataError: They are not there.
    """
    for folder in (root, root / "wikitext2", root / "wikitext-2"):
        files = find_texts(folder)
        if len(files) == len(_PARTS):
            return [read_text(files[part]) for part in _PARTS]
    raise MissingDataError(
        f"WikiText-2 is not in {root}: expected train.txt, valid.txt and test.txt (each plain or .xz) there or in "
        'wikitext2/. Get it with: python -c "from pathlib import Path; from datasets import load_dataset as l; '
        f"p = Path('{root}'); p.mkdir(parents=True, exist_ok=True); "
        "[(p / f'{n}.txt').write_text(''.join(l('Salesforce/wikitext', 'wikitext-2-v1', split=s)['text']), 'utf-8') "
        "for n, s in (('train', 'train'), ('valid', 'validation'), ('test', 'test'))]\""
    )


def read_any_text(root: Path) -> list[str]:
    """Read one text file, to be cut in three, or the three of a folder.

    Raises:
        MissingDataError: There is no such file.
        DataError: The folder lacks one of the three.
    """
    if root.is_file():
        return [read_text(root)]
    files = find_texts(root)
    if not files:
        raise MissingDataError(
            f"there is no text at {root}. Point data_root to a text file in UTF-8, or to a folder with train.txt, "
            "valid.txt and test.txt."
        )
    if len(files) < len(_PARTS):
        lacking = [names[0] for part, names in _PARTS.items() if part not in files]
        raise DataError(f"{root} lacks {' and '.join(lacking)}. Add it, or point data_root to one file, to be split.")
    return [read_text(files[part]) for part in _PARTS]


def assemble_text(
    name: str,
    texts: Sequence[str],
    *,
    tokenizer: Recipe | None = None,
    length: int = 128,
    validation: float = 0.05,
    test: float = 0.05,
    tokens: int | None = None,
) -> TextData:
    """Turn three texts, or one, into blocks of tokens.

    Args:
        name: What the data is called in reports.
        texts: Training, validation and test text; or one, whose end serves for the last two.
        tokenizer: How to get a tokenizer: `Bytes()` (the default), `Bpe(vocab)` or `Pretrained(name)`. It is trained on
            the training text alone.
        length: Tokens per block, L.
        validation: Share of a single text for validation.
        test: Share of a single text for testing.
        tokens: Keep only so many training tokens.

    Raises:
        DataError: A part has not one block.
    """
    if length < 2:
        raise DataError(f"length must be at least 2, or there is no next token to predict; got {length}.")
    parts = _cut(texts[0], validation, test) if len(texts) == 1 else texts
    fitted = (tokenizer or Bytes()).fit(parts[0])
    streams = [fitted.encode(text) for text in parts]
    if tokens is not None:
        streams[0] = streams[0][:tokens]
    blocks = [Blocks(stream, length) for stream in streams]
    for part, made in zip(_PARTS, blocks, strict=True):
        if not len(made):
            raise DataError(
                f"an empty {part} split: {name} has {len(made.tokens)} tokens there, but a block has {length}; "
                "use a shorter length or more text."
            )
    return TextData(name, fitted, *blocks)


def _cut(text: str, validation: float, test: float) -> list[str]:
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise DataError(f"validation={validation} and test={test} must be above 0 and their sum below 1.")
    first = round(len(text) * (1 - validation - test))
    second = round(len(text) * (1 - test))
    return [text[:first], text[first:second], text[second:]]
