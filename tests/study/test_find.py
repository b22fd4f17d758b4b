"""A study computed from a known law: what is planned, run, reused, extended, verified, refused and written."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flops_fit.errors import ContractError, FitError, InputError, StudyMismatch
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.journal import JOURNAL, Journal
from flops_fit.runs.watch import outcome
from flops_fit.scaling.plan import FEWEST_BUDGETS
from flops_fit.scaling.result import Result
from flops_fit.study import Sweep
from flops_fit.train.options import BRANCHED
from flops_fit.train.synthetic import SyntheticTrainer
from study.toy import BUDGETS, LAW, Listener, Net, content, find, samples, study

EXACT = 1e-6       # noise-free losses of a law, fitted by the same law: limited by the optimiser's last step
ONE_STEP = 0.03    # C of a run is a budget rounded to whole steps, at least 20 of them


# --- law and answer ------------------------------------------------------------------------------------------------


def test_the_law_behind_the_runs_is_found(tmp_path: Path) -> None:
    result, _ = find(study(), tmp_path)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(result.law, name) == pytest.approx(getattr(LAW, name), rel=1000 * EXACT), name
    assert result.n_opt_exponent == pytest.approx(0.5, abs=1000 * EXACT)
    assert {run.spec.budget for run in result.experiments} == set(BUDGETS)
    assert all(run.flops == pytest.approx(run.spec.budget, rel=ONE_STEP) for run in result.experiments)
    for optimum in result.isoflop.optima:
        assert optimum.edge is None


def test_verification_is_one_more_run_that_was_predicted_before(tmp_path: Path) -> None:
    result, listener = find(study(trainer=SyntheticTrainer(LAW, noise=0.01)), tmp_path / "with", verify=4.0)
    without, _ = find(study(trainer=SyntheticTrainer(LAW, noise=0.01)), tmp_path / "without")
    [run] = [one for one in listener.finished if one.spec.role == "verify"]
    verify = result.verify
    assert without.verify is None
    assert result.law == without.law  # the law does not know the run that checks it
    assert run.spec.key not in {one.spec.key for one in result.experiments}
    assert (verify.compute, verify.size, verify.params, verify.tokens) == (
        run.spec.flops, run.spec.size, run.spec.params, run.spec.tokens)  # fmt: skip
    assert verify.compute == pytest.approx(4 * BUDGETS[-1], rel=ONE_STEP)
    assert verify.params == pytest.approx(result.predict(verify.compute).params, rel=0.05)  # the nearest multiple
    assert verify.measured_loss == run.loss
    assert verify.predicted_loss == float(result.loss(verify.params, verify.tokens))
    assert verify.relative_error == verify.predicted_loss / verify.measured_loss - 1
    assert verify.interval[0] < verify.predicted_loss < verify.interval[1]
    assert content(tmp_path / "with")["verify"]["measured_loss"] == run.loss


def test_a_verification_takes_a_larger_size_when_the_predicted_one_repeats_the_data_too_often(tmp_path: Path) -> None:
    """D = C / f(N) falls with N. A fifth fewer passes are allowed than the predicted size would make."""
    one = study(dataset=samples(4000), max_epochs=1e9)
    unique = Sweep(one, executor="inline", workers=1, watch=Listener()).prepared.source.samples
    free, _ = find(one, tmp_path / "free", verify=2.0)
    most = free.verify.tokens / unique / 1.2
    result, listener = find(replace(one, max_epochs=most), tmp_path / "bound", verify=2.0)
    assert result.verify.tokens <= most * unique
    assert result.verify.size > free.verify.size
    assert result.verify.compute == pytest.approx(free.verify.compute, rel=ONE_STEP)
    assert any("the predicted one would repeat the data more" in line for line in listener.lines)


def test_a_verification_that_is_not_feasible_is_told(tmp_path: Path) -> None:
    one = study(dataset=samples(4000), max_epochs=100.0)  # 3e9 FLOPs take some 125,000 samples, 30 epochs
    result, _ = find(one, tmp_path, verify=1000.0)
    assert result.verify is None
    assert any("not verified" in warning and "epochs" in warning for warning in result.warnings)


# --- what is run, and what is not run again ------------------------------------------------------------------------


def test_a_second_call_runs_nothing_and_answers_the_same(tmp_path: Path) -> None:
    _, first = find(study(), tmp_path, verify=2.0)
    before, journal = content(tmp_path), (tmp_path / JOURNAL).read_bytes()
    _, second = find(study(), tmp_path, verify=2.0)
    assert len(first.finished) > 0
    assert second.finished == []
    assert sum(second.reused) == len(first.finished)
    assert content(tmp_path) == before
    assert (tmp_path / JOURNAL).read_bytes() == journal


@pytest.mark.parametrize("change", [
    {"compute_budgets": (*BUDGETS, 1e10)}, {"compute_budgets": BUDGETS[1:]}, {"sizes_per_budget": 7},
    {"seed": 1}, {"lr": 0.01},
], ids=str)  # fmt: skip
def test_a_changed_plan_reuses_exactly_the_equal_runs(change: dict[str, Any], tmp_path: Path) -> None:
    _, first = find(study(), tmp_path / "one", extend=0)
    _, alone = find(study(**change), tmp_path / "alone", extend=0)
    _, after = find(study(**change), tmp_path / "one", extend=0)
    assert after.keys == alone.keys - first.keys
    assert content(tmp_path / "one") == content(tmp_path / "alone")
    assert bool(alone.keys & first.keys) == (not {"seed", "batch_size", "lr"} & set(change))


@pytest.mark.parametrize(("change", "named"), [
    ({"trainer": SyntheticTrainer(LAW, noise=0.5)}, "trainer: "),
    ({"trainer": None}, "trainer: "),
    ({"dataset": samples(seed=1)}, "data: "),
    ({"loss_fn": torch.nn.functional.l1_loss}, "loss.name: "),
    ({"train_options": replace(BRANCHED, warmup=0.02)}, "train_options.warmup: 0.1 there, 0.02 here"),
], ids=["noise", "real", "data", "loss", "options"])  # fmt: skip
def test_a_folder_of_another_study_is_refused_and_left_alone(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    find(study(), tmp_path)
    before = (tmp_path / JOURNAL).read_bytes(), (tmp_path / "result.json").read_bytes()
    with pytest.raises(StudyMismatch, match="holds another study") as caught:
        find(study(**change), tmp_path)
    assert named in str(caught.value)
    assert ((tmp_path / JOURNAL).read_bytes(), (tmp_path / "result.json").read_bytes()) == before


def test_a_budget_added_later_goes_on_from_the_trunks(tmp_path: Path) -> None:
    """Real training: the finished study left its trunks, so only the new steps are done, and the loss is the same."""
    given = {"trainer": None, "schedule": "wsd-branch", "sizes": (8, 12, 16), "tokens_per_param": 60, "lr": 0.01}
    budgets = (4e6, 6e6, 9e6, 13e6)

    def trained(name: str, count: int) -> dict[str, RunResult]:
        with contextlib.suppress(FitError):  # so small a network learns too unevenly for a law; the runs are recorded
            find(study(compute_budgets=budgets[:count], **given), tmp_path / name, extend=0)
        return dict(Journal.read(tmp_path / name).results)

    assert len(trained("later", 3)) == 9
    assert {path.name.split("-")[0] for path in (tmp_path / "later" / "checkpoints").iterdir()} == {"trunk"}
    later, once = trained("later", 4), trained("once", 4)
    assert {key: run.loss for key, run in later.items()} == {key: run.loss for key, run in once.items()}
    for run in later.values():
        assert run.spent == pytest.approx(run.spec.cost)


def test_auto_goes_on_with_the_schedule_of_the_folder(tmp_path: Path) -> None:
    """Budgets far apart are not worth branching, those of the folder are; and the other way round."""
    near, far = (1e9, 1.4e9, 2e9, 2.8e9, 4e9), (1e9, 4e9, 16e9)
    for first, then, schedule in ((near, far, "wsd-branch"), (far, near, "wsd")):
        folder = tmp_path / schedule
        find(study(compute_budgets=first), folder, extend=0)
        assert Journal.read(folder).identity["schedule"] == schedule
        result, _ = find(study(compute_budgets=then), folder, extend=0)
        assert Journal.read(folder).identity["schedule"] == schedule
        assert all(bool(run.spec.lane) == (schedule == "wsd-branch") for run in result.experiments)
    with pytest.raises(StudyMismatch, match="schedule: .*wsd-branch.* there, .*wsd.* here"):
        find(study(compute_budgets=near, schedule="wsd"), tmp_path / "wsd-branch")


def test_without_resume_the_old_journals_are_put_aside_and_none_is_lost(tmp_path: Path) -> None:
    _, first = find(study(), tmp_path)
    old = [(tmp_path / JOURNAL).read_bytes()]
    for noise in (0.05, 0.1):  # another study, within the same second of the clock
        _, again = find(study(trainer=SyntheticTrainer(LAW, noise=noise)), tmp_path, resume=False)
        assert len(again.finished) >= len(first.finished)
        old.append((tmp_path / JOURNAL).read_bytes())
    assert {path.read_bytes() for path in tmp_path.glob("journal*.jsonl")} == set(old)


def test_without_resume_a_driver_at_work_keeps_its_journal(tmp_path: Path) -> None:
    one = study()
    identity = Sweep(one, executor="inline", workers=1, watch=Listener()).prepared.identity
    with Journal.open(tmp_path, identity) as at_work:
        with pytest.raises(Exception, match="another driver is at work"):
            find(one, tmp_path, resume=False)
        assert at_work.path.exists()


def test_workers_give_the_same_result_as_one_process(tmp_path: Path) -> None:
    noisy = study(trainer=SyntheticTrainer(LAW, noise=0.02))
    find(noisy, tmp_path / "inline", executor="inline")
    find(noisy, tmp_path / "processes", executor="processes")
    assert content(tmp_path / "inline") == content(tmp_path / "processes")


# --- edges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "side"), [(2000.0, "smallest"), (1.0, "largest")])
@pytest.mark.parametrize("rounds", [0, 2])
def test_an_optimum_at_the_edge_adds_sizes_beyond_it(ratio: float, side: str, rounds: int, tmp_path: Path) -> None:
    """Sizes for D/N = 2000 are all too small, the law wants 20; announced, and bounded by `extend`."""
    result, listener = find(study(tokens_per_param=ratio, span=2.0), tmp_path, extend=rounds)
    wrong = "smallest" if side == "largest" else "largest"
    told = [line for line in listener.lines if "adding size" in line]
    planned = len(BUDGETS) * 5
    assert len(told) == rounds * len(BUDGETS)
    assert len(result.experiments) == planned + len(told)
    assert all(f"lies at the {wrong} size" in line for line in told)
    for run in result.experiments[planned:]:
        before = [one.spec.size for one in result.experiments[:planned] if one.spec.budget == run.spec.budget]
        assert (max(before) < run.spec.size) if wrong == "largest" else (run.spec.size < min(before))


def test_extension_ends_where_the_optimum_is_inside(tmp_path: Path) -> None:
    result, listener = find(study(tokens_per_param=200.0, span=2.0), tmp_path, extend=20)
    assert result.isoflop.edges == ()
    added = [line for line in listener.lines if "adding size" in line]
    assert 0 < len(added) < 20 * len(BUDGETS)


def test_a_size_added_where_branches_share_trunks_is_one_that_others_have(tmp_path: Path) -> None:
    """Sizes for D/N = 2 are all too large: each budget but the smallest takes over a size of the one below it."""
    budgets = [1e9 * 1.6**k for k in range(5)]
    given = study(compute_budgets=budgets, schedule="wsd-branch", tokens_per_param=4.0, span=2.0)
    result, _ = find(given, tmp_path, extend=1)
    planned, _ = find(given, tmp_path / "planned", extend=0)
    known = {run.spec.lane: run.spec for run in planned.experiments}
    added = result.experiments[len(planned.experiments):]
    shared = [run.spec for run in added if run.spec.lane in known]
    assert len(shared) >= len(added) - 1  # the smallest budget has nobody below it
    assert all(spec.shared_steps > 0 for spec in shared)


# --- runs that fail ------------------------------------------------------------------------------------------------


def sweep_with(task: Any, **changes: Any) -> tuple[Sweep, Listener]:
    """A study whose runs `task` carries out instead of the engine."""
    listener = Listener()
    sweep = Sweep(study(trainer=None, **changes), executor="inline", workers=1, watch=listener)
    sweep.trainer = task
    return sweep, listener


FIND: dict[str, Any] = {"resume": True, "extend": 0, "verify": None, "bootstrap": 40}


def test_failing_runs_are_recorded_left_out_and_tried_again(tmp_path: Path) -> None:
    exact = SyntheticTrainer(LAW)
    broken = {spec.size for spec in Sweep(study(), executor="inline", workers=1, watch=Listener()).plan().experiments}
    bad = sorted(broken)[3]

    def fails(spec: RunSpec, progress: Any) -> RunResult:
        if spec.size == bad:
            raise RuntimeError("out of luck")
        return exact(spec, progress)

    sweep, first = sweep_with(fails)
    result = sweep.find(tmp_path, **FIND)
    lost = [row for row, run in enumerate(result.experiments) if run.spec.size == bad]
    assert lost
    assert [result.experiments[row].status for row in lost] == ["failed"] * len(lost)
    assert {out.row for out in result.left_out} == set(lost)
    assert all("out of luck" in out.reason for out in result.left_out)
    assert set(result.used) == set(range(len(result.experiments))) - set(lost)
    assert result.law.alpha == pytest.approx(LAW.alpha, rel=1000 * EXACT)

    sweep, second = sweep_with(exact)
    result = sweep.find(tmp_path, **FIND)
    assert {spec.size for spec in second.specs} == {bad}  # the others are not run again
    assert result.left_out == ()
    assert len(first.finished) == len(result.experiments)


@pytest.mark.parametrize("count", [4000, 10**6])
def test_a_verification_that_missed_says_when_it_repeated_its_data_most(count: int, tmp_path: Path) -> None:
    """Some 60 passes over 4,000 samples, more than any run of the sweep makes, and not one over a million."""
    exact = SyntheticTrainer(LAW)

    def overfits(spec: RunSpec, progress: Any) -> RunResult:
        done = exact(spec, progress)
        return replace(done, loss=1.3 * done.loss) if spec.role == "verify" else done

    sweep, _ = sweep_with(overfits, dataset=samples(count), max_epochs=1e9)
    result = sweep.find(tmp_path, **FIND | {"verify": 4.0})
    [warning] = [warning for warning in result.warnings if "missed its 95% interval" in warning]
    passes = result.verify.tokens / sweep.prepared.source.samples
    assert (f"it passed {passes:.1f} times over the data" in warning) == (passes > 4) == (count == 4000)
    assert "times over the data" in result.checklist["D"]


def test_a_diverged_run_is_a_finding_and_is_not_tried_again(tmp_path: Path) -> None:
    exact = SyntheticTrainer(LAW)

    def diverges(spec: RunSpec, progress: Any) -> RunResult:
        done = exact(spec, progress)
        return replace(done, status="diverged", loss=None, reason="too fast") if spec.steps % 3 == 0 else done

    sweep, first = sweep_with(diverges)
    result = sweep.find(tmp_path, **FIND)
    assert {run.status for run in first.finished} == {"ok", "diverged"}
    assert len(result.left_out) == sum(run.status == "diverged" for run in first.finished)
    sweep, second = sweep_with(diverges)
    sweep.find(tmp_path, **FIND)
    assert second.finished == []


def test_too_few_good_runs_give_no_law_and_lose_nothing(tmp_path: Path) -> None:
    exact = SyntheticTrainer(LAW)
    asked: list[str] = []

    def mostly_fails(spec: RunSpec, progress: Any) -> RunResult:
        asked.append(spec.key)
        if len(asked) > 4:
            raise RuntimeError("no")
        return exact(spec, progress)

    sweep, _ = sweep_with(mostly_fails)
    with pytest.raises(FitError, match="4"):
        sweep.find(tmp_path, **FIND)
    kept = Journal.read(tmp_path).results
    assert set(kept) == set(asked)
    assert sum(run.ok for run in kept.values()) == 4
    assert not (tmp_path / "result.json").exists()


class Picky(Net):
    """Its width is a multiple of 8."""

    def __init__(self, width: int) -> None:
        if width % 8:
            raise ValueError(f"width={width} must be a multiple of 8")
        super().__init__(width)


def test_sizes_that_cannot_be_built_are_passed_over_and_named(tmp_path: Path) -> None:
    result, _ = find(study(model_cls=Picky), tmp_path)
    assert all(run.spec.size % 8 == 0 for run in result.experiments)
    assert len({(run.spec.budget, run.spec.size) for run in result.experiments}) >= 5 * len(BUDGETS)
    unbuildable = [pair for pair in result.skipped if "must be a multiple of 8" in pair.reason]
    assert unbuildable
    assert all(pair.size is not None and pair.size % 8 == 4 for pair in unbuildable)


# --- what is written, and what is refused --------------------------------------------------------------------------


@pytest.mark.usefixtures("drawn")
def test_everything_that_comes_out_says_synthetic(tmp_path: Path) -> None:
    result, listener = find(study(), tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert {JOURNAL, "result.json", "report.html", "sweep.png", "sweep.svg"} <= written
    assert result.synthetic
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["synthetic"] is True
    assert all(run["synthetic"] for run in saved["experiments"])
    assert all(run.synthetic for run in Journal.read(tmp_path).results.values())
    texts = {
        "report": (tmp_path / "report.html").read_text(), "summary": result.summary(), "verdict": result.verdict(),
        "table": result.chinchilla_table(), "picture": (tmp_path / "sweep.svg").read_text(),
        "line": outcome(listener.finished[0]),
    }  # fmt: skip
    assert {name for name, text in texts.items() if "SYNTHETIC" not in text.upper()} == set()
    again = Result.from_json((tmp_path / "result.json").read_text())
    assert again.to_dict() == result.to_dict()


def test_an_output_folder_that_cannot_be_made_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    listener = Listener()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="output folder .* cannot be used"):
            Sweep(study(), executor="inline", workers=1, watch=listener).find(folder, **FIND)
    assert listener.finished == []


def test_all_breaches_come_together_one_a_line(tmp_path: Path) -> None:
    class Counts:  # no module, no num_params, another argument
        def __init__(self, widht: int) -> None:
            self.width = widht

    with pytest.raises(ContractError) as caught:
        find(study(model_cls=Counts, dataset=[], loss_fn=None, compute_budgets=(1e9, -1)), tmp_path / "out")
    lines = str(caught.value).splitlines()
    starts = ["model_size_param: the model takes no argument 'width'; did you mean 'widht'?",
              "model_cls: Counts has no num_params()", "dataset: it is empty", "loss_fn, objective: give exactly one",
              "compute_budgets: got -1.0"]  # fmt: skip
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("change", "told"), [
    ({"compute_budgets": ()}, "compute_budgets: got none"),
    ({"compute_budgets": BUDGETS[:FEWEST_BUDGETS - 1]}, "a law needs at least 3"),
    ({"compute_budgets": (1e9, float("nan"), 1e10)}, "compute_budgets: got nan"),
    ({"loss_fn": lambda outputs, targets: outputs}, "loss_fn: it must return a scalar tensor"),
    ({"loss_fn": lambda outputs, targets: outputs.mean() * float("nan")}, "the loss is nan before any training"),
    ({"batch_size": 0}, "batch_size: got 0"),
    ({"lr": -1.0}, "lr: got -1.0"),
    ({"max_epochs": 1e-3}, "no feasible run is left"),
], ids=lambda value: value if isinstance(value, str) else next(iter(value)))  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        find(study(**change), tmp_path, extend=0)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("option", [{"verify": -1.0}, {"verify": 0.0}, {"verify": float("nan")}, {"bootstrap": 2}],
                         ids=str)  # fmt: skip
def test_options_of_find_are_checked_before_anything_runs(option: dict[str, Any], tmp_path: Path) -> None:
    listener = Listener()
    sweep = Sweep(study(), executor="inline", workers=1, watch=listener)
    with pytest.raises(InputError, match=next(iter(option))):
        sweep.find(tmp_path, **FIND | option)
    assert listener.finished == []


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_are_whole_numbers_from_1_on(workers: int) -> None:
    with pytest.raises(InputError, match="workers"):
        Sweep(study(), executor="local", workers=workers, watch=Listener())


def test_an_unknown_executor_is_told_before_the_study_is_looked_at() -> None:
    with pytest.raises(InputError, match='did you mean "inline"'):
        Sweep(study(dataset=[]), executor="inlin", workers=1, watch=Listener())


# --- plan ----------------------------------------------------------------------------------------------------------


def test_the_plan_is_what_find_runs_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listener = Listener()
    plan = Sweep(study(), executor="inline", workers=1, watch=listener).plan()
    assert listener.finished == []
    assert list(tmp_path.iterdir()) == []
    _, found = find(study(), tmp_path / "out", extend=0)
    assert [spec.key for spec in plan.experiments] == [spec.key for spec in found.specs]
    assert plan.separate_flops == pytest.approx(5 * sum(BUDGETS), rel=ONE_STEP)
    assert plan.total_flops == pytest.approx(sum(run.spec.cost for run in found.finished))


def test_sizes_can_be_given(tmp_path: Path) -> None:
    result, _ = find(study(sizes=(64, 100, 200, 400, 801)), tmp_path, extend=0)
    assert {run.spec.size for run in result.experiments} == {64, 100, 200, 400, 801}
    assert len(result.experiments) + len(result.skipped) == 5 * len(BUDGETS)
