"""CIFAR-100 with WRN28-10: Tables 2, 6 and 17, Figures 3, 5, 6 and 7; Tiny-ImageNet: Table 16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from recipes.methods import (
    BatchEnsemble,
    Edst,
    Ensemble,
    Fission,
    Method,
    Mimo,
    OneShot,
    Rewiring,
    Rigl,
    Set,
    Single,
    Sparse,
    Static,
    Tree,
)
from recipes.rows._data import ImageSet
from recipes.rows._models import Wrn
from recipes.rows._recipe import Paper, Recipe, Row
from recipes.rows._small import small_cifar
from recipes.training import FlatLinear, Piecewise, Sgd, Steps, Training

BLOCKS = 12
HEAD = 8
HEADS = (2, 4, 6, 8, 10, 12)
SIZES = tuple(range(1, 11))
SPARSITIES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SINGLE = "table2/single-dense"
_HAVASI = "Havasi et al. (2021)"
_LIU = "Liu et al. (2022)"
_LEE = "Lee and Lee (2024)"
_FIGURE = "The paper shows this as a figure, without numbers."


def _recipe(method: Method, epochs: int, **changes: Any) -> Recipe:
    return Recipe(ImageSet("cifar100"), Wrn(28, 10), method, Training(epochs=epochs, **changes))


def _presets(recipe: Recipe, released: bool = True, dense_epochs: int = 250) -> dict[str, Recipe]:
    presets = {"paper": recipe}
    if released:
        presets["released"] = _as_released(recipe)
    return presets | {"small": small_cifar(recipe, dense_epochs)}


def _as_released(recipe: Recipe) -> Recipe:
    """What the authors' scripts do: Nesterov, updates every 1000 steps with a floor of the share, a vote of logits."""
    method = recipe.method
    rewiring = getattr(method, "rewiring", None)
    if isinstance(rewiring, (Rigl, Set)) and not isinstance(method, Single):
        method = replace(method, rewiring=replace(rewiring, every=1000, floor=0.005))  # pyright: ignore
    if isinstance(method, Tree):
        method = replace(method, vote="mean")
    training = replace(recipe.training, optimizer=replace(recipe.training.optimizer, nesterov=True))
    return replace(recipe, method=method, training=training)


def _trails(members: int, sparsity: float, head: int = HEAD, rewiring: Rewiring | None = None) -> Tree:
    return Tree(BLOCKS - head, members, Sparse(sparsity), rewiring or Rigl(every=100))


def _published(weight_decay: float) -> dict[str, Any]:
    """The training of Havasi et al.: rates drop to a fifth at 80, 160 and 180 of 200 epochs."""
    return {
        "optimizer": Sgd(lr=0.1, momentum=0.9, weight_decay=weight_decay, nesterov=True),
        "schedule": Steps((0.4, 0.8, 0.9), by=0.2),
    }


def edst_schedule(explore: float, members: int) -> Piecewise:
    """The rate of an EDST ensemble: 1 while it explores, then .1 and .01 for half of each ticket's share."""
    each = (1 - explore) / members
    ends = [(explore + each * half / 2, 0.1 if half % 2 else 0.01) for half in range(1, 2 * members)]
    return Piecewise(((explore, 1.0), *ends, (1.0, 0.01)))


def table2() -> Iterator[Row]:
    """Table 2, one row after the other."""

    def row(name: str, recipe: Recipe, paper: Paper, released: bool = True, note: str = "") -> Row:
        return Row(f"table2/{name}", recipe.method.label, _presets(recipe, released), paper, SINGLE, note)

    yield row(
        "single-dense",
        _recipe(Single(), 250),
        Paper(79.8, 0.875, 0.086, train=1.0, inference=1.0, source=_HAVASI),
        note="1x is 3.6e17 FLOPs of training and 10.5e9 of inference in the paper.",
    )
    yield row(
        "mimo-m3",
        _recipe(Mimo(3, 4), 250, **_published(3e-4)),
        Paper(82.0, 0.690, 0.022, train=1.0, inference=1.0, source=_HAVASI),
        released=False,
        note="Each example goes through the network four times a step, which the paper's 1.00x does not count.",
    )
    yield row(
        "edst-ensemble-m7-s0.9",
        _recipe(Edst(7, 150 / 850, sparse=Sparse(0.9)), 850, schedule=edst_schedule(150 / 850, 7)),
        Paper(82.6, 0.653, 0.036, train=0.57, inference=1.17, source=_LIU),
        released=False,
        note="Tickets are the last states of their phases; the source takes the best on a validation set.",
    )
    yield row(
        "dst-ensemble-m3-s0.8",
        _recipe(Ensemble(Sparse(0.8), Rigl(every=1000), 3), 250, schedule=Steps((0.5, 0.75))),
        Paper(83.3, 0.623, 0.018, train=1.01, inference=1.01, source=_LIU),
        released=False,
    )
    yield row(
        "batch-ensemble-m4",
        _recipe(BatchEnsemble(4), 250, **_published(3e-4)),
        Paper(81.5, 0.740, 0.056, train=1.10, inference=1.10, source=_HAVASI),
        released=False,
        note="All members see every example, so it costs four networks; the paper's 1.10x counts parameters.",
    )
    yield row(
        "nfe-m3",
        _recipe(Fission(("stages.0.3", "stages.1.3"), 3), 200, schedule=FlatLinear()),
        Paper(83.5, 0.658, 0.061, train=1.02, inference=1.02, source=_LEE),
        released=False,
    )
    yield row("treenet-m3", _recipe(Tree(BLOCKS - HEAD, 3), 250), Paper(83.2, 0.673, 0.052, train=2.91, inference=2.91))
    yield row("full-ensemble-m3", _recipe(Ensemble(), 250), Paper(83.3, 0.663, 0.042, train=3.0, inference=3.0))
    yield row(
        "neurotrails-m3-s0.8",
        _recipe(_trails(3, 0.8), 450),
        Paper(83.8, 0.681, 0.044, train=0.85, inference=0.47),
    )
    yield row(
        "neurotrails-m5-s0.9",
        _recipe(_trails(5, 0.9), 450),
        Paper(83.9, 0.675, 0.041, train=0.67, inference=0.37),
    )


