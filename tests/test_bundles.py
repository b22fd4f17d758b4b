"""What comes with flops-fit: small, complete, explained, and as good as its card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flops_fit.data.codecs import codec_named
from flops_fit.data.sentences import read_sentences
from flops_fit.evaluate.metric import Metric
from flops_fit.models import weights
from flops_fit.recipes.cats import CatFlow
from flops_fit.recipes.classifier import CatClassifier
from flops_fit.recipes.codec import scores
from flops_fit.recipes.judged import evaluate
from flops_fit.recipes.sentences import SentenceFlow
from flops_fit.study.training import METRICS, TRAINING

SHIPPED = sorted(path.parent for path in weights.SHIPPED.glob(f"*/{weights.CONFIG}"))
CAPTIONS = Path(__file__).resolve().parents[2] / "shared" / "data" / "text" / "captions_val.txt"
CATS = CAPTIONS.parents[1] / "cats" / "breeds_128.parquet"
MOST_MB = 12.0
ROUNDED = 0.01  # of 323 pictures, three whose logits are nearly equal, told otherwise by another CPU
OWN = [
    "A man in a red coat walks his dog along the river.", "Two children are building a castle out of wet sand.",
    "The old woman sells oranges and lemons at the market.", "A small boat waits by the bridge in the rain.",
    "Three girls laugh while they wash a muddy car.", "A cook is cutting onions in a very small kitchen.",
    "The tall boy throws a ball over the wooden fence.", "People stand in line in front of a white building.",
    "A black horse jumps over a fallen tree.", "Someone is reading a newspaper on the last train home.",
    "A young couple dances under paper lamps at night.", "The goalkeeper misses the ball and everybody shouts.",
]  # fmt: skip


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_a_bundle_is_whole_and_small(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {weights.CONFIG, weights.WEIGHTS, METRICS, TRAINING, "README.md"} <= names
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_MB * 1e6
    told = json.loads((folder / TRAINING).read_text())
    assert told["status"] == "ok" and told["flops"] > 0 and len(told["looks"]) > 1
    card = (folder / "README.md").read_text()
    assert f"{weights.read(folder)[1]['params']:,}" in card and f"{told['flops']:.3g}".replace("e+", "e") in card


def test_they_are_found_by_name() -> None:
    assert [folder.name for folder in SHIPPED] == ["cats-64", "cats-classifier", "codec", "sentences"]
    assert all(weights.located(folder.name) == folder for folder in SHIPPED)


@pytest.mark.skipif(not CATS.exists(), reason="the pictures are not here: shared/data/cats")
def test_the_classifier_tells_held_out_cats_as_its_card_says() -> None:
    found, _ = evaluate("cats-classifier", str(CATS))
    told = values(list(found.metrics))
    assert found.data.endswith("323 held-out pictures") and told["accuracy"] >= 0.92 and told["accuracy_cat"] >= 0.995
    kept = json.loads((weights.located("cats-classifier") / METRICS).read_text())["metrics"]
    assert told == {name: pytest.approx(kept[name]["value"], abs=ROUNDED) for name in told}


def test_the_classifier_knows_what_cats_the_generator_was_asked_for() -> None:
    flow, judge = CatFlow.load(weights.located("cats-64")), CatClassifier.load(weights.located("cats-classifier"))
    labels = torch.tensor([flow.label(name) for name in ("siamese", "bombay", "birman", "british shorthair")] * 2)
    right = judge(flow.sample(labels, seed=1)).breeds.argmax(dim=1) == labels
    assert int(right.sum()) >= 5  # of 8; by chance one in 8,000 has as many
    told = json.loads((weights.located("cats-64") / METRICS).read_text())["metrics"]
    assert told["loss"]["hi"] < 0.8 * told["loss_spectral"]["lo"]  # from which it begins
    assert told["loss"]["hi"] < 0.72 * told["loss_gaussian"]["lo"]


def values(found: list[Metric]) -> dict[str, float]:
    return {metric.name: metric.value for metric in found}


def test_the_codec_returns_sentences_of_nobody() -> None:
    """Written for this test: with and without noise of a tenth of the vector's length."""
    told = values(scores(codec_named("codec"), OWN))
    assert told["exact"] >= 0.75 and told["bleu"] >= 90 and told["bleu_noise"] >= 90


def test_the_flow_says_what_its_codec_can_read_and_knows_more_than_the_gaussian() -> None:
    flow = SentenceFlow.load(weights.located("sentences"))
    texts = codec_named(flow.config["codec"]).decode(flow.sample(5, seed=1, steps=8).x)
    assert len(set(texts)) == 5 and all(len(text.split()) >= 3 for text in texts)
    told = json.loads((weights.located("sentences") / METRICS).read_text())["metrics"]
    assert told["loss"]["hi"] < 0.7 * told["loss_gaussian"]["lo"]


@pytest.mark.skipif(not CAPTIONS.exists(), reason="captions_val.txt is not on this machine")
def test_the_codec_returns_captions_that_it_never_saw() -> None:
    told = values(scores(codec_named("codec"), read_sentences(CAPTIONS, 20)[:200]))
    assert told["bleu"] >= 70 and told["exact"] >= 0.4 and told["bleu_noise"] >= 60
