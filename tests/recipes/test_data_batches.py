from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as v2

from recipes.data import DataError, ImageData, Loader, MemoryImages, PadCropFlip, in_order, load_images
from recipes.data._random import draws, mix


def images(count: int, augment: PadCropFlip | None = None) -> MemoryImages:
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return MemoryImages(pixels, torch.arange(count), torch.arange(count), augment)


def collect(loader: Loader, epoch: int, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = zip(*loader.epoch(epoch, start), strict=True)
    return torch.stack(x), torch.stack(y)


def test_random_numbers_are_the_published_sequence() -> None:
    # The first outputs of SplitMix64 with seed 1234567, from its reference implementation.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert draws(1234567, torch.arange(2), columns=2).flatten().tolist() == published


def test_random_numbers_of_an_example_do_not_depend_on_the_others() -> None:
    assert (draws(3, torch.tensor([9, 4]), 5)[1] == draws(3, torch.arange(10), 5)[4]).all()
    assert len({mix(a, b, c) for a in range(4) for b in range(4) for c in range(4)}) == 64


def test_every_example_comes_once_per_epoch_in_another_order() -> None:
    loader = Loader(images(12), batch_size=4, seed=5)
    first, second = collect(loader, 0)[1].flatten(), collect(loader, 1)[1].flatten()
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()
    assert collect(Loader(images(12), 4, seed=6), 0)[1].flatten().tolist() != first.tolist()


def test_labels_stay_with_their_images() -> None:
    part = images(12)
    for x, y in Loader(part, 4).epoch(0):
        assert torch.equal(x, part.pixels[y])


def test_the_incomplete_batch_is_left_out_unless_it_is_the_only_one() -> None:
    sizes = {size: [len(y) for _, y in Loader(images(7), size).epoch(0)] for size in (3, 7, 64)}
    assert sizes == {3: [3, 3], 7: [7], 64: [7]}


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_a_resumed_epoch_goes_on_with_the_same_batches(start: int) -> None:
    part = images(20, PadCropFlip())
    x, y = collect(Loader(part, 4, seed=2), 3)
    torch.rand(100)  # the state of the global generator must not matter
    rest = list(Loader(part, 4, seed=2).epoch(3, start))
    assert len(rest) == 5 - start
    for step, (again, labels) in enumerate(rest, start):
        assert torch.equal(again, x[step])
        assert torch.equal(labels, y[step])


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batches_of_a_single_one(world: int) -> None:
    part = images(20, PadCropFlip())
    x, y = collect(Loader(part, 8, seed=2), 1)
    shares = [collect(Loader(part, 8, seed=2, rank=rank, world=world), 1) for rank in range(world)]
    for step in range(len(y)):
        together = torch.cat([labels[step] for _, labels in shares])
        assert sorted(together.tolist()) == sorted(y[step].tolist())
        for views, labels in shares:
            for view, label in zip(views[step], labels[step], strict=True):
                assert torch.equal(view, x[step][y[step] == label][0])


def test_workers_change_nothing() -> None:
    part = images(20, PadCropFlip())
    state = torch.get_rng_state()
    alone, helped = collect(Loader(part, 4, seed=2), 0), collect(Loader(part, 4, seed=2, workers=2), 0)
    assert torch.equal(alone[0], helped[0])
    assert torch.equal(alone[1], helped[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_augmentation_is_torchvisions_pad_crop_and_flip_of_each_image() -> None:
    part, augment = images(64), PadCropFlip()
    indices = torch.arange(64)
    views = augment(part.pixels, indices, key=11)
    for image, view, down, right, mirrored in zip(part.pixels, views, *augment.choices(indices, 11), strict=True):
        expected = v2.crop(v2.pad(image, [4] * 4), int(down), int(right), 32, 32)
        assert torch.equal(view, v2.horizontal_flip(expected) if mirrored else expected)
    assert views.dtype == torch.uint8
    assert views.is_contiguous()


def test_augmentation_uses_every_place_and_both_sides_evenly() -> None:
    count = 81 * 2 * 100
    down, right, mirrored = PadCropFlip().choices(torch.arange(count), key=mix(0, 0, 1))
    counts = np.bincount((down * 9 + right) * 2 + mirrored, minlength=162)
    assert len(counts) == 162
    # Chi-square with 161 degrees of freedom: mean 161, standard deviation 18; five of those are allowed.
    assert ((counts - 100) ** 2 / 100).sum() == pytest.approx(161, abs=90)


def test_augmentation_changes_with_the_epoch_and_can_be_left_out() -> None:
    part = images(8, PadCropFlip())
    indices = torch.arange(8)
    assert not torch.equal(part.fetch(indices, key=1)[0], part.fetch(indices, key=2)[0])
    assert torch.equal(part.fetch(indices)[0], part.pixels)
    for x, y in Loader(part, 4, augment=False).epoch(0):
        assert torch.equal(x, part.pixels[y])


def test_an_image_is_varied_in_the_same_way_in_a_subset() -> None:
    part = images(8, PadCropFlip())
    whole, _ = part.fetch(torch.arange(8), key=4)
    assert torch.equal(part.subset(torch.tensor([5, 2])).fetch(torch.tensor([0, 1]), key=4)[0], whole[[5, 2]])


def test_without_flip_nothing_is_mirrored() -> None:
    assert not PadCropFlip(padding=1, flip=False).choices(torch.arange(100), key=0)[2].any()


def test_evaluation_reads_every_example_once_and_ranks_share_them() -> None:
    part = images(11, PadCropFlip())
    batches = list(in_order(part, 4))
    assert [len(y) for _, y in batches] == [4, 4, 3]
    assert torch.equal(torch.cat([x for x, _ in batches]), part.pixels)
    shares = [torch.cat([y for _, y in in_order(part, 2, rank=rank, world=3)]).tolist() for rank in range(3)]
    assert shares == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8]]
    assert list(in_order(images(1), rank=1, world=2)) == []


def test_batches_are_normalised_by_channel() -> None:
    data = load_images("digits", validation=0)
    x, _ = zip(*in_order(data.train, prepare=data.prepare), strict=True)
    raw = data.train.fetch(torch.arange(len(data.train)))[0].double() / 255
    assert x[0].dtype == torch.float32
    torch.testing.assert_close(torch.cat(x).double(), (raw - raw.mean()) / raw.std(unbiased=False), atol=1e-5, rtol=0)
    batch, _ = next(data.loader(16, augment=False).epoch(0))
    assert batch.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5, "world": 2}, "cannot be shared evenly by 2 processes; use 4 or 6"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world": 2}, "rank must lie between 0 and world - 1 = 1, got 2"),
        ({"batch_size": 64, "world": 2}, "the only batch has 7 examples, .* use a batch_size of at most 6"),
    ],
)
def test_batches_that_cannot_be_shared(changes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Loader(images(7), **{"batch_size": 4, **changes})  # pyright: ignore[reportArgumentType]


def test_bad_starts_and_empty_parts() -> None:
    with pytest.raises(DataError, match="an epoch has 2 steps, so it cannot start at step 3"):
        next(Loader(images(8), 4).epoch(0, start=3))
    with pytest.raises(DataError, match="there are no examples to train on"):
        Loader(images(8).subset(torch.arange(0)), 4)


def test_every_kind_of_data_gives_its_loader_the_same_batches() -> None:
    data = load_images("digits")
    assert isinstance(data, ImageData)
    loader = data.loader(32, seed=1, rank=1, world=2)
    x, y = next(loader.epoch(0))
    again, labels = next(Loader(data.train, 32, 1, prepare=data.prepare, rank=1, world=2).epoch(0))
    assert torch.equal(x, again)
    assert torch.equal(y, labels)
    assert len(y) == 16
