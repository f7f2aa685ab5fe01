"""C4 with Llamas: Tables 4 and 15."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from recipes.methods import Ensemble, Method, Rigl, Single, Sparse, Tree
from recipes.rows._data import C4
from recipes.rows._models import LLAMA_130M, LLAMA_250M, LLAMA_350M, Llama
from recipes.rows._recipe import Paper, Recipe, Row
from recipes.rows._small import small_language
from recipes.training import Adam, Cosine, Training


def _recipe(model: Llama, method: Method, steps: int) -> Recipe:
    training = Training(
        Adam(lr=5e-4 if model is LLAMA_350M else 1.5e-3),
        Cosine(floor=0.1, warmup=0.1),
        steps=steps,
        batch_size=512,
        precision="bf16",
        evaluate_every=1000,
    )
    return Recipe(C4(1024), model, method, training)


def _presets(recipe: Recipe, steps: int) -> dict[str, Recipe]:
    return {"paper": recipe, "released": _as_released(recipe), "small": small_language(recipe, steps)}


def _as_released(recipe: Recipe) -> Recipe:
    """What the authors' code does.

    Short sequences, the sum of the heads' losses, all layers and embeddings masked, and a floor of the share of weights
    that an update replaces.
    """
    method = recipe.method
    if isinstance(method, Tree):
        method = replace(method, vote="mean", total=True)
        if method.sparse.sparsity:
            assert isinstance(method.rewiring, Rigl)
            method = replace(
                method,
                sparse=replace(method.sparse, skip=(), include=("embeddings",)),
                rewiring=replace(method.rewiring, floor=0.005),
            )
    return replace(recipe, method=method, data=replace(recipe.data, length=256))


def _trails(split: int, sparsity: float) -> Tree:
    return Tree(split, 3, Sparse(sparsity, skip=("attention",)), Rigl(every=50, temperature=3.0))


def table4() -> Iterator[Row]:
    """Table 4, one row after the other."""
    sizes = {
        "130m": (LLAMA_130M, 4, 10_000, 11_111, 2.21, 1.99, (29.06, 26.46, 26.88, 26.00)),
        "350m": (LLAMA_350M, 8, 40_000, 44_444, 2.27, 2.04, (22.80, 21.06, 21.25, 20.70)),
    }
    for size, (model, trunk, steps, longer, train, inference, perplexities) in sizes.items():
        rows = (
            ("single-dense", Single(), steps, 1.0, 1.0),
            ("treenet-m3", Tree(trunk, 3), steps, train, train),
            ("full-ensemble-m3", Ensemble(), steps, 3.0, 3.0),
            ("neurotrails-m3-s0.1", _trails(trunk, 0.1), longer, train, inference),
        )
        for (name, method, length, training, inferring), perplexity in zip(rows, perplexities, strict=True):
            yield Row(
                f"table4/{size}-{name}",
                f"Llama {size.upper()}, {method.label}",
                _presets(_recipe(model, method, length), steps),
                Paper(perplexity=perplexity, train=training, inference=inferring),
                f"table4/{size}-single-dense",
                "The paper's ratios are ratios of parameters." if isinstance(method, Tree) else "",
            )


def table15() -> Iterator[Row]:
    """Table 15: as many parameters in one dense network."""
    single = "table15/single-dense-250m"
    rows = (
        (single, "Llama 250M", LLAMA_250M, Single(), 26.59, 247.37e6),
        ("table15/neurotrails-m3-s0.13", "Llama 130M", LLAMA_130M, _trails(5, 0.13), 26.48, 245.66e6),
    )
    for name, size, model, method, perplexity, parameters in rows:
        label = f"{size}, {method.label}"
        paper = Paper(perplexity=perplexity, parameters=parameters, train=1.0, inference=1.0)
        yield Row(name, label, _presets(_recipe(model, method, 10_000), 10_000), paper, single)
