"""What is done with a bundle: sample, evaluate. Which one it is its own config says."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flops_fit.cli.app import AsJson, app, printed
from flops_fit.cli.training import MOST_SEED, CodecName
from flops_fit.errors import FlopsFitError, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from flops_fit.recipes.cats import CatFlow
    from flops_fit.recipes.sentences import SentenceFlow

Bundle = Annotated[str, typer.Argument(metavar="BUNDLE", help="a folder that `train` wrote, or a shipped one's name")]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="of the solver; default: the bundle's, else 20, of pictures 12; dopri5 finds its own"),
]
Until = Annotated[
    float | None, typer.Option(help="of sentences: time at which they are read; before 1 there is noise on them")
]
Method = Annotated[
    str | None, typer.Option(help="solver: euler, midpoint, heun, rk4 or dopri5; default: the bundle's, else heun")
]
Guided = Annotated[float | None, typer.Option(help="of pictures towards their class; 1: none; default: the bundle's")]
Extractor = Annotated[
    str | None,
    typer.Option(help="what sees samples: efficientnet-lite0 (default), inception[:FILE] or dinov2:FOLDER"),
]
ClassifierName = Annotated[str | None, typer.Option(help="bundle that tells breeds of samples; cats-classifier")]
SHEET = "sheet.png"  # all pictures that were sampled together


@app.command(epilog="Example: flops-fit sample sentences --n 10 --seed 1")
def sample(
    bundle: Bundle,
    n: Annotated[int, typer.Option(min=1, help="samples")] = 10,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of the noise: equal seeds, equal samples")] = 0,
    method: Method = None,
    steps: Steps = None,
    until: Until = None,
    codec: CodecName = None,
    breed: Annotated[str | None, typer.Option("--class", help="of pictures, one of the bundle's; default: any")] = None,
    guidance: Guided = None,
    out: Annotated[
        Path | None, typer.Option(help="FILE.parquet for vectors and texts; a folder for pictures")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate: sentences to read, or pictures of a class."""
    from flops_fit.models import weights
    from flops_fit.recipes import cats
    from flops_fit.recipes.sentences import SAMPLING, SentenceFlow

    folder = weights.located(bundle)
    if weights.read(folder)[1].get("kind") == cats.KIND:
        _only("of sentences", {"--until": until is not None, "--codec": codec is not None})
        flow = cats.CatFlow.load(folder)
        asked = {"method": method, "steps": steps, "guidance": guidance}
        how = {name: usual if asked[name] is None else asked[name] for name, usual in flow.sampling.items()}
        document, said = _pictures(flow, breed, n, seed, how, out)
    else:
        _only("of pictures", {"--class": breed is not None, "--guidance": guidance is not None})
        asked = {"method": method, "steps": steps, "until": until}
        how = {name: usual if asked[name] is None else asked[name] for name, usual in SAMPLING.items()}
        document, said = _sentences(SentenceFlow.load(folder), n, seed, how, codec, out)
    printed({"bundle": bundle, "seed": seed, **how, **document} if as_json else said)


def _only(what: str, given: dict[str, bool]) -> None:
    wrong = [name for name, there in given.items() if there]
    if wrong:
        raise InputError(f"{', '.join(wrong)}: {what} only, which this bundle does not make; leave it out")


def _sentences(
    flow: SentenceFlow, n: int, seed: int, how: dict[str, Any], codec: str | None, out: Path | None
) -> tuple[dict[str, Any], str]:
    """(what was made, in words)."""
    from flops_fit.data.codecs import reader
    from flops_fit.data.vectors import check_out, write_vectors

    if out is not None:
        check_out(out)
    found, coder, texts = flow.sample(n, seed, **how), None, [""] * n
    try:
        coder = reader(flow.config["codec"], codec)
        texts = coder.decode(found.x)
    except FlopsFitError as error:
        if out is None:
            raise InputError(f"{error}, or --out FILE.parquet for the vectors alone") from error
        print(f"no texts: {error}", file=sys.stderr)
    if out is not None:
        write_vectors(out, found.x, texts)
    document = {
        "nfe": found.nfe, "codec": coder.reference if coder else None, "texts": texts if coder else None,
    }  # fmt: skip
    return document, "\n".join(texts) if coder else f"{n} vectors: {out}"


