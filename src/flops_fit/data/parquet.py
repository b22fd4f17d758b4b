"""Parquet files, read column by column, a few thousand rows at a time. The home of pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def matrix(path: Path, name: str) -> NDArray[np.float32]:
    """A column of lists of numbers as one array (rows, numbers in each).

    Raises:
        InputError: as `column`, or the lists differ in length, one is missing, or they hold no numbers.
    """
    with _opened(path) as file:
        import pyarrow
        import pyarrow.compute as arrow

        parts: list[NDArray[np.float32]] = []
        for batch in file.iter_batches(ROWS, columns=[name]):
            lists = batch.column(0)
            lengths = set(arrow.list_value_length(lists).to_pylist()) if pyarrow.types.is_nested(lists.type) else {None}
            if len(lengths) > 1 or None in lengths or (parts and lengths != {parts[0].shape[1]}):
                if not pyarrow.types.is_nested(lists.type):
                    raise InputError(f"data: {name} of {path.name} holds {lists.type}; allowed are lists of numbers")
                told = ", ".join(str(length) for length in sorted(lengths, key=str))
                raise InputError(f"data: {name} of {path.name} holds lists of {told} numbers; give one length for all")
            numbers = lists.flatten()
            if not pyarrow.types.is_floating(numbers.type) and not pyarrow.types.is_integer(numbers.type):
                raise InputError(f"data: {name} of {path.name} holds lists of {numbers.type}; allowed are numbers")
            flat = numbers.to_numpy(zero_copy_only=False).astype(np.float32)
            parts.append(flat.reshape(len(lists), *lengths))
    if not parts:
        raise InputError(f"data: {path.name} has no rows")
    return np.concatenate(parts)


def write(path: Path, columns: dict[str, list[Any]]) -> None:
    """A file with these columns, all of one length.

    Raises:
        InputError: the folder is not there or cannot be written.
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow.parquet import write_table
    except ImportError as error:
        raise MissingExtra.of("pyarrow", "data", "to write parquet files") from error
    try:
        write_table(pyarrow.table(columns), path)
    except OSError as error:
        raise InputError(f"--out: {path} cannot be written ({error}); give a file in a folder that exists") from error


def _opened(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtra.of("pyarrow", "data", "to read parquet files") from error
    if not path.is_file():
        raise InputError(f"data: got {path}; no such file")
    try:
        return ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        said = str(error).splitlines()[0]
        raise InputError(f"data: {path} is not a parquet file that can be read ({said}); fetch it again") from error
