"""The page of a sweep that runs: it looks like the report on the law, which takes its place in the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from flops_fit.records import RunResult
from flops_fit.scaling.compute import say_flops
from flops_fit.scaling.report import SYNTHETIC, document, note, section, table
from flops_fit.scaling.words import short

NEWEST = 200     # finished runs that are listed
CURVES = 12      # with more budgets, only every k-th is named
COLOURS = ("#440154", "#3b528b", "#21918c", "#35a85b", "#a08a00")  # of budgets, smallest to largest; all dark on white
WIDTH, HEIGHT = 480, 340                   # of the picture, in units that a small screen draws as 0.7 pixels
LEFT, RIGHT, TOP, BOTTOM = 60, 58, 12, 46  # its margins
STYLE = """<style>
progress { width: 100%; height: 1rem; accent-color: var(--key); }
figure { max-width: 36rem; }
</style>"""


def running_page(progress: Mapping[str, Any], results: Sequence[RunResult], refresh: float) -> str:
    """The page of a sweep that runs: `progress` is the content of progress.json, `results` are the finished runs.

    It asks for itself again every `refresh` seconds, until the report on the law stands in its place or, when the
    driver gave up, what it told.
    """
    runs, cost, failed = progress["runs"], progress["cost"], progress["error"] is not None
    known = f", {runs['reused']} more from the journal" if runs["reused"] else ""
    head = (f"{runs['done']} of {runs['total']} runs done{known}; "
            f"{_share(cost)} of {say_flops(cost['total'])} FLOPs{_ahead(progress)}.")
    told = f'<p class="banner">Failed: {escape(progress["error"])}</p>' if failed else ""
    banner = SYNTHETIC if any(result.synthetic for result in results) else ""
    said = "".join(note(text) for text in progress["messages"])
    outlook = ("The same command goes on; finished runs are not repeated." if failed else
               "If this time stands still, the sweep was ended: the same command goes on. "
               "The law follows when the runs are finished.")  # fmt: skip
    sections = [
        f'<h1>flops-fit</h1>{banner}{told}<p class="verdict">{escape(head)}</p>'
        f'<progress aria-label="share of the FLOPs" max="{cost["total"]:g}" value="{cost["done"]:g}"></progress>'
        + note(f"Begun {_time(progress['begun'])}, as of {_time(progress['updated'])}, by process {progress['pid']} on "
                f"{progress['host']}. {outlook}"),
        section("Running", "" if failed else _running(progress["running"])),
        section("IsoFLOP groups so far", _scatter(results)),
        section("Finished runs", _finished(results)),
        section("What the sweep said", said),
    ]
    again = "" if failed else f'<meta http-equiv="refresh" content="{refresh:g}">'
    return document(f"flops-fit: {'failed' if failed else progress['phase']}", sections, again + STYLE)


def _ahead(progress: Mapping[str, Any]) -> str:
    """What is still to be done."""
    if progress["error"] is not None:
        return ""
    if progress["phase"] == "fitting":
        return "; the law is being fitted"
    checked = "; what the law predicts is being checked" if progress["phase"] == "verifying" else ""
    left = progress["seconds_left"]
    return checked + ("" if left is None else f"; about {_duration(left)} left")


def _share(cost: Mapping[str, float]) -> str:
    return f"{cost['done'] / cost['total'] if cost['total'] else 1.0:.0%}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 90 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _time(iso: str) -> str:
    return iso.replace("T", " ").replace("+00:00", " UTC")


def _running(runs: Sequence[Mapping[str, Any]]) -> str:
    """What one looks for first stands left: a small screen shows no more without scrolling."""
    rows = [(say_flops(run["budget"]), str(run["size"]), "" if run["loss"] is None else f"{run['loss']:.4f}",
             f"{run['share']:.0%}", "" if run["seconds_left"] is None else _duration(run["seconds_left"]),
             short(run["params"]), f"{run['step']} of {run['steps']}", run["role"]) for run in runs]  # fmt: skip
    header = ("budget", "size", "loss", "done", "left", "params", "step", "role")
    return table(header, rows) + note("Loss: of training.") if rows else ""


def _finished(results: Sequence[RunResult]) -> str:
    """The newest first."""
    newest = results[: -NEWEST - 1 : -1]
    rows = [(say_flops(spec.budget), str(spec.size), "" if result.loss is None else f"{result.loss:.4f}",
             result.status, short(spec.params), short(spec.tokens), _duration(result.seconds), spec.role, result.reason)
            for result in newest for spec in (result.spec,)]  # fmt: skip
    header = ("budget", "size", "loss", "status", "params", "trained on", "took", "role", "why")
    more = f" The newest {NEWEST} of {len(results)}." if len(results) > NEWEST else ""
    shown = table(header, rows, text=(8,), faint=[not result.ok for result in newest])
    return shown + note(f"Loss: held-out.{more}") if rows else note("None yet.")


def _scatter(results: Sequence[RunResult]) -> str:
    """Loss against N in logs, one line a budget, as inline SVG; written by hand, for it is drawn every few seconds."""
    groups: dict[float, list[tuple[float, float]]] = {}
    for result in results:
        if result.loss is not None and result.spec.role == "sweep":
            groups.setdefault(result.spec.budget, []).append((math.log10(result.spec.params), result.loss))
    if not groups:
        return note("No run of the plan is finished yet.")
    x, y = (_Axis.around([point[i] for points in groups.values() for point in points], *ends)
            for i, ends in enumerate(((LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP))))
    named = set(sorted(groups)[::-1][::-(-len(groups) // CURVES)])
    body = [*_grid(x, y)]
    for i, budget in enumerate(sorted(groups)):
        colour = COLOURS[round(i * (len(COLOURS) - 1) / max(len(groups) - 1, 1))]
        places = [(x(n), y(loss)) for n, loss in sorted(groups[budget])]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity=".5"/>')
        body += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>' for a, b in places]
        if budget in named:
            a, b = places[-1]
            body.append(_text(a + 8, b + 4, say_flops(budget), "start", colour))
    return ('<figure role="img" aria-label="held-out loss against params, one line a budget">'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="14">{"".join(body)}</svg>'
            "</figure>" + note("Dot: a finished run. Line: the runs of one budget, whose FLOPs stand at its end."))


class _Axis:
    """Maps values to places on the picture, and says where its ticks are."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        self.low, self.high, self.first, self.last = low, high, first, last

    @classmethod
    def around(cls, values: Sequence[float], first: float, last: float) -> _Axis:
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.05 * max(abs(low), 1.0)  # one value alone stands in the middle
        return cls(low - room, high + room, first, last)

    def __call__(self, value: float) -> float:
        return self.first + (self.last - self.first) * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """3 to 8 round values."""
        rough = (self.high - self.low) / 7
        step = 10.0 ** math.floor(math.log10(rough))
        step *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * step >= rough)
        return [step * k for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]

    def log_ticks(self) -> list[float]:
        """Logs of round values: 1, 2, 5 of each decade, or 1 only when there are many."""
        parts = (1, 2, 5) if self.high - self.low < 2.4 else (1,)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        return [t for k in decades for part in parts if self.low <= (t := k + math.log10(part)) <= self.high]


def _grid(x: _Axis, y: _Axis) -> Iterator[str]:
    for tick in y.ticks():
        at = y(tick)
        yield f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>'
        yield _text(LEFT - 8, at + 4, f"{tick:.10g}", "end")
    for tick in x.log_ticks():
        at = x(tick)
        yield f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#dddddd"/>'
        yield _text(at, HEIGHT - BOTTOM + 18, short(10.0**tick), "middle")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "params N", "middle")
    yield _text(14, HEIGHT / 2, "held-out loss", "middle", turned=True)


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#222222", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{turn}>{escape(text)}</text>'
