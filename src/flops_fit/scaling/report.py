"""A Result as one HTML page that needs nothing else: styles and pictures are inside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from flops_fit.scaling.compute import say_flops
from flops_fit.scaling.result import Result
from flops_fit.scaling.words import far_note, reasons, short, some_budgets, table_rows, with_all_lines

AHEAD = (4.0, 10.0, 100.0)  # multiples of the largest budget that the table shows

STYLE = """
:root { color-scheme: light dark; --ink: #1d1f21; --paper: #ffffff; --line: #d5d8db; --soft: #f4f6f7; --warn: #8a5200;
  --bad: #b00020; --key: #0b6e99; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181a; --line: #3a3f44; --soft: #202427;
  --warn: #ffb454; --bad: #ff7b89; --key: #6cc4ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.05rem; letter-spacing: .04em; color: var(--key); margin: 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.verdict { font-size: 1.3rem; line-height: 1.4; margin: .5rem 0 1rem; }
.banner { background: var(--bad); color: var(--paper); font-weight: 700; padding: .5rem 1rem; border-radius: .3rem; }
.warn { border-left: .3rem solid var(--warn); padding: .3rem .8rem; margin: .5rem 0; background: var(--soft); }
.box { overflow-x: auto; border: 1px solid var(--line); border-radius: .3rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--soft); font-weight: 600; }
td.text, th.text { text-align: left; }
td.text { white-space: normal; min-width: 7rem; }
td.text:nth-child(n+3):last-child { min-width: 22rem; }  /* a note behind numbers: not a tower of words on a phone */
.out td { opacity: .65; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .8rem; }
figure { margin: 0; background: #ffffff; border: 1px solid var(--line); border-radius: .3rem; padding: .3rem; }
figure svg { width: 100%; height: auto; display: block; }
.note { font-size: .9rem; opacity: .8; }
"""


def page(result: Result) -> str:
    """The whole page. All text from outside is escaped."""
    from flops_fit.scaling.plot import panels  # matplotlib only when a picture is wanted

    pictures = "".join(f'<figure role="img" aria-label="{escape(title)}">{svg}</figure>'
                       for title, svg in panels(result).items())
    sections = [
        _head(result),
        section("What to train", _budget_table(result)),
        section("The law", _law(result)),
        section("Three ways to the exponents", _approaches(result)),
        section("Which law", _trials(result)),
        section("Pictures", f'<div class="pictures">{pictures}</div>' + note(
            "Dot: a run; hollow: left out. Line: the law; star: its optimum. Square: minimum of a parabola through one "
            "budget; hollow: at the edge. Band: 95% interval. Dotted: the largest budget that was fitted.")),
        section("Checked by training", _verify(result)),
        section("From which compute the law holds", _backtest(result)),
        section("What was left out", _left_out(result)),
        section("Every run", _runs(result)),
        section("How it was done", table(("convention", "value"), result.checklist.items(), text=(0, 1))),
    ]
    return document("flops-fit report", sections)


def fragment(result: Result) -> str:
    """Verdict, warnings and table, for a notebook cell."""
    return f"<div>{_head(result)}{_budget_table(result)}</div>"


SYNTHETIC = '<p class="banner">SYNTHETIC: computed from a law, nothing was trained</p>'


def document(title: str, sections: Iterable[str], head: str = "") -> str:
    """A whole page in the look of the report; `head` goes into its head."""
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">{head}'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
            + "\n".join(part for part in sections if part) + "\n</body></html>\n")


def _head(result: Result) -> str:
    banner = SYNTHETIC if result.synthetic else ""
    warnings = "".join(f'<p class="warn">{escape(text)}</p>' for text in result.warnings)
    return f'<h1>flops-fit</h1>{banner}<p class="verdict">{escape(result.verdict())}</p>{warnings}'


def section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (),
           faint: Sequence[bool] = ()) -> str:
    """A table in a box of its own, which scrolls sideways on a small screen; `text` columns are set left."""
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f'<{tag}{" class=text" if i in text else ""}>{escape(str(cell))}</{tag}>'
                       for i, cell in enumerate(row))
    body = "".join(f'<tr{" class=out" if i < len(faint) and faint[i] else ""}>{cells(row, "td")}</tr>'
                   for i, row in enumerate(rows))
    return (f'<div class="box" tabindex="0"><table><thead><tr>{cells(header, "th")}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")


def _budget_table(result: Result) -> str:
    header, *rows = table_rows(result, (*some_budgets(result), *(factor * result.budgets[-1] for factor in AHEAD)))
    far = note(far_note(result)) if any(row[0].endswith("*") for row in rows) else ""
    return table(header, rows) + far


def _law(result: Result) -> str:
    fit, law, errors = result.law_fit, result.law.to_dict(), result.standard_errors
    known = {p.name: "yes" if p.identified else p.note for p in result.profiles}
    values = {name: law[name] for name in result.form.names}
    values |= {"n_opt_exponent": result.n_opt_exponent, "d_opt_exponent": 1 - result.n_opt_exponent}
    rows = [(name, f"{value:.5g}", "{:.4g} to {:.4g}".format(*result.intervals[name]),
             f"{errors[name]:.2g}" if name in errors else "", known.get(name, "")) for name, value in values.items()]
    other = "".join(note(line) for line in with_all_lines(result))
    return (note(f"loss = {result.form.formula}, fitted to {len(result.used)} runs; rms residual {fit.rms:.2%}, "
                  f"objective {fit.objective:.6g}.")
            + table(("", "value", "95%", "standard error", "determined by the runs"), rows, text=(0, 4)) + other)


def _approaches(result: Result) -> str:
    def cell(value: float | None, band: tuple[float, float] | None) -> str:
        return "" if value is None else f"{value:.3f}" + ("" if band is None else f" ({band[0]:.3f} to {band[1]:.3f})")

    rows = [(one.name, cell(one.n_opt_exponent, one.n_opt_interval), cell(one.d_opt_exponent, one.d_opt_interval),
             one.note) for one in result.approaches]
    return table(("approach", "N_opt ~ C^", "D_opt ~ C^", "note"), rows, text=(0, 3))


def _trials(result: Result) -> str:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.2%}"

    rows = [(trial.law + (" (used)" if trial.chosen else ""), str(trial.coefficients), share(trial.relative_error),
             share(trial.earlier_error), trial.note) for trial in result.trials]
    header = ("law", "coefficients", "error on the largest budgets", "one step earlier", "note")
    return table(header, rows, text=(0, 4)) + note(
        "Each law is fitted without the largest budgets and predicts them. Chinchilla's stands unless it is off by "
        "more than 2% and another is clearly better, twice.")


def _verify(result: Result) -> str:
    v = result.verify
    if v is None:
        return ""
    inside = v.interval[0] <= v.measured_loss <= v.interval[1]
    rows = [(say_flops(v.compute), "" if v.size is None else str(v.size), short(v.params), short(v.tokens),
             f"{v.predicted_loss:.4f}", f"{v.interval[0]:.4f} to {v.interval[1]:.4f}", f"{v.measured_loss:.4f}",
             f"{v.relative_error:+.2%}")]
    header = ("compute (FLOPs)", "size", "params", result.runs.unit, "predicted", "95%", "measured", "error")
    return table(header, rows) + note(f"The measured loss is {'inside' if inside else 'OUTSIDE'} the interval that "
                                        "was printed before the run.")


def _backtest(result: Result) -> str:
    if not result.onset.table:
        return ""
    rows = [(say_flops(row.threshold) + (" (chosen)" if row.chosen else ""), str(row.runs), f"{row.rms:.2%}",
             f"{row.error:.2%}", f"{row.trend:+.4f}") for row in result.onset.table]
    return (table(("from FLOPs on", "runs", "rms residual", "backtest error", "trend per decade"), rows)
            + note("Backtest: the law is fitted without the largest budgets and predicts them."))


def _left_out(result: Result) -> str:
    rows = [(which, reason) for reason, which in reasons(result).items()]
    rows += [(("any budget" if pair.budget is None else f"{say_flops(pair.budget)} FLOPs")
              + ("" if pair.size is None else f", size {pair.size}") + " (not run)", pair.reason)
             for pair in result.skipped]
    return table(("what", "why"), rows, text=(0, 1)) if rows else note("Nothing.")


def _runs(result: Result) -> str:
    runs = result.runs
    expected = result.loss(runs.params, runs.tokens)
    rows = []
    for i, row in enumerate(result.rows):
        size = "" if runs.size[i] != runs.size[i] else f"{runs.size[i]:g}"
        rows.append((str(row), say_flops(runs.budget[i]), size, short(runs.params[i]), short(runs.tokens[i]),
                     say_flops(runs.flops[i]), f"{runs.loss[i]:.4f}", f"{runs.loss[i] / expected[i] - 1:+.2%}",
                     "yes" if result.keep[i] else "no"))
    header = ("run", "budget", "size", "params", runs.unit, "FLOPs", "loss", "off the law", "fitted")
    return table(header, rows, faint=[not kept for kept in result.keep.tolist()])
