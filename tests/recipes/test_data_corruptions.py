from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.data import (
    SEVERITIES,
    DataError,
    FileImages,
    ImageData,
    Loader,
    MemoryImages,
    MissingDataError,
    Source,
    assemble,
    cifar_c,
    corrupted,
    corruption_names,
    imagenet_c,
    imagenet_sketch,
    in_order,
    load_images,
)
from tests.recipes._tiny_data import pictures, write_folders

CLASSES = ("apple", "bear", "clock")


def smooth(count: int = 6, side: int = 32) -> MemoryImages:
    """Images with edges and gradients: noise cannot be blurred any further."""
    down, right = np.mgrid[:side, :side] / side
    arrays = np.stack([np.stack([down, right, ((down + right) * 3 + number) % 1]) for number in range(count)])
    pixels = torch.from_numpy((arrays * 255).astype(np.uint8))
    return MemoryImages(pixels, torch.arange(count) % 3, torch.arange(count))


def data(name: str = "cifar100") -> ImageData:
    return assemble(name, Source(CLASSES, smooth(12), smooth()), validation=0)


def everything(images: object) -> torch.Tensor:
    return torch.cat([x for x, _ in in_order(images)])  # pyright: ignore[reportArgumentType]


def test_names_are_those_of_the_library() -> None:
    from imagecorruptions import get_corruption_names

    assert corruption_names() == tuple(get_corruption_names("common"))
    assert corruption_names(extra=True) == tuple(get_corruption_names("all"))


@pytest.mark.parametrize("name", corruption_names(extra=True))
def test_every_corruption_changes_images_and_is_the_same_every_time(name: str) -> None:
    images = smooth(3)
    clean = images.pixels.clone()
    for severity in SEVERITIES:
        part = corrupted(images, name, severity)
        first = everything(part)
        assert first.shape == (3, 3, 32, 32)
        assert first.dtype == torch.uint8
        assert not torch.equal(first, clean)
        assert torch.equal(everything(part), first)
    assert torch.equal(images.pixels, clean)


@pytest.mark.parametrize("name", ["gaussian_noise", "defocus_blur", "contrast", "pixelate"])
def test_severity_grows(name: str) -> None:
    images = smooth()
    errors = [
        (everything(corrupted(images, name, severity)).double() - images.pixels).abs().mean().item()
        for severity in SEVERITIES
    ]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1]


def test_gaussian_noise_has_the_benchmarks_scale() -> None:
    grey = MemoryImages(torch.full((8, 3, 32, 32), 128, dtype=torch.uint8), torch.arange(8), torch.arange(8))
    noise = everything(corrupted(grey, "gaussian_noise", 1)).double() / 255
    assert noise.std().item() == pytest.approx(0.08, rel=0.02)


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "glass_blur", "frost", "elastic_transform"])
def test_the_noise_of_an_image_follows_from_its_row_and_the_seed(name: str) -> None:
    images = smooth()
    whole = everything(corrupted(images, name, 3))
    part = corrupted(images, name, 3).subset(torch.tensor([4, 1]))
    assert torch.equal(everything(part), whole[[4, 1]])
    assert part.labels.tolist() == [1, 1]
    assert part.rows.tolist() == [4, 1]
    assert part.relabel(torch.tensor([0, 2])).labels.tolist() == [0, 2]
    assert not torch.equal(everything(corrupted(images, name, 3, seed=1)), whole)


def test_two_images_with_the_same_pixels_get_different_noise() -> None:
    images = smooth().subset(torch.tensor([0, 0]))
    images = MemoryImages(images.pixels, images.labels, torch.tensor([0, 1]))
    first, second = everything(corrupted(images, "gaussian_noise", 3))
    assert not torch.equal(first, second)


def test_numpys_global_generator_is_put_back() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # pyright: ignore
    everything(corrupted(smooth(), "gaussian_noise", 2))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002  # pyright: ignore


def test_corrupted_images_are_not_for_training() -> None:
    with pytest.raises(DataError, match="corrupted images are for evaluation"):
        next(Loader(corrupted(smooth(), "fog", 1), 2).epoch(0))


def test_images_that_are_too_small() -> None:
    with pytest.raises(DataError, match=r"at least 32 x 32 pixels, got \(1, 8, 8\)"):
        next(in_order(corrupted(load_images("digits").test, "fog", 1)))


def test_unknown_corruptions_and_severities() -> None:
    with pytest.raises(DataError, match=r"unknown corruption 'gausian_noise'. Did you mean 'gaussian_noise'"):
        corrupted(smooth(), "gausian_noise", 1)
    with pytest.raises(DataError, match=r"unknown corruption '\?'. There are: gaussian_noise, shot_noise"):
        corrupted(smooth(), "?", 1)
    with pytest.raises(DataError, match="severity must be 1 to 5, got 6"):
        corrupted(smooth(), "fog", 6)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(MissingDataError, match=r"pip install .fxsplit\[corruptions\]"):
        corrupted(smooth(), "fog", 1)


# Published sets.


