"""From a budget to a size: plan, find, fit, predict, status, doctor."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flops_fit.cli.app import AsJson, app, printed
from flops_fit.errors import InputError
from flops_fit.recipes import BUILT_IN, load

if TYPE_CHECKING:
    from flops_fit.runs.status import Status
    from flops_fit.scaling.result import Prediction, Result
    from flops_fit.study import Study, Sweep

FOLLOW_SECONDS = 2.0  # between two looks of `status --follow`

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help=f"{', '.join(BUILT_IN)}, or module:function returning a Study")
]
Data = Annotated[
    str | None, typer.Option(help="what the recipe trains on, a path for instance; default: what it brings itself")
]
Budgets = Annotated[str | None, typer.Option(help="FLOPs of one run each, comma-separated: 1e11,3e11,1e12")]
SizeList = Annotated[str | None, typer.Option(help="these sizes at every budget, comma-separated, instead of a search")]
ExecutorName = Annotated[str, typer.Option(help="local, inline, processes, or ranks (share each run)")]
Workers = Annotated[int | None, typer.Option(help="worker processes, or ranks; default: one for each core")]
Seed = Annotated[int | None, typer.Option(help="of initialisation and data order; default: the recipe's")]
Bootstrap = Annotated[int, typer.Option(help="resamples behind the intervals")]


@app.command(epilog="Example: flops-fit plan gpt-python --budgets 2e11,6e11,1.8e12")
def plan(
    recipe: RecipeName, data: Data = None, budgets: Budgets = None, sizes: SizeList = None,
    executor: ExecutorName = "local", workers: Workers = None, seed: Seed = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show what a sweep would run and cost on this machine, without training."""
    planned = _sweep(_study(recipe, data, budgets, sizes, seed), executor, workers).plan()
    printed(planned.to_dict() if as_json else str(planned))


@app.command(epilog="Example: flops-fit find gpt-python --verify 4")
def find(
    recipe: RecipeName,
    data: Data = None,
    output: Annotated[
        Path | None, typer.Option(help="folder for the journal, result, plots and report; default outputs/RECIPE")
    ] = None,
    budgets: Budgets = None,
    sizes: SizeList = None,
    verify: Annotated[
        float | None, typer.Option(help="train the predicted size at this many times the largest budget")
    ] = None,
    resume: Annotated[bool, typer.Option(help="reuse the finished runs of the folder's journal")] = True,
    extend: Annotated[int, typer.Option(min=0, help="rounds of extra sizes where an optimum lies at an edge")] = 2,
    executor: ExecutorName = "local",
    workers: Workers = None,
    seed: Seed = None,
    bootstrap: Bootstrap = 4000,
    as_json: AsJson = False,
) -> None:
    """Run the sweep, fit the law and answer: how big, how much data, which loss. Resumes where it stopped."""
    sweep = _sweep(_study(recipe, data, budgets, sizes, seed), executor, workers)
    output = output or Path("outputs") / recipe.replace(":", "-")
    try:
        result = sweep.find(output, resume=resume, extend=extend, verify=verify, bootstrap=bootstrap)
    except KeyboardInterrupt:
        print(f"stopped; finished runs are kept, the same command goes on from {output}", file=sys.stderr)
        raise typer.Exit(130) from None
    _show(result, as_json, closing=f"report: {output / 'report.html'}")


