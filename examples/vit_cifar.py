"""How big should a vision transformer on your images be? Copy this file and change what is yours.

    python examples/vit_cifar.py                          shapes drawn by code, offline
    python examples/vit_cifar.py --data cifar10.parquet   or CIFAR-10's own files, or a folder with a subfolder a class
    python examples/vit_cifar.py --plan                   what it would run and cost
    python examples/vit_cifar.py --quick                  tiny budgets, to see it work
"""

from __future__ import annotations

import argparse
import sys

import torch.nn.functional as F

import flops_fit
from flops_fit.data.images import image_sets
from flops_fit.models.vit import VisionTransformer
from flops_fit.scaling.rules import LrRule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a parquet file, a folder or CIFAR-10's own files; default: drawn shapes")
    parser.add_argument("--plan", action="store_true", help="show what would run, train nothing")
    parser.add_argument("--quick", action="store_true", help="tiny budgets; the answer is of no use")
    parser.add_argument("--output", default="outputs/vit-cifar", help="folder of what is written")
    asked = parser.parse_args()
    folder = asked.output + "-quick" * asked.quick  # another study

    side = 16 if asked.quick else 32  # pixels
    images = image_sets(asked.data, size=side, augment="mirrored")
    result = flops_fit.find_optimal(
        VisionTransformer, "d_model", {"image_size": side, "classes": images.classes},
        dataset=images.training, held_out=images.held_out, loss_fn=F.cross_entropy,
        compute_budgets=[5e8, 1e9, 2e9] if asked.quick else [3e11, 4.8e11, 7.5e11, 1.2e12, 1.9e12, 3e12],
        size_multiple=4, sizes_per_budget=4 if asked.quick else 6, tokens_per_param=4 if asked.quick else 15, span=2.3,
        max_epochs=32,  # more than usual: half of the images are mirrored, anew each time
        lr=LrRule(0.3, n_exponent=-0.5, d_exponent=0), batch_size=32,
        bootstrap=100 if asked.quick else 4000, extend=0 if asked.quick else 2,
        train=not asked.plan, output_dir=folder,
    )  # fmt: skip
    if isinstance(result, flops_fit.SweepPlan):
        print(result)
    else:
        print(result.summary())
        print(f"report: {folder}/report.html")


if __name__ == "__main__":
    try:
        main()
    except flops_fit.FlopsFitError as error:
        sys.exit(f"error: {error}")
