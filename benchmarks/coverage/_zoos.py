"""The zoos by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tests.zoo.catalogue.entry import Entry


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


ZOOS: dict[str, Callable[[], list[Entry]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
    "others": _others,
}


@cache
def entries(zoo: str) -> list[Entry]:
    """All models of a zoo."""
    return ZOOS[zoo]()
