"""What is measured of flows over cat pictures, and of classifiers. What could not be is absent, with the reason.

Samples are compared with real pictures of the same classes in the same numbers, all sets of one size, beside a floor
(real pictures with other real ones) and a ceiling (the noise that samples begin with).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flops_fit.data.cats import cat_pictures, sha256
from flops_fit.data.images import Images
from flops_fit.data.pictures import Pictures
from flops_fit.errors import FlopsFitError, InputError
from flops_fit.evaluate.accuracy import class_score, confusion, per_class
from flops_fit.evaluate.features import Extractor, extractor_named
from flops_fit.evaluate.flow import Losses
from flops_fit.evaluate.frechet import frechet
from flops_fit.evaluate.kid import kid
from flops_fit.evaluate.metric import Metric, ratio_of, share_of
from flops_fit.evaluate.precision_recall import precision_recall
from flops_fit.evaluate.sets import memorised, nearest
from flops_fit.models import weights
from flops_fit.models.classifier import Heads
from flops_fit.recipes.cats import CatFlow
from flops_fit.recipes.classifier import CatClassifier, cat_right, parts_of, scores
from flops_fit.recipes.dit_cats import AUGMENTATIONS, image_pair
from flops_fit.recipes.evaluation import FEWEST, Evaluation, Sampling

NEIGHBOURS = 5  # of precision and recall; a class of no more pictures has none
CLOSEST = 10  # samples that are shown beside the training pictures nearest to them
IN_A_CLASS = 8  # pictures of each class that are shown


@dataclass(frozen=True)
class Judges:
    """Networks that look at pictures: see `evaluate.features`, and the bundle of a classifier."""

    extractor: str = "efficientnet-lite0"
    classifier: str = "cats-classifier"


JUDGES = Judges()


@dataclass(frozen=True)
class Shown:
    """Pictures that a report shows beside the numbers, each (n, 3, S, S) uint8.

    Args:
        grids: a row for each class.
        neighbours: samples, each followed by the training picture that is nearest to it, the nearest pair first.
        table: (K, K) numbers of pictures of class i taken for class j.
    """

    classes: Sequence[str]
    grids: Mapping[str, Tensor]
    neighbours: Tensor | None = None
    table: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Sets:
    """Pictures to judge by: (n, 3, S, S) uint8 and (n,) each."""

    every: Tensor
    every_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor
    train: Tensor | None  # None: no part of the data was trained on, or is named as such
    notes: tuple[str, ...]
    described: str
    sha256: str


@dataclass(frozen=True)
class Eyes:
    """The judges at work; one that cannot be had is None."""

    extractor: Extractor | None
    classifier: CatClassifier | None
    hashes: Mapping[str, str]
    absent: Mapping[str, str]


def opened(judges: Judges) -> Eyes:
    """Both judges, or why one is missing. Raises InputError for an extractor that is unknown."""
    hashes, absent = dict[str, str](), dict[str, str]()
    extractor, classifier = None, None
    try:
        extractor = extractor_named(judges.extractor)
        hashes[extractor.name] = extractor.sha256
    except InputError:
        raise
    except FlopsFitError as error:
        absent |= dict.fromkeys(("frechet", "kid", "precision", "memorised"), str(error))
    try:
        folder = weights.located(judges.classifier, "--classifier")
        classifier = CatClassifier.load(folder)
        hashes[judges.classifier] = weights.digest(folder)
    except FlopsFitError as error:
        absent |= dict.fromkeys(("agreement", "class_score"), str(error))
    return Eyes(extractor, classifier, hashes, absent)


@dataclass
class Findings:
    """What has been measured so far."""

    metrics: list[Metric] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    by_class: dict[str, list[Metric]] = field(default_factory=dict)


# --- flows ------------------------------------------------------------------------------------------------------------


def flow_judged(
    bundle: str, flow: CatFlow, data: str, sampling: Sampling | None, judges: Judges
) -> tuple[Evaluation, Shown]:
    """On held-out pictures; with `sampling` also what it generates.

    Raises:
        InputError: pictures that cannot be read, fewer than two held out, or judges that do not exist.
    """
    eyes = None
    if sampling is not None:  # what cannot be is told before any work
        sampling, eyes = sampling.filled(**flow.sampling), opened(judges)
    sets, found, classes = flow_sets(flow, data), Findings(), flow.config["classes"]
    losses = flow.losses(sets.held_out, sets.held_out_labels, sets.train)
    found.metrics += [*losses.metrics(), *of_gaussian(losses)]
    if sets.train is None:
        found.absent |= dict.fromkeys(("loss_gaussian", "memorised"), "the data have no part that was trained on")
    shown = Shown(classes, {"real": rows_of(sets.every, sets.every_labels, len(classes))})
    if sampling is None or eyes is None:
        found.absent["samples"] = "none asked for; give --samples"
    else:
        pixels, labels = drawn(flow, sampling, sets.every_labels)
        shown = of_samples(found, flow, sets, eyes, pixels, labels, sampling.seed, shown)
    return Evaluation(
        bundle, sets.described, sets.sha256, tuple(found.metrics), found.absent, losses.by_time(),
        {name: tuple(metrics) for name, metrics in found.by_class.items()},
        sampling.to_dict() if sampling else {}, eyes.hashes if eyes else {}, sets.notes,
    ), shown  # fmt: skip


def flow_sets(flow: CatFlow, data: str) -> Sets:
    """Of the set that it was trained on the held-out pictures; of another one those that it names so, or all."""
    pictures, augmentation = cat_pictures(data, flow.config["image_size"]), flow.config["augmentation"]
    level = next(name for name, kind in AUGMENTATIONS.items() if kind == augmentation)
    train, held_out = image_pair(pictures, AUGMENTATIONS[level], told=level == "full")
    return _sets(data, pictures, train, held_out, flow.config["data_hash"])


def _sets(data: str, pictures: Pictures, train: Images, held_out: Images, data_hash: str) -> Sets:
    every, labels, notes = pictures.pixels, torch.from_numpy(pictures.labels), list[str]()
    chosen: tuple[Tensor, Tensor, Tensor | None]
    if pictures.skipped:
        notes.append(f"{len(pictures.skipped)} pictures cannot be used: {'; '.join(pictures.skipped[:3])}")
    if train.fingerprint == data_hash:
        chosen, which = (held_out.pixels, held_out.labels, train.pixels), "held-out pictures"
    elif pictures.parted == "as given":
        chosen, which = (held_out.pixels, held_out.labels, train.pixels), "pictures that the data name as held out"
        notes.append(
            "the data are not what it was trained on: what training pictures are asked for, their own part to train on "
            "stands for"
        )
    else:
        chosen, which = (every, labels, None), "pictures, held out only if it was not trained on them"
    if len(chosen[0]) < 2:
        raise InputError(f"--data: {data} has {len(chosen[0])} pictures to judge by; give at least 2")
    described = f"{pictures.name}: {len(chosen[0]):,} {which}"
    return Sets(every, labels, chosen[0], chosen[1], chosen[2], tuple(notes), described, sha256(data))


def of_gaussian(losses: Losses) -> list[Metric]:
    """The loss as a share of that of the Gaussian with the full covariance, where there is one."""
    rows = {name: values.mean(axis=1) for name, values in losses.by_name.items()}
    return [ratio_of("loss_of_gaussian", rows["model"], rows["gaussian"])] if "gaussian" in rows else []


def drawn(flow: CatFlow, sampling: Sampling, like: Tensor) -> tuple[Tensor, Tensor]:
    """(pictures (n, 3, S, S) uint8, their labels (n,)), of each class as large a share as `like` (m,) has."""
    places = (torch.arange(sampling.samples) + 0.5) / sampling.samples * len(like)
    labels = like.sort().values[places.long()]
    return flow.sample(labels, sampling.seed, sampling.method, sampling.steps, sampling.guidance), labels


def of_samples(
    found: Findings, flow: CatFlow, sets: Sets, eyes: Eyes, pixels: Tensor, labels: Tensor, seed: int, shown: Shown
) -> Shown:
    """All that the judges say of samples (n, 3, S, S) of classes (n,), into `found`; and what a report shows."""
    classes, neighbours, table = shown.classes, None, None
    found.absent |= eyes.absent
    if eyes.extractor is not None:
        noise = flow.pixels(torch.stack([flow.noise(seed, i) for i in range(len(pixels))]))
        generated, real, blank = (eyes.extractor(some) for some in (pixels, sets.every, noise))
        of_features(found, generated, real, blank)
        of_classes(found, generated, labels, real, sets.every_labels, classes)
        if sets.train is not None:
            known = torch.cat((eyes.extractor(sets.train), eyes.extractor(sets.train.flip(3))))  # as training saw them
            found.metrics += memorised(generated, known, eyes.extractor(sets.held_out))
            neighbours = closest(pixels, generated, sets.train, known)
    if eyes.classifier is not None:
        told = eyes.classifier(pixels)
        of_classifier(found, told, labels, eyes.classifier(sets.held_out), sets.held_out_labels, classes)
        table = confusion(told.breeds, labels)
    grids = {"samples": rows_of(pixels, labels, len(classes)), **shown.grids}
    return Shown(classes, grids, neighbours, table)


def of_features(found: Findings, generated: Tensor, real: Tensor, noise: Tensor) -> None:
    """Distances of sets (n, D) of one size: generated to real, beside real to other real ones (floor) and noise."""
    n = min(len(generated), len(real) // 2)
    if n < FEWEST:
        said = f"{len(generated)} samples and {len(real)} real pictures: at least {FEWEST} and {2 * FEWEST} say much"
        found.absent |= dict.fromkeys(("frechet", "kid", "precision"), said)
        return
    first, second = mixed(real)[:n], mixed(real)[n : 2 * n]
    sets = {"samples": mixed(generated)[:n], "floor": second, "noise": mixed(noise)[:n]}
    for distance in (frechet, kid):
        far = {name: distance(name, rows, first) for name, rows in sets.items()}
        found.metrics += [*far.values(), way(far["samples"], far["floor"], far["noise"])]
    for name in ("samples", "floor"):
        found.metrics += precision_recall(name, first, sets[name])


def way(of: Metric, floor: Metric, ceiling: Metric) -> Metric:
    """How far from floor to ceiling a distance is: 0 is as near as real pictures, 1 as far as noise. The ends are taken
    as known; the interval is that of the distance."""
    ends = floor.value, ceiling.value
    value, lo, hi = ((one - ends[0]) / (ends[1] - ends[0]) for one in (of.value, of.lo, of.hi))
    return Metric(name=f"{of.name.split('_')[0]}_of_the_way", value=value, lo=lo, hi=hi, n=of.n)


def of_classes(
    found: Findings, generated: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, classes: Sequence[str]
) -> None:
    """The distances within each class, beside those of its real pictures to each other."""
    for number, name in enumerate(classes):
        own, others = mixed(generated[labels == number]), mixed(real[real_labels == number])
        n = min(len(own), len(others) // 2)
        if n <= max(NEIGHBOURS, 1):
            continue
        first, second = others[:n], others[n : 2 * n]
        found.by_class[name] = [
            *(distance(kind, rows, first) for distance in (frechet, kid)
              for kind, rows in (("samples", own[:n]), ("floor", second))),
            *precision_recall("samples", first, own[:n]),
        ]  # fmt: skip


def of_classifier(
    found: Findings, told: Heads, labels: Tensor, told_real: Heads, real_labels: Tensor, classes: Sequence[str]
) -> None:
    """Does a generated Bengal look like a Bengal? Beside held-out real pictures of the same size."""
    for suffix, heads, truth in (("", told, labels), ("_real", told_real, real_labels)):
        right = (heads.breeds.argmax(dim=1) == truth).numpy()
        found.metrics.append(share_of(f"agreement{suffix}", right))
        found.metrics.append(share_of(f"agreement_cat{suffix}", cat_right(heads, truth).numpy()))
        found.metrics.append(replace(class_score(heads.breeds), name=f"class_score{suffix}"))
    for name, metric in ((one.name, one) for one in per_class(told.breeds, labels, classes)):
        kind, _, which = name.partition("_")
        if kind == "recall":
            found.by_class.setdefault(which, []).append(replace(metric, name="agreement"))


def closest(pixels: Tensor, features: Tensor, train: Tensor, known: Tensor) -> Tensor:
    """The samples (n, 3, S, S) nearest to training pictures, each followed by the nearest one: (2 k, 3, S, S).

    Args:
        known: (2 m, D) features of the training pictures (m, 3, S, S), then of their mirror images.
    """
    both = torch.cat((train, train.flip(3)))
    far, places = nearest(features, known)
    first = far.argsort()[:CLOSEST]
    return torch.stack((pixels[first], both[places[first]]), dim=1).flatten(0, 1)


def rows_of(pixels: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The first pictures of each class, class by class; white where a class has too few."""
    rows = torch.full((classes, IN_A_CLASS, *pixels.shape[1:]), 255, dtype=torch.uint8)
    for number in range(classes):
        own = pixels[labels == number][:IN_A_CLASS]
        rows[number, : len(own)] = own
    return rows.flatten(0, 1)  # (classes * IN_A_CLASS, 3, S, S)


