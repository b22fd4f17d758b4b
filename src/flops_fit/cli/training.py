"""From data to a bundle: train."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flops_fit.cli.app import AsJson, app, printed
from flops_fit.errors import InputError

if TYPE_CHECKING:
    from flops_fit.data.pictures import Pictures
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
MOST_SEED = 2**32 - 1  # all that torch's generator on the CPU tells apart


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


CatData = Annotated[str, typer.Option(help="folder of pictures, the official set's, or FILE.parquet; see `data get`")]


@train_app.command("dit-cats", epilog="Example: flops-fit train dit-cats --data cats --preset cpu-64")
def dit_cats(
    data: CatData,
    preset: Annotated[str, typer.Option(help="cpu-64, h200-25min, baseline or high-accuracy")] = "cpu-64",
    steps: Annotated[int | None, typer.Option(min=1, help="of the optimiser, instead of the preset's")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="pictures that go through at once")] = None,
    gradient_accumulation_steps: Annotated[int | None, typer.Option(min=1, help="batches to a step")] = None,
    lr: Annotated[float | None, typer.Option(help="largest learning rate")] = None,
    warmup_steps: Annotated[int | None, typer.Option(min=0, help="a tenth of the steps at most")] = None,
    augmentation_level: Annotated[
        str, typer.Option(help="none, basic (mirrored), or full (moved too, which the network is told)")
    ] = "basic",
    ema: Annotated[
        str | None, typer.Option(help="length of the average of weights, a share of the run; auto: chosen after it")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="muon (AdamW on all but matrices) or adamw")] = None,
    compile_steps: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="by torch.compile; default: of 1,000 steps on")
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="steps; default: by the clock")] = None,
    sample_every: Annotated[int | None, typer.Option(min=1, help="steps between sheets of samples")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of weights, order, noise")] = 0,
    output: Output = None,
    resume: Resume = True,
    as_json: AsJson = False,
) -> None:
    """A flow over pictures of cats by breed, with its held-out loss beside predictors that need no training."""
    from dataclasses import replace

    from flops_fit.data.cats import cat_pictures
    from flops_fit.recipes.dit_cats import AUGMENTATIONS, PRESETS, Sheets, options, tiny_presets, training
    from flops_fit.train.options import MOST_WARMUP

    if preset not in PRESETS:
        raise InputError.unknown("--preset", preset, PRESETS)
    given: dict[str, Any] = {
        "steps": steps, "batch_size": batch_size, "accumulation": gradient_accumulation_steps, "lr": lr,
        "warmup_steps": warmup_steps, "optimizer": optimizer, "compiled": compile_steps,
    }  # fmt: skip
    chosen = replace(PRESETS[preset], **{name: value for name, value in given.items() if value is not None})
    if warmup_steps is None:  # of a shorter run less
        chosen = replace(chosen, warmup_steps=min(chosen.warmup_steps, int(MOST_WARMUP * chosen.steps)))
    if ema is not None:
        chosen = replace(chosen, ema=None if ema == "auto" else _share("--ema", ema))
    options(chosen)  # what cannot be is told before any picture is read
    if augmentation_level not in AUGMENTATIONS:
        raise InputError.unknown("--augmentation-level", augmentation_level, AUGMENTATIONS)
    pictures = cat_pictures(data, tiny_presets(chosen.network)["image_size"])
    _left_out(pictures)
    folder = output or Path("outputs") / f"cats-{preset}-{seed}"
    made = training(
        pictures, chosen, seed=seed, augmentation=augmentation_level, checkpoint_every=checkpoint_every,
        sheets=Sheets(folder, sample_every) if sample_every else None,
    )  # fmt: skip
    _train(made, folder, resume, as_json)


@train_app.command("cats-classifier", epilog="Example: flops-fit train cats-classifier --data cats")
def cats_classifier(
    data: CatData,
    backbone: Annotated[str, typer.Option(help="efficientnet-lite0, resnet18 or resnet34")] = "efficientnet-lite0",
    pretrained: Annotated[
        str | None,
        typer.Option(help="checkpoint that the backbone begins with, or none; default: ImageNet's of the package"),
    ] = None,
    image_size: Annotated[int, typer.Option(min=32, help="pixels a side, as the network sees them")] = 192,
    epochs: Annotated[float, typer.Option(help="passes over the pictures")] = 30.0,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    lr: Annotated[float, typer.Option(help="largest learning rate of the heads; a pretrained backbone's is a tenth")]
    = 3e-3,
    augmentation_level: Annotated[
        str, typer.Option(help="none, basic (mirrored), or full (cropped, coloured and mixed too)")
    ] = "full",
    heads_first: Annotated[
        float, typer.Option(help="share of the run in which the backbone stays as it is, from 0 to below 1")
    ] = 0.1,
    patience: Annotated[
        int, typer.Option(min=0, help="looks without progress before it ends, with its best weights; 0: never")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of weights, order, changes of pictures")] = 0,
    output: Output = None,
    resume: Resume = True,
    as_json: AsJson = False,
) -> None:
    """Which breed a picture shows, and whether it is a cat at all; with its accuracy and calibration, held out."""
    from flops_fit.data.cats import cat_pictures
    from flops_fit.recipes.classifier import check, training

    begun: bool | str = {None: True, "none": False}.get(pretrained, pretrained or True)
    check(backbone, begun)
    pictures = cat_pictures(data, image_size)
    _left_out(pictures)
    made = training(
        pictures, backbone, begun, epochs, batch_size, lr, augmentation_level, heads_first, patience, seed
    )
    _train(made, output or Path("outputs") / f"cats-classifier-{seed}", resume, as_json)


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
        if made.config.get("gaussian"):
            lines.append(f"loss_gaussian: {made.config['gaussian']}")
        printed("\n".join([*lines, f"bundle: {output}", "TRAINING COMPLETE"]))


def _left_out(pictures: Pictures) -> None:
    """Told before hours are spent on the others."""
    if pictures.skipped:
        print(f"{pictures.name}: {len(pictures.pixels):,} pictures are used{pictures.but}", file=sys.stderr)


def _share(name: str, text: str) -> float:
    from flops_fit.train.ema import LONGEST

    with suppress(ValueError):
        if 0 < float(text) <= LONGEST:
            return float(text)
    raise InputError(f"{name}: got {text!r}; allowed are a share of the run above 0 and up to {LONGEST}, and auto")


def _count(name: str, text: str) -> int | None:
    """1k, 5k, 800: that many; all: None."""
    if text == "all":
        return None
    number, unit = (text[:-1], 1000) if text.endswith("k") else (text, 1)
    if not number.isdecimal() or int(number) == 0:
        raise InputError(f"{name}: got {text!r}; allowed are whole numbers, such with k for thousands, and all")
    return int(number) * unit
