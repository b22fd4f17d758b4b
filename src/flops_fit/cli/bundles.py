"""What is done with a bundle: sample, evaluate. Which one it is its own config says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flops_fit.cli.app import AsJson, app, printed
from flops_fit.cli.training import MOST_SEED, CodecName, Data
from flops_fit.errors import FlopsFitError, InputError

if TYPE_CHECKING:
    from flops_fit.recipes.cats import CatFlow
    from flops_fit.recipes.sentences import SentenceFlow

Bundle = Annotated[str, typer.Argument(metavar="BUNDLE", help="a folder that `train` wrote, or a shipped one's name")]
Steps = Annotated[int, typer.Option(min=1, help="of the solver; dopri5 finds its own")]
Until = Annotated[float, typer.Option(help="time at which samples are read: 1, or before it with noise still on them")]
Method = Annotated[str, typer.Option(help="solver: euler, midpoint, heun, rk4 or dopri5")]
SHEET = "sheet.png"  # all pictures that were sampled together


@app.command(epilog="Example: flops-fit sample sentences --n 10 --seed 1")
def sample(
    bundle: Bundle,
    n: Annotated[int, typer.Option(min=1, help="samples")] = 10,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of the noise: equal seeds, equal samples")] = 0,
    method: Method = "heun",
    steps: Steps = 20,
    until: Until = 1.0,
    codec: CodecName = None,
    breed: Annotated[str | None, typer.Option("--class", help="of pictures, one of the bundle's; default: any")] = None,
    guidance: Annotated[float, typer.Option(help="of pictures towards their class; 1: none")] = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="FILE.parquet for vectors and texts; a folder for pictures")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate: sentences to read, or pictures of a class."""
    from flops_fit.models import weights
    from flops_fit.recipes import cats
    from flops_fit.recipes.sentences import SentenceFlow

    folder = weights.located(bundle)
    how = {"bundle": bundle, "seed": seed, "method": method}
    if weights.read(folder)[1].get("kind") == cats.KIND:
        _only("of sentences", {"--until": until != 1, "--codec": codec is not None})
        document, said = _pictures(cats.CatFlow.load(folder), breed, n, seed, method, steps, guidance, out)
    else:
        _only("of pictures", {"--class": breed is not None, "--guidance": guidance != 1})
        document, said = _sentences(SentenceFlow.load(folder), n, seed, method, steps, until, codec, out)
    printed({**how, **document} if as_json else said)


def _only(what: str, given: dict[str, bool]) -> None:
    wrong = [name for name, there in given.items() if there]
    if wrong:
        raise InputError(f"{', '.join(wrong)}: {what} only, which this bundle does not make; leave it out")


def _sentences(
    flow: SentenceFlow, n: int, seed: int, method: str, steps: int, until: float, codec: str | None, out: Path | None
) -> tuple[dict[str, Any], str]:
    """(what was made, in words)."""
    from flops_fit.data.codecs import reader
    from flops_fit.data.vectors import check_out, write_vectors

    if out is not None:
        check_out(out)
    found, coder, texts = flow.sample(n, seed, method, steps, until=until), None, [""] * n
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
    flow: CatFlow, breed: str | None, n: int, seed: int, method: str, steps: int, guidance: float, out: Path | None
) -> tuple[dict[str, Any], str]:
    """A PNG file each, and a sheet of them all: (what was made, in words)."""
    import torch

    from flops_fit.data.pictures import sheet, write_png
    from flops_fit.recipes.cats import Guidance

    if out is None:
        raise InputError("--out: got none, and pictures are files; give --out FOLDER")
    label = flow.label(breed)
    pixels = flow.sample(torch.full((n,), label), seed, method, steps, Guidance(guidance))
    out.mkdir(parents=True, exist_ok=True)
    called = "any" if breed is None else flow.config["classes"][label].lower().replace(" ", "-")
    files = [out / f"{called}-{seed}-{number}.png" for number in range(n)]
    for file, image in zip(files, pixels, strict=True):
        write_png(file, image)
    write_png(out / SHEET, sheet(pixels, columns=max(1, round(n**0.5))))
    document = {"class": breed, "guidance": guidance, "files": [str(file) for file in files]}
    return document, f"{n} pictures and {SHEET}: {out}"


@app.command(epilog="Example: flops-fit evaluate outputs/sentences/dit-chunked-icfm-5k-0 --data sentences.txt")
def evaluate(
    bundle: Bundle,
    data: Data = None,
    samples: Annotated[int, typer.Option(min=0, help="to generate, for what is said of samples; 0: none")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of their noise")] = 0,
    method: Method = "heun",
    steps: Steps = 20,
    until: Until = 1.0,
    codec: CodecName = None,
    as_json: AsJson = False,
) -> None:
    """Measure a bundle on held-out data, every number with its 95% interval."""
    from flops_fit.recipes.judged import Sampling
    from flops_fit.recipes.judged import evaluate as judged

    sampling = Sampling.asked(samples, seed=seed, method=method, steps=steps, until=until)
    found = judged(bundle, data, sampling, codec=codec)
    printed(found.to_dict() if as_json else str(found))
