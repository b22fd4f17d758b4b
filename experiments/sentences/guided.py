"""Sentence vectors of a higher score: guidance by the upper confidence bound of a Gaussian process.

    python experiments/sentences/guided.py VECTORS.parquet [BUNDLE]

VECTORS: columns embedding, split and accuracy; the rows of split gsm8k_100 have scores. Half of them guide; the other
half make the judge, a surrogate that the guide never saw. Writes guided.csv. BUNDLE: a flow of the same vectors;
default: it is trained here first (flops-fit train sentences --arch kernel).
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import torch

from flops_fit.data.sentence_vectors import sentence_vectors
from flops_fit.data.vectors import read_vectors
from flops_fit.errors import FlopsFitError
from flops_fit.evaluate.sets import energy_distance
from flops_fit.evaluate.surrogate import Surrogate, correlation
from flops_fit.flow.guidance import towards_higher
from flops_fit.recipes.sentences import SentenceFlow, training
from flops_fit.study.training import train

HERE, OUTPUT = Path(__file__).parent, Path("outputs/sentences-guided")
JUDGES = 40  # halves of the judge's half, for the interval of a gain: without repeats, which a process takes for noise
SAMPLES, STRENGTHS, STILL = 500, (0.0, 0.05, 0.1, 0.2, 0.4), 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vectors")
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--questions", type=int, default=1319, help="that each accuracy was counted on")
    given = parser.parse_args()
    train_set, held_out = sentence_vectors(given.vectors)
    if given.bundle is None:
        train(training(train_set, held_out, arch="kernel", epochs=12), OUTPUT)
    flow = SentenceFlow.load(given.bundle or OUTPUT)
    scored = read_vectors(given.vectors).where("split", "gsm8k_100")
    x, scores = flow.normaliser(scored.values), torch.tensor(scored.columns["accuracy"], dtype=torch.float64)
    space, unseen = flow.normaliser(train_set.values), flow.normaliser(held_out.values)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    ours, theirs = order.chunk(2)
    guide, judge = (Surrogate(x[half], scores[half], space) for half in (ours, theirs))
    dice = torch.Generator().manual_seed(1)
    again = [theirs[torch.randperm(len(theirs), generator=dice)[: len(theirs) // 2]] for _ in range(JUDGES)]
    judges = [Surrogate(x[rows], scores[rows], space) for rows in again]
    luck = float((scores.mean() * (1 - scores.mean()) / given.questions).sqrt())
    known = correlation(x, scores, space)
    print(f"scores {float(scores.mean()):.3f} ± {float(scores.std()):.4f}, by luck alone ± {luck:.4f}; correlation of "
          f"unseen scores with what a surrogate expects of them: {known:.2f}")  # fmt: skip
    rows, plain = [], None
    for strength in STRENGTHS:
        velocity = towards_higher(flow.velocity, guide.gradient, flow.path, strength, still_until=STILL)
        made = flow.normaliser(flow.sample(SAMPLES, steps=20, velocity=velocity).x)
        judged = np.array([float(one.mean(made).mean()) for one in (judge, *judges)])
        plain = judged if plain is None else plain
        gains = judged - plain
        # The delete-half jackknife (Shao and Wu 1989, Annals of Statistics 17): halves spread about their mean as
        # wholes do about the truth.
        lo, hi = gains[0] + np.quantile(gains[1:] - gains[1:].mean(), [0.025, 0.975])
        rows.append({
            "strength": strength, "score": judged[0], "gain": gains[0], "gain_lo": lo, "gain_hi": hi,
            "guide_score": float(guide.mean(made).mean()), "energy_distance": energy_distance(made, unseen),
            "correlation": known, "luck": luck,
        })  # fmt: skip
        print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()))
    with (HERE / "guided.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([{name: f"{value:.6g}" for name, value in row.items()} for row in rows])


if __name__ == "__main__":
    try:
        main()
    except FlopsFitError as error:
        sys.exit(f"error: {error}")
