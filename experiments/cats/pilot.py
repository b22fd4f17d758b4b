"""What is around the network, which optimiser, which rate: short runs of the 64 px generator.

    python experiments/cats/pilot.py train --data FILE.parquet      every run, two at a time; finished ones stay
    python experiments/cats/pilot.py show                           the table, of pilot.csv

300 steps of 64 pictures each, the rate falling to zero over the last third, one seed; the last weights, not averaged.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rows import command, read, work_off

from flops_fit.data.cats import cat_pictures
from flops_fit.recipes.dit_cats import PRESETS, tiny_presets, training
from flops_fit.study.training import prepared

FILE = Path(__file__).parent / "pilot.csv"
STEPS, LOOKS = 300, 6


@dataclass(frozen=True)
class Setting:
    """What differs from cpu-64."""

    precondition: str = "unit"
    predicts: str = "velocity"
    optimizer: str = "muon"
    lr: float = 4e-3
    skips: bool = True
    times: str = "mixture"
    augmentation: str = "basic"


SETTINGS = (
    Setting(), Setting(precondition="none"), Setting(precondition="spectral"),
    Setting(precondition="none", predicts="data"), Setting(skips=False), Setting(lr=2e-3), Setting(lr=8e-3),
    Setting(optimizer="adamw", lr=1e-3), Setting(optimizer="adamw", lr=2e-3), Setting(times="uniform"),
    Setting(augmentation="full"),
)  # fmt: skip


@dataclass(frozen=True)
class Row(Setting):
    gaussian: float = 0.0  # held-out loss of the Gaussian along frequencies
    untrained: float = 0.0
    half: float = 0.0      # half of the way
    loss: float = 0.0
    cpu_seconds: float = 0.0


def run(data: str, setting: Setting) -> list[Row]:
    torch.set_num_threads(1)
    preset = replace(
        PRESETS["cpu-64"], steps=STEPS, warmup_steps=STEPS // 15, looks=LOOKS, optimizer=setting.optimizer,
        lr=setting.lr, skips=setting.skips, times=setting.times,
    )  # fmt: skip
    pictures = cat_pictures(data, tiny_presets(preset.network)["image_size"])
    made = training(
        pictures, preset, precondition=setting.precondition, predicts=setting.predicts,  # type: ignore[arg-type]
        augmentation=setting.augmentation,
    )  # fmt: skip
    made = replace(made, options=replace(made.options, ema=None, learns_by=None))
    with tempfile.TemporaryDirectory() as folder:
        trainer, spec, _ = prepared(made, Path(folder))
        found = trainer.on(checkpoints=None, weights=None, threads=1)(spec)
    assert made.evaluate is not None and found.loss is not None
    looks = [loss for _, loss in found.looks]
    known = {m.name: m.value for m in made.evaluate(trainer.builder.build(spec.size).eval())}
    return [Row(**vars(setting), gaussian=known["loss_spectral"], untrained=looks[0], half=looks[LOOKS // 2],
                loss=looks[-1], cpu_seconds=round(found.cpu_seconds, 1))]  # fmt: skip


def train(data: str) -> None:
    names = list(vars(Setting()))
    done = [tuple(str(row[name]) for name in names) for row in read(FILE)]
    left = [one for one in SETTINGS if tuple(str(getattr(one, name)) for name in names) not in done]
    work_off(FILE, [(run, (data, one)) for one in left], workers=2)


def show() -> None:
    rows = sorted(read(FILE), key=lambda row: float(row["loss"]))
    names = list(vars(Setting()))
    print(*names, "untrained", "half way", "loss", "CPU s", sep="\t")
    for row in rows:
        print(*(row[name] for name in names), *(f"{row[name]:.4f}" for name in ("untrained", "half", "loss")),
              f"{row['cpu_seconds']:.0f}", sep="\t")  # fmt: skip
    if rows:
        print(f"Gaussian along frequencies: {rows[0]['gaussian']:.4f}")


if __name__ == "__main__":
    command(__doc__, train, show)
