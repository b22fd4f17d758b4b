"""Text as data: documents of every kind of source, one split, tokens made once, the Hub's files fetched when needed."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer

from contracts.hub import REPO, REVISION, Hub, hub
from flops_fit.data import documents, stories, text
from flops_fit.data.text import HELD_OUT, cache_folder, is_held_out
from flops_fit.data.windows import Windows
from flops_fit.errors import InputError, MissingExtra

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT.parent / "shared" / "data" / "text" / "tinystories_sample.txt"
WAIT_SECONDS = 100.0     # generous: asserted is that it happens at all
FOUR_SIGMA = 4.0         # of a binomial count
STORIES = list(islice(stories.made_up_stories(seed=7), 400))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flops-fit"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text(f"\n{documents.MARK}\n".join(STORIES), encoding="utf-8")
    return path


def documents_of(windows: Windows) -> list[str]:
    """Of tokens that are bytes."""
    return [part.decode() for part in bytes(windows.text.to(torch.uint8).numpy()).split(b"\0")[:-1]]


def sides(found: text.Text) -> tuple[list[str], list[str]]:
    return documents_of(found.training), documents_of(found.held_out)


# --- documents and their split -------------------------------------------------------------------------------------


def test_every_document_is_on_one_side_in_order(file: Path) -> None:
    training, held_out = sides(text.windows(file, 64, vocabulary="bytes"))
    assert training == [story for story in STORIES if not is_held_out(story)]
    assert held_out == [story for story in STORIES if is_held_out(story)]
    assert len(held_out) > 0


def test_equal_documents_stay_together_and_the_share_is_what_is_said(tmp_path: Path) -> None:
    words = [f"story number {n % 4000}" for n in range(8000)]
    path = tmp_path / "twice.txt"
    path.write_text(documents.MARK.join(words))
    training, held_out = sides(text.windows(path, 64, vocabulary="bytes"))
    assert set(training).isdisjoint(held_out)
    assert len(training) + len(held_out) == 8000
    spread = FOUR_SIGMA * (4000 * HELD_OUT * (1 - HELD_OUT)) ** 0.5
    assert abs(len(set(held_out)) - 4000 * HELD_OUT) < spread


@pytest.mark.parametrize("block", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize(("by", "joined"), [
    ("mark", documents.MARK), ("mark", f"\n\n{documents.MARK}\n"), ("paragraph", "\n\n"), ("paragraph", "\n \n\n\n"),
    ("paragraph", "\r\n\r\n"),
])  # fmt: skip
def test_documents_do_not_depend_on_how_much_is_read_at_once(
    by: str, joined: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "BLOCK", block)
    monkeypatch.setattr(documents, "HEAD", 2000)
    parts = [f"été {n}\nits second line" + "." * (n % 5) for n in range(100)]
    path = tmp_path / "parts.txt"
    path.write_bytes(joined.join(parts).encode())
    assert list(documents.find(path).read()[1]) == parts


def test_a_folder_of_many_files_is_split_by_file_and_of_few_by_paragraph(tmp_path: Path) -> None:
    for n in range(120):
        deep = tmp_path / "texts" / f"{n % 3}"
        deep.mkdir(parents=True, exist_ok=True)
        (deep / f"{n:03}.md").write_text(f"# {n}\n\ntext\n")
    (tmp_path / "texts" / "picture.png").write_bytes(b"\xff\xff")
    described, found = documents.find(tmp_path / "texts").read()
    assert described == "120 files of texts"
    assert sorted(found) == sorted(f"# {n}\n\ntext" for n in range(120))
    few = documents.find(tmp_path / "texts" / "1").read()[1]
    assert list(few) == [part for n in range(1, 120, 3) for part in (f"# {n}", "text")]


def test_a_parquet_file_is_read_like_the_hubs(tmp_path: Path) -> None:
    (tmp_path / "stories.parquet").write_bytes(shard(STORIES[:50]))
    assert list(documents.find(tmp_path / "stories.parquet").read()[1]) == STORIES[:50]
    assert list(documents.find(tmp_path).read()[1]) == STORIES[:50]


def test_the_format_of_the_real_stories() -> None:
    if not SAMPLE.exists():
        pytest.skip(f"no sample of TinyStories at {SAMPLE}")
    found = text.windows(SAMPLE, 64, vocabulary=512)
    assert found.training.text.int().max() < found.vocab_size == 512
    letters = len(SAMPLE.read_text(encoding="utf-8"))
    assert letters / 4 < len(found.training.text) + len(found.held_out.text) < letters / 2  # 2 to 4 letters a token


# --- tokens --------------------------------------------------------------------------------------------------------


def test_a_learned_vocabulary_gives_the_text_back(file: Path, cache: Path) -> None:
    found = text.windows(file, 64, vocabulary=400)
    [learned] = cache.glob("*/tokenizer.json")
    tokeniser = Tokenizer.from_file(str(learned))
    assert tokeniser.get_vocab_size() == found.vocab_size == 400
    assert tokeniser.token_to_id(documents.MARK) == 0
    for windows, held in ((found.training, False), (found.held_out, True)):
        told = tokeniser.decode(windows.text.tolist(), skip_special_tokens=False).split(documents.MARK)
        assert told[:-1] == [story for story in STORIES if is_held_out(story) == held]


def test_the_vocabulary_is_learned_without_the_held_out_documents(file: Path, cache: Path, tmp_path: Path) -> None:
    text.windows(file, 64, vocabulary=400)
    others = tmp_path / "others.txt"
    stand_in = next("zyx" * n for n in range(1, 1000) if is_held_out("zyx" * n))
    others.write_text(documents.MARK.join(stand_in if is_held_out(story) else story for story in STORIES))
    text.windows(others, 64, vocabulary=400)
    one, two = (path.read_text() for path in cache.glob("*/tokenizer.json"))
    assert one == two


def test_it_is_the_same_on_every_machine(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = text.windows(file, 64, vocabulary=400)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    second = text.windows(file, 64, vocabulary=400)
    assert (first.training.fingerprint, first.held_out.fingerprint) == (
        second.training.fingerprint, second.held_out.fingerprint)  # fmt: skip


def test_no_more_tokens_than_asked_for_by_one_document(file: Path) -> None:
    whole = text.windows(file, 64, vocabulary="bytes")
    some = text.windows(file, 64, vocabulary="bytes", tokens=20_000)
    longest = max(len(story.encode()) + 1 for story in STORIES)
    assert 20_000 <= len(some.training.text) < 20_000 + longest
    assert torch.equal(some.training.text, whole.training.text[: len(some.training.text)])


def test_windows_of_a_file_are_those_of_its_tokens_and_travel_as_a_name(file: Path) -> None:
    found = text.windows(file, 16, vocabulary=400).training
    memory = Windows(found.text.clone(), 16)
    assert found.fingerprint == memory.fingerprint
    packed = pickle.dumps(found)
    assert len(packed) < 1000 < len(found.text)
    again = pickle.loads(packed)
    for indices in ([0], [3, 1, 2], [len(found) - 1]):
        for one, other, third in zip(found.batch(indices), memory.batch(indices), again.batch(indices), strict=True):
            assert one.dtype == torch.int64
            assert torch.equal(one, other) and torch.equal(one, third)
    assert again.fingerprint == found.fingerprint


# --- the cache -----------------------------------------------------------------------------------------------------


def test_a_second_call_tokenises_nothing(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = text.windows(file, 64, vocabulary=400)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # it could not if it wanted
    second = text.windows(file, 32, vocabulary=400)
    assert torch.equal(second.training.text, first.training.text)
    assert second.description == first.description
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before
    with pytest.raises(MissingExtra, match=r"tokenizers is needed.*pip install 'flops-fit\[data\]'"):
        text.windows(file, 64, vocabulary=401)
    assert len(list(cache.iterdir())) == 1  # nothing half made is left


def test_another_text_vocabulary_or_length_is_another_entry(file: Path, cache: Path) -> None:
    text.windows(file, 64, vocabulary="bytes")
    text.windows(file, 64, vocabulary=400)
    text.windows(file, 64, vocabulary="bytes", tokens=10_000)
    stamp = file.stat()
    file.write_text(file.read_text().replace("lived", "dwelt", 1))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # equal in length and time
    assert "dwelt" in "".join(sides(text.windows(file, 64, vocabulary="bytes"))[0])
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no about"])
def test_a_damaged_entry_is_made_anew(damage: str, file: Path, cache: Path) -> None:
    first = text.windows(file, 64, vocabulary="bytes").training.fingerprint
    [tokens], [about] = cache.glob("*/training.npy"), cache.glob("*/about.json")
    content = tokens.read_bytes()
    if damage == "cut":
        tokens.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        tokens.write_bytes(content[:-2] + b"\7\7")
    elif damage == "gone":
        tokens.unlink()
    else:
        about.write_text(about.read_text()[:20])
    assert text.windows(file, 64, vocabulary="bytes").training.fingerprint == first
    assert tokens.read_bytes() == content


READ = """
import sys
from flops_fit.data import text
print(text.windows(sys.argv[1], 64, vocabulary=400, tokens=10**9).training.fingerprint)
"""


def start(source: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", READ, str(source)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def test_two_processes_at_once_do_no_harm(file: Path, cache: Path) -> None:
    both = [start(file) for _ in range(2)]
    told = [process.communicate(timeout=WAIT_SECONDS) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert told[0][0] == told[1][0] == text.windows(
        file, 64, vocabulary=400, tokens=10**9).training.fingerprint + "\n"  # fmt: skip
    assert len(list(cache.iterdir())) == 1


# --- the Hub -------------------------------------------------------------------------------------------------------


def shard(rows: list[str | None], column: str = "text") -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": list(range(len(rows))), column: rows}), buffer)
    return buffer.getvalue()


def shards(count: int = 3) -> dict[str, bytes]:
    each = len(STORIES) // count
    cut = [STORIES[k * each : (k + 1) * each] for k in range(count)]
    return {"README.md": b"#", "data/validation-00000-of-00001.parquet": shard(["never read"] * 9)} | {
        f"data/train-{k:05}-of-{count:05}.parquet": shard([None, *part, ""]) for k, part in enumerate(cut)}  # fmt: skip


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub(shards()) as server:
        # what HF_ENDPOINT, HF_HUB_CACHE, HF_HUB_DISABLE_XET and HF_HUB_OFFLINE set when the library is first imported
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            server.url + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def test_a_data_set_on_the_hub(served: Hub) -> None:
    found = text.windows(f"hub:{REPO}", 64, vocabulary="bytes")
    told = STORIES[: len(STORIES) // 3 * 3]
    assert sides(found) == ([s for s in told if not is_held_out(s)], [s for s in told if is_held_out(s)])
    assert found.description.startswith(f"hub:{REPO} at revision {REVISION}, bytes: ")
    assert served.sent == [(f"data/train-0000{k}-of-00003.parquet", 0) for k in range(3)]


def test_only_the_shards_that_are_needed_are_fetched_and_later_none(served: Hub) -> None:
    for _ in range(2):
        found = text.windows(f"hub:{REPO}@{REVISION}", 64, vocabulary=400, tokens=3000)
        assert len(found.training.text) >= 3000
        assert served.sent == [("data/train-00000-of-00003.parquet", 0)]


def test_what_was_tokenised_needs_no_network(served: Hub) -> None:
    first = text.windows(f"hub:{REPO}", 64, vocabulary="bytes")
    served.shutdown()
    served.server_close()
    assert torch.equal(text.windows(f"hub:{REPO}", 64, vocabulary="bytes").training.text, first.training.text)


@pytest.mark.parametrize(("source", "told"), [
    ("hub:somebody/storeis", r"hub:somebody/storeis cannot be fetched \(RepositoryNotFoundError"),
    (f"hub:{REPO}@v9", f"hub:{REPO}@v9 cannot be fetched \\(RevisionNotFoundError"),
    ("hub:a/b/c", r"hub:a/b/c cannot be fetched \(HFValidationError"),
], ids=["name", "revision", "form"])  # fmt: skip
def test_what_the_hub_does_not_have(source: str, told: str, served: Hub) -> None:
    with pytest.raises(InputError, match=f"data: {told}.*check the name.*download a file of it elsewhere"):
        text.windows(source, 64, vocabulary="bytes")


def test_no_network(served: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot be fetched.*download a file of it elsewhere and give its path"):
        text.windows(f"hub:{REPO}", 64, vocabulary="bytes")
    assert list(cache.glob("*")) == []


@pytest.mark.parametrize(("files", "told"), [
    ({"stories.csv": b"text"}, f"data: hub:{REPO} holds no parquet file"),
    ({"train.parquet": shard(["x"], "story")}, "has no column 'text'; its columns are id, story"),
    ({"train.parquet": b"PAR1 and more"}, "is not a parquet file that can be read"),
    ({"train.parquet": shard([None, ""])}, "0 documents to train on and 0 held out; give more text"),
], ids=["none", "column", "broken", "empty"])  # fmt: skip
def test_data_sets_without_text(files: dict[str, bytes], told: str, served: Hub) -> None:
    served.files = files
    with pytest.raises(InputError, match=told):
        text.windows(f"hub:{REPO}", 64, vocabulary="bytes")


def test_a_killed_download_is_taken_up_again(tmp_path: Path, cache: Path) -> None:
    files = shards(1)
    [name] = [name for name in files if "train" in name]
    with hub(files, stall=len(files[name]) // 2) as server:
        environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
                       "HF_HUB_OFFLINE": "0"}  # fmt: skip
        first = start(f"hub:{REPO}", **environment)
        assert server.stalled.wait(WAIT_SECONDS)
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=WAIT_SECONDS)
        assert [path for path in cache.glob("*") if (path / "about.json").exists()] == []
        second = start(f"hub:{REPO}", **environment)
        out, err = second.communicate(timeout=WAIT_SECONDS)
        assert second.returncode == 0, err
    (tmp_path / "whole.parquet").write_bytes(files[name])
    assert out.strip() == text.windows(
        tmp_path / "whole.parquet", 64, vocabulary=400, tokens=10**9).training.fingerprint  # fmt: skip
    assert len(server.sent) == 2


# --- refusals ------------------------------------------------------------------------------------------------------


def test_text_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("\n\n".join(STORIES).encode() + b"caf\xe9 au lait")
    (tmp_path / "one.txt").write_text("only one document")
    (tmp_path / "short.txt").write_text("\n\n".join(f"{n}" for n in range(60)))
    (tmp_path / "pictures").mkdir()
    for source, told in {
        "nowhere.txt": "data: no file or folder 'nowhere.txt'; give a text file, a folder of text files, hub:",
        "roneneldan/TinyStories": "for the Hub write hub:roneneldan/TinyStories",
        tmp_path / "pictures": r"no text file under .*pictures; files that end in \.txt",
        tmp_path / "latin.txt": "latin.txt is not UTF-8 .byte 0xe9 after character .*convert it, for example with",
        tmp_path / "one.txt": "[01] documents to train on and [01] held out; give more text, or set its documents",
        tmp_path / "short.txt": "short.txt, bytes: .* less than one window of 640 tokens; give more text",
    }.items():
        with pytest.raises(InputError, match=told):
            text.windows(source, 640, vocabulary="bytes")
    for vocabulary in (256, 0, 2**16 + 1):
        with pytest.raises(InputError, match=f"vocabulary: got {vocabulary}; allowed are 257 to 65536"):
            text.windows(None, 64, vocabulary=vocabulary)
    with pytest.raises(InputError, match="tokens: got 0"):
        text.windows(None, 64, tokens=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(file: Path) -> None:
    file.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        text.windows(file, 64, vocabulary="bytes")


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache" / "flops-fit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "flops-fit"


# --- made-up stories -----------------------------------------------------------------------------------------------


def test_stories_are_the_same_again_and_others_for_another_seed() -> None:
    again = list(islice(stories.made_up_stories(seed=7), 400))
    others = list(islice(stories.made_up_stories(seed=8), 400))
    assert again == STORIES
    assert len(set(STORIES) | set(others)) > 790  # hardly any twice
    found = text.windows(None, 64, vocabulary="bytes", tokens=10_000)
    assert found.description.startswith("made-up stories, bytes: ")
    assert sides(found)[0][:5] == [s for s in islice(stories.made_up_stories(), 50) if not is_held_out(s)][:5]


def test_stories_tell_of_one_world_with_frequent_and_rare_facts() -> None:
    """A hero's home is told as it is in TRUE of the cases, and by chance in some of the others."""
    world = stories.World()
    told = [(words[0], " ".join(words[2:])) for story in STORIES for words in [story.split(". ")[1].split("\n")[0]
            .rstrip(".").split()]]  # fmt: skip
    share = sum(world.hero[name].home == home for name, home in told) / len(told)
    spread = FOUR_SIGMA * (stories.TRUE * (1 - stories.TRUE) / len(told)) ** 0.5
    assert stories.TRUE - spread < share < stories.TRUE + 0.25 * (1 - stories.TRUE) + spread
    names = sorted((sum(name == other for other, _ in told) for name, _ in set(told)), reverse=True)
    assert names[0] > len(told) / 12  # 1/k of 600 names: the first has 1/7
    assert json.dumps(names).count("1") > 10
