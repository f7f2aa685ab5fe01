"""An image data set in three parts, cut out of a source's official training and test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipes.data._errors import DataError
from recipes.data._loader import Loader
from recipes.data._parts import Images
from recipes.data._splits import choose_classes, hold_out, keep_images


@dataclass(frozen=True)
class Source:
    """What the files of a data set hold: an official training and test set.

    Args:
        class_names: Names of the classes, by label.
        train: The official training set.
        test: The official test set, or what serves as one where the labels of that are not public.
        mean: Mean of each channel on the scale 0 to 1; None to measure it on what is trained on.
        std: Standard deviation of each channel, likewise.
    """

    class_names: tuple[str, ...]
    train: Images
    test: Images
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ImageData:
    """An image data set: uint8 images in three parts, and how to normalise them.

    Args:
        name: What the data is called in reports.
        class_names: Names of the classes, by label.
        source_names: Names of all classes of the source, of which the data may be a subset.
        train: What networks are fitted to.
        validation: What settings and checkpoints are chosen on: carved from the source's training set, never from its
            test set. None if no share was asked for.
        test: What is reported, once.
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel.
    """

    name: str
    class_names: tuple[str, ...]
    source_names: tuple[str, ...]
    train: Images
    validation: Images | None
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def source_labels(self) -> tuple[int, ...]:
        """The label each class has in the source, which is its place only where no classes were left out."""
        return tuple(map(self.source_names.index, self.class_names))

    @property
    def example(self) -> Tensor:
        """The first two training inputs, normalised, `[2, C, H, W]`: what a network is traced with."""
        return self.prepare(self.train.fetch(torch.arange(2))[0])

    def prepare(self, x: Tensor) -> Tensor:
        """Turn uint8 images `[B, C, H, W]` into what networks take: float32, normalised by channel, on the same device.

        Args:
            x: Images.
        """
        from torchvision.transforms.v2 import functional as v2

        return v2.normalize(v2.to_dtype(x, torch.float32, scale=True), list(self.mean), list(self.std))

    def need_validation(self) -> Images:
        """Return the validation part.

        Raises:
            DataError: There is none.
        """
        if self.validation is None:
            raise DataError(
                f"{self.name} was loaded without a validation part, which choosing a checkpoint or a setting needs; "
                "load it with validation=0.1, say. The test part is for reporting alone."
            )
        return self.validation

    def loader(
        self,
        batch_size: int,
        seed: int = 0,
        *,
        augment: bool = True,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> Loader:
        """Return the training batches, see `Loader`."""
        return Loader(
            self.train,
            batch_size,
            seed,
            prepare=self.prepare,
            augment=augment,
            rank=rank,
            world=world,
            workers=workers,
            device=device,
        )


def assemble(
    name: str,
    source: Source,
    *,
    validation: float = 0.1,
    split_seed: int = 0,
    classes: int | Sequence[str] | None = None,
    images: int | None = None,
) -> ImageData:
    """Cut a source down to what is asked for, carve the validation part and measure the channels.

    Args:
        name: What the data is called in reports.
        source: The official sets.
        validation: Share of the training images that is kept for validation; 0 for none.
        split_seed: Decides which images those are, and which ones a subset has.
        classes: Keep these classes, in this order, or the first so many.
        images: Keep so many training images, those for validation included; the test set stays whole.

    Raises:
        DataError: That leaves nothing, or there is no such class.
    """
    labels = choose_classes(source.class_names, len(source.class_names) if classes is None else classes)
    train, test = (of_classes(part, source.class_names, labels) for part in (source.train, source.test))
    if images is not None:
        train = train.subset(torch.from_numpy(keep_images(train.labels.numpy(), images, split_seed)))
    held = None
    if validation:
        kept, out = hold_out(train.labels.numpy(), validation, split_seed)
        train, held = train.subset(torch.from_numpy(kept)), train.subset(torch.from_numpy(out))
    mean, std = source.mean, source.std
    if mean is None or std is None:
        mean, std = channel_statistics(train)
    names = tuple(source.class_names[label] for label in labels)
    return ImageData(name, names, source.class_names, train, held, test, mean, std)


def channel_statistics(images: Images, batch_size: int = 4096) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation (of the population) of each channel on the scale 0 to 1, exactly.

    Args:
        images: What to measure.
        batch_size: Images held as integers at once.

    Example:
        >>> from recipes.data import MemoryImages
        >>> pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
        >>> channel_statistics(MemoryImages(pixels, torch.zeros(2), torch.arange(2)))
        ((0.5,), (0.5,))
    """
    counts: Tensor | int = 0
    for indices in torch.arange(len(images)).split(batch_size):
        x, _ = images.fetch(indices)
        counts = counts + torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in x.unbind(1)])
    share = torch.as_tensor(counts).double()
    share = share / share.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def of_classes(images: Images, names: Sequence[str], labels: Sequence[int]) -> Images:
    """Return the images of these classes, labelled by their place in the list.

    Args:
        images: Images of any classes.
        names: Names of all classes, by label.
        labels: Labels of the classes to keep.

    Raises:
        DataError: There are no images of one of them.
    """
    place = torch.full((len(names),), -1)
    place[list(labels)] = torch.arange(len(labels))
    places = place[images.labels]
    present = torch.bincount(places[places >= 0], minlength=len(labels)) > 0
    if not present.all():
        lacking = [names[label] for label, there in zip(labels, present.tolist(), strict=True) if not there]
        raise DataError(f"there are no images of {len(lacking)} of the classes: {', '.join(lacking[:5])}.")
    if len(labels) < len(names):
        kept = (places >= 0).nonzero()[:, 0]
        images, places = images.subset(kept), places[kept]
    return images.relabel(places)
