"""Text metrics against sacrebleu's own corpus scores and counts by hand."""

from __future__ import annotations

import pytest

from flops_fit.errors import InputError
from flops_fit.evaluate.text import distinct, known_words, round_trip, words

sacrebleu = pytest.importorskip("sacrebleu", reason="pip install sacrebleu")

SAID = ["A man rides a bicycle down the street.", "Two dogs play in the snow near a house.", "A woman reads a book."]
CAME = ["A man rides a bike down the street.", "Two dogs play in the snow near a house.", "A woman writes books."]


def test_bleu_and_chrf_are_sacrebleus() -> None:
    found = {m.name: m for m in round_trip(SAID, CAME)}
    assert found["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(CAME, [SAID]).score, rel=1e-3)
    assert found["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(CAME, [SAID]).score, rel=1e-3)
    assert found["exact"].value == pytest.approx(1 / 3)
    for metric in found.values():
        assert metric.lo <= metric.value <= metric.hi and metric.n == 3


def test_what_comes_back_whole_has_full_marks() -> None:
    assert [m.value for m in round_trip(SAID, SAID)] == pytest.approx([100, 100, 1])


def test_known_words_are_counted_over_all_texts() -> None:
    metric = known_words(["A man zxq.", "the THE man"], {"a", "man", "the"})
    assert metric.value == pytest.approx(5 / 6)
    assert words("Don't stop: 42 cats!") == ["don't", "stop", "42", "cats"]


def test_distinct_counts_different_pairs() -> None:
    metric = distinct(["a b c", "a b d"], 2)
    assert metric.value == pytest.approx(3 / 4)  # ab bc ab bd
    assert distinct(["x y"] * 10).value == pytest.approx(1 / 10)
    varied, dull = distinct([f"a{i} b{i} c" for i in range(50)]), distinct(["a b c"] * 50)
    assert varied.lo > dull.hi


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="got 2 texts for 3"):
        round_trip(SAID, CAME[:2])
