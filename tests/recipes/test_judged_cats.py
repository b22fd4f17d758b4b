"""What is said of generated pictures: ends of the scales, fair sizes, and reports of pictures that are known."""

from __future__ import annotations

import pytest
import torch

from flops_fit.data.cats import CLASSES
from flops_fit.evaluate.metric import Metric
from flops_fit.models.classifier import Heads
from flops_fit.recipes.evaluation import Evaluation
from flops_fit.recipes.judged_cats import (
    IN_A_CLASS,
    OF_FEATURES,
    Findings,
    Labelled,
    Shown,
    closest,
    evenly,
    of_classes,
    of_classifier,
    of_features,
    of_held_out,
    rows_of,
    way,
)
from flops_fit.recipes.report import confusion_svg, page

DIMS, FEW, MANY = 6, 60, 400
NEAR, FAR = 0.1, 0.9  # of the way: sets drawn alike vary by a tenth of it; one like the noise is as near to the end


def one(rows: torch.Tensor, classes: int = 1) -> Labelled:
    return Labelled(rows, torch.arange(len(rows)) % classes)


def cloud(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, DIMS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_real_pictures_are_at_the_floor_and_noise_at_the_ceiling() -> None:
    real, noise = cloud(MANY, 0), cloud(MANY, 1, shift=3.0)
    for generated, low, high in ((cloud(MANY, 2), -NEAR, NEAR), (noise + 1e-6, FAR, 2 - FAR)):
        found = Findings()
        of_features(found, one(generated), one(real, 2), one(noise))
        told = {one.name: one for one in found.metrics}
        for name in ("frechet_of_the_way", "kid_of_the_way"):
            assert low <= told[name].value <= high and told[name].lo <= told[name].value <= told[name].hi
        assert {one.n for one in found.metrics} == {MANY // 2}  # all sets are of one size


def test_the_way_is_a_line() -> None:
    floor, ceiling = (Metric(name="frechet_x", value=value, lo=0, hi=9, n=7) for value in (2.0, 10.0))
    found = way(Metric(name="frechet_samples", value=4.0, lo=3.0, hi=6.0, n=7), floor, ceiling)
    assert (found.name, found.value, found.lo, found.hi) == ("frechet_of_the_way", 0.25, 0.125, 0.5)


def test_too_few_are_absent_with_the_reason() -> None:
    found = Findings()
    of_features(found, one(cloud(5, 0)), one(cloud(FEW, 1)), one(cloud(5, 2)))
    assert not found.metrics and found.absent.keys() == set(OF_FEATURES)
    assert "5 samples and 60 real pictures: at least 20 and 40" in found.absent["kid_samples"]


def test_what_is_measured_and_what_is_absent_are_the_same_names() -> None:
    found = Findings()
    of_features(found, one(cloud(FEW, 0)), one(cloud(FEW, 1)), one(cloud(FEW, 2, shift=9.0)))
    assert {metric.name for metric in found.metrics} == set(OF_FEATURES)


def test_sets_hold_each_class_in_its_share() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100)]
    rows = torch.stack((labels.double(), torch.arange(100.0)), dim=1)
    both = evenly(Labelled(rows, labels), 40)
    for some in (both, both[::2], both[1::2]):
        counts = some[:, 0].long().bincount(minlength=3) / len(some)
        torch.testing.assert_close(counts, torch.tensor([0.6, 0.3, 0.1]), rtol=0, atol=1 / len(some))
    assert len(both[:, 1].unique()) == 40  # none twice


def test_a_copier_is_no_nearer_to_held_out_pictures_than_what_it_copies() -> None:
    train, held_out, found = cloud(MANY, 0), cloud(MANY, 1), Findings()
    copies = train[torch.randint(MANY, (MANY,), generator=torch.Generator().manual_seed(2))]
    of_held_out(found, one(copies), one(train), one(held_out))
    told = {metric.name: metric.value for metric in found.metrics}
    assert told["frechet_held_out"] > told["frechet_held_out_floor"]


