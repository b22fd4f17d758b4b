"""The command line itself: its verbs are added by the other files here, which parse, call and print."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from flops_fit.errors import FlopsFitError

AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on stdout and nothing else there")]

app = typer.Typer(
    help="From a compute budget to the size of your model, the data it needs and the loss to expect; then trains it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Entry point: errors of ours become one line on stderr and exit code 2."""
    try:
        app()
    except FlopsFitError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def printed(document: dict[str, Any] | str) -> None:
    """On stdout: text, or one JSON document."""
    text = document if isinstance(document, str) else json.dumps(document, allow_nan=False)
    sys.stdout.write(text + "\n")
