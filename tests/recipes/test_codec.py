"""The codec's recipe on a few sentences: it trains, is judged by its own held-out sentences, and comes back."""

from __future__ import annotations

from pathlib import Path

import torch

from flops_fit.data.codecs import Embedded
from flops_fit.recipes.codec import Reconstruction, scores, training
from flops_fit.runs.watch import Quiet
from flops_fit.study.training import train

SENTENCES = [f"A {a} {b} {c} a {d}." for a in ("big", "small", "red") for b in ("dog", "cat", "man", "girl")
             for c in ("sees", "eats", "holds") for d in ("ball", "fish", "stick", "book", "hat")]  # fmt: skip


def test_a_codec_is_trained_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(SENTENCES))
    made = training(str(path), width=32, layers=1, epochs=3.0, batch_size=16)
    found = train(made, tmp_path / "codec", watch=Quiet())
    told = {metric.name: metric for metric in found.metrics}
    assert set(told) == {"bleu", "chrf", "exact", "bleu_noise", "chrf_noise", "exact_noise"}
    codec = Embedded.load(tmp_path / "codec")
    assert codec.encode(SENTENCES[:3]).shape == (3, 1024)
    held_out = made.held_out.tensors[0]
    texts = codec.vocabulary.decode(held_out)
    assert set(texts) <= set(SENTENCES) and not set(texts) & set(codec.vocabulary.decode(made.dataset.tensors[0]))
    again = {metric.name: metric.value for metric in scores(codec, texts)}
    assert again.keys() == told.keys()


def test_noise_and_replaced_tokens_are_for_training_alone(tmp_path: Path) -> None:
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(SENTENCES))
    made = training(str(path), width=32, layers=1)
    model = made.model_cls(width=32, **made.model_kwargs)
    batch = [made.dataset.tensors[0][:8]]
    plain, noisy = Reconstruction(0.0, 0.0), Reconstruction(0.5, 0.5)
    assert torch.equal(plain(model.eval(), batch), noisy(model.eval(), batch))
    assert not torch.equal(plain(model.train(), batch), noisy(model.train(), batch))
