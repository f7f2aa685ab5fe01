"""Finished runs measured further: corrupted images, other data sets, features, downstream tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from recipes.cli import main
from recipes.cli._evaluate import _TextCodec
from recipes.cli._folder import Choice
from recipes.cli._restore import restore
from recipes.data import Bytes, corrupted, in_order
from recipes.evaluation import accuracy, head_features, mean_probability, ood_auroc, predict
from recipes.training import write_tensors
from tests.recipes._tiny_data import write_packed

# Of networks that learned nothing, on thirty images of noise.
pytestmark = pytest.mark.filterwarnings("ignore:The NLL on .* has no lowest point")

SIZE = [f"--set={each}" for each in ("classes=none", "images=none", "depth=10", "width=1", "epochs=2", "batch_size=32")]
ROWS = {
    "table2/single-dense": SIZE,
    "table2/neurotrails-m3-s0.8": [*SIZE, "--set=split=1", "--set=every=2"],
    "table2/full-ensemble-m3": [*SIZE, "--set=members=2"],
    "table2/batch-ensemble-m4": [*SIZE, "--set=members=2"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_packed(folder / "cifar100.npz")
    write_packed(folder / "cifar10.npz", classes=3, test=12)
    return folder


def run(out: Path, root: Path, row: str, *changes: str) -> None:
    places = ("--out", str(out), "--data-root", str(root))
    assert main(["run", row, "--quiet", *places, *changes]) == 0


def evaluate(out: Path, root: Path, row: str, *arguments: str) -> int:
    return main(["evaluate", row, "--out", str(out), "--data-root", str(root), *arguments])


def numbers(out: Path, row: str, state: str = "last") -> dict[str, Any]:
    (file,) = (out / row).glob(f"*/seed0/evaluation-{state}/metrics.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize("row", ROWS)
def test_a_run_is_measured_on_more(row: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, root, row, *ROWS[row])
    first = json.loads(next((tmp_path / row).glob("*/seed0/result.json")).read_text())
    asked = ("--corruptions", "contrast", "fog", "--severities", "1", "5", "--outside", "cifar10")
    assert evaluate(tmp_path, root, row, *ROWS[row], *asked) == 0, capsys.readouterr().err
    found = numbers(tmp_path, row)

    choice = Choice.of(row, "small", [change.removeprefix("--set=") for change in ROWS[row]])
    data: Any = choice.recipe.data
    material = data.load(root)
    images = material.data
    net = restore(choice, material, tmp_path, 0, "last")
    clean = predict(net, in_order(images.test, prepare=images.prepare))
    assert accuracy(mean_probability(clean.logits), clean.labels) == first["metrics"]["last"]["accuracy_prob"]
    spoilt = predict(net, in_order(corrupted(images.test, "fog", 5), prepare=images.prepare))
    assert found["corruption"]["fog"]["5"] == accuracy(mean_probability(spoilt.logits), spoilt.labels)
    assert set(found["corruption"]) == {"contrast", "fog", "mean"}
    assert set(found["corruption"]["contrast"]) == {"1", "5"}
    # The other data set is measured as the network's own: with the statistics that it was trained with.
    strange = type(data)("cifar10").load(root).data.test
    outside = predict(net, in_order(strange, prepare=images.prepare)).logits
    auroc = ood_auroc(mean_probability(clean.logits), mean_probability(outside))
    assert found["ood"]["cifar10"]["max_probability"] == auroc
    printed = capsys.readouterr().out
    assert f"cifar10: AUROC {auroc:.4f}" in printed
    assert "report.html" in printed


def test_files_of_corrupted_images_and_the_best_state(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = "table2/neurotrails-m3-s0.8"
    run(tmp_path, root, row, *ROWS[row])
    folder = tmp_path / "CIFAR-100-C"
    folder.mkdir()
    with np.load(root / "cifar100.npz") as packed:
        labels = packed["test_labels"]
    np.save(folder / "labels.npy", np.tile(labels, 5))
    np.save(folder / "fog.npy", np.zeros((5 * len(labels), 32, 32, 3), np.uint8))
    asked = ("--corruptions", "fog", "--corrupted-from", str(tmp_path), "--state", "best", "--modules", "stages.2.0")
    assert evaluate(tmp_path, root, row, *ROWS[row], *asked) == 0
    found = numbers(tmp_path, row, "best")
    # All images are black, so all predictions are one class, of which there are a quarter.
    assert found["corruption"]["fog"] == {str(severity): 0.25 for severity in (1, 2, 3, 4, 5)}
    assert set(found["cka"]) == {"stages.2.0", "logits"}
    assert {"corruption.png", "report.html", "metrics.json"} <= {
        file.name for file in next((tmp_path / row).glob("*/seed0/evaluation-best")).iterdir()
    }
    assert evaluate(tmp_path, root, row, *ROWS[row], "--modules", "stages.9") == 2
    assert "stages.9" in capsys.readouterr().err


def test_a_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"all work and no play makes jack {number} a dull boy.\n" for number in range(200)))
    row = "table4/130m-treenet-m3"
    settings = ["name=text", "vocab=300", "length=16", "layers=3", "hidden=16", "intermediate=24", "heads=2", "split=1"]
    settings += ["positions=16", "steps=4", "batch_size=8", "evaluate_every=2", "schedule.warmup=.25"]
    changes = [f"--set={setting}" for setting in settings]
    seen: list[Any] = []

    def run_tasks(model: Any, tasks: Any, **options: Any) -> dict[str, float]:
        seen.append((model, tuple(tasks), options))
        return {"arc_easy": 0.25, "average": 0.25}

    run(tmp_path, text, row, *changes)
    monkeypatch.setattr("recipes.cli._evaluate.run_tasks", run_tasks)
    assert evaluate(tmp_path, text, row, *changes, "--tasks", "arc_easy", "--limit", "3") == 0
    ((model, tasks, options),) = seen
    assert tasks == ("arc_easy",)
    assert options == {"limit": 3}
    assert model.max_length == 16
    assert "jack" in model.tokenizer.decode(model.tok_encode("makes jack"))
    result = json.loads(next((tmp_path / row).glob("*/seed0/result.json")).read_text())
    found = numbers(tmp_path, row)["perplexity"]["text"]["prob"]
    assert found == pytest.approx(result["metrics"]["last"]["perplexity_prob"], rel=1e-6)
    assert numbers(tmp_path, row)["tasks"] == {"arc_easy": 0.25, "average": 0.25}
    page = next((tmp_path / row).glob("*/seed0/evaluation-last/report.html")).read_text()
    assert "accuracy on arc_easy" in page


def test_what_was_measured_before_is_kept(root: Path, tmp_path: Path) -> None:
    row = "table2/single-dense"
    run(tmp_path, root, row, *SIZE)

    def measured(*asked: str) -> dict[str, Any]:
        assert evaluate(tmp_path, root, row, *SIZE, *asked) == 0
        return numbers(tmp_path, row)

    fog = measured("--corruptions", "fog", "--severities", "1", "5")
    assert set(fog["corruption"]) == {"fog", "mean"}
    both = measured("--corruptions", "contrast", "--severities", "5")
    assert both["corruption"]["fog"] == fog["corruption"]["fog"]
    accuracies = [both["corruption"][name]["5"] for name in ("fog", "contrast")]
    assert both["corruption"]["mean"] == {"5": pytest.approx(sum(accuracies) / 2)}
    three = measured("--outside", "cifar10")
    assert set(three["ood"]) == {"cifar10"}
    assert three["corruption"] == both["corruption"]
    few = measured("--images", "8")
    assert few["test"] != three["test"]
    assert {key: few[key] for key in ("ood", "corruption")} == {key: three[key] for key in ("ood", "corruption")}
    page = next((tmp_path / row).glob("*/seed0/evaluation-last/report.html")).read_text()
    assert "metrics.json keeps what was measured before as well" in page


def test_what_is_missing_is_said_before_anything_is_computed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = "table2/single-dense"
    run(tmp_path, root, row, *SIZE)
    monkeypatch.setattr("recipes.cli._evaluate.predict", lambda *_, **__: pytest.fail("computed"))
    for asked, message in (
        (["--outside", "cifar10", "tiny-imagenet"], "Tiny-ImageNet is not in"),
        (["--sketch"], "ImageNet-Sketch is not in"),
        (["--corruptions", "fog", "--corrupted-from", str(tmp_path)], "CIFAR-100-C is not in"),
        (["--corruptions", "fog", "--severities", "1", "7"], "severity must be 1 to 5, got 7"),
        (["--seeds", "2"], "There is no finished run in"),
        (["--modules", "stages.2.0"], "compares features of several heads, and the networks of this row have one"),
        (["--tasks", "piqa"], "--tasks do not apply"),
    ):
        assert evaluate(tmp_path, root, row, *SIZE, *asked) == 2
        assert message in capsys.readouterr().err


def test_tokenizers_as_the_harness_takes_them() -> None:
    codec = _TextCodec(Bytes())
    assert codec.eos_token_id == 256
    assert codec.encode("ab") == [97, 98]
    assert codec.decode([97, 98]) == "ab"


def test_what_does_not_fit(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "table2/single-dense"

    def message(*arguments: str) -> str:
        assert evaluate(tmp_path, root, row, *arguments) == 2
        return capsys.readouterr().err

    assert "There is no finished run in" in (said := message(*SIZE))
    assert "python -m recipes run table2/single-dense --preset small --set batch_size=32" in said
    assert "seeds must be at least 1, got 0" in message("--seeds", "0")
    changes = [*SIZE, "--set=validation=0"]
    run(tmp_path, root, row, *changes)
    assert "holds no 'best' state" in message(*changes, "--state", "best")
    assert "Did you mean 'fog'" in message(*changes, "--corruptions", "fogg")
    assert "severity must be 1 to 5, got 6" in message(*changes, "--corruptions", "fog", "--severities", "6")
    assert "digits has images [1, 8, 8], but the network was trained on [3, 32, 32]" in message(
        *changes, "--outside", "digits"
    )
    assert "--tasks do not apply" in message(*changes, "--tasks", "piqa")


def test_a_single_network_has_features_too(root: Path, tmp_path: Path) -> None:
    row = "table2/single-dense"
    run(tmp_path, root, row, *SIZE)
    assert evaluate(tmp_path, root, row, *SIZE) == 0
    found = numbers(tmp_path, row)
    choice = Choice.of(row, "small", [each.removeprefix("--set=") for each in SIZE])
    material = choice.recipe.data.load(root)
    (features,) = head_features(restore(choice, material, tmp_path, 0, "last"), "stages.2.0", material.example)
    assert features.shape[0] == len(material.example)

    # As an earlier version left it: a state dict of the network alone.
    folder = next((tmp_path / row).glob("*/seed0"))
    state = load_file(folder / "last.safetensors")
    write_tensors(folder / "last.pt", {name.removeprefix("heads.0."): value for name, value in state.items()})
    (folder / "last.safetensors").unlink()
    assert evaluate(tmp_path, root, row, *SIZE) == 0
    assert numbers(tmp_path, row) == found
