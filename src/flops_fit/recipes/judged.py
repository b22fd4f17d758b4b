"""What `flops-fit evaluate BUNDLE` measures, by the kind of bundle."""

from __future__ import annotations

from typing import Any

from flops_fit.data.codecs import Embedded
from flops_fit.errors import InputError
from flops_fit.models import weights
from flops_fit.recipes import cats, classifier, codec, sentences
from flops_fit.recipes.evaluation import Evaluation, Sampling
from flops_fit.recipes.judged_cats import JUDGES, Judges, Shown, classifier_judged, flow_judged
from flops_fit.recipes.judged_sentences import codec_judged, sentences_judged

KINDS = (sentences.KIND, codec.KIND, cats.KIND, classifier.KIND)


def evaluate(
    bundle: str, data: str | None, sampling: Sampling | None = None, *, coder: str | None = None,
    judges: Judges = JUDGES, report: bool = False,
) -> tuple[Evaluation, Shown | None]:  # fmt: skip
    """Measure a bundle on held-out data: (numbers, and of pictures what a report shows).

    Args:
        bundle: a folder, or the name of a bundle that comes with flops-fit.
        data: vectors or text, see `sentence_vectors`; of a codec: a text file; pictures, see `cat_pictures`.
        sampling: how to generate for everything that is said of samples; None: nothing is said.
        coder: codec that made the vectors, where the bundle does not know.
        judges: networks that look at samples of pictures.
        report: it is wanted; InputError where there would be nothing to see.

    Raises:
        InputError: a bundle of an unknown kind, data that do not go with it, or too few samples to say anything.
    """
    folder = weights.located(bundle)
    _, config = weights.read(folder)
    kind: Any = config.get("kind")
    if kind not in KINDS:
        raise InputError.unknown(f"kind of {bundle}", kind, KINDS)
    if sampling and kind in (codec.KIND, classifier.KIND):
        raise InputError(f"--samples: {bundle} is a {kind}, which generates nothing; leave it out")
    if report and kind not in (cats.KIND, classifier.KIND):
        raise InputError(f"--report: {bundle} makes no pictures to show; leave it out, and take --json")
    if coder and kind != sentences.KIND:
        raise InputError(f"--codec: {bundle} is no flow over sentence vectors; leave it out")
    if kind == codec.KIND:
        return codec_judged(bundle, Embedded.load(folder), data, config), None
    if kind == sentences.KIND:
        return sentences_judged(bundle, sentences.SentenceFlow.load(folder), data, sampling, coder), None
    if data is None:
        raise InputError(f"--data: {bundle} is judged by pictures; give a folder of them, or FILE.parquet")
    if kind == classifier.KIND:
        return classifier_judged(bundle, classifier.CatClassifier.load(folder), data)
    return flow_judged(bundle, cats.CatFlow.load(folder), data, sampling, judges)
