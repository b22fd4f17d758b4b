"""What is measured of flows over cat pictures, and of classifiers. What could not be is absent, with the reason.

Samples are compared with real pictures, those that were trained on among them, as scores of this kind usually are; and
with held-out ones alone. All sets of a comparison are of one size, with each class in the same share. Beside them stand
a floor (real pictures and other real ones) and a ceiling (the noise that samples begin with).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flops_fit.data.cats import cat_pictures, sha256
from flops_fit.data.images import Images, sides, statistics
from flops_fit.data.pictures import Pictures
from flops_fit.errors import InputError, MissingExtra
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
from flops_fit.progress import shown
from flops_fit.recipes.cats import AT_ONCE, CatFlow
from flops_fit.recipes.classifier import CatClassifier, cat_right, normalisation, scores
from flops_fit.recipes.evaluation import FEWEST, Evaluation, Sampling

WAYS = ("samples", "floor", "noise", "of_the_way")
OF_FEATURES = [f"{one}_{way}" for one in ("frechet", "kid") for way in WAYS] + [
    f"{one}_{way}" for one in ("precision", "recall", "density", "coverage") for way in WAYS[:2]
]
OF_HELD_OUT = [f"{one}_held_out{way}" for one in ("frechet", "kid") for way in ("", "_floor")]
OF_MEMORY = ["memorised", "memorised_held_out"]
OF_CLASSIFIER = [f"{one}{way}" for one in ("agreement", "agreement_cat", "class_score") for way in ("", "_real")]
OF_GAUSSIAN = ["loss_isotropic", "explained_isotropic", "loss_gaussian", "explained_gaussian", "loss_of_gaussian"]
CLOSEST = 10  # samples that are shown beside the training pictures nearest to them
IN_A_CLASS, MOST_WRONG = 8, 40  # pictures that are shown: of each class, and of those that are told wrongly


@dataclass(frozen=True)
class Judges:
    """Networks that look at pictures: see `evaluate.features`, and the bundle of a classifier."""

    extractor: str = "efficientnet-lite0"
    classifier: str = "cats-classifier"

    @classmethod
    def asked(cls, extractor: str | None, classifier: str | None, sampling: Sampling | None) -> Judges:
        """None: the usual ones. Raises InputError for judges where nothing is generated to be judged."""
        given = {name: one for name, one in (("extractor", extractor), ("classifier", classifier)) if one is not None}
        if given and sampling is None:
            told = ", ".join(f"--{name}" for name in given)
            raise InputError(f"{told}: got without --samples, and they judge what is generated; give --samples N")
        return cls(**given)


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


class Labelled(NamedTuple):
    """Rows (n, ...) and their classes (n,)."""

    rows: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Sets:
    """Pictures to judge by, (n, 3, S, S) uint8 each with their classes."""

    every: Labelled
    held_out: Labelled
    train: Labelled | None  # None: no part of the data was trained on, or is named as such
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


def opened(judges: Judges, classes: Sequence[str]) -> Eyes:
    """Both judges, or why one is missing: a package that is not installed.

    Raises:
        InputError: a judge that does not exist, or a classifier of other classes.
    """
    hashes, absent, extractor = dict[str, str](), dict[str, str](), None
    try:
        extractor = extractor_named(judges.extractor)
        hashes[extractor.name] = extractor.sha256
    except MissingExtra as error:
        absent |= dict.fromkeys([*OF_FEATURES, *OF_HELD_OUT, *OF_MEMORY], str(error))
    folder = weights.located(judges.classifier, "--classifier")
    classifier = CatClassifier.load(folder)
    if list(classifier.config["classes"]) != list(classes):
        told = f"--classifier: {judges.classifier} tells {', '.join(classifier.config['classes'])}"
        raise InputError(f"{told}; allowed is one of {', '.join(classes)}")
    hashes[judges.classifier] = weights.digest(folder)
    return Eyes(extractor, classifier, hashes, absent)


@dataclass
class Findings:
    """What has been measured so far."""

    metrics: list[Metric] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    by_class: dict[str, list[Metric]] = field(default_factory=dict)

    def without(self, names: Sequence[str], reason: str) -> None:
        self.absent |= dict.fromkeys(names, reason)


# --- flows ------------------------------------------------------------------------------------------------------------


def flow_judged(
    bundle: str, flow: CatFlow, data: str, sampling: Sampling | None, judges: Judges
) -> tuple[Evaluation, Shown]:
    """On held-out pictures; with `sampling` also what it generates.

    Raises:
        InputError: pictures that cannot be read, fewer than two held out, or judges that do not exist.
    """
    classes, eyes = flow.config["classes"], None
    if sampling is not None:  # what cannot be is told before any work
        sampling, eyes = sampling.filled(**flow.sampling), opened(judges, classes)
    sets, found = flow_sets(flow, data), Findings()
    losses = flow.losses(*sets.held_out, sets.train.rows if sets.train else None)
    found.metrics += [*losses.metrics(), *of_gaussian(losses)]
    if sets.train is None:
        found.without(OF_GAUSSIAN, "the data have no part to train on")
    shown = Shown(classes, {"real": rows_of(sets.every, len(classes))})
    if sampling is None or eyes is None:
        found.without([*OF_FEATURES, *OF_HELD_OUT, *OF_MEMORY, *OF_CLASSIFIER], "nothing was generated; give --samples")
    else:
        made = drawn(flow, sampling, sets.every.labels)
        shown = of_samples(found, flow, sets, eyes, made, sampling.seed, shown)
    return Evaluation(
        bundle, sets.described, sets.sha256, tuple(found.metrics), found.absent, losses.by_time(),
        {name: tuple(metrics) for name, metrics in found.by_class.items()},
        {**sampling.to_dict(), **flow.led_so} if sampling else {}, eyes.hashes if eyes else {}, sets.notes,
    ), shown  # fmt: skip


def flow_sets(flow: CatFlow, data: str) -> Sets:
    """Of the set that it was trained on the held-out pictures; of another one those that it names so, or all."""
    pictures = cat_pictures(data, flow.config["image_size"])
    return _sets(data, pictures, statistics, flow.config.get("held_out_hash"))


def _sets(data: str, pictures: Pictures, scale: Callable[[Tensor], tuple[Tensor, Tensor]], own: str | None) -> Sets:
    """`scale`: training pixels -> mean and deviation (C,) that pictures were normalised by; `own`: the hash of those
    that were held out, so normalised."""
    labels, (train, held, _), notes = torch.from_numpy(pictures.labels), sides(pictures), list[str]()
    every = Labelled(pictures.pixels, labels)
    if pictures.skipped:
        notes.append(f"{len(pictures.skipped)} pictures cannot be used: {'; '.join(pictures.skipped[:3])}")
    known = Labelled(pictures.pixels[train], labels[train]) if len(train) else None
    held_out, which = Labelled(pictures.pixels[held], labels[held]), "held-out pictures"
    if known is None:
        which = "pictures, all of them named as held out"
    elif Images(*held_out, *scale(known.rows)).fingerprint == own:
        pass
    elif pictures.parted == "as given":
        which = "pictures that the data name as held out"
        told = "it was held out from others, and may have been trained on some of these"
        notes.append(f"{told}; the data's own part to train on stands for what it saw")
    else:
        held_out, known, which = every, None, "pictures, held out only if it was not trained on them"
    if len(held_out.rows) < 2:
        raise InputError(f"--data: {data} has {len(held_out.rows)} pictures to judge by; give at least 2")
    described = f"{pictures.name}: {len(held_out.rows):,} {which}"
    return Sets(every, held_out, known, tuple(notes), described, sha256(data))


def of_gaussian(losses: Losses) -> list[Metric]:
    """The loss as a share of that of the Gaussian with the full covariance, where there is one."""
    rows = {name: values.mean(axis=1) for name, values in losses.by_name.items()}
    return [ratio_of("loss_of_gaussian", rows["model"], rows["gaussian"])] if "gaussian" in rows else []


def drawn(flow: CatFlow, sampling: Sampling, like: Tensor) -> Labelled:
    """Pictures (n, 3, S, S) uint8 and their classes, of each as large a share as `like` (m,) has."""
    places = (torch.arange(sampling.samples) + 0.5) / sampling.samples * len(like)
    labels = like.sort().values[places.long()]
    parts = flow.drawn(labels, sampling.seed, sampling.method, sampling.steps, sampling.guidance)
    told = shown(parts, math.ceil(len(labels) / AT_ONCE), f"drawing {len(labels):,} pictures")
    return Labelled(torch.cat(list(told)), labels)


def of_samples(
    found: Findings, flow: CatFlow, sets: Sets, eyes: Eyes, made: Labelled, seed: int, shown: Shown
) -> Shown:
    """All that the judges say of samples, into `found`; and what a report shows."""
    classes, neighbours, table = shown.classes, None, None
    found.absent |= eyes.absent
    if eyes.extractor is not None:
        look, pixels = eyes.extractor, made.rows
        noise = flow.pixels(torch.stack([flow.noise(seed, i) for i in range(len(pixels))]))
        generated, real, blank = (
            Labelled(look(some), labels)
            for some, labels in ((pixels, made.labels), sets.every, (noise, made.labels))
        )
        of_features(found, generated, real, blank)
        of_classes(found, generated, real, classes)
        held_out = Labelled(look(sets.held_out.rows), sets.held_out.labels)
        if sets.train is None:
            found.without([*OF_HELD_OUT, *OF_MEMORY], "the data have no part to train on")
        else:
            train = Labelled(look(sets.train.rows), sets.train.labels)
            mirrored = look(sets.train.rows.flip(3)) if flow.config["augmentation"] != "none" else None
            of_held_out(found, generated, train, held_out)
            if len(train.rows) < 2:
                found.without(OF_MEMORY, "one picture to train on: how far those are from each other cannot be said")
            else:
                found.metrics += memorised(generated.rows, train.rows, held_out.rows, mirrored)
            neighbours = closest(made.rows, generated.rows, sets.train.rows, train.rows, mirrored)
    if eyes.classifier is not None:
        told = eyes.classifier(made.rows)
        of_classifier(found, told, made.labels, eyes.classifier(sets.held_out.rows), sets.held_out.labels, classes)
        table = confusion(told.breeds, made.labels)
    return Shown(classes, {"samples": rows_of(made, len(classes)), **shown.grids}, neighbours, table)


def of_features(found: Findings, generated: Labelled, real: Labelled, noise: Labelled) -> None:
    """Distances of sets (n, D) of one size: generated to real, beside real to other real ones (floor) and noise."""
    n = min(len(generated.rows), len(real.rows) // 2)
    if n < FEWEST:
        said = f"{len(generated.rows)} samples and {len(real.rows)} real pictures"
        found.without(OF_FEATURES, f"{said}: at least {FEWEST} and {2 * FEWEST} say much")
        return
    both = evenly(real, 2 * n)
    first, second = both[::2], both[1::2]
    sets = {"samples": evenly(generated, n), "floor": second, "noise": evenly(noise, n)}
    for distance in (frechet, kid):
        far = {name: distance(name, rows, first) for name, rows in sets.items()}
        found.metrics += [*far.values(), way(far["samples"], far["floor"], far["noise"])]
    for name in ("samples", "floor"):
        found.metrics += precision_recall(name, first, sets[name])


def of_held_out(found: Findings, generated: Labelled, train: Labelled, held_out: Labelled) -> None:
    """Distances to held-out pictures alone, beside those of training pictures to them."""
    n = min(len(generated.rows), len(train.rows), len(held_out.rows))
    if n < FEWEST:
        found.without(OF_HELD_OUT, f"{n} pictures of a kind: at least {FEWEST} say much")
        return
    reference = evenly(held_out, n)
    for distance in (frechet, kid):
        for name, rows in (("held_out", generated), ("held_out_floor", train)):
            found.metrics.append(distance(name, evenly(rows, n), reference))


def way(of: Metric, floor: Metric, ceiling: Metric) -> Metric:
    """How far from floor to ceiling a distance is: 0 is as near as real pictures, 1 as far as noise. The ends are taken
    as known; the interval is that of the distance."""
    ends = floor.value, ceiling.value
    value, lo, hi = ((one - ends[0]) / (ends[1] - ends[0]) for one in (of.value, of.lo, of.hi))
    return Metric(name=f"{of.name.split('_')[0]}_of_the_way", value=value, lo=lo, hi=hi, n=of.n)


def of_classes(found: Findings, generated: Labelled, real: Labelled, classes: Sequence[str]) -> None:
    """The distances within each class, beside those of its real pictures to each other."""
    few = []
    for number, name in enumerate(classes):
        own, others = (mixed(some.rows[some.labels == number]) for some in (generated, real))
        n = min(len(own), len(others) // 2)
        if n < FEWEST:
            few.append(name)
            continue
        first, second = others[:n], others[n : 2 * n]
        found.by_class[name] = [
            *(distance(kind, rows, first) for distance in (frechet, kid)
              for kind, rows in (("samples", own[:n]), ("floor", second))),
            *precision_recall("samples", first, own[:n]),
        ]  # fmt: skip
    if few:
        said = f"fewer than {FEWEST} samples or {2 * FEWEST} real pictures of {', '.join(few)}"
        found.absent["distances by class"] = said


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


def closest(pixels: Tensor, features: Tensor, train: Tensor, known: Tensor, mirrored: Tensor | None) -> Tensor:
    """The samples (n, 3, S, S) nearest to training pictures, each followed by the nearest one: (2 k, 3, S, S).

    Args:
        known, mirrored: (m, D) features of the training pictures (m, 3, S, S), and of their mirror images.
    """
    both = train if mirrored is None else torch.cat((train, train.flip(3)))
    far, places = nearest(features, known if mirrored is None else torch.cat((known, mirrored)))
    first = far.argsort()[:CLOSEST]
    return torch.stack((pixels[first], both[places[first]]), dim=1).flatten(0, 1)


def rows_of(pictures: Labelled, classes: int) -> Tensor:
    """The first pictures of each class, class by class; white where a class has too few."""
    pixels, labels = pictures
    rows = torch.full((classes, IN_A_CLASS, *pixels.shape[1:]), 255, dtype=torch.uint8)
    for number in range(classes):
        own = pixels[labels == number][:IN_A_CLASS]
        rows[number, : len(own)] = own
    return rows.flatten(0, 1)  # (classes * IN_A_CLASS, 3, S, S)


def evenly(some: Labelled, n: int) -> Tensor:
    """(n, ...) of the rows, of each class its share to within a row; class by class, always the same ones."""
    order = torch.randperm(len(some.rows), generator=torch.Generator().manual_seed(0))
    order = order[some.labels[order].argsort(stable=True)]
    places = (torch.arange(n, dtype=torch.float64) + 0.5) / n * len(order)
    return some.rows[order[places.long()]]


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
    pixels, labels = sets.held_out
    told = classifier(pixels)
    by_class: dict[str, list[Metric]] = {}
    for metric in per_class(told.breeds, labels, classes):
        kind, _, name = metric.name.partition("_")
        by_class.setdefault(name, []).append(replace(metric, name=kind))
    unseen = [name for name in classes if name not in by_class]
    absent = {"by class": f"no two pictures of {', '.join(unseen)} are there, or were told"} if unseen else {}
    shown = Shown(
        classes, {"wrong": pixels[told.breeds.argmax(dim=1) != labels][:MOST_WRONG]},
        table=confusion(told.breeds, labels),
    )  # fmt: skip
    return Evaluation(
        bundle, sets.described, sets.sha256, tuple(scores(told, labels)), absent,
        by_class={name: tuple(found) for name, found in by_class.items()}, notes=sets.notes,
    ), shown  # fmt: skip


def classifier_sets(classifier: CatClassifier, data: str) -> Sets:
    """As `flow_sets`; what chose its weights is never among what is held out."""
    config = classifier.config
    pictures = cat_pictures(data, config["image_size"])
    scale = normalisation(config["backbone"])
    return _sets(data, pictures, lambda _: scale, config.get("held_out_hash"))
