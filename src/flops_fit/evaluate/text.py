"""Decoded text: is it like real text? The home of sacrebleu."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from flops_fit.errors import InputError, MissingExtra
from flops_fit.evaluate.metric import DRAWS, Metric, bootstrapped, mean_of

WORD = re.compile(r"[a-z']+|[0-9]+")
BLEU_DRAWS = 200  # each is a corpus score of its own


def words(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return WORD.findall(text.lower())


def round_trip(said: Sequence[str], returned: Sequence[str]) -> list[Metric]:
    """Corpus BLEU and chrF of what came back against what went in, and the share that came back letter by letter.

    BLEU: Papineni et al. 2002 as sacrebleu computes it (Post 2018), 0 to 100.
    """
    if len(said) != len(returned):
        raise InputError(f"returned: got {len(returned)} texts for {len(said)}; give one for each")
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise MissingExtra.of("sacrebleu", "text", "to compare texts") from error
    found = []
    for name, scorer in (("bleu", BLEU()), ("chrf", CHRF())):
        statistics = np.array(scorer._extract_corpus_statistics(list(returned), [list(said)]))  # (n, counts)

        def score(rows, scorer=scorer, statistics=statistics) -> float:  # type: ignore[no-untyped-def]
            return float(scorer._compute_score_from_stats(statistics[rows].sum(axis=0).tolist()).score)

        found.append(bootstrapped(name, score, len(said), BLEU_DRAWS))
    exact = np.array([a == b for a, b in zip(said, returned, strict=True)], dtype=float)
    return [*found, mean_of("exact", exact)]


def known_words(texts: Sequence[str], vocabulary: Collection[str]) -> Metric:
    """Share of words that are in the vocabulary, texts resampled."""
    known = set(vocabulary)
    counts = np.array([[sum(word in known for word in found), len(found)] for found in map(words, texts)])  # (n, 2)

    def share(rows) -> float:  # type: ignore[no-untyped-def]
        inside, all_ = counts[rows].sum(axis=0)
        return float(inside / max(all_, 1))

    return bootstrapped("known_words", share, len(texts), DRAWS)


def distinct(texts: Sequence[str], n: int = 2) -> Metric:
    """Different n-grams as a share of all (Li et al. 2016, arXiv 1510.03055). Falls with their number."""
    grams = [Counter(zip(*(found[i:] for i in range(n)), strict=False)) for found in map(words, texts)]

    def share(rows) -> float:  # type: ignore[no-untyped-def]
        whole: Counter[tuple[str, ...]] = Counter()
        for row in rows:
            whole.update(grams[row])
        return len(whole) / max(sum(whole.values()), 1)

    full = share(np.arange(len(texts)))
    half = [share(np.random.default_rng(seed).permutation(len(texts))[: len(texts) // 2]) for seed in range(100)]
    spread = float(np.std(half)) / 2**0.5  # of half samples without repeats, which a bootstrap would take for copies
    return Metric(name=f"distinct_{n}", value=full, lo=full - 1.96 * spread, hi=full + 1.96 * spread, n=len(texts))
