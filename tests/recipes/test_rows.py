from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from recipes._errors import RecipeError
from recipes.data import Bpe, Bytes, Pretrained
from recipes.methods import Edst, Ensemble, Fission, Rigl, Set, Tree
from recipes.rows import (
    C4,
    PLACES,
    DigitsResnet,
    ImageSet,
    Llama,
    Row,
    TextSet,
    Timm,
    Wrn,
    all_rows,
    find,
    home,
    matching,
    of_place,
    overridden,
    settings_of,
    spelled,
)
from recipes.rows._cifar import edst_schedule
from recipes.training import Adam, Sgd, Training

ROWS = list(all_rows().values())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_complete(row: Row) -> None:
    assert next(iter(row.presets)) == "paper"
    assert list(row.presets)[-1] == "small"
    assert row.reference in all_rows()
    assert row.label
    for preset, recipe in row.presets.items():
        json.dumps(recipe.as_dict())
        assert settings_of(recipe)
        assert home(row, preset).presets[preset] == recipe
        assert recipe.method.heads >= 1
    small = row.recipe("small")
    assert isinstance(small.model, (Wrn, DigitsResnet, Llama))
    assert small.data.name in ("cifar100", "digits", "wikitext2")
    numbers = row.paper
    if row.place.startswith("table"):
        assert numbers.accuracy is not None or numbers.perplexity is not None


def test_the_numbers_of_rows_in_each_table() -> None:
    assert {place: len(of_place(place)) for place in PLACES} == {
        "table2": 10,
        "table3": 8,
        "table4": 8,
        "table6": 7,
        "table15": 2,
        "table16": 7,
        "table17": 5,
        "figure3": 24,
        "figure5": 1,
        "figure6": 20,
        "figure7": 10,
    }


