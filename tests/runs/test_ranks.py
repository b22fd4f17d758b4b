"""Several processes for each run: the environment they find, what happens when one is lost, and a real all-reduce."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from contracts.executor import alive, gone, ignore, result, spec
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import Event, Progress, Progressed, RanksExecutor, Retried
from flops_fit.runs.pool import GRACE_SECONDS

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BAD_RANK = 1
KILLED = "rank 1 died: signal 9 (out of memory?)"
SHORT_PATIENCE = 2.0  # seconds; a worker starts in a tenth of that, on a busy machine in half of it


def rank() -> int:
    return int(os.environ["RANK"])


@dataclass(frozen=True)
class Diary:
    """A task that notes in a file a run and rank, one line a try, where it was; `end` says how rank 1 first ends.

    "late SIGKILL": rank 0 fails because rank 1 dies, and tells of it before that death can be seen.
    """

    folder: Path
    end: str = ""

    def __call__(self, spec: RunSpec, progress: Progress) -> RunResult:
        path = self.folder / f"{spec.size}-{rank()}"
        first = not path.exists()
        with path.open("a") as file:
            file.write(" ".join([str(os.getpid()), *(os.environ[name] for name in TORCHRUN)]) + "\n")
        progress(1, float(rank()))
        if self.end and first:
            if rank() == BAD_RANK:
                self.misbehave(self.folder / f"{spec.size}-0")
            while self.end != "late SIGKILL" or not (self.folder / "dying").exists():
                time.sleep(0.01)  # as in a collective that never comes about
            raise ConnectionError("the other has closed the connection")
        return replace(result(spec), loss=float(1 + rank()))

    def misbehave(self, other: Path) -> None:
        while not other.exists():  # else the other may be killed before it has begun
            time.sleep(0.01)
        if self.end == "raise":
            raise ValueError("only here")
        if self.end == "late SIGKILL":
            (self.folder / "dying").touch()
            time.sleep(GRACE_SECONDS / 5)
        if self.end != "hang":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3600)

    def tries(self, size: int, rank: int) -> list[list[str]]:
        return [line.split() for line in (self.folder / f"{size}-{rank}").read_text().splitlines()]


def test_a_group_persists_and_finds_the_environment_of_torchrun(tmp_path: Path) -> None:
    diary = Diary(tmp_path)
    events: list[Event] = []
    results = list(RanksExecutor(ranks=3).run([spec(2), spec(1)], diary, events.append))
    assert [one.loss for one in results] == [1.0, 1.0]  # of rank 0
    assert {event.loss for event in events if isinstance(event, Progressed)} == {0.0}
    found = [diary.tries(2, rank) for rank in range(3)]
    assert found == [diary.tries(1, rank) for rank in range(3)]  # the same processes
    [_, _, _, world, local_world, address, port] = found[0][0]
    assert (world, local_world, address) == ("3", "3", "127.0.0.1")
    assert [one[0][1:] for one in found] == [[str(r), str(r), world, local_world, address, port] for r in range(3)]


def test_when_one_rank_raises_the_run_has_failed_and_the_rest_goes_on_in_a_fresh_group(tmp_path: Path) -> None:
    diary = Diary(tmp_path, end="raise")
    results = list(RanksExecutor().run([spec(2), spec(1)], diary, ignore))
    assert [one.reason.split(" (")[0] for one in results] == ["ValueError: only here"] * 2
    assert [len(diary.tries(size, rank)) for size in (2, 1) for rank in (0, 1)] == [1] * 4  # not begun again
    pids = [int(diary.tries(size, rank)[0][0]) for size in (2, 1) for rank in (0, 1)]
    assert len(set(pids)) == 4
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
    ("end", "reason"),
    [("SIGKILL", KILLED), ("late SIGKILL", KILLED), ("hang", "no progress and no result for 2 s")],
)
def test_when_one_rank_is_lost_the_run_is_begun_again_by_a_fresh_group(tmp_path: Path, end: str, reason: str) -> None:
    diary = Diary(tmp_path, end)
    reasons: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Retried):
            reasons.append(event.reason)
            assert not any(alive(int(diary.tries(1, rank)[0][0])) for rank in (0, 1))

    [only] = RanksExecutor(patience=SHORT_PATIENCE).run([spec(1)], diary, listen)
    assert only == result(spec(1))
    assert reasons == [reason]
    (_, *lost), (_, *fresh) = diary.tries(1, 0)
    assert lost[-1] != fresh[-1]  # the port, on which the lost ones may still be expected
    assert lost[:-1] == fresh[:-1]


def sums_ranks(spec: RunSpec, progress: Progress, die_at: int = -1, died: Path = Path()) -> RunResult:
    """Loss 1 + 2 = 3 by ten all-reduces over two ranks; rank 1 dies in the middle of the first try."""
    import atexit

    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo")
        atexit.register(dist.destroy_process_group)
    for step in range(10):
        if step == die_at and dist.get_rank() == BAD_RANK and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        total = torch.tensor([1.0 + dist.get_rank()])
        dist.all_reduce(total)
        progress(step, total.item())
    where = {"world size": str(dist.get_world_size()), "pid": str(os.getpid())}
    return replace(result(spec), loss=total.item(), environment=where)


def test_torch_distributed_joins_from_that_environment_and_survives_a_killed_rank(tmp_path: Path) -> None:
    """Rank 0 raises when rank 1 dies in the middle of a collective; what happened is the death, and it is retried."""
    reasons: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Retried):
            reasons.append(event.reason)

    def task(spec: RunSpec, progress: Progress) -> RunResult:
        return sums_ranks(spec, progress, die_at=5 if spec.size == 1 else -1, died=tmp_path / "died")

    two, one = RanksExecutor().run([spec(2), spec(1)], task, listen)
    assert reasons == [KILLED]
    assert (one.loss, two.loss) == (3.0, 3.0)
    assert one.environment["world size"] == "2"
    assert one.environment["pid"] != two.environment["pid"]
