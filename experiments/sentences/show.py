"""Tables and pictures of what study.py measured: python experiments/sentences/show.py captions"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).parent
FAINT, COLOURS = "#9a9a9a", {"mlp": "#0b6e99", "dit-chunked": "#c4551c", "unet": "#3a7d44", "ssm": "#7a4fa3"}
LINES = {"euler": "--", "heun": "-"}
SIZE = 13  # points at 144 dots an inch: still read when 1,100 pixels are shown as 390
Rows = Sequence[dict[str, Any]]


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def spread(values: Iterable[float], digits: int = 4) -> str:
    """Mean and standard deviation over seeds; of one seed it alone."""
    values = list(values)
    off = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{off}"


def grouped(rows: Rows, *names: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def tables(folder: Path) -> None:
    rows = read(folder / "results.csv")
    hours, flops = sum(row["seconds"] for row in rows) / 3600, sum(row["flops"] for row in rows)
    print(f"{len(rows)} configurations: {hours:.2f} hours of one core and {flops:.3g} FLOPs in training.")
    print(f"Means, ± standard deviation over seeds. Real training vectors have energy distance {rows[0]['floor']:.4f}.")
    for (block,), of_block in grouped(rows, "block").items():
        losses(block, of_block)
    texts([row for row in rows if row["known_words"] != ""])
    print("\nFlow icfm, loss of the first less that of the second; p over held-out rows, seeds averaged, by Holm:\n")
    for row in read(folder / "paired.csv"):
        print(f"- {row['first']} - {row['second']}: {row['difference']:+.4f}, p = {row['p']:.2g}")
    for flow in ("icfm", "reflow"):
        solvers = of_flows(rows, read(folder / "solvers.csv"), flow)
        ladder(f"Energy distance of {flow} samples by solver", solvers, ("arch", "method"), "nfe", "evaluations")
    guided = read(folder / "guidance.csv")
    ladder("Energy distance, led away from the Gaussian", guided, ("arch",), "scale", "scale")


def losses(block: str, rows: Rows) -> None:
    head = ("network", "flow", "vectors", "augmentation", "over Gaussian", "loss", "of Gaussian", "explained",
            "energy distance", "straightness", "")  # fmt: skip
    print(f"\n{block}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for key, same in grouped(rows, "arch", "flow", "vectors", "augmentation", "over_gaussian").items():
        arch, flow, vectors, augmentation, gaussian = key
        cells = [arch, flow, str(int(vectors)), augmentation, "yes" if gaussian == "True" else "no",
                 spread(row["loss"] for row in same), f"{same[0]['loss_gaussian']:.4f}",
                 spread((row["explained"] for row in same), 3), spread(row["energy"] for row in same),
                 spread((row["straightness"] for row in same if row["straightness"] != ""), 3),
                 verdict(same)]  # fmt: skip
        print(f"| {' | '.join(cells)} |")


def texts(rows: Rows) -> None:
    if not rows:
        return
    names = ("known_words", "distinct_2", "perplexity")
    print(f"\ntexts\n\n| configuration | {' | '.join(names)} |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['name']} | {' | '.join(f'{row[name]:.3f}' for name in names)} |")


def ladder(title: str, rows: Rows, by: tuple[str, ...], rung: str, label: str) -> None:
    """Energy distance at each rung, a line for each kind of run."""
    print(f"\n{title}:\n")
    for kind, same in grouped(rows, *by).items():
        points = [f"{at:g}: {spread(p['energy'] for p in there)}" for (at,), there in grouped(same, rung).items()]
        print(f"- {' '.join(kind)}, by {label}: {', '.join(points)}")


def verdict(same: Rows) -> str:
    """Losses of the other flows are not meant for independent pairs."""
    if same[0]["flow"] not in ("icfm", "gvp"):
        return ""
    beyond = max(row["loss"] for row in same) < min(row["loss_gaussian"] for row in same)
    return "" if beyond else "learned nothing beyond Gaussian"


def of_flows(rows: Rows, points: Rows, flow: str) -> list[dict[str, Any]]:
    """Those points whose run is in the block of flows, with what its network is."""
    known = {row["name"]: row for row in rows if row["block"] == "flows" and row["flow"] == flow}
    return [{**point, "arch": known[point["name"]]["arch"]} for point in points if point["name"] in known]


def sheet(title: str, draw: Callable[[Axes], None]) -> Figure:
    drawn = Figure(figsize=(7.6, 5.2), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots()
    drawn.suptitle(title, fontsize=SIZE + 3, x=0.01, ha="left")
    draw(axes)
    axes.tick_params(labelsize=SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=SIZE - 1, frameon=False)
    return drawn


def pictures(folder: Path) -> None:
    rows = read(folder / "results.csv")

    def curves(axes: Axes) -> None:
        looks = of_flows(rows, read(folder / "curves.csv"), "icfm")
        for (arch,), points in grouped(looks, "arch").items():
            for i, one in enumerate(grouped(points, "name").values()):
                label = arch if i == 0 else None
                axes.plot([p["step"] for p in one], [p["loss"] for p in one], color=COLOURS[arch], label=label)
        untrained = next(p["loss"] for p in looks if p["step"] == 0)  # these networks begin as the Gaussian
        axes.axhline(untrained, color=FAINT, label="Gaussian")
        axes.set_xlabel("vectors seen", fontsize=SIZE)
        axes.set_ylabel("held-out loss", fontsize=SIZE)

    def solvers(axes: Axes) -> None:
        points = of_flows(rows, read(folder / "solvers.csv"), "icfm")
        for (arch, method), same in grouped(points, "arch", "method").items():
            by_nfe = {nfe: statistics.mean(p["energy"] for p in at) for (nfe,), at in grouped(same, "nfe").items()}
            axes.plot(
                list(by_nfe), list(by_nfe.values()), LINES[method], color=COLOURS[arch], label=f"{arch}, {method}"
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("evaluations of the network", fontsize=SIZE)
        axes.set_ylabel("energy distance to held-out vectors", fontsize=SIZE)

    def flat(axes: Axes) -> None:
        for (of,), points in grouped(read(folder / "map.csv"), "of").items():
            if of in ("held out", "dit-chunked"):
                colour = FAINT if of == "held out" else COLOURS[of]
                axes.plot([p["x"] for p in points], [p["y"] for p in points], "o", markersize=4, color=colour, label=of)
        axes.set_xlabel("first principal axis of held-out vectors", fontsize=SIZE)
        axes.set_ylabel("second", fontsize=SIZE)

    for name, title, draw in (
        ("curves", "Held-out loss in training, flow icfm", curves),
        ("solvers", "Euler and Heun: quality against evaluations", solvers),
        ("map", "Held-out vectors and samples", flat),
    ):
        sheet(title, draw).savefig(folder / f"{name}.png", dpi=144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="folder beside this file, of study.py")
    folder = HERE / parser.parse_args().name
    if not (folder / "results.csv").exists():
        sys.exit(f"error: {folder} holds no results.csv; `study.py judge` writes it")
    tables(folder)
    pictures(folder)


if __name__ == "__main__":
    main()
