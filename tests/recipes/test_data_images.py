from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from recipes.data import (
    DataError,
    FileImages,
    ImageData,
    MemoryImages,
    MissingDataError,
    PadCropFlip,
    Source,
    assemble,
    channel_statistics,
    load_images,
    load_text,
    names,
)
from recipes.data._registry import IMAGES
from recipes.data._splits import hold_out, keep_images
from tests.recipes._tiny_data import pictures, write_cifar_batches, write_folders, write_image, write_packed


def source(train: int = 40, test: int = 12, classes: int = 4) -> Source:
    def part(count: int, augment: PadCropFlip | None) -> MemoryImages:
        pixels = torch.from_numpy(pictures(count).transpose(0, 3, 1, 2).copy())
        return MemoryImages(pixels, torch.arange(count) % classes, torch.arange(count), augment)

    return Source(tuple(f"class{number}" for number in range(classes)), part(train, PadCropFlip()), part(test, None))


def pixels(part: object) -> torch.Tensor:
    assert isinstance(part, MemoryImages)
    return part.pixels


# The packed file and torchvision's files.


@pytest.mark.parametrize("inside", ["", "cifar100"])
def test_the_packed_file_gives_back_its_images(tmp_path: Path, inside: str) -> None:
    written = write_packed(tmp_path / inside / "cifar100.npz")
    data = load_images("cifar100", tmp_path, validation=0)
    assert data.class_names == ("class0", "class1", "class2", "class3")
    for part, images in ((data.train, "train"), (data.test, "test")):
        assert np.array_equal(pixels(part).permute(0, 2, 3, 1).numpy(), written[f"{images}_images"])
        assert np.array_equal(part.labels.numpy(), written[f"{images}_labels"])


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_torchvisions_files_give_back_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    written = write_cifar_batches(tmp_path, kind, monkeypatch)
    data = load_images(name, tmp_path, validation=0)
    assert data.class_names == ("even", "odd")
    assert np.array_equal(pixels(data.train).permute(0, 2, 3, 1).numpy(), written)
    assert data.train.labels.tolist() == [number % 2 for number in range(8)] * (len(written) // 8)
    assert len(data.test) == 8


def test_damaged_torchvision_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar_batches(tmp_path, "CIFAR100", monkeypatch)
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"incomplete or damaged .* Delete it and run: .*download=True"):
        load_images("cifar100", tmp_path)


def test_missing_cifar_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"neither cifar100.npz nor cifar-100-python is there") as caught:
        load_images("cifar100", tmp_path)
    assert f"CIFAR100('{tmp_path}', download=True)" in str(caught.value)


def test_a_download_that_fails_is_a_missing_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    with pytest.raises(MissingDataError, match=r"and the download failed \(no network\)"):
        load_images("cifar10", tmp_path, download=True)


def test_packed_files_that_are_something_else(tmp_path: Path) -> None:
    file = tmp_path / "cifar100.npz"
    file.write_bytes(b"not an archive")
    with pytest.raises(DataError, match="cannot be read as a packed image file"):
        load_images("cifar100", tmp_path)
    np.savez(file, classes=np.array(["a", "b"]))
    with pytest.raises(DataError, match="it lacks the arrays train_webp, train_offsets, train_labels, test_webp"):
        load_images("cifar100", tmp_path)
    write_packed(file)
    arrays = dict(np.load(file))
    np.savez(file, **{**arrays, "test_labels": arrays["test_labels"] + 3})
    with pytest.raises(DataError, match="test has label 6, but there are only 4 classes"):
        load_images("cifar100", tmp_path)
    np.savez(file, **{**arrays, "train_labels": np.zeros(513, np.uint8)})
    with pytest.raises(DataError, match="train has 513 labels for 512 images"):
        load_images("cifar100", tmp_path)
    np.savez(file, **{**arrays, "train_webp": arrays["train_webp"][:100]})
    with pytest.raises(DataError, match="cannot be read as a packed image file"):
        load_images("cifar100", tmp_path)


# Splits, subsets and statistics.