def mixed(rows: Tensor) -> Tensor:
    """In random order, always the same."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


# --- classifiers ------------------------------------------------------------------------------------------------------


def classifier_judged(bundle: str, classifier: CatClassifier, data: str) -> tuple[Evaluation, Shown]:
    """On held-out pictures: breeds, calibration, cat or not, each class.

    Raises:
        InputError: pictures that cannot be read, or fewer than two held out.
    """
    sets, classes = classifier_sets(classifier, data), classifier.config["classes"]
    told = classifier(sets.held_out)
    metrics = scores(told, sets.held_out_labels)
    by_class: dict[str, list[Metric]] = {}
    for metric in per_class(told.breeds, sets.held_out_labels, classes):
        kind, _, name = metric.name.partition("_")
        by_class.setdefault(name, []).append(replace(metric, name=kind))
    shown = Shown(
        classes, {"wrong": sets.held_out[told.breeds.argmax(dim=1) != sets.held_out_labels][:40]},
        table=confusion(told.breeds, sets.held_out_labels),
    )  # fmt: skip
    return Evaluation(
        bundle, sets.described, sets.sha256, tuple(metrics),
        by_class={name: tuple(found) for name, found in by_class.items()}, notes=sets.notes,
    ), shown  # fmt: skip


def classifier_sets(classifier: CatClassifier, data: str) -> Sets:
    """As `flow_sets`; of the set that it was trained on, what chose its weights is on neither side."""
    config = classifier.config
    pictures = cat_pictures(data, config["image_size"])
    train, _, held_out = parts_of(pictures, config["backbone"])
    return _sets(data, pictures, train, held_out, config["data_hash"])
