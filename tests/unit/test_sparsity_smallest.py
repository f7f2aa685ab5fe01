"""Exact selection: against a stable sort, in one tensor and over several, with and without the sampled bracket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsity import _smallest
from sparsity._smallest import smallest, smallest_of

LARGE = _smallest._WORTH_SAMPLING * 2


def by_sorting(scores: list[Tensor], count: int, among: list[Tensor]) -> list[Tensor]:
    flat = torch.cat([torch.where(mask, score, torch.inf).flatten() for score, mask in zip(scores, among, strict=True)])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.sort(stable=True).indices[:count]] = True
    parts = chosen.split([score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def bell(generator: torch.Generator) -> Tensor:
    return torch.randn(LARGE, generator=generator)


SCORES: dict[str, Callable[[torch.Generator], Tensor]] = {
    "bell": bell,
    "ties": lambda g: torch.randint(3, (LARGE,), generator=g).float(),
    "equal": lambda g: torch.ones(LARGE),
    "sorted": lambda g: torch.arange(LARGE).float(),
    "reversed": lambda g: -torch.arange(LARGE).float(),
    "infinite": lambda g: torch.where(torch.rand(LARGE, generator=g) < 0.3, -torch.inf, bell(g)),
    "bfloat16": lambda g: bell(g).bfloat16(),
    "float16": lambda g: bell(g).half(),
    "double": lambda g: bell(g).double(),
    "integer": lambda g: torch.randint(1000, (LARGE,), generator=g),
    "outlier rows": lambda g: bell(g) * torch.where(torch.arange(LARGE) % 9 == 0, 1e6, 1.0),
}


@pytest.mark.parametrize("share", [0.0, 1e-5, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("kind", SCORES)
def test_large_tensors(kind: str, share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    score = SCORES[kind](generator).view(-1, 8)
    among = torch.rand(score.shape, generator=generator) < 0.2
    count = round(share * int(among.sum()))
    [expected] = by_sorting([score], count, [among])
    assert torch.equal(smallest(score, count, among), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_wrong_guess_is_noticed(sign: int) -> None:
    """All that the sample looks at is larger than the rest, or smaller."""
    step = _smallest._sampling_step(LARGE // _smallest._SAMPLES)
    score = torch.zeros(LARGE)
    score[::step] = sign * (1 + torch.arange(len(score[::step])).float())
    among, count = torch.ones(LARGE, dtype=torch.bool), LARGE // 2
    bracket = _smallest._bracket([score.__getitem__], count, [among])
    assert bracket is not None
    assert _smallest._between([score.__getitem__], count, [among], *bracket) is None
    assert torch.equal(smallest(score, count, among), by_sorting([score], count, [among])[0])


@pytest.mark.parametrize("sizes", [(3, 5, 4), (1, LARGE, 7, LARGE // 3)])
@pytest.mark.parametrize("kind", ["bell", "ties", "equal"])
def test_several_tensors_as_one(kind: str, sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = [SCORES[kind](generator)[:size] for size in sizes]
    among = [torch.rand(size, generator=generator) < 0.6 for size in sizes]
    count = sum(int(each.sum()) for each in among) // 3
    chosen = smallest_of(scores, count, among)
    assert all(map(torch.equal, chosen, by_sorting(scores, count, among)))


def test_memory_format_does_not_matter() -> None:
    score = torch.randint(3, (8, 6, 5, 5), generator=torch.Generator().manual_seed(0)).float()
    among = score < 2
    last = score.to(memory_format=torch.channels_last)
    assert torch.equal(smallest(last, 100, among.to(memory_format=torch.channels_last)), smallest(score, 100, among))


def test_a_sample_meets_all_places_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 225, of 3.7M entries, would meet one place of nine, and the guess would be wrong."""
    weight = torch.randn(640, 640, 3, 3, generator=torch.Generator().manual_seed(0))
    weight *= torch.tensor([10.0, 1, 1, 1, 1, 1, 1, 1, 1]).view(3, 3)
    guesses: list[bool] = []
    between = _smallest._between

    def noted(*arguments: Any) -> Any:
        found = between(*arguments)
        guesses.append(found is not None)
        return found

    monkeypatch.setattr(_smallest, "_between", noted)
    chosen = smallest(weight, weight.numel() // 4, torch.ones_like(weight, dtype=torch.bool))
    assert chosen.sum() == weight.numel() // 4
    assert weight[chosen].max() <= weight[~chosen].min()
    assert guesses[0]
