"""Decoded text: is it like real text? The home of sacrebleu."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from flops_fit.errors import InputError, MissingExtra
from flops_fit.evaluate.metric import Metric, Z, bootstrapped, mean_of, ratio_of, share_of

WORD = re.compile(r"(?:[^\W\d_]|')+|\d+")  # of alphabets; marks that Indic scripts write for vowels part words
BLEU_DRAWS = 200  # each is a corpus score of its own
EDGE = ""  # before the first word and after the last
SELF = 200  # texts of a self-BLEU: each is scored against all others


def words(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return WORD.findall(text.lower())


def round_trip(said: Sequence[str], returned: Sequence[str]) -> list[Metric]:
    """Corpus BLEU and chrF of what came back against what went in, and the share that came back letter by letter.

    BLEU: Papineni et al. 2002 as sacrebleu computes it (Post 2018), 0 to 100.
    """
    if len(said) != len(returned):
        raise InputError(f"returned: got {len(returned)} texts for {len(said)}; give one for each")
    found = []
    for name, scorer in (("bleu", require().BLEU()), ("chrf", require().CHRF())):
        statistics = np.array(scorer._extract_corpus_statistics(list(returned), [list(said)]))  # (n, counts)

        def score(rows, scorer=scorer, statistics=statistics) -> float:  # type: ignore[no-untyped-def]
            return float(scorer._compute_score_from_stats(statistics[rows].sum(axis=0).tolist()).score)

        found.append(bootstrapped(name, score, len(said), BLEU_DRAWS))
    exact = np.array([a == b for a, b in zip(said, returned, strict=True)])
    return [*found, share_of("exact", exact)]


def known_words(texts: Sequence[str], vocabulary: Collection[str]) -> Metric:
    """Share of words that are in the vocabulary, texts resampled."""
    _check("known_words", texts)
    known = set(vocabulary)
    counts = np.array([[sum(word in known for word in found), len(found)] for found in map(words, texts)])  # (n, 2)
    return ratio_of("known_words", counts[:, 0], counts[:, 1])


def distinct(texts: Sequence[str], n: int = 2) -> Metric:
    """Different n-grams as a share of all (Li et al. 2016, arXiv 1510.03055). Falls with their number."""
    _check(f"distinct_{n}", texts)
    grams = [Counter(zip(*(found[i:] for i in range(n)), strict=False)) for found in map(words, texts)]

    def share(rows) -> float:  # type: ignore[no-untyped-def]
        whole: Counter[tuple[str, ...]] = Counter()
        for row in rows:
            whole.update(grams[row])
        return len(whole) / max(sum(whole.values()), 1)

    full = share(np.arange(len(texts)))
    half = [share(np.random.default_rng(seed).permutation(len(texts))[: len(texts) // 2]) for seed in range(100)]
    spread = Z * float(np.std(half))  # halves without repeats vary as the whole does (Shao and Wu 1989)
    return Metric(name=f"distinct_{n}", value=full, lo=max(0, full - spread), hi=min(1, full + spread), n=len(texts))


def self_bleu(texts: Sequence[str]) -> Metric:
    """Mean BLEU of a text against all others, 0 to 100: how much they say the same (Zhu et al. 2018, arXiv 1802.01886).

    Of the first `SELF` texts: it grows with their number. Texts of fewer than 4 words are scored by what they have.
    """
    _check("self_bleu", texts)
    scorer, some = require().BLEU(effective_order=True), list(texts[:SELF])
    scores = [scorer.sentence_score(one, some[:i] + some[i + 1 :]).score for i, one in enumerate(some)]
    return mean_of("self_bleu", np.array(scores))


class WordModel:
    """A trigram model of words, interpolated as by Witten and Bell (1991; Chen and Goodman 1999, Eq. 16).

    p(w | h) = (c(h w) + T(h) p(w | shorter h)) / (c(h) + T(h)) with T(h) different words seen after h; at the bottom
    every known word and "a word never seen" are equally likely.
    """

    def __init__(self, texts: Sequence[str], order: int = 3) -> None:
        if not texts:
            raise InputError("texts: got none; a model of words learns from at least one")
        self.order = order
        self._after: dict[tuple[str, ...], Counter[str]] = {}
        for text in texts:
            row = self._row(text)
            for place in range(order - 1, len(row)):
                for length in range(order):
                    self._after.setdefault(tuple(row[place - length : place]), Counter())[row[place]] += 1
        self._totals = {context: sum(counts.values()) for context, counts in self._after.items()}
        self._known = len(self._after.get((), ())) + 1

    def _row(self, text: str) -> list[str]:
        return [EDGE] * (self.order - 1) + words(text) + [EDGE]

    def probability(self, word: str, before: Sequence[str]) -> float:
        """Of `word` after the last order - 1 words of `before`."""
        found = 1 / self._known
        for length in range(min(self.order, len(before) + 1)):
            counts = self._after.get(tuple(before[len(before) - length :]))
            if counts is None:
                break
            different = len(counts)
            total = self._totals[tuple(before[len(before) - length :])]
            found = (counts[word] + different * found) / (total + different)
        return found

    def perplexity(self, texts: Sequence[str]) -> Metric:
        """exp of the mean negative log-probability of a word, ends among them; texts are resampled."""
        _check("perplexity", texts)
        sums = []
        for text in texts:
            row = self._row(text)
            places = range(self.order - 1, len(row))
            sums.append((sum(math.log(self.probability(row[i], row[:i])) for i in places), len(places)))
        nats = ratio_of("perplexity", -np.array(sums)[:, 0], np.array(sums)[:, 1])
        value, lo, hi = (math.exp(one) for one in (nats.value, nats.lo, nats.hi))
        return Metric(name="perplexity", value=value, lo=lo, hi=hi, n=len(texts))


def _check(name: str, texts: Sequence[str]) -> None:
    if len(texts) < 2:
        raise InputError(f"{name}: got {len(texts)} texts; an interval needs at least 2")


def require() -> Any:
    """sacrebleu's metrics. Raises MissingExtra."""
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise MissingExtra.of("sacrebleu", "text", "to compare texts") from error
    return sacrebleu.metrics