def _pictures(
    flow: CatFlow, breed: str | None, n: int, seed: int, how: dict[str, Any], out: Path | None
) -> tuple[dict[str, Any], str]:
    """A PNG file each, and a sheet of them all: (what was made, in words)."""
    import torch

    from flops_fit.data.pictures import sheet, writable, write_png
    from flops_fit.progress import shown
    from flops_fit.recipes.cats import AT_ONCE

    if out is None:
        raise InputError("--out: got none, and pictures are files; give --out FOLDER")
    label = flow.label(breed)
    writable(out, "--out")
    called = "any" if breed is None else flow.config["classes"][label].lower().replace(" ", "-")
    pixels: list[Tensor] = []
    files = [out / f"{called}-{seed}-{number}.png" for number in range(n)]
    parts = flow.drawn(torch.full((n,), label), seed, **how)
    for part in shown(parts, math.ceil(n / AT_ONCE), f"drawing {n:,} pictures"):  # each is kept as soon as it is there
        for image in part:
            write_png(files[len(pixels)], image)
            pixels.append(image)
    write_png(out / SHEET, sheet(torch.stack(pixels), columns=max(1, round(n**0.5))))
    document = {"class": breed, "files": [str(file) for file in files]}
    return document, f"{n} pictures and {SHEET}: {out}"


@app.command(epilog="Example: flops-fit evaluate outputs/sentences/dit-chunked-icfm-5k-0 --data sentences.txt")
def evaluate(
    bundle: Bundle,
    data: Annotated[
        str | None, typer.Option(help="sentences or vectors, as `train sentences` takes them; pictures, as `data info`")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="to generate, for what is said of samples; 0: none")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of their noise")] = 0,
    method: Method = None,
    steps: Steps = None,
    until: Until = None,
    guidance: Guided = None,
    codec: CodecName = None,
    extractor: Extractor = None,
    classifier: ClassifierName = None,
    report: Annotated[
        Path | None, typer.Option(help="of pictures: folder for evaluation_report.json and a page with grids")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a bundle on held-out data, every number with its 95% interval."""
    from flops_fit.data.pictures import writable
    from flops_fit.recipes.evaluation import Sampling
    from flops_fit.recipes.judged import evaluate as judged
    from flops_fit.recipes.judged_cats import Judges
    from flops_fit.recipes.report import write

    sampling = Sampling.asked(samples, seed=seed, method=method, steps=steps, until=until, guidance=guidance)
    judges = Judges.asked(extractor, classifier, sampling)
    if report is not None:
        writable(report, "--report")
    found, shown = judged(bundle, data, sampling, coder=codec, judges=judges, report=report is not None)
    printed(found.to_dict() if as_json else str(found))
    if report is not None and shown is not None:
        write(report, found, shown)


@app.command(epilog="Example: flops-fit compare outputs/cats-400k outputs/cats-200k --data cats --samples 1000")
def compare(
    bundle: Bundle,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="a bundle of the same kind")],
    data: Annotated[str, typer.Option(help="pictures, as `data info` takes them")],
    samples: Annotated[int, typer.Option(min=0, help="of each, from the same noise; 0: none")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of their noise")] = 0,
    extractor: Extractor = None,
    classifier: ClassifierName = None,
    as_json: AsJson = False,
) -> None:
    """By how much one bundle of pictures is better than another: paired differences with their 95% intervals."""
    from flops_fit.recipes.compared import compare as compared
    from flops_fit.recipes.evaluation import Sampling
    from flops_fit.recipes.judged_cats import Judges

    sampling = Sampling.asked(samples, seed=seed)
    found = compared(bundle, other, data, sampling, Judges.asked(extractor, classifier, sampling))
    printed(found.to_dict() if as_json else str(found))


@app.command(epilog="Example: flops-fit classify cat.jpg")
def classify(
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="files; JPEG, PNG and others")],
    bundle: Annotated[str, typer.Option("--bundle", help="a classifier, by name or folder")] = "cats-classifier",
    as_json: AsJson = False,
) -> None:
    """Tell which breed of cat a picture shows, and whether it shows a cat."""
    from flops_fit.recipes.classifier import told

    found = told(bundle, pictures)
    if as_json:
        printed({"bundle": bundle, "pictures": [one.to_dict() for one in found]})
    else:
        printed("\n".join(map(str, found)))
    if any(one.reason for one in found):
        raise typer.Exit(2)
