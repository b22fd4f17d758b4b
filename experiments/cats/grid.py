"""Samples of a flow over pictures by class, none left out: a row for each class, in the order that its config has.

    python experiments/cats/grid.py cats-64 --out experiments/cats/samples.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from flops_fit.data.pictures import sheet, write_png
from flops_fit.models import weights
from flops_fit.recipes.cats import CatFlow

IN_A_ROW, SEED = 8, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    flow = CatFlow.load(weights.located(asked.bundle))
    classes = flow.config["classes"]
    pixels = flow.sample(torch.arange(len(classes)).repeat_interleave(IN_A_ROW), SEED)
    write_png(asked.out, sheet(pixels, IN_A_ROW))
    print(f"{asked.out}: {', '.join(classes)}")


if __name__ == "__main__":
    main()