# Epochs or updates of Tables 11 to 14.
SCHEDULES = {
    "table2/single-dense": 250,
    "table2/mimo-m3": 250,
    "table2/edst-ensemble-m7-s0.9": 850,
    "table2/dst-ensemble-m3-s0.8": 250,
    "table2/batch-ensemble-m4": 250,
    "table2/nfe-m3": 200,
    "table2/treenet-m3": 250,
    "table2/full-ensemble-m3": 250,
    "table2/neurotrails-m3-s0.8": 450,
    "table2/neurotrails-m5-s0.9": 450,
    "table3/single-dense": 90,
    "table3/mimo-m2-rho0.6": 150,
    "table3/edst-ensemble-m4-s0.8": 310,
    "table3/dst-ensemble-m2-s0.8": 200,
    "table3/batch-ensemble-m4": 135,
    "table3/treenet-m3": 180,
    "table3/full-ensemble-m4": 90,
    "table3/neurotrails-m3-s0.7": 270,
    "table4/130m-single-dense": 10_000,
    "table4/130m-neurotrails-m3-s0.1": 11_111,
    "table4/350m-treenet-m3": 40_000,
    "table4/350m-neurotrails-m3-s0.1": 44_444,
    "table16/neurotrails-m3-s0.8": 200,
    "table16/treenet-m3": 100,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_the_appendix(name: str) -> None:
    training = find(name).recipe("paper").training
    assert (training.epochs or training.steps) == SCHEDULES[name]


def test_what_the_appendix_says_of_neurotrails() -> None:
    cifar, imagenet, language = (
        find(name).recipe("paper")
        for name in ("table2/neurotrails-m3-s0.8", "table3/neurotrails-m3-s0.7", "table4/130m-neurotrails-m3-s0.1")
    )
    assert cifar.training.optimizer == Sgd(0.1, 0.9, 5e-4)
    assert (cifar.training.batch_size, imagenet.training.batch_size, language.training.batch_size) == (128, 256, 512)
    assert imagenet.training.optimizer == Sgd(0.256, 0.875, 3.05e-5)
    assert language.training.optimizer == Adam(1.5e-3)
    assert find("table4/350m-single-dense").recipe("paper").training.optimizer == Adam(5e-4)
    methods = [recipe.method for recipe in (cifar, imagenet, language)]
    assert all(isinstance(method, Tree) for method in methods)
    assert [method.rewiring for method in methods] == [  # pyright: ignore
        Rigl(every=100),
        Rigl(every=1000),
        Rigl(every=50, temperature=3.0),
    ]
    assert [method.split for method in methods] == [4, "layer2.2", 4]  # pyright: ignore
    assert methods[2].sparse.skip == ("attention",)  # pyright: ignore
    assert language.training.precision == "bf16"
    assert language.data == C4(1024)


def test_what_the_released_code_does_otherwise() -> None:
    cifar = find("table2/neurotrails-m3-s0.8").recipe("released")
    imagenet = find("table3/neurotrails-m3-s0.7").recipe("released")
    language = find("table4/130m-neurotrails-m3-s0.1").recipe("released")
    assert cifar.training.optimizer == Sgd(0.1, 0.9, 5e-4, nesterov=True)
    assert cifar.method == replace(
        find("table2/neurotrails-m3-s0.8").recipe("paper").method,  # pyright: ignore
        vote="mean",
        rewiring=Rigl(every=1000, floor=0.005),
    )
    assert isinstance(imagenet.method, Tree)
    assert imagenet.method.rewiring == Set(1000, floor=0.005)
    assert imagenet.training.epochs == 200
    assert isinstance(language.method, Tree)
    assert language.method.total
    assert language.method.sparse.include == ("embeddings",)
    assert language.method.rewiring == Rigl(every=50, temperature=3.0, floor=0.005)
    assert find("table15/neurotrails-m3-s0.13").recipe("released").method.rewiring.floor == 0.005  # pyright: ignore
    assert language.data == C4(256)


def test_rows_of_other_papers_have_no_released_preset() -> None:
    with pytest.raises(RecipeError, match=r"no preset 'released'.*numbers from Havasi et al. \(2021\).*paper, small"):
        find("table2/mimo-m3").recipe("released")
    with pytest.raises(RecipeError, match=r"Unknown preset 'smal'.*Did you mean 'small'"):
        find("table2/mimo-m3").recipe("smal")


def test_the_rate_of_an_edst_ensemble() -> None:
    schedule = edst_schedule(150 / 850, 7)
    rates = {epoch: round(0.1 * schedule.factor(epoch, 850), 6) for epoch in (0, 149, 150, 199, 200, 249, 250, 849)}
    assert rates == {0: 0.1, 149: 0.1, 150: 0.01, 199: 0.01, 200: 0.001, 249: 0.001, 250: 0.01, 849: 0.001}


def test_the_rates_of_havasi_et_al_on_imagenet() -> None:
    """Of 90 epochs they drop at 30, 60 and 80: of MIMO's 150 at 50, 100 and 133, of BatchEnsemble's 135 likewise."""
    epochs = {
        "table3/mimo-m2-rho0.6": {
            0: 0.002,
            24: 0.05,
            49: 0.1,
            499: 0.1,
            500: 0.01,
            1000: 0.001,
            1329: 0.001,
            1330: 1e-4,
        },
        "table3/batch-ensemble-m4": {0: 1 / 700, 69: 0.1, 449: 0.1, 450: 0.01, 900: 0.001, 1199: 0.001, 1200: 1e-4},
    }
    for name, rates in epochs.items():
        training = find(name).recipe("paper").training
        steps = training.total_steps(10)  # ten steps an epoch
        found = {step: training.optimizer.lr * training.schedule.factor(step, steps) for step in rates}
        assert found == pytest.approx(rates), name
        small = find(name).recipe("small").training
        assert small.schedule == training.schedule


def test_small_recipes_keep_the_proportions() -> None:
    trails = find("table2/neurotrails-m3-s0.8").recipe("small")
    assert isinstance(trails.method, Tree)
    assert trails.method.split == 2  # of 6 blocks, as 4 of 12
    assert (trails.training.epochs, find("table2/treenet-m3").recipe("small").training.epochs) == (54, 30)
    assert [find(f"table6/neurotrails-h{head}").recipe("small").method.split for head in (2, 12)] == [5, 0]  # pyright: ignore
    fission = find("table2/nfe-m3").recipe("small").method
    assert isinstance(fission, Fission)
    assert fission.at == ("stages.0.1", "stages.1.1")
    edst = find("table2/edst-ensemble-m7-s0.9").recipe("small").method
    assert isinstance(edst, Edst)
    assert edst.every == 20
    assert find("table3/treenet-m3").recipe("small").method.split == 2  # pyright: ignore


class TestModels:
    def test_sizes_of_the_llamas(self) -> None:
        # Embedding and output, then attention, MLP and norms of each layer.
        sizes = []
        for row in ("table4/130m-single-dense", "table15/single-dense-250m", "table4/350m-single-dense"):
            llama = find(row).recipe("paper").model
            assert isinstance(llama, Llama)
            layer = 4 * llama.hidden**2 + 3 * llama.hidden * llama.intermediate + 2 * llama.hidden
            sizes.append(2 * 32_000 * llama.hidden + llama.layers * layer + llama.hidden)
        assert sizes[1] == pytest.approx(247.37e6, rel=1e-4)  # Table 15
        assert [round(size / 1e6) for size in sizes] == [134, 247, 368]
        net = Llama(layers=2, hidden=16, intermediate=24, heads=2, positions=8).make(50, 0)
        assert sum(p.numel() for p in net.parameters()) == 2 * 50 * 16 + 2 * (4 * 256 + 3 * 16 * 24 + 32) + 16

    def test_wide_resnet_and_timm(self) -> None:
        assert Wrn(10, 2).make(100, 3).get_submodule("fc").out_features == 100
        assert Timm("resnet18").make(7, 1).get_parameter("conv1.weight").shape[1] == 1
        with pytest.raises(RecipeError, match="timm has no model 'resnet55'"):
            Timm("resnet55").make(10, 3)
        with pytest.raises(RecipeError, match="depth must be 6 n"):
            Wrn(27, 1).make(10, 3)
        with pytest.raises(RecipeError, match=r"hidden must be a multiple of 2 x heads.*hidden=32 and heads=3"):
            Llama(hidden=32, heads=3)
        with pytest.raises(RecipeError, match="layers must be at least 1, got 0"):
            Llama(layers=0)
        with pytest.raises(RecipeError, match="grey images"):
            DigitsResnet().make(10, 3)


class TestLookUp:
    def test_patterns(self) -> None:
        assert [row.name for row in matching("table17")] == [row.name for row in of_place("17")]
        assert len(matching("figure6/full*")) == 10
        assert all("treenet" in row.name for row in matching("treenet"))

    @pytest.mark.parametrize(
        ("look_up", "message"),
        [
            (lambda: find("table2/treenet-m4"), "Unknown row.*Did you mean 'table2/treenet-m3'"),
            (lambda: find("xyz"), "python -m recipes list"),
            (lambda: matching("tabel2"), "No row matches 'tabel2'.*table2"),
            (lambda: of_place("5"), "There is no 'table5'. There are table2"),
        ],
    )
    def test_near_matches(self, look_up: object, message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            look_up()  # pyright: ignore

    def test_the_same_network_is_trained_once(self) -> None:
        names = ("table6/neurotrails-h8", "figure3/rigl-h8", "figure6/neurotrails-m3", "figure7/neurotrails-m3-s0.8")
        assert {home(find(name), "paper").name for name in names} == {"table2/neurotrails-m3-s0.8"}
        assert home(find("figure6/full-ensemble-m3"), "small").name == "table2/full-ensemble-m3"
        assert home(find("figure5/neurotrails-m3-s0.8"), "paper").name == "figure5/neurotrails-m3-s0.8"


class TestOverrides:
    recipe = find("table2/neurotrails-m3-s0.8").recipe("paper")

    def test_by_name_and_by_path(self) -> None:
        changed = overridden(
            self.recipe, ["lr=.05", "method.members=5", "epochs=none", "steps=7", "drops=(.5,)", "nesterov=true"]
        )
        assert changed.training.optimizer == Sgd(0.05, 0.9, 5e-4, nesterov=True)
        assert isinstance(changed.method, Tree)
        assert changed.method.members == 5
        assert (changed.training.epochs, changed.training.steps) == (None, 7)
        assert changed.training.schedule.drops == (0.5,)  # pyright: ignore
        assert overridden(self.recipe, []) is self.recipe

    def test_values_of_several_types(self) -> None:
        assert overridden(self.recipe, ["split=stages.0.2"]).method.split == "stages.0.2"  # pyright: ignore
        assert overridden(self.recipe, ["clip=1"]).training.clip == 1.0
        assert overridden(self.recipe, ["temperature=2.5"]).method.rewiring.temperature == 2.5  # pyright: ignore
        assert overridden(self.recipe, ["classes=10"]).data == ImageSet("cifar100", classes=10)

    def test_proportions_of_a_table_are_kept(self) -> None:
        for name, epochs in (("treenet-m3", 8), ("neurotrails-m3-s0.8", 14), ("edst-ensemble-m7-s0.9", 26)):
            small = overridden(find(f"table2/{name}").recipe("small"), ["epochs=*.25", "lr=*2"])
            assert (small.training.epochs, small.training.optimizer.lr) == (epochs, 0.2)
        assert overridden(self.recipe, ["epochs=*.001"]).training.epochs == 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("leraning_rate=1", "no setting 'leraning_rate'"),
            ("momentom=.9", "Did you mean 'momentum'"),
            ("learning_rate=1", r"no setting 'learning_rate'. Did you mean 'lr'\?"),
            ("learning-rte=1", r"Did you mean 'lr'\?"),
            ("milestones=.5", r"Did you mean 'drops'\?"),
            ("drops=.5", r"Write a tuple as drops=\(\.25,\.5\), of one value as drops=\(\.5,\)\."),
            ("skip=attention", r"skip=\('stages\.0\.0','stages\.1\.0'\), of one value as skip=\('attention',\)"),
            ("lr", "takes name=value"),
            ("lr=fast", "training.optimizer.lr must be of type float, got 'fast'"),
            ("steps=*.5", "multiplies None"),
            ("lr=*fast", "a positive factor"),
            ("nesterov=*2", "multiplies False"),
            ("members=2.5", "method.members must be of type int"),
            ("epochs=0", "epochs must be at least 1"),
            ("sparsity=1.5", "sparsity must be at least 0"),
            ("steps=4", "Set either epochs or steps"),
            ("drops=(.5,3)", "drops must be rising shares"),
            ("drops=('a',)", "drops must be rising shares"),
            ("accumulate=100", "accumulate must divide batch_size=128"),
        ],
    )
    def test_what_cannot_be_set(self, change: str, message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            overridden(self.recipe, [change])

    def test_pairs_are_shown_as_pairs(self) -> None:
        recipe = find("table2/edst-ensemble-m7-s0.9").recipe("paper")
        with pytest.raises(RecipeError, match=r"Write a tuple as pieces=\(\(\.5,1\),\(1,\.1\)\)\.$"):
            overridden(recipe, ["pieces=1"])
        assert overridden(recipe, ["pieces=((.5,1),(1,.1))"]).training.schedule.factor(9, 10) == 0.1

    def test_tokenizers_by_name(self) -> None:
        for preset, data in (("small", TextSet("wikitext2", validation_tokens=50_000)), ("paper", C4(1024))):
            recipe = find("table4/130m-single-dense").recipe(preset)
            for name, tokenizer in (("gpt2", Pretrained("gpt2")), ("bytes", Bytes()), ("bpe:300", Bpe(300))):
                changed = overridden(recipe, [f"tokenizer={name}"])
                assert changed.data == replace(data, tokenizer=tokenizer)
                assert str(tokenizer) == name
        changed = overridden(recipe, ["data.tokenizer=bpe", "tokenizer.vocab=500", "data.length=32"])
        assert changed.data == C4(32, Bpe(500))
        small = find("table4/130m-single-dense").recipe("small")
        spellings = (["data.tokenizer=bpe:4000", "tokenizer = bytes", "lr=0.10"], ["lr=.1", "tokenizer=bytes"])
        assert [spelled(small, each) for each in spellings] == [("lr=.1", "tokenizer=bytes")] * 2
        with pytest.raises(RecipeError, match="as in bpe:8000; got 'bpe:many'"):
            overridden(recipe, ["tokenizer=bpe:many"])
        with pytest.raises(RecipeError, match="no setting 'tokenizer'"):
            overridden(self.recipe, ["tokenizer=gpt2"])

    def test_text_too_short_for_an_example(self) -> None:
        recipe = find("table4/130m-single-dense").recipe("small")
        for name in ("tokens", "validation_tokens"):
            with pytest.raises(
                RecipeError, match=f"^{name} must be at least length=128, the tokens of one example, got"
            ):
                overridden(recipe, [f"{name}=10"])
        for data in (TextSet, C4):
            with pytest.raises(RecipeError, match="length must be at least 2"):
                data(length=1)

    def test_ambiguous_names(self) -> None:
        recipe = replace(self.recipe, model=Timm("resnet18"))
        with pytest.raises(RecipeError, match=r"Several settings are called 'name': data\.name, model\.name"):
            overridden(recipe, ["name=digits"])
        assert overridden(recipe, ["model.name=resnet50"]).model == Timm("resnet50")


def test_text_and_image_materials(tmp_path: object) -> None:
    from recipes.training import Processes

    alone = Processes(0, 1, torch.device("cpu"))
    images = ImageSet("digits", validation=0.25, classes=3, images=60).load(None)
    assert (images.outputs, images.channels, images.has_validation) == (3, 1, True)
    assert sum(len(y) for _, y in images.read("validation", alone)) == 15
    assert images.feed(15, 0, alone, 0).steps == 3
    assert not ImageSet("digits").load(None).has_validation

    from pathlib import Path

    file = Path(str(tmp_path)) / "text.txt"
    file.write_text("all work and no play makes jack a dull boy. " * 60)
    text = TextSet("text", Bytes(), length=16, validation_tokens=40).load(file)
    assert (text.outputs, text.channels, tuple(text.example.shape)) == (257, 0, (2, 16))
    assert sum(len(x) for x, _ in text.read("validation", alone)) == 2


def test_ensembles_train_independently() -> None:
    method = find("table2/full-ensemble-m3").recipe("paper").method
    assert isinstance(method, Ensemble)
    assert (method.networks, method.heads, method.sparse.sparsity) == (3, 3, 0.0)
    assert Training(epochs=2).total_steps(10) == 20
