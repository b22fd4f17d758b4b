"""Where text comes from: a local file or folder, a data set on the Hugging Face Hub, or made-up stories.

A document is what lies between two <|endoftext|>. Where a file has none, each file of a folder is a document, and so is
each paragraph of a single file or of a folder of few files. Documents are never on both sides of the split.
The home of huggingface_hub.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from flops_fit.data import parquet, stories
from flops_fit.errors import InputError, MissingExtra

HUB = "hub:"
ALLOWED = f"a text file, a folder of text files, {HUB}OWNER/NAME, or nothing for made-up stories"
SUFFIXES = (".txt", ".md", ".rst", ".text", ".tex", ".html", ".xml", ".csv", ".json", ".jsonl", ".py", ".c", ".h",
            ".cpp", ".rs", ".go", ".java", ".js", ".ts", ".sh", ".parquet")  # fmt: skip
COLUMN = "text"       # of a parquet file
MARK = "<|endoftext|>"
PARAGRAPH = re.compile(r"\n[ \t\r]*\n\s*")
HEAD = 4_000_000      # characters in which the first MARK must stand
BLOCK = 1 << 20       # bytes read at a time
MANY_FILES = 100      # from so many files on a folder is split by file
STORY_CHARACTERS = 12_000_000  # of made-up stories


@dataclass(frozen=True)
class Corpus:
    """Text that has been found but not read.

    Args:
        identity: changes when the text may have changed.
        read: () -> (what it is, in words; its documents in order, none of them empty). Fetches what is not here.
    """

    identity: str
    read: Callable[[], tuple[str, Iterator[str]]]


def find(source: str | os.PathLike[str] | None) -> Corpus:
    """The corpus that `source` names.

    Raises:
        InputError: there is none.
    """
    if source is None:
        code = hashlib.sha256(Path(stories.__file__).read_bytes()).hexdigest()
        return Corpus(f"stories {STORY_CHARACTERS} {code}", _made_up)
    name = os.fspath(source)
    if name.startswith(HUB):
        repo, _, revision = name.removeprefix(HUB).partition("@")
        return Corpus(name, lambda: _from_hub(repo, revision or None))
    path = Path(name).expanduser()
    if not path.exists():
        near = f"; for the Hub write {HUB}{name}" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""
        raise InputError(f"data: no file or folder {name!r}; give {ALLOWED}{near}")
    files = [path] if path.is_file() else _text_files(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    by_paragraph = len(files) < MANY_FILES
    described = path.name if path.is_file() else f"{len(files)} files of {path.name}"
    return Corpus(digest.hexdigest(), lambda: (described, _documents(files, by_paragraph)))


def _made_up() -> tuple[str, Iterator[str]]:
    left = [STORY_CHARACTERS]

    def wanted(story: str) -> bool:
        left[0] -= len(story)
        return left[0] > 0

    return "made-up stories", takewhile(wanted, stories.made_up_stories())


# --- files ----------------------------------------------------------------------------------------------------------


def _text_files(folder: Path) -> list[Path]:
    found = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    if not found:
        raise InputError(f"data: no text file under {folder}; files that end in {' '.join(SUFFIXES)} are read")
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def _documents(files: list[Path], by_paragraph: bool) -> Iterator[str]:
    for file in files:
        tabular = file.suffix.lower() == ".parquet"
        parts = parquet.column(file, COLUMN) if tabular else _split(_blocks(file), by_paragraph)
        yield from _stripped(parts)


def _stripped(parts: Iterable[str | None]) -> Iterator[str]:
    return (text for part in parts if part and (text := part.strip()))


def _blocks(file: Path) -> Iterator[str]:
    """The text of a file, a piece at a time, line ends as \\n."""
    read = 0
    try:
        with file.open(encoding="utf-8") as opened:
            while block := opened.read(BLOCK):
                read += len(block)
                yield block
    except UnicodeDecodeError as error:
        raise InputError(
            f"data: {file} is not UTF-8 (byte 0x{error.object[error.start]:02x} after character {read:,}); "
            "convert it, for example with iconv, or take it out of the folder"
        ) from error
    except OSError as error:
        raise InputError(f"data: {file}: {error.strerror}; make it readable or give another") from error


def _split(blocks: Iterator[str], by_paragraph: bool) -> Iterator[str]:
    """Documents of one file: between MARKs when its head has one, else paragraphs or the whole."""
    head = ""
    for block in blocks:
        head += block
        if MARK in head or len(head) > HEAD:
            break
    if MARK in head:
        return _parts(head, blocks, re.compile(re.escape(MARK)))
    if by_paragraph:
        return _parts(head, blocks, PARAGRAPH)
    return iter([head + "".join(blocks)])


def _parts(head: str, blocks: Iterator[str], between: re.Pattern[str]) -> Iterator[str]:
    """What lies between matches; the last part is kept back, since a block may end inside it or inside a match."""
    *done, rest = between.split(head)
    yield from done
    for block in blocks:
        *done, rest = between.split(rest + block)
        yield from done
    yield rest


# --- the Hub --------------------------------------------------------------------------------------------------------


def _from_hub(repo: str, revision: str | None) -> tuple[str, Iterator[str]]:
    """Documents of the training shards of a data set, each shard fetched when the one before it is used up."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtra.of("huggingface_hub", "data", "to fetch data sets from the Hub") from error
    named = f"{HUB}{repo}@{revision}" if revision else f"{HUB}{repo}"
    with _told(named):
        info = huggingface_hub.HfApi().dataset_info(repo, revision=revision)
    shards = sorted(file.rfilename for file in info.siblings or () if file.rfilename.endswith(".parquet"))
    shards = [name for name in shards if "train" in name] or shards
    if not shards:
        raise InputError(f"data: {named} holds no parquet file; download what it holds and give a text file of it")

    def documents() -> Iterator[str]:
        for shard in shards:
            with _told(named):
                file = huggingface_hub.hf_hub_download(repo, shard, repo_type="dataset", revision=info.sha)
            yield from _stripped(parquet.column(Path(file), COLUMN))

    return f"{HUB}{repo} at revision {info.sha}", documents()


@contextmanager
def _told(named: str) -> Iterator[None]:
    """What the Hub's client raises inside, its HTTP library's errors among them, as one line that says what to do."""
    try:
        yield
    except Exception as error:
        [*_, reason] = [line for line in str(error).splitlines() if line.strip()] or [""]
        raise InputError(
            f"data: {named} cannot be fetched ({type(error).__name__}: {reason}); check the name, the revision and the "
            "network, or download a file of it elsewhere and give its path"
        ) from error
