"""How fast a bundle is: bench."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from flops_fit.cli.app import AsJson, app, printed
from flops_fit.errors import InputError


@app.command(epilog="Example: flops-fit bench sentences --batch-sizes 1,32 --runs 100 --threads 1")
def bench(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="a folder that `train` wrote, or a shipped one's name")
    ],
    batch_sizes: Annotated[str, typer.Option(help="what goes in at once, separated by commas")] = "1,8,32",
    runs: Annotated[
        int | None, typer.Option(help="that count, from 2 on; default: as many as fit into 10 seconds, 100 at most")
    ] = None,
    warmup: Annotated[int, typer.Option(help="runs before them, from 1 on")] = 3,
    threads: Annotated[int | None, typer.Option(help="of the CPU; default: as torch has it")] = None,
    steps: Annotated[int | None, typer.Option(help="of a flow's solver; default: the bundle's own")] = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="through torch.compile too")] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Time what a bundle does: torch, torch.compile and ONNX Runtime in turns, with throughput and memory."""
    from flops_fit.recipes.timed import Conditions, benchmark

    asked = Conditions(_sizes(batch_sizes), runs, warmup, threads, steps, compiled, device)
    try:
        found = benchmark(bundle, asked, _tell)
    except KeyboardInterrupt:
        print("stopped; nothing is kept of a benchmark that was not finished", file=sys.stderr)
        raise typer.Exit(130) from None
    printed(found.to_dict() if as_json else str(found))


def _sizes(text: str) -> tuple[int, ...]:
    """Each once, in their order."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        told = "allowed are whole numbers above 0, separated by commas"
        raise InputError(f"--batch-sizes: got {text!r}; {told}, such as 1,8,32")
    return tuple(dict.fromkeys(map(int, words)))


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
