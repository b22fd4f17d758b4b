"""The recipe of classifiers: trained, kept, loaded, judged; what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flops_fit.data.augment import patched
from flops_fit.data.cats import CLASSES, OTHER
from flops_fit.data.images import sides
from flops_fit.data.pictures import Pictures
from flops_fit.errors import InputError
from flops_fit.models import weights
from flops_fit.models.classifier import Heads
from flops_fit.recipes.classifier import CatClassifier, Telling, parts_of, scores, training
from flops_fit.runs.watch import Quiet
from flops_fit.study.training import train

SIZE, EACH = 32, 14
FLOAT32 = 1e-5


def colours(each: int = EACH, size: int = SIZE) -> Pictures:
    """A colour for each class, under noise: what a backbone that knows images tells apart at once."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(each * len(CLASSES)) % len(CLASSES)
    shade = torch.rand(len(CLASSES), 3, generator=generator)[labels] * 255  # (n, 3)
    noise = 12 * torch.randn(len(labels), 3, size, size, generator=generator)
    pixels = (shade[:, :, None, None] + noise).clamp(0, 255).byte()
    splits = np.array(["val" if i % 7 == 6 else "train" for i in range(len(labels))])
    return Pictures(name="colours", pixels=pixels, labels=labels.numpy(), splits=splits)


