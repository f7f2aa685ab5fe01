from __future__ import annotations

import gzip
import io
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

from recipes.data import (
    Blocks,
    BlockStream,
    Bpe,
    Bytes,
    DataError,
    MissingDataError,
    Pretrained,
    StreamLoader,
    TextData,
    in_order,
    load_c4,
    load_text,
)

PARTS = {
    "train": " = The cat = \n\n The cat sat on the mat , and the rat sat on the hat . \n" * 20,
    "valid": " The dog sat on the log . \n" * 5,
    "test": " The fox sat — on the box . \n" * 5,
}


def write_parts(folder: Path, suffix: str = ".txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in PARTS.items():
        data = text.encode()
        (folder / f"{name}{suffix}").write_bytes(lzma.compress(data) if suffix.endswith("xz") else data)
    return folder


@pytest.mark.parametrize("inside", ["", "wikitext2", "wikitext-2"])
@pytest.mark.parametrize("suffix", [".txt", ".txt.xz"])
def test_blocks_are_the_text_in_order(tmp_path: Path, suffix: str, inside: str) -> None:
    write_parts(tmp_path / inside, suffix)
    data = load_text("wikitext2", tmp_path, length=16)
    for part, text in zip((data.train, data.validation, data.test), PARTS.values(), strict=True):
        expected = list(text.encode())
        assert len(part) == len(expected) // 16
        assert part.fetch(torch.arange(len(part)))[0].flatten().tolist() == expected[: 16 * len(part)]
    assert data.vocab == 257
    assert data.length == 16
    assert data.example.shape == (2, 16)
    assert data.example.dtype == torch.int64


def test_the_files_of_the_official_archive(tmp_path: Path) -> None:
    for name, text in PARTS.items():
        (tmp_path / f"wiki.{name}.tokens").write_text(text, encoding="utf-8")
    assert len(load_text("wikitext2", tmp_path, length=16).test) == len(PARTS["test"].encode()) // 16


def test_line_ends_are_kept(tmp_path: Path) -> None:
    text = "one\r\ntwo\n" * 100
    for name, data in (("a.txt", text.encode()), ("b.txt.xz", lzma.compress(text.encode()))):
        (tmp_path / name).write_bytes(data)
        blocks = load_text("text", tmp_path / name, length=9).train
        assert bytes(blocks.fetch(torch.tensor([0]))[0][0].tolist()) == b"one\r\ntwo\n"


def test_targets_are_the_inputs() -> None:
    x, y = Blocks(torch.arange(10, dtype=torch.int32), 3).fetch(torch.tensor([2, 0]))
    assert x.tolist() == y.tolist() == [[6, 7, 8], [0, 1, 2]]


def test_batches_of_text_are_shuffled_shared_and_resumed(tmp_path: Path) -> None:
    data = load_text("wikitext2", write_parts(tmp_path), length=8)
    whole = [x for x, _ in data.loader(8, seed=4).epoch(2)]
    rest = [x for x, _ in data.loader(8, seed=4).epoch(2, start=3)]
    assert torch.equal(torch.stack(rest), torch.stack(whole[3:]))
    shares = [next(data.loader(8, seed=4, rank=rank, world=2).epoch(2))[0] for rank in range(2)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), whole[0])
    assert not torch.equal(whole[0], next(data.loader(8, seed=5).epoch(2))[0])
    assert torch.equal(next(in_order(data.test, 3))[0].flatten(), data.test.tokens[:24].long())


def test_one_file_is_cut_in_three(tmp_path: Path) -> None:
    text = "".join(f"{number:03d}\n" for number in range(1000))
    (tmp_path / "book.txt").write_text(text)
    data = load_text("text", tmp_path / "book.txt", length=4, validation=0.1, test=0.2)
    tokens = torch.cat([data.train.tokens, data.validation.tokens, data.test.tokens])
    assert bytes(tokens.tolist()).decode() == text
    assert [len(part) for part in (data.train, data.validation, data.test)] == [700, 100, 200]
    folder = load_text("text", write_parts(tmp_path / "parts"), length=4)
    assert len(folder.train) == len(PARTS["train"]) // 4