def test_each_class_is_compared_with_its_own_pictures() -> None:
    """Classes far from each other: the floor of each is that of one cloud, not of the whole."""
    labels = torch.arange(2 * FEW) % 2
    real, generated = (cloud(2 * FEW, seed) + 50.0 * labels[:, None] for seed in (0, 1))
    found = Findings()
    of_classes(found, Labelled(generated, labels), Labelled(real, labels), ("low", "high"))
    assert found.by_class.keys() == {"low", "high"}
    for metrics in found.by_class.values():
        told = {one.name: one.value for one in metrics}
        assert told["frechet_samples"] < 3 * told["frechet_floor"] < 10 and told["precision_samples"] > 0.5
    swapped = Findings()
    of_classes(swapped, Labelled(generated, 1 - labels), Labelled(real, labels), ("low", "high"))
    assert {one.name: one.value for one in swapped.by_class["low"]}["frechet_samples"] > 1000


def test_a_sample_that_copies_is_shown_beside_what_it_copies() -> None:
    train = torch.randint(0, 256, (30, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = torch.randint(0, 256, (12, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pixels[7] = train[11].flip(2)  # a mirror image is a copy too
    flat = [images.flatten(1).double() for images in (pixels, train, train.flip(3))]
    pairs = closest(pixels, flat[0], train, flat[1], flat[2])
    assert torch.equal(pairs[0], pixels[7]) and torch.equal(pairs[1], train[11].flip(2)) and len(pairs) == 20


def test_agreement_is_the_share_that_the_classifier_tells_so() -> None:
    labels = torch.tensor([0, 0, 1, 12, 12])
    breeds = torch.full((5, len(CLASSES)), -9.0)
    breeds[torch.arange(5), torch.tensor([0, 1, 1, 12, 12])] = 9.0
    heads, found = Heads(breeds, torch.tensor([3.0, 3.0, -3.0, -3.0, -3.0])), Findings()
    of_classifier(found, heads, labels, heads, labels, CLASSES)
    told = {one.name: one.value for one in found.metrics}
    assert told["agreement"] == told["agreement_real"] == 0.8 and told["agreement_cat"] == 0.8
    assert {name: metrics[0].value for name, metrics in found.by_class.items()} == {"Abyssinian": 0.5, "Other": 1.0}


def test_rows_hold_the_pictures_of_their_class() -> None:
    pixels = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    labels = torch.tensor([0] * 11 + [2] * 9)
    rows = rows_of(Labelled(pixels, labels), 3).view(3, IN_A_CLASS, 3, 2, 2)
    assert rows[0, :, 0, 0, 0].tolist() == list(range(8)) and rows[2, :, 0, 0, 0].tolist() == list(range(11, 19))
    assert (rows[1] == 255).all()


def test_nothing_from_outside_is_markup() -> None:
    names = ["<b>", "&"]
    svg = confusion_svg(torch.tensor([[3, 1], [0, 0]]).numpy(), names)
    assert "&lt;b&gt;" in svg and "<b>" not in svg and ">3</text>" in svg and ">0</text>" not in svg
    shown = Shown(names, {"real": torch.zeros(2 * IN_A_CLASS, 3, 4, 4, dtype=torch.uint8)})
    html = page(Evaluation("<script>", "d", "0" * 64, (), {"x": "<i>"}, notes=("<u>",)), shown)
    assert not {"<script>", "<i>", "<u>", "<b>"} & set(html.replace("><", "> <").split()) and "&lt;script&gt;" in html


@pytest.mark.parametrize("counts", [[[0, 0], [0, 0]], [[5, 0], [0, 7]]])
def test_shades_of_a_table_are_shares_of_its_rows(counts: list[list[int]]) -> None:
    svg = confusion_svg(torch.tensor(counts).numpy(), ["a", "b"])
    assert svg.count('fill-opacity="1.000"') == (2 if counts[0][0] else 0)