def test_validation_comes_from_the_training_images_alone() -> None:
    data = assemble("tiny", source(), validation=0.2)
    held = data.need_validation()
    assert len(data.train) == 32
    assert len(held) == 8
    assert sorted([*data.train.rows.tolist(), *held.rows.tolist()]) == list(range(40))
    assert torch.bincount(held.labels).tolist() == [2, 2, 2, 2]
    whole = pixels(source().train)
    for part in (data.train, held):
        assert torch.equal(pixels(part), whole[part.rows])
    assert torch.equal(pixels(data.test), pixels(source().test))


def test_the_split_follows_from_its_seed() -> None:
    rows = [assemble("tiny", source(), split_seed=seed).need_validation().rows.tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_classes_are_chosen_and_labelled_by_place() -> None:
    data = assemble("tiny", source(), validation=0, classes=["class3", "class1"])
    assert data.class_names == ("class3", "class1")
    assert data.source_labels == (3, 1)
    assert (data.train.rows % 4).tolist() == [1, 3] * 10
    assert data.train.labels.tolist() == [1, 0] * 10
    assert data.test.labels.tolist() == [1, 0] * 3
    assert assemble("tiny", source(), classes=2).class_names == ("class0", "class1")


def test_images_keeps_so_many_of_the_training_images_only() -> None:
    data = assemble("tiny", source(), validation=0.25, images=16)
    assert len(data.train) == 12
    assert torch.bincount(data.train.labels).tolist() == [3, 3, 3, 3]
    assert len(data.need_validation()) == 4
    assert len(data.test) == 12
    # All, or all but one, can be kept as well.
    assert [len(keep_images(np.arange(40) % 4, count, seed=0)) for count in (40, 39)] == [40, 39]


def test_channels_are_measured_on_what_is_trained_on() -> None:
    data = assemble("tiny", source(), validation=0.5)
    raw = pixels(data.train).double() / 255
    assert data.mean == pytest.approx(raw.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert data.std == pytest.approx(raw.std((0, 2, 3), unbiased=False).tolist(), rel=1e-12)
    assert channel_statistics(data.train, batch_size=7) == (data.mean, data.std)
    x = data.prepare(pixels(data.train))
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert torch.equal(data.example, data.prepare(pixels(data.train)[:2]))


def test_a_part_that_is_not_there() -> None:
    data = assemble("tiny", source(), validation=0)
    assert data.validation is None
    with pytest.raises(DataError, match="tiny was loaded without a validation part"):
        data.need_validation()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0.01}, "an empty validation split: validation=0.01 of 40 images is none; .* at least 400"),
        ({"validation": 1.0}, "must lie between 0 and 1, got 1.0"),
        ({"validation": -0.1}, "must lie between 0 and 1, got -0.1"),
        ({"validation": 0.05}, "2 of 40 images cannot be held out with an image of each of the 4 classes"),
        ({"validation": 0.95}, "38 of 40 images cannot be held out"),
        ({"images": 41}, "images=41 cannot be kept: there are 40"),
        ({"images": 3}, "images=3 cannot be kept: .* at least one of each of 4"),
        ({"classes": 5}, "classes must be 2 to 4 different ones, got 5"),
        ({"classes": 1}, "classes must be 2 to 4 different ones, got 1"),
        ({"classes": ["class0", "class0"]}, "2 to 4 different ones"),
        ({"classes": ["class0", "clas1"]}, "no class 'clas1' among the 4. Did you mean 'class1'"),
    ],
)
def test_requests_that_leave_nothing(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        assemble("tiny", source(), **options)


def test_classes_without_images() -> None:
    tiny = source()
    lacking = Source(tiny.class_names, tiny.train, tiny.test.subset((tiny.test.labels != 2).nonzero()[:, 0]))
    with pytest.raises(DataError, match="there are no images of 1 of the classes: class2"):
        assemble("tiny", lacking)
    with pytest.raises(DataError, match="cannot be held out with an image of each of the 2 classes"):
        hold_out(np.array([0] * 9 + [1]), share=0.2, seed=0)


# Names.


def test_digits_have_the_demos_test_images() -> None:
    from recipes.data import digits

    data = load_images("digits", validation=0.25)
    assert torch.equal(data.test.rows, digits().test.rows)
    assert (len(data.train), len(data.need_validation())) == (538, 180)
    assert pixels(data.test).max() == 16
    assert data.train.fetch(torch.arange(2), key=0)[0].shape == (2, 1, 8, 8)


def test_unknown_names_and_names_of_the_other_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown data set 'cifar-100'. Did you mean 'cifar100'"):
        load_images("cifar-100", tmp_path)
    with pytest.raises(DataError, match=r"unknown data set 'xyz'. There are: cifar10, cifar100"):
        load_text("xyz", tmp_path)
    with pytest.raises(DataError, match="the data set 'wikitext2' is not images: load_images loads cifar10"):
        load_images("wikitext2", tmp_path)
    with pytest.raises(DataError, match="the data set 'c4' is not a text in memory"):
        load_text("c4", tmp_path)


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "digits"])
def test_every_data_set_that_is_not_there_says_how_to_get_it(tmp_path: Path, name: str) -> None:
    assert name in names()
    with pytest.raises(MissingDataError, match=r"(Get|Make) ") as caught:
        load_images(name, tmp_path / "nowhere")
    assert str(tmp_path) in str(caught.value)


