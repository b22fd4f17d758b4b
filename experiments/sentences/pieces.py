"""Into how many pieces to cut a vector, and along which axes.

    python experiments/sentences/pieces.py --data captions.txt    writes pieces.csv; resumable
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import torch

from flops_fit.data.sentence_vectors import sentence_vectors
from flops_fit.errors import FlopsFitError
from flops_fit.recipes.sentences import training
from flops_fit.runs.executors import ProcessExecutor
from flops_fit.study.training import Training, train_several

MOST, SEEN = 5000, 64_000  # vectors, and how many each network sees, repeats counted
PIECES, AXES = (4, 8, 16, 32), ("own", "principal")


def trainings(data: str | None) -> dict[str, Training]:
    vectors, held_out = sentence_vectors(data, most=MOST)
    found = {}
    for pieces, axes in itertools.product(PIECES, AXES):
        made = training(
            vectors, held_out, "dit-chunked", "small", epochs=SEEN / len(vectors), arguments={"tokens": pieces}
        )
        if axes == "principal":  # not turned back: the pieces are runs of principal components
            kwargs = {**made.model_kwargs, "axes": torch.eye(vectors.values.shape[1])}
            made = replace(made, model_kwargs=kwargs, config={**made.config, "axes": axes})
        found[f"{pieces}-{axes}"] = replace(made, evaluate=None)  # which would turn them
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="text, one sentence a line, or vectors; default: made-up sentences")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    results = train_several(trainings(given.data), Path("outputs") / "pieces", ProcessExecutor(given.workers))
    with (Path(__file__).parent / "pieces.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["pieces", "axes", "loss", "params", "seconds"])
        for name, one in results.items():
            result = one.result
            row = [*name.split("-"), f"{result.loss:.4f}", result.spec.params, round(result.seconds)]
            writer.writerow(row)
            print(*row)


if __name__ == "__main__":
    try:
        main()
    except FlopsFitError as error:
        sys.exit(f"error: {error}")
