"""The examples in the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch
from torch import nn

import fxsplit
import sparsity

PACKAGES = ("fxsplit", "sparsity", "recipes")
NAMESPACE = {
    **{name: getattr(package, name) for package in (fxsplit, sparsity) for name in package.__all__},
    **{"torch": torch, "nn": nn, "fxsplit": fxsplit, "sparsity": sparsity},
}
PUBLIC = [
    *((fxsplit, name) for name in fxsplit.__all__ if callable(getattr(fxsplit, name))),
    *((sparsity, name) for name in sparsity.__all__ if callable(getattr(sparsity, name))),
]


def modules() -> list[str]:
    names = []
    for package in map(importlib.import_module, PACKAGES):
        names.append(package.__name__)
        names += [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_examples_run(name: str) -> None:
    torch.manual_seed(0)
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs=NAMESPACE, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_there_are_examples_to_run() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [t for name in modules() for t in finder.find(importlib.import_module(name)) if t.examples]
    assert len(examples) >= 10


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[f"{p.__name__}.{n}" for p, n in PUBLIC])
def test_public_names_are_documented(package: object, name: str) -> None:
    assert (getattr(package, name).__doc__ or "").strip()
