"""vit-cifar: a vision transformer that tells ten kinds of image apart. D counts images.

    command   flops-fit find vit-cifar --data cifar10.parquet --verify 4      or CIFAR-10's own files, or a folder
              flops-fit find vit-cifar                                        shapes drawn by code, offline
    how the choices were measured: experiments/vit-cifar/LOG.md
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flops_fit.data.images import image_sets
from flops_fit.models.vit import VisionTransformer
from flops_fit.scaling.rules import LrRule
from flops_fit.study import Study

SIZE = 32           # pixels a side
BATCH = 32          # images; 64 costs more than the seed does (experiments/vit-cifar/LOG.md)
EPOCHS = 32         # nine passes over 4,000 images cost no more than the seed does (the same)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats an image. logits (B, K); labels (B,) int64."""
    return F.cross_entropy(logits, labels)


def study(data: str | None = None) -> Study:
    """The study on the images at `data` (see `flops_fit.data.images.image_sets`), None: on shapes drawn by code.

    Half of them are mirrored, so that a long run sees them less often; to move them too costs these models loss (the
    same).
    """
    images = image_sets(data, SIZE, augment="mirrored")
    return Study(
        model_cls=VisionTransformer,
        model_size_param="d_model",
        model_kwargs={"image_size": SIZE, "classes": images.classes},
        dataset=images.training,
        held_out=images.held_out,
        loss_fn=cross_entropy,
        compute_budgets=(3e11, 4.8e11, 7.5e11, 1.2e12, 1.9e12, 3e12),
        size_multiple=4,
        sizes_per_budget=6,
        tokens_per_param=15.0,
        span=2.3,
        max_epochs=EPOCHS,
        lr=LrRule(0.3, n_exponent=-0.5, d_exponent=0.0),
        batch_size=BATCH,
        describe_data=images.description,
    )
