"""Pictures from the command line, in the order of a new user: train, classify, sample, evaluate, compare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from command import call
from flops_fit import cli
from flops_fit.data import parquet
from flops_fit.data.cats import CLASSES, cat_pictures
from flops_fit.data.pictures import png, write_png
from flops_fit.recipes.dit_cats import Preset, training
from flops_fit.runs.watch import Quiet
from flops_fit.study.training import train

SIDE, EACH = 64, 10
TINY = {"image_size": 16, "patch": 4, "hidden": 32, "layers": 1, "heads": 2}
FAST = Preset(steps=60, batch_size=16, lr=5e-3, warmup_steps=6, looks=4)
MOST = 0.75  # of 52 new pictures are told rightly, by chance .08; rounding decides whether 44 of them or more
KEYS = {"bundle", "data_sha256", "metrics", "absent"}


def pictures() -> list[tuple[str, torch.Tensor]]:
    """(class, (3, S, S) uint8): a colour for each class, with a light square somewhere, under noise."""
    generator = torch.Generator().manual_seed(0)
    shade = 30 + 150 * torch.rand(len(CLASSES), 3, generator=generator)
    made = []
    for number in range(EACH * len(CLASSES)):
        label = number % len(CLASSES)
        image = shade[label][:, None, None] + 8 * torch.randn(3, SIDE, SIDE, generator=generator)
        row, column = torch.randint(0, SIDE - 20, (2,), generator=generator).tolist()
        image[:, row : row + 20, column : column + 20] += 60
        made.append((CLASSES[label], image.clamp(0, 255).byte()))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cats/ with a subfolder for each class, and new.parquet with pictures of which nobody says what they are for."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    made = pictures()
    for number, (name, image) in enumerate(made):
        kind = folder / "cats" / name.replace(" ", "_")
        kind.mkdir(parents=True, exist_ok=True)
        write_png(kind / f"{number}.png", image)
    new = [(CLASSES.index(name), image.flip(2)) for name, image in made[: 4 * len(CLASSES)]]
    parquet.write(folder / "new.parquet", {"label": [a for a, _ in new], "jpeg": [png(b) for _, b in new]})
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """As `folder`, with classifier/ and flow/ in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (
            ("train", "cats-classifier", "--data", "cats", "--image-size", "32", "--epochs", "12", "--batch-size", "16",
             "--lr", "5e-3", "--augmentation-level", "basic", "--output", "classifier"),
            ("train", "dit-cats", "--data", "cats", "--steps", "20", "--batch-size", "4", "--warmup-steps", "2",
             "--sample-every", "20", "--output", "large"),
        ):  # fmt: skip
            patch.setattr("sys.argv", ["flops-fit", *words])
            with pytest.raises(SystemExit) as stop:
                cli.main()
            assert not stop.value.code
        train(training(cat_pictures("cats", TINY["image_size"]), FAST, network=TINY), "flow", watch=Quiet())
    return folder


