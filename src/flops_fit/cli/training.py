"""From data to a bundle and what it is worth: train, sample, evaluate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flops_fit.cli.app import AsJson, app, printed
from flops_fit.errors import FlopsFitError, InputError

if TYPE_CHECKING:
    from flops_fit.study.training import Training

train_app = typer.Typer(no_args_is_help=True, help="Train one model and keep it as a bundle; a killed run goes on.")
app.add_typer(train_app, name="train")

Output = Annotated[Path | None, typer.Option(help="folder of the bundle; default: outputs/GROUP/ and what is trained")]
Resume = Annotated[bool, typer.Option(help="go on where an earlier call stopped")]
Data = Annotated[
    str | None, typer.Option(help="parquet (embedding, text, split), or text, a sentence a line; default: made-up ones")
]
CodecName = Annotated[
    str | None, typer.Option(help="codec (comes with flops-fit), sonar, or the folder that `train codec` wrote")
]
Bundle = Annotated[str, typer.Argument(metavar="BUNDLE", help="a folder that `train` wrote, or a shipped one's name")]
MOST_SEED = 2**62  # what all generators take, twice over
Steps = Annotated[int, typer.Option(min=1, help="of the solver; dopri5 finds its own")]
Until = Annotated[float, typer.Option(help="time at which samples are read: 1, or before it with noise still on them")]
Method = Annotated[str, typer.Option(help="solver: euler, midpoint, heun, rk4 or dopri5")]


@train_app.command(epilog="Example: flops-fit train sentences --data sentences.txt --flow icfm")
def sentences(
    arch: Annotated[str, typer.Option(help="mlp, dit, dit-chunked, unet, ssm, or kernel for few data")] = "dit-chunked",
    size: Annotated[str, typer.Option(help="tiny, small or base")] = "small",
    hidden: Annotated[
        int | None, typer.Option(min=1, help="width instead of that size's, such as `find sentences-dit` tells")
    ] = None,
    flow: Annotated[str, typer.Option(help="icfm, otcfm, gvp, or reflow with --teacher")] = "icfm",
    data: Data = None,
    dataset: Annotated[str, typer.Option(help="vectors to train on at most: 1k, 5k, ... or all")] = "5k",
    codec: CodecName = None,
    epochs: Annotated[float, typer.Option(help="passes over them")] = 20.0,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    lr: Annotated[
        float | None, typer.Option(help="largest; default: .001, of dit-chunked by itself .004, of kernel .05")
    ] = None,
    times: Annotated[str, typer.Option(help="uniform, logit-normal or mixture")] = "uniform",
    augmentation: Annotated[str, typer.Option(help="none, or a chain: mixup:0.2,noise:0.1,dropout:0.1")] = "none",
    statistics: Annotated[
        str | None,
        typer.Option(help="standard (mean, deviation), robust (quartiles), common (one scale; default on text)"),
    ] = None,
    gaussian: Annotated[
        bool | None,
        typer.Option(help="learn what the data's Gaussian does not know; default: yes, but for dit-chunked on text"),
    ] = None,
    patience: Annotated[int, typer.Option(min=0, help="looks without progress before it ends early; 0: never")] = 0,
    teacher: Annotated[str | None, typer.Option(help="bundle that reflow straightens")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of weights, order, noise")] = 0,
    group: Annotated[str, typer.Option(help="folder under outputs/, for runs that belong together")] = "sentences",
    output: Output = None,
    resume: Resume = True,
    as_json: AsJson = False,
) -> None:
    """A flow over sentence vectors, with its held-out loss beside predictors that need no training."""
    from dataclasses import replace

    from flops_fit.data.sentence_vectors import sentence_vectors
    from flops_fit.models import weights
    from flops_fit.recipes.sentences import OPTIONS, SentenceFlow, training

    guide = SentenceFlow.load(weights.located(teacher, "teacher")) if teacher is not None else None
    vectors, held_out = sentence_vectors(data, codec, _count("--dataset", dataset))
    made = training(
        vectors, held_out, arch, size, flow, epochs, batch_size, lr, seed, times, augmentation, statistics, gaussian,
        arguments=None if hidden is None else {"hidden": hidden}, options=replace(OPTIONS, patience=patience),
        teacher=guide,
    )  # fmt: skip
    _train(made, output or Path("outputs") / group / f"{arch}-{flow}-{dataset}-{seed}", resume, as_json)


@train_app.command(epilog="Example: flops-fit train codec --data sentences.txt --epochs 2")
def codec(
    data: Annotated[str, typer.Option(help="text, one sentence a line")],
    made_up: Annotated[int, typer.Option(min=0, help="made-up sentences beside them")] = 20_000,
    width: Annotated[int, typer.Option(min=4, help="of the network")] = 240,
    slots: Annotated[int, typer.Option(help="pieces of a vector, for as many pieces of a sentence: 1, 2, ... 32")] = 32,
    noise: Annotated[float, typer.Option(help="most noise on a vector in training, in its own size")] = 5.0,
    epochs: Annotated[float, typer.Option(help="passes over the sentences")] = 2.0,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    lr: Annotated[float, typer.Option(help="largest learning rate")] = 2e-3,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of weights, order, noise")] = 0,
    output: Output = None,
    resume: Resume = True,
    as_json: AsJson = False,
) -> None:
    """A sentence autoencoder with vectors of 1024 numbers, so that generated vectors can be read."""
    from flops_fit.recipes.codec import training

    made = training(
        data, width=width, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, made_up=made_up, slots=slots,
        noise=noise,
    )  # fmt: skip
    _train(made, output or Path("outputs") / "codec", resume, as_json)


@app.command(epilog="Example: flops-fit sample sentences --n 10 --seed 1")
def sample(
    bundle: Bundle,
    n: Annotated[int, typer.Option(min=1, help="samples")] = 10,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of the noise: equal seeds, equal samples")] = 0,
    method: Method = "heun",
    steps: Steps = 20,
    until: Until = 1.0,
    codec: CodecName = None,
    out: Annotated[Path | None, typer.Option(help="write vectors and texts there, FILE.parquet")] = None,
    as_json: AsJson = False,
) -> None:
    """Generate sentence vectors and read them."""
    from flops_fit.data.codecs import reader
    from flops_fit.data.vectors import write_vectors
    from flops_fit.models import weights
    from flops_fit.recipes.sentences import SentenceFlow

    flow = SentenceFlow.load(weights.located(bundle))
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
        "bundle": bundle, "seed": seed, "method": method, "nfe": found.nfe,
        "codec": coder.reference if coder else None, "texts": texts if coder else None,
    }  # fmt: skip
    printed(document if as_json else "\n".join(texts) if coder else f"{n} vectors: {out}")


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


def _train(made: Training, output: Path, resume: bool, as_json: bool) -> None:
    from flops_fit.evaluate.metric import table
    from flops_fit.study.training import train

    try:
        found = train(made, output, resume=resume)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {output}", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        result = found.result.to_dict()
        printed({"bundle": str(output), "metrics": table(found.metrics), "result": result})
    else:
        lines = [f"trained on {made.config.get('data', f'{len(made.dataset):,} samples')}", *map(str, found.metrics)]
        printed("\n".join([*lines, f"bundle: {output}", "TRAINING COMPLETE"]))


def _count(name: str, text: str) -> int | None:
    """1k, 5k, 800: that many; all: None."""
    if text == "all":
        return None
    number, unit = (text[:-1], 1000) if text.endswith("k") else (text, 1)
    if not number.isdecimal() or int(number) == 0:
        raise InputError(f"{name}: got {text!r}; allowed are whole numbers, such with k for thousands, and all")
    return int(number) * unit
