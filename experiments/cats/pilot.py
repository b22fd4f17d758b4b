"""What is around the network, how large it is, which optimiser, which rate: short runs of the 64 px generator.

    python experiments/cats/pilot.py train --data FILE.parquet      every run, two at a time; finished ones stay
    python experiments/cats/pilot.py show                           the table, of pilot.csv

Runs of equal FLOPs, the optimiser's products among them, of a network as that of `cpu-64`, 160 wide, 64 pictures a
step, the rate falling to zero over the last three tenths, one seed; the last weights, not averaged. What differs from
`Setting()` is what a row is about.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rows import command, read, step_flops, work_off

from flops_fit.data.cats import cat_pictures
from flops_fit.recipes.dit_cats import PRESETS, tiny_presets, training
from flops_fit.study.training import Training, prepared
from flops_fit.train.engine import TrainingRun

FILE = Path(__file__).parent / "pilot.csv"
LOOKS = 6
PROBE = 1000  # steps of a run that is not trained, to know what a step costs


@dataclass(frozen=True)
class Setting:
    """Of a run."""

    flops: float = 1e14
    hidden: int = 160
    heads: int = 4
    patch: int = 4
    precondition: str = "none"
    predicts: str = "velocity"
    optimizer: str = "muon"
    lr: float = 4e-3
    skips: bool = True
    times: str = "mixture"
    augmentation: str = "basic"


SETTINGS = (
    Setting(), Setting(precondition="residual"), Setting(predicts="data"),
    *(Setting(precondition=kind) for kind in ("unit", "spectral")),
    *(Setting(lr=lr) for lr in (2e-3, 8e-3)), *(Setting(optimizer="adamw", lr=lr) for lr in (1e-3, 3e-3)),
    Setting(skips=False), Setting(times="uniform"), Setting(augmentation="full"), Setting(hidden=128),
    Setting(hidden=192),
)  # fmt: skip


@dataclass(frozen=True)
class Row(Setting):
    params: int = 0
    steps: int = 0
    gaussian: float = 0.0  # held-out loss of the Gaussian along frequencies
    untrained: float = 0.0
    half: float = 0.0      # half of the way
    loss: float = 0.0
    precision: str = ""
    cpu_seconds: float = 0.0


def of(data: str, setting: Setting, steps: int) -> Training:
    preset = replace(
        PRESETS["cpu-64"], compiled=False, steps=steps, warmup_steps=steps // 15, looks=LOOKS,
        optimizer=setting.optimizer, lr=setting.lr, skips=setting.skips, times=setting.times,
    )  # fmt: skip
    pictures = cat_pictures(data, tiny_presets(preset.network)["image_size"])
    made = training(
        pictures, preset, precondition=setting.precondition, predicts=setting.predicts,  # type: ignore[arg-type]
        augmentation=setting.augmentation,
        network={"hidden": setting.hidden, "layers": 6, "heads": setting.heads, "patch": setting.patch},
    )  # fmt: skip
    return replace(made, options=replace(made.options, ema=None, learns_by=None))


def run(data: str, setting: Setting) -> list[Row]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        probe = of(data, replace(setting, predicts="velocity"), PROBE)  # beside others no baseline is told
        trainer, spec, _ = prepared(probe, Path(folder))
        gaussian = trainer.held_out_loss(probe.baselines["Gaussian"])
        a_step = step_flops(TrainingRun(trainer.on(checkpoints=None, weights=None), spec))
        made = of(data, setting, max(round(setting.flops / a_step), LOOKS))
        trainer, spec, _ = prepared(made, Path(folder))
        found = trainer.on(checkpoints=None, weights=None, threads=1)(spec)
    assert found.loss is not None, found.reason
    looks = [loss for _, loss in found.looks]
    return [Row(
        **vars(setting), params=spec.params, steps=spec.steps, gaussian=gaussian, untrained=looks[0],
        half=looks[LOOKS // 2], loss=looks[-1], precision=found.environment["precision"],
        cpu_seconds=round(found.cpu_seconds, 1),
    )]  # fmt: skip


def train(data: str) -> None:
    names = list(vars(Setting()))
    done = [tuple(str(row[name]) for name in names) for row in read(FILE)]
    wanted = [(one, tuple(_as_read(getattr(one, name)) for name in names)) for one in SETTINGS]
    work_off(FILE, [(run, (data, one)) for one, told in wanted if told not in done], workers=2)


def _as_read(value: object) -> str:
    """As it comes back from the file, where numbers are floats."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(float(value)) if plain else str(value)  # type: ignore[arg-type]


def show() -> None:
    rows = sorted(read(FILE), key=lambda row: float(row["loss"]))
    names = list(vars(Setting()))
    print(*names, "N", "steps", "Gaussian", "untrained", "half way", "loss", "CPU s", sep="\t")
    for row in rows:
        print(*(row[name] for name in names), *(f"{row[name]:.0f}" for name in ("params", "steps")),
              *(f"{row[name]:.4f}" for name in ("gaussian", "untrained", "half", "loss")), f"{row['cpu_seconds']:.0f}",
              sep="\t")  # fmt: skip


if __name__ == "__main__":
    command(__doc__, train, show)
