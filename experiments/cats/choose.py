"""How a flow over pictures is best sampled: solver, guidance and its interval, by few samples of each.

    python experiments/cats/choose.py measure BUNDLE --data FILE.parquet     every setting; finished ones stay
    python experiments/cats/choose.py show                                   the table, of choose.csv
    python experiments/cats/choose.py keep BUNDLE --guidance 2 ...           into the bundle's config

All settings begin with the same noise for the same classes. What is chosen here `flops-fit evaluate` measures anew,
on other noise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rows import add, read

from flops_fit.models import weights
from flops_fit.recipes.cats import CatFlow
from flops_fit.recipes.evaluation import Sampling
from flops_fit.recipes.judged_cats import (
    JUDGES,
    Findings,
    Labelled,
    drawn,
    flow_sets,
    of_classifier,
    of_features,
    opened,
)

FILE = Path(__file__).parent / "choose.csv"
SAMPLES, SEED = 195, 7  # classes in the shares of the data; `evaluate` begins with seed 0


@dataclass(frozen=True)
class Setting:
    method: str = "heun"
    steps: int = 12
    guidance: float = 2.0
    low: float = 0.0
    high: float = 1.0
    optimised: bool = False

    @property
    def config(self) -> dict[str, Any]:
        told = asdict(self)
        return {name: told[name] for name in ("method", "steps", "guidance", "optimised")} | {
            "interval": [self.low, self.high]
        }


SETTINGS = (
    *(Setting(guidance=scale) for scale in (4.0, 3.0, 6.0, 2.0, 1.0)),
    Setting(guidance=4.0, high=0.7), Setting(guidance=4.0, optimised=True), Setting(guidance=4.0, low=0.1, high=0.9),
    *(Setting(guidance=4.0, steps=steps) for steps in (6, 25)),
    *(Setting(guidance=4.0, method="euler", steps=steps) for steps in (24, 50)),
)  # fmt: skip


@dataclass(frozen=True)
class Row(Setting):
    bundle: str = ""  # of its weights
    classifier: str = ""  # of those of the bundle that tells breeds: agreement and class_score depend on it
    frechet_samples: float = 0.0
    kid_samples: float = 0.0
    precision_samples: float = 0.0
    coverage_samples: float = 0.0
    agreement: float = 0.0
    class_score: float = 0.0
    seconds: float = 0.0  # for all samples


def measure(bundle: str, data: str) -> None:
    folder = weights.located(bundle)
    flow, name = CatFlow.load(folder), hashlib.sha256((folder / weights.WEIGHTS).read_bytes()).hexdigest()[:12]
    classes = flow.config["classes"]
    eyes, sets = opened(JUDGES, classes), flow_sets(flow, data)
    assert eyes.extractor is not None and eyes.classifier is not None
    real = Labelled(eyes.extractor(sets.every.rows), sets.every.labels)
    told_real = eyes.classifier(sets.held_out.rows)
    judge = eyes.hashes[JUDGES.classifier][:12]
    done = {tuple(str(row[one]) for one in (*vars(Setting()), "bundle", "classifier")) for row in read(FILE)}
    for setting in SETTINGS:
        if tuple(str(value) for value in (*vars(Setting(**_numbers(setting))).values(), name, judge)) in done:
            continue
        flow.config["sampling"] = setting.config
        began, found = time.perf_counter(), Findings()
        made = drawn(flow, Sampling(SAMPLES, SEED), sets.every.labels)
        taken = time.perf_counter() - began
        features = Labelled(eyes.extractor(made.rows), made.labels)
        of_features(found, features, real, features)
        told = eyes.classifier(made.rows)
        of_classifier(found, told, made.labels, told_real, sets.held_out.labels, classes)
        known = {one.name: one.value for one in found.metrics}
        measured = {one: round(known[one], 5) for one in vars(Row()) if one in known}
        add(FILE, [Row(**_numbers(setting), bundle=name, classifier=judge, **measured, seconds=round(taken, 1))])
        print(setting, measured, f"{taken:.0f} s", flush=True)


def _numbers(setting: Setting) -> dict[str, Any]:
    """As they come back from the file."""
    return {name: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
            for name, value in vars(setting).items()}  # fmt: skip


def show() -> None:
    rows = read(FILE)
    if rows:
        names = list(rows[0])
        print(*names, sep="\t")
        for row in rows:
            print(*(row[name] for name in names), sep="\t")


def keep(bundle: str, setting: Setting) -> None:
    path = Path(weights.located(bundle)) / weights.CONFIG
    weights.write_json(path, {**json.loads(path.read_text()), "sampling": setting.config})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("show")
    for verb in ("measure", "keep"):
        one = verbs.add_parser(verb)
        one.add_argument("bundle")
        if verb == "measure":
            one.add_argument("--data", required=True)
            continue
        for name, value in vars(Setting()).items():
            kind = {"action": "store_true"} if isinstance(value, bool) else {"type": type(value), "default": value}
            one.add_argument(f"--{name}", **kind)  # type: ignore[arg-type]
    asked = parser.parse_args()
    if asked.verb == "measure":
        measure(asked.bundle, asked.data)
    if asked.verb == "keep":
        keep(asked.bundle, Setting(**{name: getattr(asked, name) for name in vars(Setting())}))
    else:
        show()


if __name__ == "__main__":
    main()
