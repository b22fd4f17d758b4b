"""An evaluation of pictures as a folder to look at: evaluation_report.json, and one page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from torch import Tensor

from flops_fit.data.pictures import png, sheet
from flops_fit.errors import InputError
from flops_fit.evaluate.confusion import FILE as CONFUSION
from flops_fit.evaluate.confusion import confusion_svg
from flops_fit.evaluate.metric import Metric
from flops_fit.models.weights import write_json
from flops_fit.recipes.evaluation import Evaluation
from flops_fit.recipes.judged_cats import CLOSEST, IN_A_CLASS, Shown
from flops_fit.scaling.report import document, note, section, table

JSON, PAGE = "evaluation_report.json", "evaluation_report.html"
STYLE = """<style>
.grid { width: 100%; max-width: 44rem; height: auto; image-rendering: auto; display: block; }
.rows { display: grid; grid-template-columns: minmax(5rem, 8rem) 1fr; gap: .2rem .6rem; align-items: center; }
.rows img { width: 100%; max-width: 36rem; height: auto; }
figure { max-width: 40rem; }
</style>"""
SAID = {
    "samples": "Samples: as they come, none was chosen.",
    "real": "Real pictures of the same data.",
    "wrong": "Held-out pictures that are told wrongly.",
}


def write(folder: Path, found: Evaluation, shown: Shown) -> None:
    """Both files, and confusion.svg where classes were told.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        write_json(folder / JSON, found.to_dict())
        (folder / PAGE).write_text(page(found, shown), encoding="utf-8")
        if shown.table is not None:
            (folder / CONFUSION).write_text(confusion_svg(shown.table, shown.classes), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--report: {folder} cannot be written ({error}); give another folder") from error


def page(found: Evaluation, shown: Shown) -> str:
    """The whole page. All text from outside is escaped."""
    how = ", ".join(f"{name} {value}" for name, value in found.sampled.items())
    judges = ", ".join(f"{name} ({sha[:12]})" for name, sha in found.measured_by.items())
    head = f'<h1>flops-fit</h1><p class="verdict">{escape(found.bundle)} on {escape(found.data)}</p>'
    sections = [
        head + note(f"Data SHA-256 {found.data_sha256}." + (f" Sampled with {how}." if how else "")
                    + (f" Judged by {judges}." if judges else "")),
        *(section(name.capitalize(), note(SAID[name]) + _grid(pixels, shown.classes)) for name, pixels in
          shown.grids.items()),
        section("Measured", _metrics(found.metrics)),
        section("Absent", table(("what", "why"), found.absent.items(), text=(0, 1)) if found.absent else ""),
        section("By class", _by_class(found.by_class)),
        section("Which class is taken for which", _confusion(shown)),
        section("Nearest to training pictures", _neighbours(shown)),
        section("Loss by time", _by_time(found.by_time)),
        section("Notes", "".join(note(one) for one in found.notes)),
    ]  # fmt: skip
    return document(f"flops-fit: {found.bundle}", sections, STYLE)


def _metrics(metrics: Sequence[Metric]) -> str:
    rows = [(one.name, f"{one.value:.4g}", f"{one.lo:.4g} to {one.hi:.4g}", f"{one.n:,}") for one in metrics]
    return table(("", "value", "95%", "n"), rows, text=(0,))


def _by_class(by_class: Mapping[str, Sequence[Metric]]) -> str:
    names = list(dict.fromkeys(one.name for metrics in by_class.values() for one in metrics))
    if not names:
        return ""
    rows = []
    for name, metrics in by_class.items():
        known = {one.name: one for one in metrics}
        cells = [f"{known[one].value:.3g} ({known[one].lo:.3g} to {known[one].hi:.3g})" if one in known else ""
                 for one in names]  # fmt: skip
        rows.append((name, *cells))
    return table(("class", *names), rows, text=(0,)) + note("In brackets the 95% interval.")


def _by_time(by_time: Mapping[str, Sequence[float]]) -> str:
    if not by_time:
        return ""
    names = [name for name in by_time if name != "t"]
    rows = [(f"{t:.2f}", *(f"{by_time[name][i]:.4f}" for name in names)) for i, t in enumerate(by_time["t"])]
    return table(("t", *names), rows) + note("0 is noise, 1 a picture; each predictor met the same noise.")


def _grid(pixels: Tensor, classes: Sequence[str]) -> str:
    """Of IN_A_CLASS pictures a class: a row each, named; of others a sheet."""
    if len(pixels) != len(classes) * IN_A_CLASS:
        return _image(sheet(pixels, columns=10), "pictures", "grid") if len(pixels) else note("None.")
    rows = [
        f"<span>{escape(name)}</span>{_image(sheet(some, columns=IN_A_CLASS), name, '')}"
        for name, some in zip(classes, pixels.split(IN_A_CLASS), strict=True)
    ]
    return f'<div class="rows">{"".join(rows)}</div>'


def _neighbours(shown: Shown) -> str:
    if shown.neighbours is None:
        return ""
    pairs = sheet(shown.neighbours, columns=CLOSEST)
    return note("In pairs: a sample, then the training picture that is nearest to it; the nearest pair of all samples "
                "first.") + _image(pairs, "samples and the training pictures nearest to them", "grid")  # fmt: skip


def _confusion(shown: Shown) -> str:
    return "" if shown.table is None else f"<figure>{confusion_svg(shown.table, shown.classes)}</figure>"


def _image(pixels: Tensor, said: str, kind: str) -> str:
    data = base64.b64encode(png(pixels)).decode()
    return f'<img class="{kind}" alt="{escape(said)}" src="data:image/png;base64,{data}">'
