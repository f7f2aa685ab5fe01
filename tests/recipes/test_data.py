from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from recipes._errors import RecipeError
from recipes.data import Examples, batches, digits, shift_by_one, steps_per_epoch, stratified_rows


def test_parts_are_disjoint_and_cover_everything() -> None:
    data = digits()
    rows = torch.cat([data.train.rows, data.validation.rows, data.test.rows])
    assert sorted(rows.tolist()) == list(range(1797))
    assert [len(data.train.y), len(data.validation.y), len(data.test.y)] == [539, 179, 1079]


def test_parts_keep_the_proportions_of_the_classes() -> None:
    data = digits()
    overall = np.bincount(load_digits(return_X_y=True)[1]) / 1797
    for part in (data.train, data.validation, data.test):
        shares = np.bincount(part.y.numpy(), minlength=10) / len(part.y)
        # Rounding to whole images can move each class by at most one image either way.
        assert np.abs(shares - overall).max() <= 1 / len(part.y)


def test_rows_lead_back_to_the_images() -> None:
    data = digits()
    images, labels = load_digits(return_X_y=True)
    for part in (data.train, data.validation, data.test):
        assert (part.y.numpy() == labels[part.rows.numpy()]).all()
        raw = part.x.flatten(1) * data.std + data.mean
        torch.testing.assert_close(raw, torch.tensor(images[part.rows.numpy()], dtype=torch.float32))


def test_normalisation_comes_from_the_training_part_alone() -> None:
    data = digits()
    assert data.train.x.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train.x.std().item() == pytest.approx(1, abs=1e-5)
    assert data.test.x.mean().item() != pytest.approx(0, abs=1e-5)


def test_the_split_follows_from_its_seed() -> None:
    assert torch.equal(digits(seed=0).test.rows, digits(seed=0).test.rows)
    assert not torch.equal(digits(seed=0).test.rows, digits(seed=1).test.rows)


def test_limit_keeps_a_stratified_subset() -> None:
    data = digits(limit=300)
    labels = torch.cat([data.train.y, data.validation.y, data.test.y])
    assert len(labels) == 300
    assert torch.bincount(labels).min() >= 28


@pytest.mark.parametrize(("train", "validation"), [(0.0, 0.1), (0.5, 0.0), (0.7, 0.3), (1.2, 0.1)])
def test_shares_that_leave_a_part_empty(train: float, validation: float) -> None:
    with pytest.raises(RecipeError, match="leave a part of the data empty"):
        stratified_rows(np.repeat([0, 1], 10), train, validation, seed=0)


def test_shift_moves_by_at_most_one_pixel_and_fills_with_the_background() -> None:
    image = torch.zeros(400, 1, 8, 8)
    image[:, 0, 0, 4] = 5.0  # in the first row: it may leave the image
    moved = shift_by_one(background=-1.0)(image, torch.Generator().manual_seed(0))
    places = {tuple(place[2:].tolist()) for place in (moved == 5.0).nonzero()}
    assert places == {(row, column) for row in (0, 1) for column in (3, 4, 5)}
    assert moved.min().item() == -1.0
    assert moved.shape == image.shape


def test_batches_are_a_permutation_that_follows_from_the_generator() -> None:
    examples = Examples(torch.arange(10.0).reshape(10, 1, 1, 1), torch.arange(10), torch.arange(10))
    first = [y for _, y in batches(examples, 5, torch.Generator().manual_seed(1))]
    again = [y for _, y in batches(examples, 5, torch.Generator().manual_seed(1))]
    other = [y for _, y in batches(examples, 5, torch.Generator().manual_seed(2))]
    assert sorted(torch.cat(first).tolist()) == list(range(10))
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    for x, y in batches(examples, 5, torch.Generator().manual_seed(1)):
        assert torch.equal(x.flatten(), y.float())


def test_the_incomplete_batch_is_left_out_unless_it_is_the_only_one() -> None:
    examples = Examples(torch.zeros(7, 1, 1, 1), torch.arange(7), torch.arange(7))
    sizes = {size: [len(y) for _, y in batches(examples, size, torch.Generator())] for size in (3, 7, 64)}
    assert sizes == {3: [3, 3], 7: [7], 64: [7]}
    assert [steps_per_epoch(7, size) for size in (3, 7, 64)] == [2, 1, 1]
