"""What README.md shows works: every Python block runs, and every `flops-fit` command has its verb and its options.

A block after a line `<!-- test: skip REASON -->` is skipped with that reason.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SKIP = r"(?:<!-- test: skip (?P<skip>[^\n]+?) -->\n+)?"
BLOCK = re.compile(SKIP + r"^```(?P<language>\w+)\n(?P<text>.*?)^```", re.M | re.S)


def blocks(markdown: str, *languages: str) -> list[tuple[str, str | None]]:
    """(text, reason to skip) of each fenced block in one of the languages."""
    return [(one["text"], one["skip"]) for one in BLOCK.finditer(markdown) if one["language"] in languages]


def commands(markdown: str) -> list[list[str]]:
    r"""The words after `flops-fit` of each command in console and bash blocks; `\` joins lines, `$` is a prompt."""
    found = []
    for text, skip in blocks(markdown, "console", "bash"):
        lines = [] if skip else text.replace("\\\n", " ").splitlines()
        for line in lines:
            words = shlex.split(line, comments=True) if "flops-fit " in line else []
            words = words[words[:1] == ["$"] :]
            if words and Path(words[0]).name == "flops-fit":
                found.append(words[1:])
    return found


GROUPS = {"train", "data"}  # verbs of two words
MARKDOWN = README.read_text() if README.exists() else ""
PYTHON = blocks(MARKDOWN, "python")
GUIDES = "".join(path.read_text() for path in sorted((ROOT / "docs" / "guide").glob("*.md")))
COMMANDS = commands(MARKDOWN) + [words for words in commands(GUIDES) if words not in commands(MARKDOWN)]


def test_there_is_something_to_test() -> None:
    assert any(skip is None for _, skip in PYTHON), "README.md has no python block that runs"
    assert COMMANDS, "README.md shows no flops-fit command"


@pytest.mark.parametrize(("code", "skip"), PYTHON, ids=[f"block{number}" for number in range(len(PYTHON))])
def test_python_block_runs(code: str, skip: str | None, tmp_path: Path) -> None:
    if skip:
        pytest.skip(skip)
    script = tmp_path / "example.py"  # a file: a block runs as a user's script does, with __main__ classes
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words) for words in COMMANDS])
def test_command_has_its_verb_and_options(words: list[str]) -> None:
    call = "from flops_fit.cli import main; main()"
    verb = words[: 2 if words[0] in GROUPS else 1]
    done = subprocess.run([sys.executable, "-c", call, *verb, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options <= set(re.findall(r"--[a-z][\w-]*", done.stdout)) | {"--help"}


def test_blocks_and_commands_are_found() -> None:
    text = "```python\nx = 1\n```\n<!-- test: skip slow -->\n```python\ny\n```\n"
    text += "```console\n$ flops-fit a \\\n  --b 1  # c\nout\n```\n"
    assert blocks(text, "python") == [("x = 1\n", None), ("y\n", "slow")]
    assert commands(text) == [["a", "--b", "1"]]
