"""Every exception of flops-fit, in one tree.

    FlopsFitError
    ├── InputError            what the caller passed cannot be used (exit code 2)
    │   ├── ContractError     the model class, data set or loss breaks the contract of find_optimal
    │   ├── TableError        a table of runs for `fit` lacks columns or holds values that cannot be fitted
    │   └── StudyMismatch     the output folder holds another study
    ├── JournalError          the journal is damaged in the middle, or locked by another driver
    ├── FitError              the data do not determine a law; no number is returned
    └── MissingExtra          an optional dependency is not installed

Every message names the argument, what came, what is allowed, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlopsFitError(Exception):
    """Root of everything that flops-fit raises on purpose."""


class InputError(FlopsFitError, ValueError):
    """What the caller passed cannot be used; nothing was run and nothing was lost."""

    @classmethod
    def unknown(cls, argument: str, got: object, allowed: Iterable[str]) -> InputError:
        """A name that is not one of `allowed`; the nearest ones are asked after."""
        names = list(allowed)
        near = difflib.get_close_matches(str(got), names, n=2, cutoff=0.5)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        return cls(f"{argument}: got {got!r}; allowed are {', '.join(names)}{meant}")


class ContractError(InputError):
    """The model class, the data set or the loss breaks the contract of `find_optimal`.

    All breaches found by the probe are in the message, one a line.
    """


class TableError(InputError):
    """A table of runs lacks a column, or holds text, zeros or NaN where a number must be."""


class StudyMismatch(InputError):
    """The output folder holds another study; the message says in what it differs."""


class JournalError(FlopsFitError):
    """The journal of runs cannot be read or written safely; the message names file and line."""


class FitError(FlopsFitError):
    """The runs do not determine a law. No coefficient is returned in its place."""


class MissingExtra(FlopsFitError, ImportError):
    """An optional dependency is missing; the message is the exact pip command."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingExtra:
        return cls(f"{package} is needed {purpose}: pip install 'flops-fit[{extra}]'")
