"""Recipes of the paper made small: the same methods on what two cores train in minutes to an hour."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recipes.data import Bpe
from recipes.methods import Edst, Fission, Method, Rigl, Set, Tree
from recipes.rows._data import ImageSet, TextSet
from recipes.rows._models import DigitsResnet, Llama, Wrn
from recipes.rows._recipe import Recipe
from recipes.training import Sgd

# Steps between updates of the masks: about as many updates as the small trainings can use.
EVERY = 20


def small_cifar(recipe: Recipe, epochs: int = 250) -> Recipe:
    """CIFAR-100 with WRN28-10, made small: 20 classes, 5000 images, WRN16-2 (6 blocks for 12), 30 epochs.

    Args:
        recipe: As in the paper.
        epochs: What becomes 30 epochs; others in proportion.
    """
    training = recipe.training
    trained = round((training.epochs or 0) * 30 / epochs)
    return Recipe(
        ImageSet("cifar100", validation=0.1, classes=20, images=5000),
        Wrn(16, 2),
        smaller(recipe.method, 6 / 12, {"stages.0.3": "stages.0.1", "stages.1.3": "stages.1.1"}),
        replace(training, epochs=trained, batch_size=64),
    )


def small_imagenet(recipe: Recipe) -> Recipe:
    """ImageNet with ResNet-50, made small: handwritten digits with a ResNet of 6 blocks for 16, 90 epochs become 50."""
    training = recipe.training
    return Recipe(
        ImageSet("digits", validation=0.1),
        DigitsResnet(),
        smaller(recipe.method, 6 / 16, {"layer2.2": 2}),
        replace(
            training,
            epochs=round((training.epochs or 0) * 50 / 90),
            batch_size=64,
            optimizer=Sgd(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
        ),
    )


def small_language(recipe: Recipe, steps: int) -> Recipe:
    """C4 with a Llama, made small: WikiText-2, a Llama of 6 layers for 12 or 24, 1000 steps.

    Args:
        recipe: As in the paper.
        steps: What becomes 1000 steps; others in proportion.
    """
    assert isinstance(recipe.model, Llama)
    wide, deep = recipe.model.hidden > 768, recipe.model.intermediate > 2048 and recipe.model.hidden == 768
    hidden, layers = (192 if wide else 128), (12 if deep else 6)
    training = recipe.training
    return Recipe(
        TextSet("wikitext2", Bpe(2048), length=128, validation_tokens=50_000),
        Llama(layers, hidden, 8 * hidden // 3, 4, 128),
        smaller(recipe.method, 6 / recipe.model.layers, {}),
        replace(
            training,
            steps=round((training.steps or 0) * 1000 / steps),
            batch_size=32,
            evaluate_every=100,
            precision="fp32",
        ),
    )


def smaller(method: Method, scale: float, places: dict[str, Any]) -> Method:
    """Return a method for a network with fewer blocks and a shorter training.

    Args:
        method: For the paper's network.
        scale: Blocks of the small network, relative to the paper's.
        places: Paths in the small network for paths in the paper's.
    """
    changes: dict[str, Any] = {}
    rewiring = getattr(method, "rewiring", None)
    if isinstance(rewiring, (Rigl, Set)):
        changes["rewiring"] = replace(rewiring, every=EVERY)
    if isinstance(method, Edst):
        changes["every"] = EVERY
    if isinstance(method, Tree):
        split = method.split
        changes["split"] = round(split * scale) if isinstance(split, int) else places.get(str(split), split)
    if isinstance(method, Fission):
        changes["at"] = tuple(places.get(str(each), each) for each in method.at)
    return replace(method, **changes)
