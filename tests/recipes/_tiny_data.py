"""Small files in the layouts of the real data sets, written by hand for the tests."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def pictures(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """Random images `[N, H, W, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write_packed(path: Path, classes: int = 4, train: int = 300, test: int = 20) -> dict[str, np.ndarray]:
    """Write mosaics of 16 x 16 images, one image at a time; returns the images and labels that went in."""
    arrays: dict[str, np.ndarray] = {"classes": np.array([f"class{number}" for number in range(classes)])}
    contents = {}
    for part, count in (("train", train), ("test", test)):
        images = pictures(count, seed=len(part))
        data, offsets = b"", [0]
        for first in range(0, count, 256):
            mosaic = Image.new("RGB", (512, 512))
            for place, image in enumerate(images[first : first + 256]):
                down, right = divmod(place, 16)
                mosaic.paste(Image.fromarray(image), (32 * right, 32 * down))
            buffer = io.BytesIO()
            mosaic.save(buffer, "WEBP", lossless=True)
            data += buffer.getvalue()
            offsets.append(len(data))
        arrays[f"{part}_webp"] = np.frombuffer(data, np.uint8)
        arrays[f"{part}_offsets"] = np.array(offsets)
        arrays[f"{part}_labels"] = np.arange(count, dtype=np.uint8) % classes
        contents |= {f"{part}_images": images, f"{part}_labels": arrays[f"{part}_labels"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return contents


def write_cifar_batches(root: Path, kind: str, patch: pytest.MonkeyPatch, per_file: int = 8) -> np.ndarray:
    """Write torchvision's files, with checksums of their own; returns the training images `[N, H, W, 3]`."""
    from torchvision import datasets

    dataset = getattr(datasets, kind)
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    key, names = ("labels", "label_names") if kind == "CIFAR10" else ("fine_labels", "fine_label_names")
    written = []

    def write(name: str, content: dict[str, object]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name: str, seed: int) -> list[str]:
        images = pictures(per_file, seed=seed)
        written.append(images)
        rows = images.transpose(0, 3, 1, 2).reshape(per_file, -1)
        return write(name, {"data": rows, key: [number % 2 for number in range(per_file)]})

    patch.setattr(dataset, "train_list", [batch(name, seed) for seed, (name, _) in enumerate(dataset.train_list)])
    train = np.concatenate(written)
    patch.setattr(dataset, "test_list", [batch(name, 99) for name, _ in dataset.test_list])
    name, checksum = write(dataset.meta["filename"], {names: ["even", "odd"]})
    patch.setattr(dataset, "meta", {"filename": name, "key": names, "md5": checksum})
    return train


def write_image(path: Path, image: np.ndarray) -> None:
    """Write one lossless image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "PNG")


def write_folders(root: Path, parts: dict[str, int], classes: list[str], side: int = 40) -> None:
    """Write `PART/CLASS/NUMBER.png`, so many images of each class in each part."""
    for part, count in parts.items():
        for number, name in enumerate(classes):
            for place, image in enumerate(pictures(count, side, seed=number)):
                write_image(root / part / name / f"{place}.png", image)
