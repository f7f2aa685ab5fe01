"""The zoos by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import nn

from tests.zoo.catalogue.entry import Entry, Inputs


def _timm() -> list[Entry]:
    from tests.zoo.catalogue.vision import timm_entries

    return timm_entries()


def _torchvision() -> list[Entry]:
    from tests.zoo.catalogue.vision import torchvision_entries

    return torchvision_entries()


def _transformers() -> list[Entry]:
    from tests.zoo.catalogue.hugging_face import transformers_entries

    return transformers_entries()


def _others() -> list[Entry]:
    from tests.zoo.catalogue.shrunk import shrunk_entries

    return shrunk_entries()


def _packages() -> list[Entry]:
    """Models of other packages; their builders return a model with its inputs."""
    from tests.zoo.packages import PACKAGES

    found: list[Entry] = []
    for name, make in PACKAGES.items():
        inputs: dict[int, Inputs] = {}

        def build(make: Callable[[], tuple[nn.Module, Inputs]] = make, inputs: dict[int, Inputs] = inputs) -> nn.Module:
            model, inputs[id(model)] = make()
            return model

        found.append(Entry("packages", name, name.split()[0], build, lambda model, inputs=inputs: inputs[id(model)]))
    return found


ZOOS: dict[str, Callable[[], list[Entry]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
    "others": _others,
    "packages": _packages,
}


@cache
def entries(zoo: str) -> list[Entry]:
    """All models of a zoo."""
    return ZOOS[zoo]()
