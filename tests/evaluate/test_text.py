"""Text metrics against sacrebleu's own corpus scores and counts by hand."""

from __future__ import annotations

import math

import pytest

from flops_fit.errors import InputError
from flops_fit.evaluate.text import SELF, WordModel, distinct, known_words, round_trip, self_bleu, words

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
    for measure in (lambda texts: known_words(texts, {"a"}), distinct, self_bleu, WordModel(SAID).perplexity):
        with pytest.raises(InputError, match="got 1 texts; an interval needs at least 2"):
            measure(SAID[:1])
    with pytest.raises(InputError, match="texts: got none"):
        WordModel([])


def test_words_of_other_alphabets_are_words() -> None:
    assert words("Un café déjà-vu, it's 42; Кошка спит_") == ["un", "café", "déjà", "vu", "it's", "42", "кошка", "спит"]


def test_texts_without_a_word_have_no_known_ones() -> None:
    assert known_words(["", "...", "!"], {"a"}).value == 0


def test_self_bleu_is_the_mean_of_sacrebleus_sentence_scores() -> None:
    some = SAID + CAME[:1]
    by_hand = [
        sacrebleu.sentence_bleu(one, some[:i] + some[i + 1 :], use_effective_order=True).score
        for i, one in enumerate(some)
    ]
    assert self_bleu(some).value == pytest.approx(sum(by_hand) / len(by_hand))
    assert self_bleu([SAID[0]] * 5).value == pytest.approx(100)
    assert self_bleu([*SAID, *CAME] * SELF).n == SELF


# --- the model of words ---------------------------------------------------------------------------------------------


def test_probabilities_of_all_words_and_of_one_unknown_sum_to_one() -> None:
    model = WordModel(SAID)
    vocabulary = {word for text in SAID for word in words(text)} | {"", "never"}
    for before in (["", ""], ["a", "man"], ["dogs", "never"], ["never", "never"]):
        assert sum(model.probability(word, before) for word in vocabulary) == pytest.approx(1)


def test_witten_bell_by_hand() -> None:
    """Two texts, "a b" and "a c". At the bottom 4 known (a b c END) and 1 unknown; 6 tokens of 4 kinds seen."""
    model = WordModel(["a b", "a c"], order=2)
    one = (1 + 4 / 5) / (6 + 4)  # b by itself: seen once among 6, plus 4 kinds x 1/5
    assert model.probability("b", []) == pytest.approx(one)
    assert model.probability("b", ["a"]) == pytest.approx((1 + 2 * one) / (2 + 2))
    assert model.probability("b", ["never"]) == pytest.approx(one)


def test_perplexity_is_low_for_what_was_read_and_bounded_by_the_vocabulary() -> None:
    model = WordModel(SAID)
    assert model.perplexity(SAID).value < model.perplexity(CAME).value < model.perplexity(["zxq zxq", "qqq"]).value
    only = WordModel(["a a a a"] * 50, order=1)  # 200 of a and 50 ends, and hardly a chance for the third
    assert only.perplexity(["a a a a"] * 2).value == pytest.approx(
        math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2))), rel=0.02  # 2 kinds in 250 tokens go to the rest
    )


def test_the_interval_of_distinct_holds_the_spread_of_other_texts() -> None:
    """Over sets of 60 texts drawn anew: 95% of them lie within an interval's half width of their mean."""
    import random

    dice = random.Random(0)
    vocabulary = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]

    def drawn() -> list[str]:
        return [" ".join(dice.choices(vocabulary, weights=range(1, 101), k=6)) for _ in range(60)]

    metrics = [distinct(drawn(), 2) for _ in range(60)]
    centre = sum(m.value for m in metrics) / len(metrics)
    inside = sum(abs(m.value - centre) <= (m.hi - m.lo) / 2 for m in metrics)
    assert inside >= 51  # of 60 at 95%: fewer have a chance of 1%
