"""Which of two bundles of pictures is better, and by how much: differences of the same pictures, paired."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from scipy.special import log_softmax

from flops_fit.errors import InputError
from flops_fit.evaluate.frechet import frechet_difference
from flops_fit.evaluate.kid import kid_difference
from flops_fit.evaluate.metric import Metric, mean_of
from flops_fit.models import weights
from flops_fit.recipes import cats, classifier
from flops_fit.recipes.cats import CatFlow
from flops_fit.recipes.classifier import CatClassifier, cat_right
from flops_fit.recipes.evaluation import FEWEST, Evaluation, Sampling
from flops_fit.recipes.judged_cats import Judges, Sets, classifier_sets, drawn, flow_sets, mixed, opened

READ = (
    "the first bundle less the second: it is better where losses and distances are below 0, accuracies and agreement "
    "above 0"
)
OF_SAMPLES = ("frechet_difference", "kid_difference", "agreement_difference")


def compare(one: str, other: str, data: str, sampling: Sampling | None, judges: Judges) -> Evaluation:
    """Differences, ONE less OTHER, with the intervals of the differences: of flows the loss, distances and agreement;
    of classifiers accuracies and likelihood.

    Flows see the same held-out pictures with the same noise, and sample from the same noise for the same classes.

    Raises:
        InputError: bundles of different kinds, classes or sizes, of a kind that is not compared, data that cannot be
            read, or of which they do not hold out the same pictures.
    """
    folders = [weights.located(name, argument) for name, argument in ((one, "BUNDLE"), (other, "OTHER"))]
    configs = [weights.read(folder)[1] for folder in folders]
    kinds = {str(config.get("kind")) for config in configs}
    if len(kinds) > 1 or kinds & {cats.KIND, classifier.KIND} != kinds:
        told = " and ".join(sorted(kinds))
        raise InputError(f"OTHER: got kinds {told}; allowed are two of {cats.KIND} or two of {classifier.KIND}")
    for name in ("classes", "image_size"):
        own, its = (config.get(name) for config in configs)
        if own != its:
            raise InputError(f"OTHER: {name} is {its}, that of {one} {own}; give bundles with equal ones")
    both = f"{one} against {other}"
    if kinds == {classifier.KIND}:
        if sampling:
            raise InputError("--samples: classifiers generate nothing; leave it out")
        return _classifiers(both, [CatClassifier.load(folder) for folder in folders], data)
    return _flows(both, [CatFlow.load(folder) for folder in folders], data, sampling, judges)


def _classifiers(both: str, pair: list[CatClassifier], data: str) -> Evaluation:
    sets = same(*(classifier_sets(one, data) for one in pair))
    (pixels, labels), found = sets.held_out, []
    told = [one(pixels) for one in pair]
    measures: dict[str, Any] = {
        "accuracy": lambda heads: (heads.breeds.argmax(dim=1) == labels).double().numpy(),
        "accuracy_cat": lambda heads: cat_right(heads, labels).double().numpy(),
        "negative_log_likelihood": lambda heads: -log_softmax(heads.breeds.double().numpy(), axis=1)[
            torch.arange(len(labels)), labels
        ],
    }
    for name, measure in measures.items():
        found.append(mean_of(f"{name}_difference", measure(told[0]) - measure(told[1])))
    return Evaluation(both, sets.described, sets.sha256, tuple(found), notes=(*sets.notes, READ))


def _flows(both: str, pair: list[CatFlow], data: str, sampling: Sampling | None, judges: Judges) -> Evaluation:
    eyes = None if sampling is None else opened(judges, pair[0].config["classes"])
    sets, found, absent = same(*(flow_sets(flow, data) for flow in pair)), list[Metric](), dict[str, str]()
    if all(torch.equal(*(getattr(flow, name) for flow in pair)) for name in ("mean", "deviation")):
        rows = [flow.losses(*sets.held_out).by_name["model"].mean(axis=1) for flow in pair]
        found.append(mean_of("loss_difference", rows[0] - rows[1]))
    else:
        absent["loss_difference"] = "they were trained on pictures of other brightness: their losses have other units"
    if sampling is None or eyes is None:
        absent |= dict.fromkeys(OF_SAMPLES, "nothing was generated; give --samples")
        return Evaluation(both, sets.described, sets.sha256, tuple(found), absent, notes=(*sets.notes, READ))
    asked = [sampling.filled(**flow.sampling) for flow in pair]
    made = [drawn(flow, how, sets.every.labels) for flow, how in zip(pair, asked, strict=True)]
    if eyes.extractor is None:
        absent |= {name: next(iter(eyes.absent.values())) for name in OF_SAMPLES[:2]}
    else:
        found += _distances([eyes.extractor(some.rows) for some in made], eyes.extractor(sets.every.rows), absent)
    if eyes.classifier is not None:
        right = [(eyes.classifier(some.rows).breeds.argmax(dim=1) == some.labels).double().numpy() for some in made]
        found.append(mean_of("agreement_difference", right[0] - right[1]))
    first, second = ({**how.to_dict(), **flow.led_so} for flow, how in zip(pair, asked, strict=True))
    how = {"first": first, "second": second}
    return Evaluation(
        both, sets.described, sets.sha256, tuple(found), absent, sampled=how, measured_by=eyes.hashes,
        notes=(*sets.notes, READ),
    )  # fmt: skip


def same(one: Sets, other: Sets) -> Sets:
    """What both are judged by. Raises InputError where they hold out different pictures."""
    if len(one.held_out.rows) == len(other.held_out.rows) and torch.equal(one.held_out.rows, other.held_out.rows):
        return one
    told = f"the first holds out {len(one.held_out.rows):,} of its pictures, the other {len(other.held_out.rows):,}"
    raise InputError(f"--data: {told}: one would be judged by what it saw; give data that name held-out ones")


def _distances(generated: list[torch.Tensor], real: torch.Tensor, absent: dict[str, str]) -> list[Metric]:
    """Of both sets (n, D) of samples to one set of real pictures (m, D)."""
    n = min(len(generated[0]), len(real))
    if n < FEWEST:
        absent |= dict.fromkeys(OF_SAMPLES[:2], f"{n} pictures: at least {FEWEST} say much")
        return []
    first, second, some = (mixed(rows)[:n] for rows in (*generated, real))
    return [
        replace(measure(first, second, some), name=name)
        for name, measure in (("frechet_difference", frechet_difference), ("kid_difference", kid_difference))
    ]
