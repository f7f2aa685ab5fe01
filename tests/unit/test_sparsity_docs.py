from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import sparsity

MODULES = [name for _, name, _ in pkgutil.iter_modules(sparsity.__path__, "sparsity.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_functions_have_examples():
    for name in ("sparsify", "masks_of", "fold", "rigl", "set_", "static", "allocate", "erk", "cosine"):
        assert ">>>" in getattr(sparsity, name).__doc__