# Folders.


def write_tiny_imagenet(root: Path, classes: list[str]) -> None:
    (root / "tiny-imagenet-200" / "val" / "images").mkdir(parents=True)
    (root / "tiny-imagenet-200" / "wnids.txt").write_text("\n".join(reversed(classes)) + "\n")
    lines = []
    for number, name in enumerate(classes):
        for place, image in enumerate(pictures(3, 64, seed=number)):
            write_image(root / "tiny-imagenet-200" / "train" / name / "images" / f"{name}_{place}.JPEG", image)
        file = f"val_{number}.JPEG"
        write_image(root / "tiny-imagenet-200" / "val" / "images" / file, pictures(1, 64, seed=100 + number)[0])
        lines.append(f"{file}\t{name}\t0\t0\t62\t62\n")
    (root / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))


def test_tiny_imagenet_in_the_form_that_is_given_out(tmp_path: Path) -> None:
    classes = ["n01", "n02", "n03"]
    write_tiny_imagenet(tmp_path, classes)
    data = load_images("tiny-imagenet", tmp_path, validation=0)
    assert data.class_names == tuple(classes)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test.labels.tolist() == [2, 1, 0]
    assert np.array_equal(pixels(data.train)[3].permute(1, 2, 0).numpy(), pictures(3, 64, seed=1)[0])
    assert np.array_equal(pixels(data.test)[0].permute(1, 2, 0).numpy(), pictures(1, 64, seed=102)[0])


def test_tiny_imagenet_with_sorted_test_images_or_missing_ones(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path, ["n01", "n02"])
    root = tmp_path / "tiny-imagenet-200"
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text().replace("n02", "n09"))
    with pytest.raises(DataError, match="names the class 'n09', which is not among the 2"):
        load_images("tiny-imagenet", tmp_path)
    annotations.unlink()
    for file in (root / "val" / "images").iterdir():
        file.unlink()
    (root / "val" / "images").rmdir()
    write_folders(root, {"val": 2}, ["n01", "n02"], side=64)
    assert load_images("tiny-imagenet", root, validation=0).test.labels.tolist() == [0, 0, 1, 1]
    write_image(root / "val" / "n01" / "other.png", pictures(1, 32)[0])
    with pytest.raises(DataError, match=r"an image of .*tiny-imagenet-200 cannot be used"):
        load_images("tiny-imagenet", root, validation=0)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    write_folders(tmp_path, {"train": 4, "val": 2}, ["bee", "cat", "dog"])
    return tmp_path


def load_folders(root: Path) -> ImageData:
    return assemble("imagefolder", IMAGES["imagefolder"](root, False), validation=0.25)