def test_fewer_training_tokens(tmp_path: Path) -> None:
    data = load_text("wikitext2", write_parts(tmp_path), length=8, tokens=70)
    assert len(data.train) == 8
    assert len(data.test.tokens) == len(PARTS["test"].encode())


# Tokenizers.


def test_bytes_come_back() -> None:
    tokenizer = Bytes().fit("")
    for text in ("", "plain", "ünï — 漢字 \n\t"):
        ids = tokenizer.encode(text)
        assert ids.dtype == torch.int32
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode(torch.tensor([104, 256, 105])) == "hi"


def test_byte_pairs_come_back_shorter_and_are_the_same_every_time() -> None:
    text = PARTS["train"]
    first, second = Bpe(280).fit(text), Bpe(280).fit(text)
    assert first.vocab == 280
    assert 280 < Bpe(5000).fit(text).vocab < 300  # there are no more pairs to merge
    for sample in (text, "never seen: ünï — 漢字\n\n x"):
        assert first.decode(first.encode(sample)) == sample
        assert torch.equal(first.encode(sample), second.encode(sample))
    assert len(first.encode(text)) < len(text) / 2
    assert first.end == 0
    assert not (first.encode(text) == first.end).any()


def test_encoding_does_not_depend_on_how_many_lines_there_are_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Bpe(300).fit(PARTS["train"])
    whole = tokenizer.encode(PARTS["train"])
    monkeypatch.setattr("recipes.data._tokenizers._LINES", 3)
    assert torch.equal(tokenizer.encode(PARTS["train"]), whole)
    assert len(tokenizer.encode("")) == 0


def test_the_tokenizer_is_trained_on_the_training_text_alone(tmp_path: Path) -> None:
    folder = write_parts(tmp_path)
    before = load_text("wikitext2", folder, tokenizer=Bpe(280), length=4)
    (folder / "test.txt").write_text("something else altogether, something else altogether" * 5)
    after = load_text("wikitext2", folder, tokenizer=Bpe(280), length=4)
    assert torch.equal(before.train.tokens, after.train.tokens)
    assert before.tokenizer.decode(before.test.tokens) == PARTS["test"]


def test_a_tokenizer_in_a_folder_of_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    own = Bpe(280).fit(PARTS["train"])
    fast = PreTrainedTokenizerFast(tokenizer_object=own.library, eos_token="<|endoftext|>")  # pyright: ignore
    fast.save_pretrained(tmp_path)
    loaded = Pretrained(str(tmp_path)).fit("")
    assert torch.equal(loaded.encode(PARTS["test"]), own.encode(PARTS["test"]))
    assert (loaded.vocab, loaded.end) == (280, own.end)
    PreTrainedTokenizerFast(tokenizer_object=own.library).save_pretrained(tmp_path)  # pyright: ignore
    with pytest.raises(DataError, match="must be a fast one and have an end-of-text token"):
        Pretrained(str(tmp_path)).fit("")


def test_a_tokenizer_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(
        MissingDataError, match=r"cannot be loaded \(.*Get it with: hf download .*nothing; or use Bytes"
    ):
        Pretrained(str(tmp_path / "nothing")).fit("")


@pytest.mark.parametrize(("library", "recipe"), [("tokenizers", Bpe(300)), ("transformers", Pretrained("gpt2"))])
def test_without_the_library(monkeypatch: pytest.MonkeyPatch, library: str, recipe: Bpe | Pretrained) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDataError, match=r"pip install 'fxsplit\[text\]'; or use Bytes"):
        recipe.fit("text")


# Bad input.


def test_missing_text_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDataError, match=r"WikiText-2 is not in .*Get it with: python -c ") as caught:
        load_text("wikitext2", tmp_path / "data")
    # The command is one that Python takes; here with a hub of our own. It makes the folder.
    command = str(caught.value).split('python -c "')[1].rstrip('"')
    texts = {"train": PARTS["train"], "validation": PARTS["valid"], "test": PARTS["test"]}
    monkeypatch.setattr("datasets.load_dataset", lambda path, name, split: {"text": [texts[split]]})
    exec(compile(command, "command", "exec"), {})
    assert len(load_text("wikitext2", tmp_path / "data", length=16).train) == len(PARTS["train"].encode()) // 16
    with pytest.raises(MissingDataError, match=r"there is no text at .*Point data_root to a text file"):
        load_text("text", tmp_path / "nothing.txt")


