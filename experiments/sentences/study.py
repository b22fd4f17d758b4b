"""Which flow, which network, how much data, how many steps: velocity networks over vectors of sentences.

    python experiments/sentences/study.py train --data captions.txt    every configuration; resumable
    python experiments/sentences/study.py judge --data captions.txt    samples of each: results.csv and solvers.csv
    python experiments/sentences/study.py show                         the tables of README.md, from those files

Text is encoded by the codec that comes with flops-fit. All configurations see as many vectors in training.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import wilcoxon

from flops_fit.data.sentence_vectors import sentence_vectors
from flops_fit.data.vectors import Vectors
from flops_fit.evaluate.metric import holm
from flops_fit.evaluate.sets import energy_distance
from flops_fit.flow.solvers import solve
from flops_fit.recipes.sentences import FLOWS, SentenceFlow, training
from flops_fit.runs.executors import ProcessExecutor
from flops_fit.study.training import train_several

HERE, OUTPUTS = Path(__file__).parent, Path("outputs/sentences")
ARCHS, SEEDS, MOST = ("mlp", "dit", "unet", "ssm"), (0, 1, 2), 5000
SIZES = (500, 1000, 2000, MOST)
SEEN = 100_000  # vectors in each training, repeats counted
SAMPLES = 1000
AT_ONCE = 8  # trainings handed to the workers together, each with a copy of its data
SOLVERS = [("euler", n) for n in (1, 2, 4, 8, 16, 32)] + [("heun", n) for n in (1, 2, 4, 8, 16)]


@dataclass(frozen=True)
class Configuration:
    block: str
    arch: str = "mlp"
    flow: str = "icfm"
    vectors: int = MOST
    augmentation: str = "none"
    gaussian: bool = True
    seed: int = 0

    @property
    def name(self) -> str:
        parts = [self.arch, self.flow, str(self.vectors), self.augmentation.replace(":", ""), str(self.seed)]
        return "-".join(parts if self.gaussian else [*parts, "plain"])


def matrix() -> list[Configuration]:
    """Every configuration once: those that belong to several blocks stand in the first of them."""
    found = [Configuration("flows", a, f, seed=s) for a, f, s in itertools.product(ARCHS, FLOWS, SEEDS)]
    found += [
        Configuration("data", a, vectors=n, seed=s)
        for a, n, s in itertools.product(("mlp", "kernel"), SIZES, SEEDS)
    ]
    found += [Configuration("augmentation", augmentation=a, seed=s)
              for a, s in itertools.product(("mixup:0.2", "noise:0.1", "dropout:0.1"), SEEDS)]  # fmt: skip
    found += [Configuration("plain", a, gaussian=False, seed=s) for a, s in itertools.product(("mlp", "dit"), SEEDS)]
    return list({one.name: one for one in reversed(found)}.values())[::-1]


def train(data: str | None, workers: int) -> None:
    """Two waves, since reflow straightens what the first one trained."""
    train_set, held_out = sentence_vectors(data, most=MOST)
    first = [one for one in matrix() if one.flow != "reflow"]
    second = [one for one in matrix() if one.flow == "reflow"]
    for wave in (first, second):
        for start in range(0, len(wave), AT_ONCE):
            some = {one.name: made(one, train_set, held_out) for one in wave[start : start + AT_ONCE]}
            train_several(some, OUTPUTS, ProcessExecutor(workers))


def made(one: Configuration, train_set: Vectors, held_out: Vectors) -> Any:
    teacher = None
    if one.flow == "reflow":
        teacher = SentenceFlow.load(OUTPUTS / Configuration("flows", one.arch, seed=one.seed).name)
    some = train_set.at(torch.arange(min(one.vectors, len(train_set))))
    return training(
        some, held_out, one.arch, "small", one.flow, SEEN / len(some), seed=one.seed, augmentation=one.augmentation,
        preconditioned=one.gaussian, teacher=teacher,
    )  # fmt: skip


def judge(data: str | None) -> None:
    """Held-out losses by row, and the distance of samples to held-out vectors by solver and steps."""
    _, held_out = sentence_vectors(data, most=MOST)
    target = held_out.values[:SAMPLES]
    rows, solvers = [], []
    for one in matrix():
        if not (OUTPUTS / one.name / "training.json").exists():
            print(one.name, "has no bundle: it diverged, or was not trained yet")
            continue
        flow = SentenceFlow.load(OUTPUTS / one.name)
        about = json.loads((OUTPUTS / one.name / "training.json").read_text())
        losses = flow.losses(held_out.values).by_name
        each = {name: values.mean(axis=1) for name, values in losses.items()}  # (n,)
        np.save(OUTPUTS / one.name / "losses.npy", each["model"])
        told = {f"loss_{name}".replace("loss_model", "loss"): values.mean() for name, values in each.items()}
        curve = by_solver(flow, target)
        solvers += [{"name": one.name, **point} for point in curve]
        best = min(curve, key=lambda point: point["energy"])
        rows.append({
            **asdict(one), "name": one.name, **told, "explained": 1 - told["loss"] / told["loss_zero"],
            "energy": next(p["energy"] for p in curve if (p["method"], p["steps"]) == ("heun", 16)),
            "best_energy": best["energy"], "params": about["spec"]["params"], "flops": about["flops"],
            "seconds": about["seconds"],
        })  # fmt: skip
        print(one.name, f"loss {told['loss']:.4f}, energy distance {rows[-1]['energy']:.5f}", flush=True)
    write(HERE / "results.csv", rows)
    write(HERE / "solvers.csv", solvers)


@torch.no_grad()
def by_solver(flow: SentenceFlow, target: torch.Tensor) -> list[dict[str, Any]]:
    """Quality against evaluations, from the same noise."""
    noise = torch.randn(SAMPLES, target.shape[1], generator=torch.Generator().manual_seed(0))
    found = []
    for method, steps in SOLVERS:
        one = solve(flow.velocity, noise, method, steps)
        x = flow.normaliser.back(one.x)
        found.append({"method": method, "steps": steps, "nfe": one.nfe, "energy": energy_distance(x, target)})
    return found


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def read(name: str) -> list[dict[str, Any]]:
    with (HERE / name).open(newline="", encoding="utf-8") as file:
        return [{k: number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def spread(values: Iterable[float]) -> str:
    """Mean and standard deviation over seeds; of one seed it alone."""
    values = list(values)
    off = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{off}"


def show() -> None:
    rows = read("results.csv")
    print(f"{len(rows)} configurations, {sum(row['seconds'] for row in rows) / 3600:.2f} hours of one core, "
          f"{sum(row['flops'] for row in rows):.3g} FLOPs in training")  # fmt: skip
    for block in dict.fromkeys(row["block"] for row in rows):
        print(f"\n{block}: mean ± standard deviation over seeds")
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in (row for row in rows if row["block"] == block):
            key = (row["arch"], row["flow"], int(row["vectors"]), row["augmentation"], row["gaussian"])
            groups.setdefault(key, []).append(row)
        for key, same in groups.items():
            beyond = max(row["loss"] for row in same) < min(row["loss_gaussian"] for row in same)
            judged = key[1] in ("icfm", "gvp")  # the others' velocity is not meant for independent pairs
            mark = "" if beyond or not judged else "   learned nothing beyond Gaussian"
            print(*key, "loss", spread(row["loss"] for row in same), f"(Gaussian {same[0]['loss_gaussian']:.4f})",
                  "energy", spread(row["energy"] for row in same), mark)  # fmt: skip
    compare(rows)


def compare(rows: Sequence[Mapping[str, Any]]) -> None:
    """Architectures at the same flow, rows of the held-out set paired, by Wilcoxon with Holm's correction."""
    pairs, p = [], []
    for first, second in itertools.combinations(ARCHS, 2):
        losses = []
        for arch in (first, second):
            files = [OUTPUTS / Configuration("flows", arch, seed=seed).name / "losses.npy" for seed in SEEDS]
            losses.append(np.mean([np.load(file) for file in files], axis=0))
        pairs.append((first, second, float((losses[0] - losses[1]).mean())))
        p.append(float(wilcoxon(losses[0], losses[1]).pvalue))
    print("\nicfm, loss of the first less that of the second; p over held-out rows, seeds averaged, by Holm")
    for (first, second, off), corrected in zip(pairs, holm(p), strict=True):
        print(f"{first} - {second}: {off:+.4f}, p = {corrected:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("train", "judge", "show"))
    parser.add_argument("--data", help="text, one sentence a line; default: made-up sentences")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    if given.verb == "train":
        train(given.data, given.workers)
    elif given.verb == "judge":
        judge(given.data)
    else:
        show()


if __name__ == "__main__":
    main()
