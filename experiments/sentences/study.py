"""Which flow, which network, how much data, how many steps: velocity networks over vectors of sentences.

    python experiments/sentences/study.py train captions --data captions.txt    every configuration; resumable
    python experiments/sentences/study.py judge captions --data captions.txt    all measurements: captions/*.csv
    python experiments/sentences/show.py captions                               tables and pictures of those files

Text is encoded by the codec that comes with flops-fit. All configurations see as many vectors in training.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import wilcoxon
from torch import Tensor

from flops_fit.data.codecs import codec_named
from flops_fit.data.sentence_vectors import sentence_vectors
from flops_fit.data.vectors import Vectors
from flops_fit.errors import FlopsFitError
from flops_fit.evaluate.flow import straightness
from flops_fit.evaluate.metric import holm
from flops_fit.evaluate.sets import energy_distance
from flops_fit.evaluate.text import WordModel, distinct, known_words, words
from flops_fit.flow.guidance import autoguidance
from flops_fit.flow.solvers import solve
from flops_fit.recipes.sentences import FLOWS, SentenceFlow, alone, training
from flops_fit.runs.executors import ProcessExecutor
from flops_fit.study.training import Training, train_several

HERE, OUTPUTS = Path(__file__).parent, Path("outputs")
ARCHS, SEEDS, MOST = ("mlp", "unet", "ssm", "dit-chunked"), (0, 1, 2), 5000
# A step of ssm's scan takes at tiny as long as one of dit-chunked at small.
SIZE = dict.fromkeys((*ARCHS, "dit", "kernel"), "small") | {"ssm": "tiny"}
BASIC = "dit-chunked"  # the network whose data, augmentation and Gaussian are varied
ONCE = ("pieces", "data", "augmentation", "other way", "reflow")
SIZES = (500, 1000, 2000, MOST)
SEEN, KERNEL_SEEN = 64_000, 6_400  # vectors in each training, repeats counted; a kernel has a few numbers to learn
PASSES = 40  # over all vectors at most: with few of them the best weights come early
SAMPLES, READ, DRAWN = 500, 200, 300  # vectors to measure, texts to read, points of the map
AT_ONCE = 8  # trainings handed to the workers together, each with a copy of its data
SOLVERS = [("euler", n) for n in (1, 2, 4, 8, 16)] + [("heun", n) for n in (1, 2, 4, 8, 16)]
BEST = ("heun", 16)  # whose samples are measured
SCALES = (1.0, 1.25, 1.5, 2.0, 3.0)  # of autoguidance


@dataclass(frozen=True)
class Configuration:
    block: str
    arch: str = BASIC
    flow: str = "icfm"
    vectors: int = MOST
    augmentation: str = "none"
    other_way: bool = False  # over the Gaussian where this network is by itself otherwise, and the other way round
    seed: int = 0

    @property
    def name(self) -> str:
        parts = [self.arch, self.flow, str(self.vectors), self.augmentation.replace(":", ""), str(self.seed)]
        return "-".join([*parts, "other"] if self.other_way else parts)


def matrix(most: int, seeds: int = len(SEEDS)) -> list[Configuration]:
    """Every configuration once: those that belong to several blocks stand in the first of them.

    How far seeds are apart is known from the flows; what is only compared with those is trained once, and so is
    reflow, whose pairs cost more than its training.
    """
    found = [Configuration("flows", a, f) for a, f in itertools.product(ARCHS, FLOWS)]
    found += [Configuration("pieces", "dit")]
    found += [Configuration("data", a, vectors=n) for a, n in itertools.product((BASIC, "kernel"), SIZES)]
    found += [Configuration("augmentation", augmentation=a) for a in ("mixup:0.2", "noise:0.1", "dropout:0.1")]
    found += [Configuration("other way", a, other_way=True) for a in ARCHS]
    first: dict[str, Configuration] = {}
    for one, seed in itertools.product(found, SEEDS[:seeds]):
        if seed != SEEDS[0] and (one.block in ONCE or one.flow in ONCE):
            continue
        one = replace(one, vectors=min(one.vectors, most), seed=seed)
        first.setdefault(one.name, one)
    return list(first.values())


def train(data: Path | None, outputs: Path, workers: int, seeds: int) -> None:
    """Two waves, since reflow straightens what the first one trained."""
    train_set, held_out = sentence_vectors(None if data is None else str(data), most=MOST)
    configurations = matrix(len(train_set), seeds)
    for reflow in (False, True):
        wave = [one for one in configurations if (one.flow == "reflow") == reflow]
        for start in range(0, len(wave), AT_ONCE):
            some = {one.name: made(one, train_set, held_out, outputs) for one in wave[start : start + AT_ONCE]}
            train_several(some, outputs, ProcessExecutor(workers))


def made(one: Configuration, train_set: Vectors, held_out: Vectors, outputs: Path) -> Training:
    teacher = None
    if one.flow == "reflow":
        straightened = Configuration("flows", one.arch, vectors=one.vectors, seed=one.seed)
        teacher = SentenceFlow.load(outputs / straightened.name)
    some = train_set.at(torch.arange(one.vectors))
    over = alone(one.arch, train_set.codec) == one.other_way
    seen = min(KERNEL_SEEN if one.arch == "kernel" else SEEN, PASSES * len(train_set))
    return training(
        some, held_out, one.arch, SIZE[one.arch], one.flow, seen / len(some), seed=one.seed,
        augmentation=one.augmentation, preconditioned=over, teacher=teacher,
    )  # fmt: skip


def judge(data: Path | None, outputs: Path, folder: Path) -> None:
    """Every measurement of every configuration that has a bundle; what samples are worth, of the first seed."""
    train_set, held_out = sentence_vectors(None if data is None else str(data), most=MOST)
    configurations = [one for one in matrix(len(train_set)) if (outputs / one.name / "training.json").exists()]
    if not configurations:
        raise FlopsFitError(f"{outputs}: no trained configuration is there; train first, with the same data")
    reader, target = Reader(train_set, held_out), held_out.values[:SAMPLES]
    real = train_set.values[torch.randperm(len(train_set), generator=torch.Generator().manual_seed(0))[:SAMPLES]]
    floor = energy_distance(real, target)  # of vectors that are real
    results, solvers, curves = [], [], []
    for one in configurations:
        flow, first = SentenceFlow.load(outputs / one.name), one.seed == SEEDS[0]
        about = json.loads((outputs / one.name / "training.json").read_text())
        points, best = by_solver(flow, target, SOLVERS if first else [BEST])
        row = measured(outputs / one.name)
        row |= {"energy": next(p["energy"] for p in points if (p["method"], p["steps"]) == BEST), "floor": floor}
        row |= {"straightness": straightness(flow.velocity, flow.noise(SAMPLES), BEST[1]).value if first else ""}
        row |= reader(best) if first else NOT_READ
        row |= {"params": about["spec"]["params"], "flops": about["flops"], "seconds": about["seconds"]}
        results.append({**asdict(one), "over_gaussian": flow.config["preconditioned"], "name": one.name, **row})
        solvers += [{"name": one.name, **point} for point in points]
        curves += [{"name": one.name, "step": step, "loss": loss} for step, loss in about["looks"]]
        print(one.name, f"loss {row['loss']:.4f}, energy distance {row['energy']:.5f}", flush=True)
    folder.mkdir(exist_ok=True)
    write(folder / "results.csv", results)
    write(folder / "solvers.csv", solvers)
    write(folder / "curves.csv", curves)
    write(folder / "paired.csv", paired(configurations, held_out, outputs))
    write(folder / "guidance.csv", guidance(configurations, target, outputs))
    write(folder / "map.csv", flat_map(configurations, held_out, outputs))


def measured(bundle: Path) -> dict[str, float]:
    """Its held-out loss, those of predictors that need no training and what it explains, as measured after training."""
    table = json.loads((bundle / "metrics.json").read_text())["metrics"]
    return {name: table[name]["value"] for name in LOSSES}


def by_solver(
    flow: SentenceFlow, target: Tensor, solvers: Iterable[tuple[str, int]]
) -> tuple[list[dict[str, Any]], Tensor]:
    """(quality against evaluations, samples (SAMPLES, D) of the best solver), from the same noise."""
    points, best = [], torch.empty(0)
    for method, steps in solvers:
        found = solve(flow.velocity, flow.noise(SAMPLES), method, steps)
        x = flow.normaliser.back(found.x)
        points.append({"method": method, "steps": steps, "nfe": found.nfe, "energy": energy_distance(x, target)})
        best = x if (method, steps) == BEST else best
    return points, best


LOSSES = ("loss", "loss_zero", "loss_isotropic", "loss_gaussian", "explained")
NOT_READ = {"known_words": "", "distinct_2": "", "perplexity": ""}


class Reader:
    """What samples say, as text: share of known words, variety, perplexity under a trigram model of real text."""

    def __init__(self, train_set: Vectors, held_out: Vectors) -> None:
        self.codec = codec_named(train_set.codec) if train_set.codec else None
        self.model = WordModel(train_set.texts)
        self.vocabulary = {word for text in train_set.texts for word in words(text)}

    def __call__(self, x: Tensor) -> dict[str, Any]:
        if self.codec is None:
            return NOT_READ
        texts = self.codec.decode(x[:READ])
        found = (known_words(texts, self.vocabulary), distinct(texts), self.model.perplexity(texts))
        return {metric.name: metric.value for metric in found}


def paired(configurations: Iterable[Configuration], held_out: Vectors, outputs: Path) -> list[dict[str, Any]]:
    """Pairs of architectures with flow icfm: the same held-out rows, seeds averaged, by Wilcoxon and Holm."""
    of: dict[str, list[np.ndarray]] = {}
    for one in configurations:
        if one.block == "flows" and one.flow == "icfm":
            losses = SentenceFlow.load(outputs / one.name).losses(held_out.values[:SAMPLES])
            of.setdefault(one.arch, []).append(losses.by_name["model"].mean(axis=1))  # (SAMPLES,)
    means = {arch: np.mean(rows, axis=0) for arch, rows in of.items()}
    pairs = list(itertools.combinations(means, 2))
    p = holm([float(wilcoxon(means[a], means[b]).pvalue) for a, b in pairs])
    return [{"first": a, "second": b, "difference": float((means[a] - means[b]).mean()), "p": corrected}
            for (a, b), corrected in zip(pairs, p, strict=True)]  # fmt: skip


def guidance(configurations: list[Configuration], target: Tensor, outputs: Path) -> list[dict[str, Any]]:
    """Autoguidance: samples of each architecture's first seed, led away from the Gaussian of the same data."""
    found: list[dict[str, Any]] = []
    for one in (one for one in configurations if (one.block, one.flow, one.seed) == ("flows", "icfm", SEEDS[0])):
        flow = SentenceFlow.load(outputs / one.name)
        for scale in SCALES:
            velocity = autoguidance(flow.velocity, flow.gaussian.velocity(flow.path), scale)
            x = flow.normaliser.back(solve(velocity, flow.noise(SAMPLES), *BEST).x)
            found.append({"arch": one.arch, "scale": scale, "energy": energy_distance(x, target)})
    return found


