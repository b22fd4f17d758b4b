"""Diffusion transformers over pictures beside the textbook's, in turns in one process. Only while nothing else runs.

    python benchmarks/cats.py      bars: training >= 1.2x images/s, >= .60 of the matmul peak; sampling <= 4.0 s

    training    whole steps of the 4.2M network at 32 px, 64 pictures, 2 threads: data, loss, gradients, AdamW, average
                of weights; experiments/cats/textbook.py is the peer, in float32 as written. Ours in bfloat16 where the
                CPU is faster at it, and in float32; each also compiled, as the recipe has it in long runs
    attention   values and gradients in bfloat16, of one block of cpu-64, 1 thread; torch's fused kernel is the peer
    sampling    one picture of 128 px by 50 Euler steps with guidance at every step, 1 thread; the peers evaluate their
                network twice a step, or once for both
    data        share of a training step of cpu-64 that waits for its pictures
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from record import record
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flops_fit.data.images import Images
from flops_fit.data.pictures import Pictures, drawn_shapes
from flops_fit.models.attention import attend
from flops_fit.models.tinydit import PRESETS
from flops_fit.recipes.cats import CatFlow, Guidance
from flops_fit.recipes.dit_cats import PRECONDITION, Preset, training
from flops_fit.recipes.dit_cats import PRESETS as RECIPES
from flops_fit.study.training import prepared
from flops_fit.train.engine import TrainingRun
from flops_fit.train.machine import cpu_threads, matmul_peak
from flops_fit.train.precision import HALF, precision_of
from flow import in_turns, ratio

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments" / "cats"))
import textbook

BATCH, CLASSES, ROUNDS, STEPS = 64, 13, 9, 4
EULER_STEPS, SCALE = 50, 2.0
SMALL = Preset(network="tinydit-32", steps=10_000, batch_size=BATCH, lr=1e-3, warmup_steps=100, optimizer="adamw",
               compiled=False)  # fmt: skip


def begun(pictures: Pictures, preset: Preset) -> TrainingRun:
    with TemporaryDirectory() as folder:
        trainer, spec, _ = prepared(training(pictures, preset), Path(folder))
    run = TrainingRun(trainer.on(checkpoints=None, weights=None), spec)
    if run.compiled:
        run.compile()
    return run


def by_us(pictures: Pictures, preset: Preset) -> Callable[[], None]:
    """STEPS steps of the engine, an average of weights included."""
    run = begun(pictures, preset)
    steps = run.steps()

    def some() -> None:
        for _ in range(STEPS):
            next(steps)
            run.keeper.after(run.step, lambda: 0.0)

    return some


def by_textbook(images: Images) -> Callable[[], None]:
    torch.manual_seed(0)
    model = textbook.DiT(32, 4, 192, 6, 3, CLASSES)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=textbook.LR, weight_decay=0.0)

    def some() -> None:
        for _ in range(STEPS):
            x, y = images.batch(torch.randint(len(images), (BATCH,)).tolist())
            textbook.step(model, average, optimizer, x, y)

    return some


def throughput() -> dict[str, Any]:
    pictures, fast = drawn_shapes(32, 2200, 200), precision_of("fast", torch.device("cpu"))
    made = training(pictures, SMALL)
    presets = {
        "ours": SMALL, "ours_compiled": replace(SMALL, compiled=True), "ours_muon": replace(SMALL, optimizer="muon"),
        "ours_fp32": replace(SMALL, precision="fp32"),
        "ours_fp32_compiled": replace(SMALL, precision="fp32", compiled=True),
    }  # fmt: skip
    kinds = {name: "fp32" if preset.precision == "fp32" else fast for name, preset in presets.items()}
    kinds |= {"textbook": "fp32"}
    with cpu_threads(2):
        work = {name: by_us(pictures, preset) for name, preset in presets.items()}
        times = in_turns(work | {"textbook": by_textbook(made.dataset)}, ROUNDS)
        peaks = {"fp32": matmul_peak(2), HALF: matmul_peak(2, kind=torch.bfloat16)}
    spec = prepared(made, Path("."))[1]
    each = {name: statistics.median(values) / STEPS for name, values in times.items()}
    shares = {name: spec.flops / SMALL.steps / value / peaks[kinds[name]] for name, value in each.items()}
    return {
        "params": spec.params, "precision": kinds,
        "images_per_second": {name: round(BATCH / value, 1) for name, value in each.items()},
        "times_faster": {name: ratio(times["textbook"], times[name]) for name in work},
        "share_of_matmul_peak_of_its_precision": {name: round(share, 3) for name, share in shares.items()},
        "peak_gflops_2_threads": {name: round(peak / 1e9) for name, peak in peaks.items()},
    }  # fmt: skip


def attention() -> dict[str, Any]:
    known = PRESETS["tinydit-64"]
    tokens, each = (known["image_size"] // known["patch"]) ** 2, known["hidden"] // known["heads"]
    shape = (RECIPES["cpu-64"].batch_size, known["heads"], tokens, each)
    q, k, v = (torch.randn(shape).bfloat16().requires_grad_() for _ in range(3))
    work = {"ours": lambda: attend(q, k, v).sum().backward(),
            "fused": lambda: F.scaled_dot_product_attention(q, k, v).sum().backward()}  # fmt: skip
    times = in_turns(work, ROUNDS)
    return {
        "shape": list(q.shape), "ms": {name: round(1e3 * statistics.median(found), 2) for name, found in times.items()},
        "times_faster": ratio(times["fused"], times["ours"]),
    }  # fmt: skip


def sampling() -> dict[str, Any]:
    """One picture of 128 px, guided at every step."""
    known = dict(PRESETS["tinydit-128"])
    size = known.pop("image_size")
    flow = CatFlow({
        "image_size": size, "classes": [str(i) for i in range(CLASSES)], "network": known, "path": "linear",
        "predicts": "velocity", "precondition": PRECONDITION, "data": "", "data_hash": "",
    }).eval()  # fmt: skip
    flow.spectrum.fit(torch.randn(8, 3, size, size))  # any: it takes as long
    peer = textbook.DiT(size, known["patch"], known["hidden"], known["layers"], known["heads"], CLASSES).eval()
    label = torch.tensor([3])

    @torch.no_grad()
    def by_textbook() -> Tensor:
        x = torch.randn(1, 3, size, size)
        for i in range(EULER_STEPS):
            t = torch.full((1,), i / EULER_STEPS)
            anyhow = peer(x, t, torch.tensor([CLASSES]))
            x = x + (anyhow + SCALE * (peer(x, t, label) - anyhow)) / EULER_STEPS
        return x

    @torch.no_grad()
    def by_textbook_at_once() -> Tensor:
        x, both = torch.randn(1, 3, size, size), torch.tensor([CLASSES, 3])
        for i in range(EULER_STEPS):
            anyhow, asked = peer(x.repeat(2, 1, 1, 1), torch.full((2,), i / EULER_STEPS), both).chunk(2)
            x = x + (anyhow + SCALE * (asked - anyhow)) / EULER_STEPS
        return x

    times = in_turns({
        "ours": lambda: flow.sample(label, 0, "euler", EULER_STEPS, Guidance(SCALE)), "textbook": by_textbook,
        "textbook_at_once": by_textbook_at_once,
    }, ROUNDS)  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        by_textbook()
    taken = statistics.median(times["ours"])
    return {
        "params": sum(p.numel() for p in flow.network.parameters()),
        "seconds": {name: round(statistics.median(values), 2) for name, values in times.items()},
        "times_faster": {name: ratio(taken, times["ours"]) for name, taken in times.items() if name != "ours"},
        "share_of_matmul_peak": round(counter.get_total_flops() / taken / matmul_peak(1), 3),
    }


def waiting() -> dict[str, Any]:
    """Of one step of cpu-64: how long its pictures take."""
    run = begun(drawn_shapes(64, 2200, 200), RECIPES["cpu-64"])
    steps, batches = run.steps(), run.trainer.source.pieces(BATCH, 0, run.cuts)
    with cpu_threads(2):
        times = in_turns({"step": lambda: next(steps), "pictures": lambda: next(batches)}, ROUNDS)
    return {
        "ms": {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()},
        "share_of_a_step": round(ratio(times["pictures"], times["step"]), 4),
    }


def main() -> None:
    torch.set_num_threads(1)
    record("cats", {"training": throughput(), "attention": attention(), "sampling": sampling(),
                    "data": waiting()})  # fmt: skip


if __name__ == "__main__":
    main()