@app.command(epilog="Example: flops-fit fit runs.csv --json > law.json")
def fit(
    runs: Annotated[Path, typer.Argument(help="CSV with columns params (N), tokens (D), loss and, better, flops (C)")],
    law: Annotated[
        str, typer.Option(help="auto, or chinchilla, tied, kaplan, shifted, interaction, repeated")
    ] = "auto",
    bootstrap: Bootstrap = 4000,
    resampling: Annotated[str, typer.Option(help="smooth, cases (within budgets) or noise (about the law)")] = "smooth",
    delta: Annotated[float, typer.Option(help="where Huber's loss turns linear; inf: least squares")] = 1e-3,
    onset: Annotated[
        float | None, typer.Option(help="smallest budget to use, FLOPs; default: found by backtest, 0: all")
    ] = None,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="leave out no run that looks wrong")] = False,
    report: Annotated[Path | None, typer.Option(help="write the HTML report there")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit the law to a table of finished runs."""
    from typing import cast

    from flops_fit.scaling.bootstrap import Resampling
    from flops_fit.scaling.fit import fit as fit_runs

    result = fit_runs(runs, law=law, bootstrap=bootstrap, resampling=cast(Resampling, resampling), delta=delta,
                      onset=onset, keep_all=keep_all)  # fmt: skip
    if report is not None:
        result.report(report)
    _show(result, as_json, closing=f"report: {report}" if report else "")


@app.command(epilog="Example: flops-fit predict outputs/result.json 1e21 --served 1e12 --smaller 2,4")
def predict(
    result: Annotated[Path, typer.Argument(help="result.json of find, the JSON of fit, or the folder that holds it")],
    compute: Annotated[list[str] | None, typer.Argument(help="compute budgets in FLOPs")] = None,
    loss: Annotated[float | None, typer.Option(help="least compute that reaches this loss")] = None,
    served: Annotated[float | None, typer.Option(help="tokens the model will serve")] = None,
    unique: Annotated[float | None, typer.Option(help="tokens that exist; more is repeats")] = None,
    smaller: Annotated[str | None, typer.Option(help="cost of models so many times smaller: 2,4,8")] = None,
    flops_per_second: Annotated[float | None, typer.Option(help="of one device, as measured: hours")] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="of one device: money")] = None,
    as_json: AsJson = False,
) -> None:
    """Read a result back and answer for other budgets, for a loss, for serving, for limited data."""
    law = _read_result(result)
    budgets = _numbers("COMPUTE", ",".join(compute or []))
    if not budgets and loss is None:
        raise InputError("COMPUTE: got none; give compute budgets in FLOPs such as 1e21, or --loss")
    found: dict[str, list[Any]] = {"predictions": list(law.predict(budgets)) if budgets else []}
    if loss is not None:
        found["compute_for"] = [law.compute_for(loss)]
    if price_per_hour is not None and flops_per_second is None:
        raise InputError("--price-per-hour: hours are needed for it; give --flops-per-second of one device as well")
    asked = budgets or [found["compute_for"][0].compute]
    if served is not None:
        found["serving"] = [law.serving(served, compute=c) for c in budgets]
        found["serving"] += [law.serving(served, loss=loss)] if loss is not None else []
    if unique is not None:
        found["data_limited"] = [law.data_limited(c, unique) for c in asked]
    if smaller is not None:
        found["overtraining"] = [row for c in asked for row in law.overtraining(c, _numbers("--smaller", smaller))]
    if flops_per_second is not None:
        found["price"] = [law.price(c, flops_per_second, price_per_hour) for c in asked]
    if as_json:
        printed(_finite({name: [answer.to_dict() for answer in answers] for name, answers in found.items()}))
    else:
        printed("\n".join(_sentence(a, law.runs.unit) if name == "predictions" else str(a)
                         for name, answers in found.items() for a in answers))  # fmt: skip


@app.command(epilog="Example: flops-fit status outputs/gpt-python --follow")
def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="output folder of `flops-fit find` or find_optimal")],
    follow: Annotated[
        bool, typer.Option("--follow", help="draw it anew every 2 s on stderr until the sweep ends, or Ctrl-C")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a sweep stands: running, finished, stopped or failed; best losses, failures, time left, verdict."""
    found = _look(folder, follow)
    printed(found.to_dict() if as_json else str(found))


@app.command(epilog="Example: flops-fit doctor")
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine has: Python, packages, device, matmul speed."""
    found = _examine()
    printed(found if as_json else "\n".join(f"{name:<16} {value}" for name, value in found.items()))


def _study(recipe: str, data: str | None, budgets: str | None, sizes: str | None, seed: int | None) -> Study:
    from dataclasses import replace

    study = load(recipe, data)
    if seed is not None:
        study = replace(study, seed=seed)
    if budgets is not None:
        study = replace(study, compute_budgets=tuple(_numbers("--budgets", budgets)))
    if sizes is not None:
        study = replace(study, sizes=tuple(_whole("--sizes", n) for n in _numbers("--sizes", sizes)))
    return study


def _sweep(study: Study, executor: str, workers: int | None) -> Sweep:
    from flops_fit.runs.watch import default_watch
    from flops_fit.study import Sweep

    return Sweep(study, executor=executor, workers=workers, watch=default_watch())


def _look(folder: Path, follow: bool) -> Status:
    """How the sweep in `folder` stands, at once or when it has ended."""
    from contextlib import suppress

    from flops_fit.runs.status import status as look

    found = look(folder)
    if not follow:
        return found
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with suppress(KeyboardInterrupt), Live(console=Console(stderr=True), transient=True, auto_refresh=False) as screen:
        while found.state == "running":
            screen.update(Text(str(found), overflow="fold"), refresh=True)
            time.sleep(FOLLOW_SECONDS)
            found = look(folder)
    return found


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"{name}: got {text!r}; give numbers separated by commas, such as 1e11,3e11,1e12") from error


def _whole(name: str, number: float) -> int:
    if not number.is_integer() or number < 1:
        raise InputError(f"{name}: got {number:g}; sizes are whole numbers from 1 on")
    return int(number)


def _read_result(path: Path) -> Result:
    from flops_fit.scaling.result import Result

    file = path / "result.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"RESULT: {file}: {error.strerror}; give the result.json of `flops-fit find`") from error
    try:
        return Result.from_json(text)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"RESULT: {file} is not a result ({type(error).__name__}: {error}); "
            "give result.json of `flops-fit find` or the output of `flops-fit fit --json`"
        ) from error


def _show(result: Result, as_json: bool, closing: str = "") -> None:
    if as_json:
        printed(result.to_dict())
        return
    printed("\n".join([result.summary(), closing]).rstrip())


def _finite(document: Any) -> Any:
    """JSON has no infinity: what is out of reach is null."""
    if isinstance(document, dict):
        return {name: _finite(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def _sentence(answer: Prediction, unit: str) -> str:
    low, high = answer.intervals["loss"]
    size = "" if answer.size is None else f" (size {answer.size:g})"
    far = f"; extrapolated {answer.extrapolation:.3g}x" if answer.extrapolation > 1 else ""
    return (
        f"{answer.compute:.3g} FLOPs: {answer.params:,.0f} params{size}, {answer.tokens:,.0f} {unit}, "
        f"loss {answer.loss:.4f} (95% {low:.4f} to {high:.4f}){far}"
    )


def _examine() -> dict[str, Any]:
    import importlib.metadata
    import os
    import platform

    import flops_fit

    found: dict[str, Any] = {"flops-fit": flops_fit.__version__, "python": platform.python_version()}
    for package in ("numpy", "scipy", "matplotlib", "torch", "cloudpickle"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed: pip install 'flops-fit[train]'"
    found["cores"] = os.cpu_count()
    try:
        from flops_fit.train.machine import device_report
    except ImportError:
        return found
    return {**found, **device_report()}
