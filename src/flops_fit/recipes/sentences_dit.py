"""sentences-dit: how large a transformer for flows over sentence vectors should be. D counts pieces of them.

command   flops-fit find sentences-dit --data captions.txt        or vectors: FILE.parquet
          flops-fit find sentences-dit                            made-up sentences, offline
what came out: experiments/sentences/README.md
"""

from __future__ import annotations

from torch.utils.data import TensorDataset

from flops_fit.data.sentence_vectors import sentence_vectors
from flops_fit.recipes.sentences import Matching, alone, fitted, usual_statistics, velocity_network
from flops_fit.study import Study

ARCH = "dit-chunked"
BATCH = 64  # vectors
PIECES = 16  # that dit-chunked cuts a vector into
EPOCHS = 16  # a vector comes back with other noise


def study(data: str | None = None) -> Study:
    """The study on the vectors of `data` (see `flops_fit.data.sentence_vectors`), None: of made-up sentences.

    The network stands by itself or over the Gaussian, as `train sentences` has it for such vectors.
    Smaller budgets are no evidence: their runs end while attention has learned nothing yet, at the Gaussian's loss.
    """
    vectors, held_out = sentence_vectors(data)
    normaliser, gaussian = fitted(vectors.values, usual_statistics(vectors.codec))
    over = {} if alone(ARCH, vectors.codec) else {"mean": gaussian.mean, "variances": gaussian.variances}
    return Study(
        model_cls=velocity_network,
        model_size_param="hidden",
        model_kwargs={
            "arch": ARCH, "size": "small", "arguments": {}, "path": "linear",
            "dim": vectors.values.shape[1], "axes": normaliser.axes, **over,
        },
        dataset=TensorDataset(normaliser(vectors.values)),
        held_out=TensorDataset(normaliser(held_out.values)),
        objective=Matching("linear"),
        compute_budgets=(6e12, 1.2e13, 2.4e13, 4.8e13),
        size_multiple=16,
        sizes_per_budget=5,
        tokens_per_sample=PIECES,
        tokens_per_param=1.2,
        span=2.0,
        max_epochs=EPOCHS,
        batch_size=BATCH,
        describe_data=vectors.described,
    )  # fmt: skip
