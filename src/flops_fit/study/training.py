"""One model, trained and kept: the story of `flops-fit train`. The same engine, journal and beacon as a sweep's.

OUTPUT/config.json, weights.safetensors    the bundle: enough to build the model again
OUTPUT/metrics.json                        what was measured on held-out data; what was not is absent
OUTPUT/training.json                       the run: its spec, curve, looks, cost, data hash, machine
OUTPUT/journal.jsonl, checkpoints/         a killed run goes on from here
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit.data.batches import prepare
from flops_fit.errors import FitError, InputError, StudyMismatch
from flops_fit.evaluate.metric import Metric, table
from flops_fit.models import weights
from flops_fit.records import RunResult, RunSpec, content_hash
from flops_fit.runs.beacon import Beacon
from flops_fit.runs.executors import Executor, InlineExecutor
from flops_fit.runs.journal import Journal
from flops_fit.runs.task import Progress
from flops_fit.runs.watch import Watch, default_watch
from flops_fit.study.work import CHECKPOINTS, work_off
from flops_fit.train.checkpoint import Checkpoints
from flops_fit.train.engine import WORSE_THAN_START, Trainer
from flops_fit.train.identity import code_hash
from flops_fit.train.keep import BEST, LAST, SNAPSHOTS, averaged_after
from flops_fit.train.loss import Objective, unit_of
from flops_fit.train.measure import Measurer
from flops_fit.train.options import Look, Placement, Show, TrainOptions

PROBE_SAMPLES = 2
KEPT = "kept"  # folder of the run's own weights
METRICS, TRAINING = "metrics.json", "training.json"
ANEW = "lower lr, or look at the data, and train anew with resume=False (--no-resume)"
AVERAGED = "averaged"  # beside what the run kept: the best of averages of several lengths


@dataclass(frozen=True, kw_only=True)
class Training:
    """One model to train, and what becomes of it. A recipe of `flops-fit train` returns it."""

    name: str  # what is trained, in words for people
    model_cls: Callable[..., nn.Module]
    size_param: str
    size: int
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    dataset: Any
    held_out: Any = None
    objective: Callable[[nn.Module, Any], Tensor]
    epochs: float = 1.0  # passes over the training data
    steps: int | None = None  # optimiser steps instead of epochs
    batch_size: int
    lr: float  # peak
    seed: int = 0
    options: TrainOptions = field(default_factory=TrainOptions)
    config: Mapping[str, Any]  # kept beside the weights: plain values, enough to build the model again
    parts: Callable[[nn.Module], Mapping[str, Tensor]] = nn.Module.state_dict  # what the bundle's weights are
    evaluate: Callable[[nn.Module], Sequence[Metric]] | None = None
    finish: Callable[[Path], None] | None = None  # writes what else belongs in the bundle
    micro_batch: int | None = None  # samples that go through the model at once; gradients add up to the whole batch
    compiled: bool = False  # training steps by torch.compile
    checkpoint_every: int | None = None  # steps; None: by the clock
    show: Show | None = None  # sees the model, with averaged weights, on the way
    show_every: int | None = None  # steps
    choose: bool = True  # the weights of the best look; False: the last ones, and held-out data choose nothing
    lengths: tuple[float, ...] = ()  # of averages of weights among which the best is chosen after the run (T1c)
    baselines: Mapping[str, nn.Module] = field(default_factory=dict)  # need no training; told beside every look
    half: bool = False  # trained numbers are rounded to half precision, then judged and kept


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    folder: Path
    result: RunResult
    metrics: tuple[Metric, ...]


def train(
    training: Training, output_dir: str | os.PathLike[str], *, resume: bool = True, watch: Watch | None = None
) -> Trained:
    """Train, evaluate, and write the bundle. Called again, it goes on where it stopped, or answers at once.

    Raises:
        InputError: something about model, data or settings cannot be used; nothing was trained.
        StudyMismatch: the folder holds another training.
        FitError: the run diverged or learned nothing; no bundle is written, and one of a run before is left as it was.
    """
    folder, watch = Path(output_dir), watch or default_watch()
    trainer, spec, identity = prepared(training, folder)
    own = {"steps": spec.steps, "batch": spec.batch_size, "lr": spec.lr, "seed": spec.seed}  # one folder, one run
    try:
        opened = Journal.open(folder, identity | {"run": own}, fresh=not resume)
    except StudyMismatch as error:
        raise StudyMismatch(f"{error}; resume=False (--no-resume) trains anew there") from None
    with opened as journal:
        if not resume:
            Checkpoints(folder / CHECKPOINTS).clear()
            shutil.rmtree(folder / KEPT / spec.key, ignore_errors=True)
        known = {name: trainer.held_out_loss(baseline) for name, baseline in training.baselines.items()}
        with Beacon(folder, watch, page=False) as beacon:
            [result] = work_off(journal, [spec], InlineExecutor(), trainer.on(look=_told(known, beacon)), beacon)
            beacon.phase("fitting")
            metrics = _bundle(training, trainer, result, folder, known, anew=not resume)
            if not result.ok:
                raise FitError(f"{training.name}: {result.reason}; {_after_failure(folder, result)}")
    return Trained(folder, result, metrics)


def _told(known: Mapping[str, float], beacon: Beacon) -> Look | None:
    """Says every look at the held-out loss, beside those of the baselines; nothing where there are none."""
    beside = ", ".join(f"{name} {loss:.4f}" for name, loss in known.items())

    def look(step: int, loss: float) -> None:
        beacon.say(f"step {step:,}: held-out loss {loss:.4f} ({beside})")

    return look if known else None


def _after_failure(folder: Path, result: RunResult) -> str:
    kept = "; the bundle in the folder is of a run before it" if (folder / TRAINING).exists() else ""
    if result.status == "failed":
        state = Checkpoints(folder / CHECKPOINTS).kept(result.spec)
        how = "its last state is kept" if state else "it had kept no state yet"
        return f"{how}{kept}: mend that, and the same call {'goes on from there' if state else 'begins anew'}"
    return f"nothing was kept but its journal{kept}: {ANEW}"


@dataclass(frozen=True)
class Several:
    """A task for an executor: each run by the trainer of its own training."""

    trainers: Mapping[str, Trainer]  # by RunSpec.key

    def __call__(self, spec: RunSpec, progress: Progress | None = None) -> RunResult:
        return self.trainers[spec.key](spec, progress)


def train_several(
    trainings: Mapping[str, Training], output_dir: str | os.PathLike[str], executor: Executor,
    *, watch: Watch | None = None,
) -> dict[str, Trained]:  # fmt: skip
    """Several models in one folder, with one journal: a bundle each in OUTPUT/NAME. What is finished is not run again,
    and trainings may be added later.

    One that diverges or fails has a result and neither metrics nor a bundle.

    Args:
        trainings: by name of their folders.

    Raises:
        InputError: something about a model, data or settings cannot be used; nothing was trained.
    """
    folder, watch = Path(output_dir), watch or default_watch()
    made = {name: prepared(training, folder) for name, training in trainings.items()}
    specs = {name: spec for name, (_, spec, _) in made.items()}
    task = Several({spec.key: trainer.on(threads=1) for trainer, spec, _ in made.values()})
    found = {}
    several = {"kind": "several trainings"}
    with Journal.open(folder, several) as journal, Beacon(folder, watch, page=False) as beacon:
        results = work_off(journal, list(specs.values()), executor, task, beacon)
        beacon.phase("fitting")
        for name, result in zip(specs, results, strict=True):
            if not result.ok:
                _forget(folder / name)
            try:
                metrics = _bundle(trainings[name], made[name][0], result, folder / name)
            except FitError:
                metrics = ()
            found[name] = Trained(folder / name, result, metrics)
    return found


def _kept(folder: Path, result: RunResult) -> tuple[Metric, ...] | None:
    """The metrics of a whole bundle that this very run left behind, None where there is none."""
    try:
        of = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
        rows = json.loads((folder / METRICS).read_text(encoding="utf-8"))["metrics"]
        weights.read(folder)
    except (OSError, ValueError, KeyError, InputError):
        return None
    if of.get("key") != result.spec.key:
        return None
    return tuple(Metric(name=name, **row) for name, row in rows.items())


def prepared(training: Training, folder: Path) -> tuple[Trainer, RunSpec, dict[str, Any]]:
    """(what trains it, keeping its state in `folder`; the run; what it is known by). Raises as `train`."""
    if training.steps is not None and training.steps < 1:
        raise InputError(f"steps: got {training.steps}; allowed are whole numbers from 1 on")
    for name, value in {"epochs": training.epochs, "lr": training.lr}.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name}: got {value}; allowed are finite numbers above 0")
    if training.batch_size < 1:
        raise InputError(f"batch_size: got {training.batch_size}; allowed are whole numbers from 1 on")
    source = prepare(training.dataset, training.held_out)
    objective = Objective(objective=training.objective)
    batch = next(source.batches(PROBE_SAMPLES, seed=0))
    _, tokens = unit_of(batch)
    measurer = Measurer(training.model_cls, training.size_param, training.model_kwargs, objective, batch, tokens)
    measured = measurer(training.size)
    if source.samples is None:
        raise InputError("data: a stream of unknown length has no epochs; give a data set with a length")
    batch_size = min(training.batch_size, source.samples)  # a larger one would see samples twice in a step
    steps = training.steps or max(1, math.ceil(training.epochs * source.samples / batch_size))
    identity = {
        "model": code_hash(training.model_cls), "config": dict(training.config),
        "objective": code_hash(training.objective), "data": source.fingerprint, "held_out": source.held_out_from,
        "train_options": training.options.identity(),
    }  # fmt: skip
    spec = RunSpec(
        study=content_hash(identity), size=training.size,
        params=measured.params, flops_per_token=measured.flops_per_token,
        steps=steps, batch_size=batch_size, tokens=steps * batch_size * tokens, lr=training.lr,
        seed=training.seed, budget=measured.flops_per_token * steps * batch_size * tokens, role="train",
    )  # fmt: skip
    here = folder.resolve()
    placement = Placement(
        checkpoints=here / CHECKPOINTS, weights=here / KEPT / spec.key, micro_batch=training.micro_batch,
        compiled=training.compiled,
        checkpoint_every=training.checkpoint_every, show=training.show, show_every=training.show_every,
    )  # fmt: skip
    return Trainer(measurer, source, objective, training.options, placement), spec, identity


def _bundle(
    training: Training, trainer: Trainer, result: RunResult, folder: Path, known: Mapping[str, float] | None = None,
    *, anew: bool = False,
) -> tuple[Metric, ...]:  # fmt: skip
    """The best weights, evaluated, and everything that says where they come from; none of a run that failed.

    training.json is written last and taken away first: where it is, all files of the bundle are of that run.
    """
    kept = None if anew else _kept(folder, result)
    if kept is not None:
        return kept
    if not result.ok:
        return ()
    _forget(folder)
    model = trainer.builder.build(training.size)
    assert trainer.placement.weights is not None
    about = _best_weights(training, trainer, result, model)
    start = result.looks[0][1] if result.looks else 0.0
    # the run was judged by its best weights, which need not be those that are kept
    if start > 0 and about["held_out_loss"] > WORSE_THAN_START * start:
        worse = f"the weights that are kept have a held-out loss of {about['held_out_loss']:.4g}, untrained {start:.4g}"
        raise FitError(f"{training.name}: {worse}: not learned; {ANEW}")
    model.eval()
    if training.half:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.half())
    metrics = tuple(training.evaluate(model)) if training.evaluate else ()
    weights.save(folder, training.parts(model), {**training.config, "params": result.spec.params}, half=training.half)
    if training.finish is not None:
        training.finish(folder)
    weights.write_json(folder / METRICS, {"metrics": table(metrics), "data": trainer.source.fingerprint})
    told = {"best": about, "held_out_from": trainer.source.held_out_from} | ({"baselines": known} if known else {})
    weights.write_json(folder / TRAINING, {"key": result.spec.key, **result.to_dict(), **told})
    return metrics


def _best_weights(training: Training, trainer: Trainer, result: RunResult, model: nn.Module) -> dict[str, Any]:
    """Into the model: what its looks kept, or the best of averages of some lengths at its end. Says which."""
    kept = trainer.placement.weights
    assert kept is not None
    whole = result.tokens == result.spec.tokens  # one that ended early has its best behind it
    among = bool(training.lengths) and whole
    chosen = among and (kept / AVERAGED / weights.CONFIG).exists()  # its weights were written before
    name = AVERAGED if chosen else BEST if training.choose else LAST
    tensors, about = weights.read(kept / name)
    weights.fill(model, tensors, str(kept))
    if chosen or not among:
        return about
    last, tried = result.spec.steps, dict[str, float]()
    averages = {f"{length:g}": averaged_after(kept, last, length) for length in training.lengths}
    for name, averaged in averages.items():
        weights.fill(model, averaged, f"average of {name}")
        tried[name] = trainer.held_out_loss(model)
    best = min(tried, key=lambda name: tried[name])
    weights.fill(model, averages[best], f"average of {best}")
    about = {"step": last, "held_out_loss": tried[best], "length": float(best), "averages": tried}
    weights.save(kept / AVERAGED, model.state_dict(), about)  # what comes next may fail, and is then done again
    shutil.rmtree(kept / SNAPSHOTS, ignore_errors=True)  # two copies of the model for each
    return about


def _forget(folder: Path) -> None:
    """Take away the bundle of another run."""
    for name in (TRAINING, METRICS, weights.CONFIG, weights.WEIGHTS):
        (folder / name).unlink(missing_ok=True)