def test_a_classifier_is_told_from_its_pictures(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    siamese = sorted((trained / "cats" / "Siamese").iterdir())[0]
    code, out, _ = call(capsys, monkeypatch, "classify", str(siamese), "--bundle", "classifier", "--json")
    [told] = json.loads(out)["pictures"]
    assert code == 0 and told["class"] == "Siamese" and next(iter(told["breeds"])) == "Siamese"
    assert sum(told["breeds"].values()) == pytest.approx(1, abs=1e-5)  # float32
    (trained / "torn.jpg").write_bytes(siamese.read_bytes()[:200])
    code, out, _ = call(capsys, monkeypatch, "classify", str(siamese), "torn.jpg", "--bundle", "classifier")
    first, second = out.splitlines()
    assert code == 2 and ": Siamese " in first and second.startswith("torn.jpg: ") and "a cat" not in second
    code, out, err = call(capsys, monkeypatch, "classify", "torn.jpg", "--bundle", "classifier")
    assert code == 2 and not out and "PICTURE: torn.jpg" in err

    code, out, _ = call(capsys, monkeypatch, "evaluate", "classifier", "--data", "new.parquet", "--json")
    judged = json.loads(out)
    assert code == 0 and judged.keys() >= KEYS and judged["data"].startswith("new.parquet: 52 pictures, held out only")
    assert judged["metrics"]["accuracy"]["value"] > MOST and judged["metrics"]["accuracy"]["n"] == 52
    assert {"accuracy_cat", "calibration_error", "balanced_accuracy"} <= judged["metrics"].keys()
    named = [(CLASSES.index(name), image, "val" if number < 26 else "train")
             for number, (name, image) in enumerate(pictures())]  # fmt: skip
    parquet.write(Path("other.parquet"), {"label": [a for a, _, _ in named], "jpeg": [png(b) for _, b, _ in named],
                                          "split": [c for _, _, c in named]})  # fmt: skip
    code, out, _ = call(capsys, monkeypatch, "evaluate", "classifier", "--data", "other.parquet", "--json")
    judged = json.loads(out)
    assert code == 0 and "may have been trained on some of these" in judged["notes"][0]
    assert judged["data"] == "other.parquet: 26 pictures that the data name as held out"
    code, out, _ = call(capsys, monkeypatch, "evaluate", "classifier", "--data", "cats", "--report", "told")
    assert code == 0 and "held-out pictures" in out.splitlines()[0]
    assert (trained / "told" / "confusion.svg").read_text().count("<text") >= 2 * len(CLASSES)
    assert "Which class is taken for which" in (trained / "told" / "evaluation_report.html").read_text()


def test_a_flow_is_sampled_and_judged(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    assert (trained / "large" / "samples" / "20.png").exists()
    words = ("sample", "flow", "--class", "siamese", "--n", "3", "--seed", "4", "--steps", "3", "--out", "made")
    code, out, _ = call(capsys, monkeypatch, *words, "--json")
    made = json.loads(out)
    assert code == 0 and [Path(file).name for file in made["files"]] == [f"siamese-4-{i}.png" for i in range(3)]
    before = [Path(file).read_bytes() for file in made["files"]]
    call(capsys, monkeypatch, *words)
    assert [Path(file).read_bytes() for file in made["files"]] == before

    code, out, _ = call(capsys, monkeypatch, "evaluate", "flow", "--data", "cats", "--samples", "26", "--steps", "2",
                        "--classifier", "classifier", "--report", "report", "--json")  # fmt: skip
    judged = json.loads(out)
    assert code == 0 and judged.keys() >= KEYS and judged["absent"].keys() == {"distances by class"}
    found = judged["metrics"]
    assert {"loss", "loss_zero", "loss_gaussian", "loss_of_gaussian", "explained_t0.05", "kid_samples", "kid_floor",
            "kid_noise", "kid_of_the_way", "frechet_samples", "frechet_floor", "frechet_noise", "frechet_of_the_way",
            "precision_samples", "recall_samples", "density_samples", "coverage_samples", "class_score", "agreement",
            "agreement_real", "memorised", "memorised_held_out", "frechet_held_out",
            "kid_held_out_floor"} <= found.keys()  # fmt: skip
    for name, metric in found.items():
        assert metric["lo"] <= metric["value"] <= metric["hi"] and metric["n"] > 0, name
    assert found["loss_of_gaussian"]["value"] == pytest.approx(
        found["loss"]["value"] / found["loss_gaussian"]["value"], rel=1e-6
    )
    assert judged["by_class"].keys() == set(CLASSES) and judged["measured_by"].keys() == {
        "efficientnet-lite0", "classifier",
    }  # fmt: skip
    page = (trained / "report" / "evaluation_report.html").read_text()
    assert page.count("data:image/png") == 2 * len(CLASSES) + 1 and "Nearest to training pictures" in page
    assert json.loads((trained / "report" / "evaluation_report.json").read_text()) == judged

    code, out, _ = call(capsys, monkeypatch, "evaluate", "flow", "--data", "new.parquet", "--samples", "26", "--steps",
                        "2", "--classifier", "classifier", "--json")  # fmt: skip
    elsewhere = json.loads(out)
    assert elsewhere["metrics"]["loss"]["n"] == 52 and {"loss_gaussian", "memorised"} <= elsewhere["absent"].keys()
    assert elsewhere["metrics"].keys() | elsewhere["absent"].keys() == found.keys() | judged["absent"].keys()
    code, out, _ = call(capsys, monkeypatch, "evaluate", "flow", "--data", "cats", "--json")
    plain = json.loads(out)
    assert plain["absent"].keys() == found.keys() - plain["metrics"].keys()
    assert plain["metrics"]["loss"] == found["loss"]


def test_nothing_differs_from_itself(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    code, out, _ = call(capsys, monkeypatch, "compare", "flow", "flow", "--data", "cats", "--samples", "26",
                        "--classifier", "classifier", "--json")  # fmt: skip
    found = json.loads(out)["metrics"]
    names = {"loss", "frechet", "kid", "agreement"}
    assert code == 0 and found.keys() == {f"{name}_difference" for name in names}
    assert all(metric["value"] == metric["lo"] == metric["hi"] == 0 for metric in found.values())
    code, out, _ = call(capsys, monkeypatch, "compare", "classifier", "classifier", "--data", "cats", "--json")
    assert code == 0 and all(metric["value"] == 0 for metric in json.loads(out)["metrics"].values())


def test_a_comparison_turned_round_is_its_negative_on_the_same_pictures(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    train(training(cat_pictures("cats", TINY["image_size"]), FAST, network=TINY, seed=1, augmentation="none"), "other",
          watch=Quiet())  # fmt: skip
    train(training(cat_pictures("new.parquet", TINY["image_size"]), FAST, network=TINY), "elsewhere", watch=Quiet())
    found = []
    for pair in (("flow", "other"), ("other", "flow")):
        code, out, _ = call(capsys, monkeypatch, "compare", *pair, "--data", "cats", "--json")
        assert code == 0
        found.append(json.loads(out))
    assert found[0]["notes"] == found[1]["notes"] and found[0]["metrics"]["loss_difference"]["n"] == 26
    values = [one["metrics"]["loss_difference"]["value"] for one in found]
    assert values[0] == pytest.approx(-values[1]) and values[0] != 0
    code, _, err = call(capsys, monkeypatch, "compare", "flow", "elsewhere", "--data", "new.parquet")
    assert code == 2 and "one would be judged by what it saw" in err


def test_data_that_are_all_for_testing_are_all_judged(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    rows = [(CLASSES.index(name), png(image)) for name, image in pictures()[:30]]
    columns = {"label": [label for label, _ in rows], "jpeg": [image for _, image in rows], "split": ["test"] * 30}
    parquet.write(trained / "test.parquet", columns)
    for bundle, metric in (("flow", "loss"), ("classifier", "accuracy")):
        code, out, _ = call(capsys, monkeypatch, "evaluate", bundle, "--data", "test.parquet", "--json")
        assert code == 0 and json.loads(out)["metrics"][metric]["n"] == 30


def test_other_pretrained_weights_are_another_training(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flops_fit.recipes.classifier import origin

    for name in "ab":
        (trained / f"{name}.pt").write_bytes(name.encode())
    assert origin(str(trained / "a.pt")) != origin(str(trained / "b.pt")) and origin(True) is True


@pytest.mark.parametrize(("typed", "said"), [
    ("sample flow --class Siamse --out made", "did you mean Siamese?"),
    ("sample flow", "--out: got none, and pictures are files; give --out FOLDER"),
    ("sample flow --until .5 --out made", "--until: of sentences only"),
    ("evaluate flow", "--data: flow is judged by pictures"),
    ("evaluate flow --data gone", "path: gone does not exist"),
    ("evaluate flow --data cats --guidance 2", "--guidance: got without --samples"),
    ("evaluate flow --data cats --samples 26 --until .5", "--until: this bundle's samples know no such thing"),
    ("evaluate flow --data cats --samples 26 --extractor lite", "allowed are efficientnet-lite0, inception, dinov2"),
    ("evaluate flow --data cats --samples 26 --extractor inception:gone", "inception:gone; no such file"),
    ("evaluate flow --data cats --samples 26 --extractor dinov2:gone", "dinov2:gone; give dinov2:FOLDER"),
    ("evaluate classifier --data cats --samples 26", "--samples: classifier is a classifier, which generates nothing"),
    ("evaluate flow --data cats --classifier classifier", "--classifier: got without --samples"),
    ("evaluate flow --data cats --samples 26 --classifier clasifier", "--classifier: got 'clasifier'"),
    ("evaluate flow --data cats --report cats/Siamese/10.png", "--report: got cats/Siamese/10.png, which is no folder"),
    ("evaluate codec --data new.parquet --report r", "--report: codec makes no pictures to show"),
    ("sample flow --guidance nan --out made", "guidance: got nan; allowed are finite numbers from 0 on"),
    ("evaluate flow --data cats --samples 26 --guidance -1", "--guidance: got -1.0; allowed are finite numbers"),
    ("train dit-cats --data gone --ema 0", "--ema: got '0'; allowed are a share of the run above 0 and up to 0.25"),
    ("train cats-classifier --data gone --pretrained False", "or False (--pretrained none)"),
    ("sample flow --out cats/Siamese/10.png", "--out: got cats/Siamese/10.png, which is no folder"),
    ("train cats-classifier --data gone --pretrained gone", "pretrained: no file gone"),
    ("train cats-classifier --data gone --backbone resnet18", "no package brings weights of resnet18"),
    ("train dit-cats --data gone --ema 0.9", "--ema: got '0.9'"),
    ("train dit-cats --data gone --ema aut", "--ema: got 'aut'; allowed are a share of the run"),
    ("train dit-cats --data gone --augmentation-level fully", "did you mean full"),
    ("train dit-cats --data held", "data: 0 pictures are there for the part train"),
    ("evaluate classifier --data cats --codec codec", "--codec: classifier is no flow over sentence vectors"),
    ("evaluate classifier --data one", "path: one holds 3 images of Siamese alone"),
    ("compare flow classifier --data cats", "OTHER: got kinds cats and classifier"),
    ("compare classifier classifier --data cats --samples 26", "--samples: classifiers generate nothing"),
    ("compare flow codec --data cats", "OTHER: got kinds cats and codec"),
    ("train cats-classifier --data one", "path: one holds 3 images of Siamese alone"),
    ("train cats-classifier --data cats --backbone resnet81", "did you mean resnet18"),
    ("train cats-classifier --data cats --heads-first 1", "heads_first: got 1.0"),
    ("classify gone.jpg --bundle flow", "a bundle of kind 'cats'; allowed is 'classifier'"),
])  # fmt: skip
def test_what_cannot_be(
    typed: str, said: str, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    alone = trained / "one" / "Siamese"
    alone.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        write_png(alone / f"{number}.png", torch.full((3, 16, 16), 50 * number, dtype=torch.uint8))
    image = png(torch.zeros(3, 64, 64, dtype=torch.uint8))
    parquet.write(trained / "held.parquet", {"label": [0, 1], "jpeg": [image, image], "split": ["test", "test"]})
    code, out, err = call(capsys, monkeypatch, *typed.replace("--data held", "--data held.parquet").split())
    assert code == 2 and not out
    assert said in err and err.count("\n") == 1, err


def test_a_broken_picture_among_many_is_told_and_left_out(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    rows = pictures()[: 3 * len(CLASSES)]
    encoded = [png(image) for _, image in rows]
    encoded[5] = encoded[5][:100]
    labels = np.array([CLASSES.index(name) for name, _ in rows]).tolist()
    parquet.write(trained / "torn.parquet", {"label": labels, "jpeg": encoded})
    code, out, _ = call(capsys, monkeypatch, "evaluate", "classifier", "--data", "torn.parquet", "--json")
    judged = json.loads(out)
    assert code == 0 and judged["metrics"]["accuracy"]["n"] == len(rows) - 1
    assert any("1 pictures cannot be used: row 5" in note for note in judged["notes"])
    code, out, err = call(capsys, monkeypatch, "train", "dit-cats", "--data", "torn.parquet", "--steps", "1",
                          "--batch-size", "2", "--gradient-accumulation-steps", "1", "--output", "torn")  # fmt: skip
    assert code == 0 and f"torn.parquet: {len(rows) - 1} pictures are used; 1 left out (row 5: " in err
    assert out.startswith("trained on torn.parquet: ")
