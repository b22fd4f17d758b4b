"""Recipes: Python functions that return a Study. Built-in names, or anybody's `module:function`.

A recipe function takes no argument, or one named `data`: where its data are, None for the data that it brings itself.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit.errors import InputError

if TYPE_CHECKING:
    from flops_fit.study import Study

BUILT_IN = {
    "dit-cats": "flops_fit.recipes.dit_cats:study",
    "gpt-python": "flops_fit.recipes.gpt_python:study",
    "gpt-tinystories": "flops_fit.recipes.gpt_tinystories:study",
    "sentences-dit": "flops_fit.recipes.sentences_dit:study",
    "vit-cifar": "flops_fit.recipes.vit_cifar:study",
}


def load(name: str, data: str | None = None) -> Study:
    """The study of a built-in recipe, or of `module:function` (the current folder is searched too).

    Args:
        data: handed to the recipe function when it has a parameter of that name.

    Raises:
        InputError: no such recipe, module or function, it returns something else, it takes no data or lacks them.
    """
    from flops_fit.study import Study

    target = BUILT_IN.get(name, name)
    if ":" not in target:
        near = difflib.get_close_matches(name, BUILT_IN, n=3, cutoff=0.3) or sorted(BUILT_IN)
        raise InputError(
            f"RECIPE: got {name!r}; allowed are {', '.join(sorted(BUILT_IN))} or module:function; "
            f"did you mean {' or '.join(near)}?"
        )
    study = _call(name, _function(name, *target.split(":", 1)), data)
    if not isinstance(study, Study):
        raise InputError(f"RECIPE: {name} returned {type(study).__name__}; return a flops_fit.study.Study")
    return study


def _call(name: str, function: Callable[..., object], data: str | None) -> object:
    parameter = inspect.signature(function).parameters.get("data")
    if parameter is None and data is not None:
        raise InputError(f"--data: got {data!r}, but {name} takes no data from outside; leave --data out")
    if parameter is not None and parameter.default is parameter.empty and data is None:
        raise InputError(f"--data: {name} needs data; give --data and what it reads, a path for instance")
    return function() if data is None else function(data=data)


def _function(name: str, module: str, attribute: str) -> Callable[..., object]:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise InputError(f"RECIPE: {name}: no module {error.name!r}; check the spelling and the folder") from error
    except AttributeError as error:
        raise InputError(f"RECIPE: {name}: module {module!r} has no {attribute!r}; check the spelling") from error
    if not callable(function):
        raise InputError(f"RECIPE: {name}: {attribute!r} is not a function; it must be one that returns a Study")
    return function  # type: ignore[no-any-return]
