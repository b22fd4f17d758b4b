"""Parquet files, read column by column, a few thousand rows at a time. The home of pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flops_fit.errors import InputError, MissingExtra

ROWS = 4096  # at a time


def columns(path: Path) -> list[str]:
    """The names of the columns. Raises as `column`."""
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def column(path: Path, name: str) -> Iterator[Any]:
    """The values of one column in their order, as Python objects; missing ones are None.

    Raises:
        InputError: not a parquet file, or it has no such column; at the first value asked for.
        MissingExtra: pyarrow is not installed.
    """
    with _opened(path) as file:
        names = file.schema_arrow.names
        if name not in names:
            raise InputError(f"data: {path.name} has no column {name!r}; its columns are {', '.join(names)}")
        for batch in file.iter_batches(ROWS, columns=[name]):
            yield from batch.column(0).to_pylist()


def _opened(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtra.of("pyarrow", "data", "to read parquet files") from error
    try:
        return ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        said = str(error).splitlines()[0]
        raise InputError(f"data: {path} is not a parquet file that can be read ({said}); fetch it again") from error