def flat_map(configurations: list[Configuration], held_out: Vectors, outputs: Path) -> list[dict[str, Any]]:
    """Held-out vectors and samples of each architecture on the two first principal axes of the held-out ones."""
    real = held_out.values - held_out.values.mean(dim=0)
    axes = torch.linalg.svd(real, full_matrices=False).Vh[:2].T  # (D, 2)
    sets = {"held out": held_out.values}
    for one in configurations:
        if one.block == "flows" and one.flow == "icfm" and one.seed == SEEDS[0]:
            sets[one.arch] = SentenceFlow.load(outputs / one.name).sample(DRAWN, 0, *BEST).x
    return [{"of": name, "x": float(x), "y": float(y)}
            for name, rows in sets.items()
            for x, y in (rows[:DRAWN] - held_out.values.mean(dim=0)) @ axes]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Whole or not at all; a file of before stays where there is nothing new to say."""
    if not rows:
        return
    unfinished = path.with_suffix(".new")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    unfinished.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("train", "judge"))
    parser.add_argument("name", help="folder of the results, beside this file")
    parser.add_argument("--data", type=Path, help="text, one sentence a line, or vectors; default: made-up sentences")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1))
    given = parser.parse_args()
    outputs = OUTPUTS / f"study-{given.name}"
    if given.verb == "train":
        train(given.data, outputs, given.workers, given.seeds)
    else:
        judge(given.data, outputs, HERE / given.name)


if __name__ == "__main__":
    try:
        main()
    except FlopsFitError as error:
        sys.exit(f"error: {error}")
