"""One thread, fixed seeds and hypothesis profiles for the whole suite."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("quick", max_examples=15, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=150, print_blob=True, **_COMMON)
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002 - code under test may use the global generator
    torch.manual_seed(0)