def one(**changes: Any) -> Any:
    given = {"epochs": 6.0, "batch_size": 16, "lr": 5e-3, "augmentation": "basic"}
    return training(colours(), **given | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("classifier") / "bundle"
    train(one(), made, watch=Quiet())
    return made


def test_it_learns_and_comes_back_as_it_was(folder: Path) -> None:
    loaded = CatClassifier.load(folder)
    _, _, held_out = parts_of(colours(), "efficientnet-lite0")
    found = {metric.name: metric for metric in scores(loaded(held_out.pixels), held_out.labels)}
    assert found["accuracy"].lo > 0.5  # by chance 1 in 13
    assert {"calibration_error", "balanced_accuracy", "negative_log_likelihood"} <= found.keys()
    kept = weights.read(folder)
    assert float(kept[0]["temperature"]) == pytest.approx(float(loaded.temperature)) and kept[1]["backbone"]


def test_pictures_of_any_size_and_their_mirror_images_are_told_alike(folder: Path) -> None:
    loaded, pixels = CatClassifier.load(folder), colours().pixels[:3]
    told, mirrored = loaded(pixels), loaded(pixels.flip(3))
    torch.testing.assert_close(told.breeds, mirrored.breeds, rtol=0, atol=FLOAT32)
    large = F.interpolate(pixels.float(), scale_factor=2).byte()
    assert loaded(large).breeds.shape == (3, len(CLASSES)) and loaded(large).cat.shape == (3,)


def test_no_picture_is_on_two_sides() -> None:
    """The temperature is chosen by pictures that are neither trained on nor in the scores."""
    twice = colours()
    doubled = replace(
        twice, pixels=twice.pixels.repeat(2, 1, 1, 1), labels=np.tile(twice.labels, 2), splits=np.tile(twice.splits, 2)
    )  # of every picture a copy, far from it
    for pictures in (twice, doubled):
        sets = parts_of(pictures, "efficientnet-lite0")
        seen = [{image.numpy().tobytes() for image in images.pixels} for images in sets]
        assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
        assert sum(map(len, seen)) == EACH * len(CLASSES) and all(seen)


def test_a_part_of_its_own_chooses_where_there_is_one() -> None:
    """val beside test: training pictures train, all of them."""
    drawn = colours()
    order = {name: np.arange(len(drawn.labels)) % 7 == place for name, place in (("test", 6), ("val", 5))}
    splits = np.where(order["test"], "test", np.where(order["val"], "val", "train"))
    sets = parts_of(replace(drawn, splits=splits), "efficientnet-lite0")
    for images, part in zip(sets, ("train", "val", "test"), strict=True):
        assert torch.equal(images.pixels, drawn.pixels[torch.from_numpy(splits == part)])


def test_data_for_testing_alone_train_nothing() -> None:
    """val and test without train: all of them are held out."""
    drawn = colours()
    splits = np.where(np.arange(len(drawn.labels)) % 2 == 0, "test", "val")
    train, held, _ = sides(replace(drawn, splits=splits))
    assert not len(train) and len(held) == len(drawn.labels)
    assert [len(images) for images in parts_of(replace(drawn, splits=splits), "resnet18")] == [0, 0, len(held)]


def test_the_loss_is_that_of_both_heads_by_hand() -> None:
    """Three pictures of two breeds and a dog; of 14 for training 2 are of the first breed, 1 of each other class."""
    labels = torch.tensor([0, 1, OTHER])
    breeds = torch.zeros(3, len(CLASSES))
    breeds[torch.arange(3), labels] = torch.tensor([2.0, 1.0, 3.0])
    cat = torch.tensor([1.0, -1.0, -2.0])
    model = nn.Module()
    model.forward = lambda pictures: Heads(breeds, cat)  # type: ignore[method-assign]
    shares = (0.5, *[1.0] * OTHER)
    told = -F.log_softmax(breeds, dim=1)
    breed = 0.9 * told[torch.arange(3), labels] + 0.1 * told.mean(dim=1)  # of every ten labels one is any
    wrong, right = F.softplus(torch.tensor([1.0, -1.0, 2.0])), F.softplus(torch.tensor([-1.0, 1.0, -2.0]))
    is_cat = torch.tensor([14 / 26, 14 / 26, 14 / 2]) * (0.95 * right + 0.05 * wrong)
    expected = 0.7 * (torch.tensor([0.5, 1.0, 1.0]) * breed).mean() + 0.3 * is_cat.mean()
    for mode in (model.train(), model.eval()):  # weights are chosen by what they are trained for
        assert Telling(shares)(mode, (breeds, labels)).item() == pytest.approx(expected.item(), rel=FLOAT32)


def test_a_picture_of_two_is_told_as_both() -> None:
    """The loss by hand, with the same dice: own share of the own label, the rest of the other's."""
    labels, x = torch.tensor([0, 1, OTHER, 3] * 4), torch.randn(16, 3, 8, 8)
    breeds, cat, seen = torch.randn(16, len(CLASSES)), torch.randn(16), list[torch.Tensor]()
    model = nn.Module()
    model.forward = lambda pictures: (seen.append(pictures), Heads(breeds, cat))[1]  # type: ignore[method-assign]
    telling = Telling((1.0,) * len(CLASSES), mixes=True)
    torch.manual_seed(0)
    found = telling(model.train(), (x, labels)).item()
    torch.manual_seed(0)
    pictures, others, own = patched(x)
    assert torch.equal(seen[0], pictures) and 0 < float(own.mean()) < 1

    def told(row: int, label: int) -> float:
        one = (breeds[row : row + 1], torch.tensor([label]))
        model.forward = lambda pictures: Heads(one[0], cat[row : row + 1])  # type: ignore[method-assign]
        return telling(model.eval(), one).item()

    parts = [float(own[i]) * told(i, int(labels[i])) + float(1 - own[i]) * told(i, int(labels[others[i]]))
             for i in range(16)]  # fmt: skip
    assert found == pytest.approx(sum(parts) / 16, rel=FLOAT32)


def test_being_a_cat_is_told_by_both_heads(folder: Path) -> None:
    loaded, pixels = CatClassifier.load(folder), colours().pixels[:4]
    told, own = loaded(pixels), loaded.network(loaded.normalised(pixels)).cat
    mirrored = loaded.network(loaded.normalised(pixels).flip(3)).cat
    shares = told.breeds.double().softmax(dim=1)
    odds = ((1 - shares[:, OTHER]) / shares[:, OTHER]).log()
    slope, offset = loaded.line.double()
    assert slope > 0 and (slope, offset) != (1, 0)  # fitted
    line = slope * ((own + mirrored) / 2 + odds) / 2 + offset
    torch.testing.assert_close(told.cat.double(), line, rtol=0, atol=1e-4 * float(slope.clamp(min=1)))  # float32


def test_rare_classes_weigh_more() -> None:
    few = colours()
    kept = np.flatnonzero((few.labels != 3) | (np.arange(len(few.labels)) % 2 == 0))
    some = Pictures(name="few", pixels=few.pixels[kept], labels=few.labels[kept], splits=few.splits[kept])
    shares = training(some).objective.shares
    assert shares[3] > 1.4 * max(share for i, share in enumerate(shares) if i != 3)


@pytest.mark.parametrize(("made", "said"), [
    (lambda: one(backbone="resnet81"), "did you mean resnet18"),
    (lambda: one(augmentation="fully"), "did you mean full"),
    (lambda: one(heads_first=1.0), "heads_first: got 1.0"),
])  # fmt: skip
def test_what_cannot_be_trained(made: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        made()


def test_a_class_without_pictures_is_told() -> None:
    every = colours()
    kept = np.flatnonzero(every.labels != 10)
    some = Pictures(name="few", pixels=every.pixels[kept], labels=every.labels[kept], splits=every.splits[kept])
    with pytest.raises(InputError, match="no pictures of Siamese to train on"):
        training(some)
