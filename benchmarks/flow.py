"""The flow library beside torchcfm and beside code by hand, in turns in one process on one thread.

    pip install 'flops-fit[peers]'
    python benchmarks/flow.py      bars: OT plan >= 2.5x faster at equal cost; training step <= 1.05x hand-written

    plan        noise and data of 256 and 1024 rows of 1024 numbers, paired by optimal transport
    step        a whole training step on a 2-D toy: draw, loss, backward, clip, Adam
    sampling    10 Euler steps of 10,000 vectors through the 9.3M DiT, with its share of the matmul peak
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from record import record
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flops_fit.flow.couplings import optimal
from flops_fit.flow.loss import Flow, flow_loss
from flops_fit.flow.solvers import solve
from flops_fit.models import create_model
from flops_fit.train.machine import matmul_peak

ROUNDS, STEPS, BATCH = 9, 400, 256
VECTORS, EULER_STEPS, AT_ONCE = 10_000, 10, 500


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in another order every round, after a round that does not count."""
    names = list(work)
    for name in names:
        work[name]()
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(seconds(work[name]))
    return found


def ratio(of: list[float], to: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(of, to, strict=True)), 3)


def plan(rows: int) -> dict[str, Any]:
    from scipy.optimize import linear_sum_assignment
    from torchcfm.optimal_transport import OTPlanSampler

    torch.manual_seed(0)
    noise, data = torch.randn(rows, 1024), torch.randn(rows, 1024)
    peer = OTPlanSampler(method="exact")
    times = in_turns({
        "ours": lambda: optimal(noise, data), "torchcfm": lambda: peer.sample_plan(noise, data),
    }, ROUNDS)  # fmt: skip
    costs = torch.cdist(noise.double(), data.double()).square().numpy()
    best = costs[linear_sum_assignment(costs)].sum()
    return {
        "ms": {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()},
        "times_faster": ratio(times["torchcfm"], times["ours"]),
        "cost_above_optimum": float((optimal(noise, data) - data).double().square().sum()) / best - 1,
    }


def toy() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(3, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(),
                nn.Linear(256, 2),
            )  # fmt: skip

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.layers(torch.cat((x, t[:, None]), dim=1))  # type: ignore[no-any-return]

    net = Net()
    return net, torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)


def trained(loss: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> Callable[[], None]:
    """STEPS steps of the toy with that loss; the data are drawn in the step."""
    net, optimizer = toy()

    def run() -> None:
        for _ in range(STEPS):
            angle = 6.2832 * torch.rand(BATCH)
            data = torch.stack((angle.cos(), angle.sin()), dim=1)
            found = loss(net, data)
            optimizer.zero_grad()
            found.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()

    return run


def by_hand(net: nn.Module, data: torch.Tensor) -> torch.Tensor:
    noise, t = torch.randn_like(data), torch.rand(len(data))
    x = t[:, None] * data + (1 - t[:, None]) * noise
    return (net(x, t) - (data - noise)).square().mean()


def steps() -> dict[str, Any]:
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    peer, flow = ConditionalFlowMatcher(sigma=0.0), Flow()

    def of_torchcfm(net: nn.Module, data: torch.Tensor) -> torch.Tensor:
        t, x, velocity = peer.sample_location_and_conditional_flow(torch.randn_like(data), data)
        return (net(x, t) - velocity).square().mean()

    times = in_turns({
        "by hand": trained(by_hand), "ours": trained(lambda net, data: flow_loss(net, flow, data)),
        "torchcfm": trained(of_torchcfm),
    }, ROUNDS)  # fmt: skip
    return {
        "ms": {name: round(1e3 * statistics.median(values) / STEPS, 3) for name, values in times.items()},
        "ours_to_by_hand": ratio(times["ours"], times["by hand"]),
        "torchcfm_to_by_hand": ratio(times["torchcfm"], times["by hand"]),
    }


def sampling() -> dict[str, Any]:
    net = create_model("dit").eval()
    noise = torch.randn(VECTORS, 1024)

    def run() -> None:
        for part in noise.split(AT_ONCE):
            solve(net, part, "euler", EULER_STEPS)

    with FlopCounterMode(display=False) as counter:
        solve(net, noise[:AT_ONCE], "euler", 1)
    flops = counter.get_total_flops() * (VECTORS // AT_ONCE) * EULER_STEPS
    taken = seconds(run)
    return {
        "params": sum(p.numel() for p in net.parameters()), "seconds": round(taken, 2),
        "vectors_per_second": round(VECTORS / taken), "share_of_matmul_peak": round(flops / taken / matmul_peak(1), 3),
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    record("flow", {"plan": {str(n): plan(n) for n in (256, 1024)}, "step": steps(), "sampling": sampling()})


if __name__ == "__main__":
    main()
