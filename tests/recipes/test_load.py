"""Recipes by name, or anybody's function; with data from outside or without."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import pytest

from flops_fit.errors import InputError
from flops_fit.recipes import BUILT_IN, load

MINE = """
from flops_fit.recipes.gpt_python import next_byte_loss
from flops_fit.models.gpt import GPT
from flops_fit.study import Study

def study(data="brought along", **others):
    return Study(model_cls=GPT, model_size_param="d_model", dataset=[1], loss_fn=next_byte_loss,
                 compute_budgets=(1.0, 2.0, 3.0), describe_data=data)

def without():
    return study("of its own")

def needs(data):
    return study(data)

def breaks(data=None):
    return {}["key"]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_recipes.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_recipes", raising=False)
    return tmp_path


@pytest.mark.parametrize(("name", "data", "reached"), [
    ("study", None, "brought along"), ("study", "there", "there"), ("without", None, "of its own"),
    ("needs", "there", "there"),
])  # fmt: skip
def test_data_reach_a_recipe_that_has_a_parameter_for_them(name: str, data: str | None, reached: str) -> None:
    assert load(f"my_recipes:{name}", data).describe_data == reached


@pytest.mark.parametrize(("name", "data", "told"), [
    ("my_recipes:without", "there", "--data: got 'there', but my_recipes:without takes no data from outside"),
    ("gpt-python", "there", "--data: got 'there', but gpt-python takes no data from outside; leave --data out"),
    ("my_recipes:needs", None, "--data: my_recipes:needs needs data; give --data"),
    ("gpt-tinystories", "nowhere.txt", "data: no file or folder 'nowhere.txt'"),
    ("gpt-tinystory", None, "allowed are dit-cats, gpt-.* or module:function; did you mean gpt-"),
])  # fmt: skip
def test_what_cannot_be_loaded(name: str, data: str | None, told: str) -> None:
    with pytest.raises(InputError, match=told):
        load(name, data)


def test_errors_inside_a_recipe_are_its_own() -> None:
    with pytest.raises(KeyError):
        load("my_recipes:breaks")


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_name_is_a_function_that_needs_nothing(name: str) -> None:
    module, function = BUILT_IN[name].split(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    assert set(parameters) <= {"data"}
    assert all(parameter.default is None for parameter in parameters.values())
