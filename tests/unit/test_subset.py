from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from scipy import stats

from sparsity._subset import random_subset


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("total", [1, 2, 7, 8, 9, 300, 5000])
def test_the_size_is_exact(total: int) -> None:
    for chosen in {0, 1, total // 3, total - 1, total}:
        mask = random_subset(total, chosen, generator(chosen))
        assert mask.shape == (total,)
        assert mask.dtype is torch.bool
        assert int(mask.sum()) == chosen


def test_every_subset_is_equally_likely() -> None:
    draw = generator()
    seen = Counter(tuple(random_subset(5, 2, draw).nonzero().flatten().tolist()) for _ in range(4000))
    assert set(seen) == set(itertools.combinations(range(5), 2))
    assert stats.chisquare(list(seen.values())).pvalue > 0.001


def test_every_place_is_equally_likely_where_many_draw_the_same_byte() -> None:
    draw = generator()
    places, chosen, draws = 2000, 90, 1500
    counts = torch.stack([random_subset(places, chosen, draw) for _ in range(draws)]).sum(0)
    share = chosen / places
    # The counts sum to draws x chosen, so their covariance is that of a multinomial: n - 1 degrees of freedom.
    variance = draws * share * (1 - share) * places / (places - 1)
    statistic = float(((counts - draws * share) ** 2).sum()) / variance
    assert 0.001 < stats.chi2.sf(statistic, places - 1) < 0.999


def test_a_seed_decides_everything() -> None:
    first = random_subset(1000, 100, generator(1))
    assert torch.equal(first, random_subset(1000, 100, generator(1)))
    assert not torch.equal(first, random_subset(1000, 100, generator(2)))
