"""A network with trained masks: the NeuroTrails system of the demo recipe, on scikit-learn's digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import fxsplit
from recipes._demo import SAVED, Job, factory, load_data, plan_all, run_job
from recipes._pool import one_thread
from recipes._settings import Settings, prepare_folder

SYSTEM = "neurotrails"


def trained_digits(folder: Path, quick: bool = False) -> fxsplit.SplitModel:
    """Train the demo's NeuroTrails network with seed 0, unless the folder has it already, and return it in eval mode.

    Args:
        folder: Where it is kept.
        quick: Train it for seconds only.
    """
    settings = _settings(folder, quick)
    file = prepare_folder(folder) / SAVED
    if not file.exists():
        print(f"training the demo's network into {file}", flush=True)
        with one_thread():
            run_job(Job(settings, SYSTEM, 0, plan_all(settings)[SYSTEM]), lambda _: None)
    return fxsplit.load(file, factory(settings)(), example=load_data(settings).test.x[:2]).eval()


def trained_digits_averaged(folder: Path, quick: bool = False) -> fxsplit.SplitModel:
    """Return the trained network with a vote that averages logits; the demo's averages probabilities."""
    net = trained_digits(folder, quick)
    net.vote = fxsplit.MeanVote().eval()
    return net


def digits_single(folder: Path, quick: bool = False) -> nn.Module:
    """Return the dense network that the trained one was made of, with random weights, in eval mode."""
    settings = _settings(folder, quick)
    torch.manual_seed(0)
    return fxsplit.trace(factory(settings)(), load_data(settings).test.x[:2]).eval()


def digits_images(batch: int) -> Tensor:
    """Test images ``[batch, 1, 8, 8]``, from the start again when they run out."""
    images = load_data(Settings()).test.x
    return images[torch.arange(batch) % len(images)].contiguous()


def _settings(folder: Path, quick: bool) -> Settings:
    settings = replace(Settings(), out=folder)
    return settings.quick() if quick else settings