def write_cifar_c(folder: Path, per_severity: int = 6) -> np.ndarray:
    folder.mkdir(parents=True)
    images = pictures(5 * per_severity)
    np.save(folder / "fog.npy", images)
    np.save(folder / "labels.npy", np.tile(np.arange(per_severity, dtype=np.uint8) % 3, 5))
    return images


def test_cifar_c_has_a_block_per_severity(tmp_path: Path) -> None:
    images = write_cifar_c(tmp_path / "CIFAR-100-C")
    for severity in SEVERITIES:
        part = cifar_c(data(), "fog", severity, tmp_path)
        expected = images[6 * (severity - 1) : 6 * severity]
        assert np.array_equal(everything(part).permute(0, 2, 3, 1).numpy(), expected)
        assert part.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_cifar_c_has_the_classes_of_the_clean_data(tmp_path: Path) -> None:
    images = write_cifar_c(tmp_path / "CIFAR-100-C")
    subset = assemble("cifar100", Source(CLASSES, smooth(12), smooth()), validation=0, classes=["clock", "apple"])
    part = cifar_c(subset, "fog", 1, tmp_path / "CIFAR-100-C")
    assert part.labels.tolist() == [1, 0, 1, 0]
    assert np.array_equal(everything(part).permute(0, 2, 3, 1).numpy(), images[[0, 2, 3, 5]])


def test_cifar_c_that_is_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(
        MissingDataError, match=r"CIFAR-100-C is not in .*curl -LO https://zenodo.org/.*CIFAR-100-C.tar"
    ):
        cifar_c(data(), "fog", 1, tmp_path)
    with pytest.raises(DataError, match="there is no CIFAR-C for digits"):
        cifar_c(load_images("digits"), "fog", 1, tmp_path)
    with pytest.raises(DataError, match=r"unknown corruption 'frog'. Did you mean 'fog', 'frost'"):
        cifar_c(data(), "frog", 1, tmp_path)
    write_cifar_c(tmp_path / "CIFAR-100-C")
    np.save(tmp_path / "CIFAR-100-C" / "labels.npy", np.zeros(29, np.uint8))
    with pytest.raises(DataError, match="has 30 images for 29 labels; expected five equal blocks"):
        cifar_c(data(), "fog", 1, tmp_path)


@pytest.mark.parametrize("layout", ["", "ImageNet-C", "weather", "ImageNet-C/weather"])
def test_imagenet_c_is_found_in_every_layout(tmp_path: Path, layout: str) -> None:
    write_folders(tmp_path / layout / "fog", {"3": 2}, list(CLASSES), side=40)
    part = imagenet_c(data(), "fog", 3, tmp_path, size=36)
    assert isinstance(part, FileImages)
    assert part.labels.tolist() == [0, 0, 1, 1, 2, 2]
    # The middle of the stored image, not resized.
    assert np.array_equal(everything(part)[0].permute(1, 2, 0).numpy(), pictures(2, 40, seed=0)[0, 2:38, 2:38])


def test_imagenet_c_that_is_missing(tmp_path: Path) -> None:
    write_folders(tmp_path / "fog", {"3": 1}, ["apple", "bear"])
    with pytest.raises(MissingDataError, match=r"ImageNet-C is not in .*expected fog/2/CLASS"):
        imagenet_c(data(), "fog", 2, tmp_path)
    with pytest.raises(MissingDataError, match=r"https://zenodo.org"):
        imagenet_c(data(), "fog", 2, tmp_path / "nowhere")
    with pytest.raises(DataError, match="lacks 1 of 3 classes: clock"):
        imagenet_c(data(), "fog", 3, tmp_path)


def test_sketches_have_the_classes_of_the_clean_data(tmp_path: Path) -> None:
    write_folders(tmp_path, {"sketch": 1}, list(CLASSES), side=40)
    part = imagenet_sketch(data(), tmp_path, size=35)
    assert part.labels.tolist() == [0, 1, 2]
    assert everything(part).shape == (3, 3, 35, 35)
    assert torch.equal(everything(imagenet_sketch(data(), tmp_path / "sketch", size=35)), everything(part))
    subset = assemble("imagenet", Source(CLASSES, smooth(12), smooth()), validation=0, classes=["clock", "bear"])
    assert imagenet_sketch(subset, tmp_path).labels.tolist() == [1, 0]
    with pytest.raises(MissingDataError, match=r"ImageNet-Sketch is not in .*github.com/HaohanWang"):
        imagenet_sketch(data(), tmp_path / "nowhere")


def test_images_in_files_can_be_corrupted(tmp_path: Path) -> None:
    write_folders(tmp_path, {"train": 2, "val": 1}, list(CLASSES), side=40)
    images = load_images("imagefolder", tmp_path, validation=0).test
    part = corrupted(images, "brightness", 5)
    clean, noisy = everything(images), everything(part)
    assert noisy.shape == clean.shape == (3, 3, 224, 224)
    assert noisy.double().mean() > clean.double().mean() + 20
    assert Image.fromarray(noisy[0].permute(1, 2, 0).numpy()).size == (224, 224)