def table6() -> Iterator[Row]:
    """Table 6: prediction disagreement by blocks in the heads."""
    disagreements, accuracies = (2.9, 11.2, 12.4, 14.6, 15.3, 16.0), (80.89, 82.85, 82.71, 83.81, 83.47, 83.59)
    for head, disagreement, accuracy in zip(HEADS, disagreements, accuracies, strict=True):
        yield Row(
            f"table6/neurotrails-h{head}",
            f"NeuroTrails, {head} blocks in head",
            _presets(_recipe(_trails(3, 0.8, head), 450)),
            Paper(accuracy, disagreement=disagreement),
            SINGLE,
            "With 12 blocks in the heads nothing is shared, the stem neither." if head == BLOCKS else "",
        )
    yield Row(
        "table6/full-ensemble-m3",
        "Full ensemble (M=3)",
        _presets(_recipe(Ensemble(), 250)),
        Paper(83.62, disagreement=15.4),
        SINGLE,
    )


def table16() -> Iterator[Row]:
    """Table 16: Tiny-ImageNet."""

    def row(name: str, method: Method, epochs: int, paper: Paper, released: bool = True, note: str = "") -> Row:
        recipe = replace(_recipe(method, epochs), data=ImageSet("tiny-imagenet"))
        presets = _presets(recipe, released, dense_epochs=100)
        return Row(f"table16/{name}", method.label, presets, paper, "table16/single-dense", note)

    scratch = "The paper's number is for a network pretrained on CIFAR-100; this recipe trains from scratch."
    yield row("single-dense", Single(), 100, Paper(66.5, 1.510, 0.121, train=1.0, inference=1.0))
    nfe = Fission(("stages.0.3",), 2, sparsity=0.25)
    yield row("nfe-m2-s0.25", nfe, 100, Paper(71.0, train=0.76, inference=0.76, source=_LEE), False, scratch)
    nfe = Fission(("stages.0.3", "stages.1.3"), 3)
    yield row("nfe-m3", nfe, 100, Paper(70.6, train=1.01, inference=1.01, source=_LEE), False, scratch)
    yield row("treenet-m3", Tree(4, 3), 100, Paper(69.6, 1.310, 0.118, train=2.91, inference=2.91))
    yield row("full-ensemble-m3", Ensemble(), 100, Paper(70.8, 1.273, 0.115, train=3.0, inference=3.0))
    yield row("neurotrails-m3-s0.8", _trails(3, 0.8), 200, Paper(70.7, 1.322, 0.117, train=0.94, inference=0.47))
    yield row("neurotrails-m5-s0.9", _trails(5, 0.9), 200, Paper(70.9, 1.251, 0.115, train=0.74, inference=0.34))


def table17() -> Iterator[Row]:
    """Table 17: ultra-sparse networks."""
    published = {(3, 0.95): 83.05, (3, 0.99): 80.20, (5, 0.95): 83.48, (5, 0.99): 81.06, (5, 0.995): 79.24}
    for (members, sparsity), accuracy in published.items():
        recipe = _recipe(_trails(members, sparsity), 450)
        name = f"table17/neurotrails-m{members}-s{sparsity:g}"
        yield Row(name, recipe.method.label, _presets(recipe), Paper(accuracy), SINGLE)


def figure3() -> Iterator[Row]:
    """Figure 3: blocks in the heads, by way of making the network sparse."""
    ways: dict[str, tuple[Rewiring, int]] = {
        "rigl": (Rigl(every=100), 450),
        "set": (Set(every=100), 450),
        "static": (Static(), 450),
        "pruned": (OneShot(0.5), 500),
    }
    for way, (rewiring, epochs) in ways.items():
        for head in HEADS:
            recipe = _recipe(_trails(3, 0.8, head, rewiring), epochs)
            label = f"{rewiring.name}, {head} blocks in head"
            yield Row(f"figure3/{way}-h{head}", label, _presets(recipe), Paper(), SINGLE, _FIGURE)


def figure5() -> Iterator[Row]:
    """Figure 5: accuracy and disagreement over training."""
    recipe = _recipe(_trails(3, 0.8), 450)
    presets = {
        preset: replace(each, data=replace(each.data, validation=0.1)) for preset, each in _presets(recipe).items()
    }
    note = "Measured on a tenth of the training images, which are held out; the paper's curves are of the test set."
    yield Row("figure5/neurotrails-m3-s0.8", recipe.method.label, presets, Paper(83.8, disagreement=14.6), SINGLE, note)


def figure6() -> Iterator[Row]:
    """Figure 6: number of heads."""
    for members in SIZES:
        for name, recipe in (
            ("neurotrails", _recipe(_trails(members, 0.8), 450)),
            ("full-ensemble", _recipe(Ensemble(members=members), 250)),
        ):
            yield Row(f"figure6/{name}-m{members}", recipe.method.label, _presets(recipe), Paper(), SINGLE, _FIGURE)


def figure7() -> Iterator[Row]:
    """Figure 7: sparsity."""
    for sparsity in SPARSITIES:
        recipe = _recipe(_trails(3, sparsity), 450)
        name = f"figure7/neurotrails-m3-s{sparsity:g}"
        yield Row(name, recipe.method.label, _presets(recipe), Paper(), SINGLE, _FIGURE)
