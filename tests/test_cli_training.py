"""train, sample and evaluate from the command line, in the order of a new user, without SONAR."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from command import call
from flops_fit.data import parquet
from flops_fit.data.codecs import codec_named
from flops_fit.data.vectors import read_vectors

KINDS = ("dog", "cat", "man", "girl", "fox", "boy", "hen", "cow")
SENTENCES = [f"A {a} {b} {c} a {d}." for a in ("big", "small", "red", "old") for b in KINDS
             for c in ("sees", "eats", "holds") for d in ("ball", "fish", "stick", "book", "hat")]  # fmt: skip
ALWAYS = {"loss", "loss_zero", "loss_gaussian", "explained"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "sentences.txt").write_text("\n".join(SENTENCES))
    return folder


def test_from_sentences_to_samples_that_can_be_read(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    code, out, _ = call(capsys, monkeypatch, "train", "codec", "--data", "sentences.txt", "--made-up", "0", "--width",
                        "32", "--epochs", "3", "--batch-size", "16", "--output", "coder")  # fmt: skip
    assert code == 0 and out.splitlines()[-1] == "TRAINING COMPLETE"
    train = ("train", "sentences", "--data", "sentences.txt", "--codec", "coder", "--size", "tiny", "--epochs", "2",
             "--group", "g")  # fmt: skip
    code, out, _ = call(capsys, monkeypatch, *train)
    assert code == 0 and out.splitlines()[-1] == "TRAINING COMPLETE"
    bundle = out.splitlines()[-2].removeprefix("bundle: ")
    assert bundle == "outputs/g/dit-chunked-icfm-5k-0" and (folder / bundle / "weights.safetensors").exists()
    code, again, _ = call(capsys, monkeypatch, *train, "--json")  # finished: it answers at once, with the same
    told = json.loads(again)
    assert code == 0 and told["metrics"].keys() >= ALWAYS and told["result"]["status"] == "ok"

    code, out, _ = call(capsys, monkeypatch, "sample", bundle, "--n", "4", "--steps", "3", "--json",
                        "--out", "s.parquet")  # fmt: skip
    sampled = json.loads(out)
    assert code == 0 and len(sampled["texts"]) == 4 and sampled["nfe"] == 6
    vectors = torch.from_numpy(parquet.matrix(folder / "s.parquet", "embedding"))
    assert codec_named(sampled["codec"]).decode(vectors) == sampled["texts"]
    assert call(capsys, monkeypatch, "sample", bundle, "--n", "4", "--steps", "3")[1].splitlines() == sampled["texts"]

    code, out, _ = call(capsys, monkeypatch, "evaluate", bundle, "--data", "sentences.txt", "--samples", "40",
                        "--steps", "3", "--json")  # fmt: skip
    judged = json.loads(out)
    assert code == 0 and judged["absent"] == {} and judged["metrics"].keys() >= ALWAYS
    of_samples = {"energy_distance_held_out", "memorised", "known_words", "perplexity", "distinct_2", "self_bleu",
                  "round_trip_cosine", "straightness", "nfe"}  # fmt: skip
    assert of_samples | {"energy_distance_gaussian", "known_words_gaussian"} <= judged["metrics"].keys()
    for name, metric in judged["metrics"].items():
        assert metric["lo"] <= metric["value"] <= metric["hi"] and metric["n"] > 0, name
    assert judged["metrics"]["nfe"]["value"] == 6  # 3 steps of Heun's method
    assert judged["metrics"]["loss"] == told["metrics"]["loss"]
    assert judged["sampled"] == {"samples": 40, "seed": 0, "method": "heun", "steps": 3, "until": 1.0}

    code, out, err = call(capsys, monkeypatch, "evaluate", bundle, "--data", "sentences.txt", "--codec", "codec")
    assert code == 2 and "made the vectors; leave it out" in err  # another one would measure something else
    _, out, _ = call(capsys, monkeypatch, "evaluate", bundle, "--data", "sentences.txt", "--codec", "./coder",
                     "--samples", "40", "--steps", "3", "--json")  # fmt: skip
    assert json.loads(out)["metrics"]["memorised"] == judged["metrics"]["memorised"]  # the same codec

    (folder / "others.txt").write_text((folder / "sentences.txt").read_text().replace("e", "a"))
    _, out, _ = call(capsys, monkeypatch, "evaluate", bundle, "--data", "others.txt", "--json")
    assert "these are not the vectors that were held out of its training" in " ".join(json.loads(out)["notes"])
    assert judged["notes"] == [note for note in judged["notes"] if "covariance of" in note] != []

    code, out, _ = call(capsys, monkeypatch, "evaluate", "coder", "--data", "sentences.txt", "--json")
    assert code == 0 and {"bleu", "chrf", "exact", "bleu_noise"} <= json.loads(out)["metrics"].keys()


def test_vectors_of_nobody_knows_which_codec(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    rows = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    parquet.write(folder / "v.parquet", {"embedding": list(rows.numpy()), "split": ["train"] * 80 + ["val"] * 20})
    call(capsys, monkeypatch, "train", "sentences", "--data", "v.parquet", "--size", "tiny", "--epochs", "1",
         "--output", "plain")  # fmt: skip
    code, out, err = call(capsys, monkeypatch, "sample", "plain")
    assert code == 2 and not out and "--codec: nobody said which codec made the vectors" in err
    code, out, _ = call(capsys, monkeypatch, "sample", "plain", "--out", "w.parquet")
    assert code == 0 and out == "10 vectors: w.parquet\n"
    assert read_vectors("w.parquet").texts == ("",) * 10
    _, out, _ = call(capsys, monkeypatch, "evaluate", "plain", "--data", "v.parquet", "--samples", "30", "--json")
    absent = json.loads(out)["absent"]
    assert absent.keys() == {"text"} and "nobody said which codec made the vectors" in absent["text"]
    _, out, _ = call(capsys, monkeypatch, "evaluate", "plain", "--data", "v.parquet")
    assert "samples" in out and "absent: none asked for; give --samples" in out


@pytest.mark.parametrize(("typed", "said"), [
    ("train sentences --data sentences.txt --codec coder2", "--codec: got 'coder2'"),
    ("train sentences --data v.parquet --codec coder2", "--codec: got 'coder2'"),
    ("train sentences --data v.parquet --epochs -1", "epochs: got -1.0; allowed are finite numbers above 0"),
    ("train sentences --data v.parquet --lr 0", "lr: got 0.0"),
    ("train sentences --data v.parquet --arch kernel --no-gaussian", "gaussian: kernel with icfm does not read it"),
    ("train sentences --data v.parquet --arch kernel --hidden 8", "arguments: kernel with icfm does not"),
    ("train codec --data sentences.txt --width 30", "width: got 30; allowed are multiples"),
    ("train codec --data sentences.txt --slots 5", "slots: got 5; allowed are divisors of the 32 tokens"),
    ("train codec --data sentences.txt --noise nan", "noise: got nan; allowed is a number from 0 on"),
    ("evaluate plain --data v.parquet --samples 3", "--samples: got 3; allowed are 0 (none) or at least 20"),
    ("evaluate plain --data v.parquet --steps 3 --until .2", "--steps, --until: got without --samples, and nothing"),
    ("evaluate plain --data v.parquet --samples 20 --method hein", "did you mean heun"),
    ("evaluate plain --data v.parquet --samples 20 --until 2", "--until: got 2.0; allowed is a time above 0"),
    ("evaluate plain --data sentences.txt", "--codec: nobody said which codec made the vectors of plain"),
    ("train sentences --data v.parquet --codec codec", "--codec: codec makes vectors of 1024 numbers; those of v"),
    ("train sentences --data sentences.txt --flow reflow --teacher plain", "teacher: its vectors are of nobody knows"),
    ("sample plain --out s.csv", "--out: got s.csv; allowed is FILE.parquet"),
    ("evaluate plain", "--data: plain was trained on v.parquet: "),
    ("train sentences --dataset 5x", "--dataset: got '5x'; allowed are whole numbers"),
    ("train sentences --flow icmf --data v.parquet", "did you mean icfm"),
    ("train sentences --flow reflow --data v.parquet", "give --teacher BUNDLE"),
    ("train sentences --augmentation mixip:0.2 --data v.parquet", "did you mean mixup"),
    ("train sentences --data gone.parquet", "data: got gone.parquet; no such file"),
    ("sample gone", "BUNDLE: got 'gone'"),
    ("evaluate gone", "BUNDLE: got 'gone'"),
])  # fmt: skip
def test_what_cannot_be(
    typed: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    rows = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    if not (folder / "v.parquet").exists():
        parquet.write(folder / "v.parquet", {"embedding": list(rows.numpy())})
    if " plain" in typed:  # finished already, or trained now
        call(capsys, monkeypatch, "train", "sentences", "--data", "v.parquet", "--size", "tiny", "--epochs", "1",
             "--output", "plain")  # fmt: skip
    code, out, err = call(capsys, monkeypatch, *typed.split())
    assert code == 2 and not out
    assert any(one in err for one in said.split("|")) and err.count("\n") == 1, err
