"""Data sets: fetch one, and show what one holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flops_fit.cli.app import AsJson, app, printed
from flops_fit.errors import InputError

data_app = typer.Typer(no_args_is_help=True, help="Fetch a data set, or show what one holds.")
app.add_typer(data_app, name="data")

NAMES = ("cats",)


@data_app.command(epilog="Example: flops-fit data get cats --folder pets")
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="cats: Oxford-IIIT Pet, 0.8 GB to fetch, CC BY-SA 4.0")],
    folder: Annotated[Path | None, typer.Option(help="where to put it; default: in the user's cache folder")] = None,
    source: Annotated[
        str | None, typer.Option(help="address of a folder with the same archives; default: the official one")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a data set, check and unpack it. What was cut off is gone on with; what is there is not fetched again."""
    from flops_fit.data import cats

    if name not in NAMES:
        raise InputError.unknown("NAME", name, NAMES)
    try:
        home = cats.get(folder, source)
    except KeyboardInterrupt:
        print("stopped; what came is kept, the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None
    printed({"folder": str(home)} if as_json else str(home))


@data_app.command(epilog="Example: flops-fit data info pets")
def info(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="folder of `data get`, one with a subfolder a class, or parquet file")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what a set of cat images holds: images by class and split, their sizes, what cannot be used, its hash."""
    from flops_fit.data import cats

    found = cats.contents(path)
    printed(found.to_dict() if as_json else str(found))