def test_texts_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.txt cannot be read as a text in UTF-8"):
        load_text("text", tmp_path / "latin.txt")
    (tmp_path / "cut.txt.xz").write_bytes(lzma.compress(b"text" * 1000)[:50])
    with pytest.raises(DataError, match=r"cut.txt.xz cannot be read as a text"):
        load_text("text", tmp_path / "cut.txt.xz")
    (tmp_path / "train.txt").write_text("only this")
    with pytest.raises(DataError, match=r"lacks valid.txt and test.txt"):
        load_text("text", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "length must be at least 2"),
        ({"length": 200}, "an empty validation split: wikitext2 has 135 tokens there, but a block has 200"),
        ({"length": 16, "tokens": 15}, "an empty train split: wikitext2 has 15 tokens"),
    ],
)
def test_requests_that_leave_nothing(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_text("wikitext2", write_parts(tmp_path), **options)  # pyright: ignore[reportArgumentType]


def test_shares_and_vocabularies_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 100)
    with pytest.raises(DataError, match=r"validation=0.6 and test=0.5 must be above 0 and their sum below 1"):
        load_text("text", tmp_path / "a.txt", validation=0.6, test=0.5)
    with pytest.raises(DataError, match="vocab must be at least 257"):
        Bpe(256)


# C4, with documents that are here.


def documents(count: int, seed: int) -> IterableDataset:
    lengths = np.random.default_rng(seed).integers(1, 40, count)
    texts = [f"{seed}-{number} " + "word " * length for number, length in enumerate(lengths)]
    return Dataset.from_dict({"text": texts, "url": texts}).to_iterable_dataset(num_shards=3)


def expected_tokens(source: Any) -> list[int]:
    return [token for document in source for token in (*document["text"].encode(), 256)]


def c4(**options: Any) -> Any:
    return load_c4(
        tokenizer=Bytes(),
        length=16,
        epoch_tokens=16 * 4 * 5,
        validation_documents=10,
        train=documents(200, seed=1),
        test=documents(20, seed=2),
        **options,
    )