def test_image_folders_are_decoded_as_needed(folders: Path) -> None:
    data = load_folders(folders)
    assert data.class_names == ("bee", "cat", "dog")
    assert isinstance(data.train, FileImages)
    assert (len(data.train), len(data.need_validation()), len(data.test)) == (9, 3, 6)
    x, y = data.test.fetch(torch.tensor([3]))
    assert y.tolist() == [1]
    image = Image.fromarray(pictures(2, 40, seed=1)[1])
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])(image)
    assert torch.equal(x[0], expected)
    assert data.example.shape == (2, 3, 224, 224)


def test_views_of_files_follow_from_key_and_image(folders: Path) -> None:
    part = load_folders(folders).train
    state = torch.get_rng_state()
    whole, _ = part.fetch(torch.arange(4), key=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(part.fetch(torch.tensor([2]), key=8)[0][0], whole[2])
    assert not torch.equal(part.fetch(torch.tensor([2]), key=9)[0][0], whole[2])
    kept = part.subset(torch.tensor([2]))
    assert torch.equal(kept.fetch(torch.tensor([0]), key=8)[0][0], whole[2])
    assert whole.dtype == torch.uint8
    assert whole.shape == (4, 3, 224, 224)


def test_batches_of_files_resume_with_workers(folders: Path) -> None:
    data = load_folders(folders)
    alone = [x for x, _ in data.loader(4, seed=3).epoch(1)]
    helped = [x for x, _ in data.loader(4, seed=3, workers=2).epoch(1, start=1)]
    assert len(helped) == 1
    assert torch.equal(alone[1], helped[0])


def test_grey_images_become_rgb(folders: Path) -> None:
    Image.fromarray(pictures(1, 40)[0, :, :, 0]).save(folders / "val" / "bee" / "0.png")
    assert load_folders(folders).test.fetch(torch.tensor([0]))[0].shape == (1, 3, 224, 224)


def test_a_test_folder_of_another_name(folders: Path) -> None:
    os.rename(folders / "val", folders / "test")
    assert len(load_folders(folders).test) == 6


def test_folders_with_missing_or_extra_or_empty_classes(folders: Path) -> None:
    os.rename(folders / "val" / "cat", folders / "val" / "cats")
    with pytest.raises(DataError, match=r"val lacks 1 of 3 classes: cat. Unpack the data set again"):
        load_folders(folders)
    os.rename(folders / "val" / "cats", folders / "val" / "cat")
    (folders / "val" / "bees").mkdir()
    with pytest.raises(DataError, match=r"folders that are no classes of the data set: bees.*Did you mean 'bee'"):
        load_folders(folders)
    (folders / "val" / "bees").rmdir()
    for file in (folders / "val" / "dog").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="Found no valid file for the classes dog"):
        load_folders(folders)


def test_a_single_class_is_no_data_set(tmp_path: Path) -> None:
    write_folders(tmp_path, {"train": 1, "val": 1}, ["bee"])
    with pytest.raises(DataError, match="has 1 folders; expected one per class, and at least two"):
        load_folders(tmp_path)


def test_imagenet_needs_all_its_classes(tmp_path: Path) -> None:
    from timm.data import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]

    synsets = ImageNetInfo().label_names()
    for part in ("train", "val"):
        for name in synsets:
            (tmp_path / "imagenet" / part / name).mkdir(parents=True)
    (tmp_path / "imagenet" / "train" / synsets[7]).rmdir()
    with pytest.raises(DataError, match=f"train lacks 1 of 1000 classes: {synsets[7]}"):
        load_images("imagenet", tmp_path)


def test_imagenet_in_full(tmp_path: Path) -> None:
    from timm.data import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]

    synsets = ImageNetInfo().label_names()
    write_folders(tmp_path, {"train": 2, "val": 1}, synsets, side=2)
    data = load_images("imagenet", tmp_path, validation=0.5, classes=["n01440764", "n01443537"])
    assert data.class_names == ("n01440764", "n01443537")
    assert (len(data.train), len(data.need_validation()), len(data.test)) == (2, 2, 2)
    assert data.mean == (0.485, 0.456, 0.406)
    assert len(load_images("imagenet", tmp_path, validation=0).train) == 2000
