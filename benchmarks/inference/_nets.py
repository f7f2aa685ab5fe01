"""The networks that engines are compared on: the paper's Table 7 and Figure 8, ResNet-50, LLaMA-130M, digits."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.inference import _models as models
from benchmarks.inference import _paper as paper
from benchmarks.inference._errors import BenchmarkError
from benchmarks.inference._trained import digits_images, digits_single, trained_digits, trained_digits_averaged

HEADS = 3


@dataclass(frozen=True)
class Net:
    """One network of the comparison.

    Args:
        key: Its name in files and on the command line.
        label: Its name in tables.
        family: Networks that share inputs, and a single dense model that all are compared with.
        build: Builds it in eval mode, with its masks. Same weights at every call.
        inputs: From a batch size to inputs of that size.
        sparsity: Share of zeros; 0 for a dense network.
        allocation: How sparsity is spread over layers; empty for a dense network.
        role: ``'single'``, ``'ensemble'`` (M dense networks) or ``'neurotrails'``.
        paper: What the paper measured for it.
    """

    key: str
    label: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    sparsity: float = 0.0
    allocation: str = ""
    role: str = "neurotrails"
    paper: paper.PaperRow | None = None


def catalogue(folder: Path, quick: bool = False) -> list[Net]:
    """Return all networks, the single dense one of each family before the others.

    Args:
        folder: Where the digits network is trained, or was.
        quick: The same list with networks shrunk to tests, whose numbers mean nothing.
    """
    return [*_wide_resnets(quick), *_resnets(quick), *_llamas(quick), *_digits(folder, quick)]


def choose(nets: Sequence[Net], patterns: Iterable[str]) -> list[Net]:
    """Return the networks whose key or family matches a pattern (``wrn``, ``wrn-erk-*``), in the catalogue's order.

    Raises:
        BenchmarkError: A pattern matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {net.key for net in nets if net.family == pattern or fnmatch.fnmatchcase(net.key, pattern)}
        if not found:
            raise BenchmarkError(f"no network is called {pattern!r}; there are {', '.join(net.key for net in nets)}.")
        chosen |= found
    return [net for net in nets if net.key in chosen]


def single_of(nets: Sequence[Net], net: Net) -> Net:
    """Return the single dense network of a network's family."""
    return next(other for other in nets if other.family == net.family and other.role == "single")


def _images(size: int, batch: int) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def _tokens(length: int, vocabulary: int, batch: int) -> Tensor:
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


def _wide_resnets(quick: bool) -> Iterator[Net]:
    size, blocks, name = ((10, 1), 1, "WRN10-1") if quick else ((28, 10), 4, "WRN28-10")
    images = partial(_images, 32)
    dense = partial(models.wide_resnet, size)
    yield Net(
        "wrn-single",
        f"{name}, single dense",
        "wrn",
        dense,
        images,
        role="single",
        paper=None if quick else paper.SINGLE,
    )
    ensemble = partial(models.wide_resnet_ensemble, size, HEADS)
    label = f"{name}, full ensemble M={HEADS}"
    yield Net("wrn-ensemble", label, "wrn", ensemble, images, role="ensemble", paper=None if quick else paper.ENSEMBLE)
    for allocation in ("erk", "uniform"):
        for sparsity in (0.8, 0.9, 0.95, 0.99):
            yield Net(
                f"wrn-{allocation}-{_short(sparsity)}",
                f"{name}, NeuroTrails M={HEADS}, S={_short(sparsity)}, {_TITLES[allocation]}",
                "wrn",
                partial(models.wide_resnet_trails, size, blocks, HEADS, sparsity, allocation),
                images,
                sparsity,
                allocation,
                paper=None if quick else paper.NEUROTRAILS.get(sparsity),
            )


def _resnets(quick: bool) -> Iterator[Net]:
    name, split, pixels = ("resnet10t", "layer3.0", 64) if quick else ("resnet50", "layer3.2", 224)
    images = partial(_images, pixels)
    yield Net(
        "resnet-single",
        f"{name}, single dense",
        "resnet",
        partial(models.timm_net, name, pixels),
        images,
        role="single",
    )
    for sparsity in (0.7, 0.9, 0.95):
        yield Net(
            f"resnet-erk-{_short(sparsity)}",
            f"{name}, NeuroTrails M={HEADS}, S={_short(sparsity)}, ERK",
            "resnet",
            partial(models.timm_trails, name, pixels, split, HEADS, sparsity),
            images,
            sparsity,
            "erk",
        )


def _llamas(quick: bool) -> Iterator[Net]:
    config, split = (models.LLAMA_TINY, 1) if quick else (models.LLAMA_130M, 4)
    name = "LLaMA-tiny" if quick else "LLaMA-130M"
    for family, length in (("llama-decode", 1), ("llama-prefill", 16 if quick else 128)):
        tokens = partial(_tokens, length, config["vocab_size"])
        shape = "one token" if length == 1 else f"{length} tokens"
        single = partial(models.llama, config)
        yield Net(f"{family}-single", f"{name}, {shape}, single dense", family, single, tokens, role="single")
        for sparsity in (0.1, 0.8, 0.9, 0.95):
            yield Net(
                f"{family}-{_short(sparsity)}",
                f"{name}, {shape}, NeuroTrails M={HEADS}, S={_short(sparsity)}, ERK",
                family,
                partial(models.llama_trails, config, split, HEADS, sparsity),
                tokens,
                sparsity,
                "erk",
            )


def _digits(folder: Path, quick: bool) -> Iterator[Net]:
    folder = folder / ("digits-quick" if quick else "digits")
    single = partial(digits_single, folder, quick)
    yield Net("digits-single", "digits ResNet, single dense", "digits", single, digits_images, role="single")
    trained = partial(trained_digits, folder, quick)
    label = f"digits ResNet, NeuroTrails M={HEADS}, S=.8, ERK, trained"
    yield Net("digits-trained", label, "digits", trained, digits_images, 0.8, "erk")
    averaged = partial(trained_digits_averaged, folder, quick)
    yield Net("digits-averaged", f"{label}, logits averaged", "digits", averaged, digits_images, 0.8, "erk")


_TITLES = {"erk": "ERK", "uniform": "uniform"}


def _short(share: float) -> str:
    return f"{share:g}".lstrip("0")