def test_documents_become_one_stream_of_tokens() -> None:
    stream = BlockStream(documents(30, seed=1), Bytes(), length=16)
    expected = expected_tokens(documents(30, seed=1))
    blocks = list(stream)
    assert torch.cat(blocks).tolist() == expected[: len(expected) // 16 * 16]
    assert stream.position == len(blocks) == len(expected) // 16
    assert blocks[0].dtype == torch.int64


def test_validation_is_not_trained_on_and_test_is_of_the_other_set() -> None:
    data = c4()
    first = expected_tokens(documents(200, seed=1).take(10))
    assert data.validation.tokens.tolist() == first
    assert data.test.tokens.tolist() == expected_tokens(documents(20, seed=2))
    batches = [x for x, _ in data.loader(4).epoch(0)]
    assert len(batches) == data.loader(4).steps == 5
    rest = expected_tokens(documents(200, seed=1).skip(10))
    assert torch.cat(batches).flatten().tolist() == rest[: 16 * 4 * 5]
    assert data.example.shape == (2, 16)
    assert (data.vocab, data.length) == (257, 16)
    assert len(c4(test_tokens=33).test.tokens) == 33


def test_an_epoch_goes_on_where_the_last_one_ended() -> None:
    loader = c4().loader(4)
    together = torch.cat([x for epoch in (0, 1) for x, _ in loader.epoch(epoch)])
    rest = expected_tokens(documents(200, seed=1).skip(10))
    assert together.flatten().tolist() == rest[: 16 * 4 * 10]
    # Another network is trained from the beginning, with the same loader.
    assert torch.equal(torch.cat([x for x, _ in loader.epoch(0)]), together[:20])


def test_a_resumed_stream_goes_on_with_the_same_batches() -> None:
    whole = [x for x, _ in c4().loader(4).epoch(1)]
    assert torch.equal(torch.stack([x for x, _ in c4().loader(4).epoch(1, start=2)]), torch.stack(whole[2:]))

    interrupted = c4().loader(4)
    iterator: Iterator[Any] = interrupted.epoch(1)
    for _ in range(3):
        next(iterator)
    file = io.BytesIO()
    torch.save(interrupted.state_dict(), file)
    file.seek(0)
    resumed = c4().loader(4)
    resumed.load_state_dict(torch.load(file))
    reads: list[str] = []
    tokenizer = resumed.stream.tokenizer
    resumed.stream.tokenizer = _Spy(tokenizer, reads)
    assert torch.equal(torch.stack([x for x, _ in resumed.epoch(1, start=3)]), torch.stack(whole[3:]))
    # Nothing that came before is read again: two steps need at most so many documents.
    assert 0 < len(reads) < 30


class _Spy:
    def __init__(self, tokenizer: Any, reads: list[str]) -> None:
        self.tokenizer, self.reads, self.vocab, self.end = tokenizer, reads, tokenizer.vocab, tokenizer.end

    def encode(self, text: str) -> torch.Tensor:
        self.reads.append(text)
        return self.tokenizer.encode(text)

    def decode(self, ids: torch.Tensor) -> str:
        return self.tokenizer.decode(ids)


def test_processes_share_the_batches_of_a_stream() -> None:
    whole = [x for x, _ in c4().loader(4).epoch(0)]
    shares = [[x for x, _ in c4().loader(4, rank=rank, world=2).epoch(0)] for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.stack([share[step] for share in shares], 1).flatten(0, 1), batch)


def test_a_tokenizer_is_trained_on_documents_that_are_not_for_validation() -> None:
    data = load_c4(
        tokenizer=Bpe(300),
        length=8,
        fitting_documents=5,
        validation_documents=4,
        train=documents(50, seed=1),
        test=documents(20, seed=2),
    )
    same = Bpe(300).fit("\n".join(document["text"] for document in documents(50, seed=1).skip(4).take(5)))
    assert torch.equal(data.tokenizer.encode("word 1-7"), same.encode("word 1-7"))


def test_streams_that_end_or_have_no_batch() -> None:
    data = c4()
    loader = StreamLoader(documents(20, seed=1), Bytes(), 16, batch_size=4, steps=100)
    with pytest.raises(DataError, match=r"ended after \d+ blocks of 16 tokens; train for fewer steps"):
        list(loader.epoch(0))
    with pytest.raises(DataError, match="an epoch of 0 steps has no batch"):
        data.loader(64)
    with pytest.raises(DataError, match="cannot be shared evenly by 3 processes"):
        data.loader(4, world=3)
    with pytest.raises(DataError, match=r"an empty test split: \d+ tokens, but a block has 4096"):
        load_c4(tokenizer=Bytes(), length=4096, train=documents(999, seed=1), test=documents(3, seed=2))


@pytest.mark.parametrize("inside", ["", "c4", "c4/en"])
def test_c4_from_files(inside: str, tmp_path: Path) -> None:
    folder = tmp_path / inside
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train.00000-of-01024", 20, 1), ("train.00001-of-01024", 10, 3), ("validation.0", 5, 2)):
        with gzip.open(folder / f"c4-{name}.json.gz", "wt") as file:
            file.writelines(json.dumps(document) + "\n" for document in documents(count, seed))
    data = load_c4(tmp_path, tokenizer=Bytes(), length=16, validation_documents=4)
    assert data.validation.tokens.tolist() == expected_tokens(documents(20, seed=1).take(4))
    assert data.test.tokens.tolist() == expected_tokens(documents(5, seed=2))
    trained = [*documents(20, seed=1).skip(4), *documents(10, seed=3)]
    assert expected_tokens(data.documents) == expected_tokens(trained)


def test_c4_without_the_library_or_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    message = (
        r"cannot be read from .* hub \(ConnectionError: no network\).* hf download allenai/c4 --repo-type dataset "
        r"--include 'en/c4-\*\.0000\?-of-\*\.json\.gz' --local-dir there/c4; or take the preset small"
    )
    with pytest.raises(MissingDataError, match=message):
        load_c4("there")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDataError, match=r"pip install 'fxsplit\[c4\]'"):
        load_c4()


def test_text_data_is_what_the_registry_gives(tmp_path: Path) -> None:
    assert isinstance(load_text("wikitext2", write_parts(tmp_path), length=8), TextData)
