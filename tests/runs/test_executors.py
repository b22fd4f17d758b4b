"""All executors against the contract, and what is particular to each."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest

from contracts.executor import ExecutorContract, ignore, plain, result, spec
from flops_fit.errors import InputError
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import (
    Event,
    Executor,
    InlineExecutor,
    ProcessExecutor,
    Progress,
    RanksExecutor,
    Started,
    choose,
)


def names_its_process(spec: RunSpec, progress: Progress) -> RunResult:
    return replace(result(spec), environment={"pid": str(os.getpid())})


def order_of_starts(executor: Executor, specs: list[RunSpec]) -> list[RunSpec]:
    started: list[RunSpec] = []

    def listen(event: Event) -> None:
        if isinstance(event, Started):
            started.append(event.spec)

    list(executor.run(specs, plain, listen))
    return started


class TestInline(ExecutorContract):
    @pytest.fixture
    def executor(self) -> Executor:
        return InlineExecutor()

    def test_order_is_the_order_given(self, executor: Executor) -> None:
        specs = [spec(size) for size in (3, 1, 2)]
        assert [one.spec for one in executor.run(specs, plain, ignore)] == specs

    def test_interrupt_inside_the_task_goes_through(self, executor: Executor) -> None:
        def interrupted(spec: RunSpec, progress: Progress) -> RunResult:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(executor.run([spec(1)], interrupted, ignore))


class TestProcesses(ExecutorContract):
    @pytest.fixture
    def executor(self) -> Executor:
        return ProcessExecutor(workers=2)

    def test_the_longest_are_started_first(self, executor: Executor) -> None:
        specs = [spec(n) for n in (2, 5, 1, 4, 3)]
        assert [one.size for one in order_of_starts(executor, specs)] == [5, 4, 3, 2, 1]

    def test_the_length_of_a_lane_is_what_its_runs_cost_together(self) -> None:
        """In size x steps: 60, not 90, because the run of 20 steps begins with the 10 of the other."""
        lane = [spec(3, 20, warmup_steps=5, shared_steps=10), spec(3, 10, warmup_steps=5)]
        one_worker = ProcessExecutor(workers=1)
        assert order_of_starts(one_worker, [*lane, spec(5, 10), spec(7, 10)]) == [spec(7, 10), *lane[::-1], spec(5, 10)]

    def test_a_lane_stays_with_its_worker(self, executor: Executor) -> None:
        specs = [spec(size, steps, warmup_steps=5) for steps in (10, 20, 30, 40) for size in (1, 2, 3, 4)]
        where: dict[int, set[str]] = {}
        for one in executor.run(specs, names_its_process, ignore):
            where.setdefault(one.spec.size, set()).add(one.environment["pid"])
        assert {size: len(pids) for size, pids in where.items()} == dict.fromkeys((1, 2, 3, 4), 1)


class TestRanks(ExecutorContract):
    @pytest.fixture
    def executor(self) -> Executor:
        return RanksExecutor(ranks=2)


def test_choose_by_name_or_instance() -> None:
    own = InlineExecutor()
    assert choose(own) is own
    assert isinstance(choose("inline"), InlineExecutor)
    chosen = choose("processes", workers=3, threads=2)
    assert isinstance(chosen, ProcessExecutor)
    assert (chosen.workers, chosen.threads) == (3, 2)
    assert choose("ranks", workers=3, threads=2) == RanksExecutor(ranks=3, threads=2)


@pytest.mark.parametrize(
    ("given", "told"),
    [("proceses", 'did you mean "processes"'), ("zzz", "pass one of these"), (InlineExecutor, "allowed are")],
)
def test_choose_refuses_what_it_does_not_know(given: object, told: str) -> None:
    with pytest.raises(InputError, match=told):
        choose(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-1, 1.5, True])
@pytest.mark.parametrize("name", ["workers", "ranks", "threads", "retries"])
def test_whole_numbers_are_checked(name: str, wrong: object) -> None:
    executor = ProcessExecutor if name == "workers" else RanksExecutor
    with pytest.raises(InputError, match=f"{name}={wrong}: allowed is a whole number"):
        executor(**{name: wrong})  # type: ignore[arg-type]
    if name == "retries":
        executor(retries=0)
    else:
        with pytest.raises(InputError, match=f"{name}=0"):
            executor(**{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("executor", [ProcessExecutor, RanksExecutor])
@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, True, "900"])
def test_patience_is_checked(executor: type[ProcessExecutor | RanksExecutor], wrong: object) -> None:
    with pytest.raises(InputError, match="patience="):
        executor(patience=wrong)  # type: ignore[arg-type]


def test_all_executors_give_equal_results() -> None:
    specs = [spec(size) for size in range(1, 6)]
    by_size = [
        sorted(executor.run(specs, plain, ignore), key=lambda one: one.spec.size)
        for executor in (InlineExecutor(), ProcessExecutor(), RanksExecutor())
    ]
    assert by_size == [[result(one) for one in specs]] * 3
