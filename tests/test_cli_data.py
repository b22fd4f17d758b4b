"""data get and data info from the command line: a mirror on this machine, one document, one line for what is wrong."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import call
from flops_fit.data import cats
from flops_fit.data.cats import BREEDS

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'flops-fit[data]'")

ROOT = Path(__file__).resolve().parents[1]
WAIT_SECONDS = 60.0  # generous: asserted is that it happens at all
NAMES = [*(breed.replace(" ", "_") for breed in BREEDS), "pug"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images.tar.gz and annotations.tar.gz, two animals of each class: number 2 is held out."""
    folder = tmp_path_factory.mktemp("packed")
    lists = {"trainval.txt": "", "test.txt": ""}
    with tarfile.open(folder / "images.tar.gz", "w:gz") as archive:
        for i, name in enumerate(NAMES):
            for number, file in enumerate(lists, 1):
                pixels = np.random.default_rng(2 * i + number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "JPEG")
                _add(archive, f"images/{name}_{number}.jpg", stream.getvalue())
                lists[file] += f"{name}_{number} {i + 1} {1 + (name == 'pug')} 1\n"
    with tarfile.open(folder / "annotations.tar.gz", "w:gz") as archive:
        for file, rows in lists.items():
            _add(archive, f"annotations/{file}", rows.encode())
    return folder


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def source(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the archives, which are taken for the official ones."""
    contents = {name: (packed / f"{name}.tar.gz").read_bytes() for name in cats.ARCHIVES}
    monkeypatch.setattr(cats, "ARCHIVES", {
        name: (len(content), f"sha256:{hashlib.sha256(content).hexdigest()}") for name, content in contents.items()
    })  # fmt: skip
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(packed)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_from_a_mirror_to_what_it_holds(
    tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(capsys, monkeypatch, "data", "get", "cats", "--folder", "pets", "--source", source) == (0, "pets\n", "")
    code, out, err = call(capsys, monkeypatch, "data", "get", "cats", "--folder", "pets", "--json")  # it is there
    assert (code, json.loads(out), err) == (0, {"folder": "pets"}, "")

    code, out, err = call(capsys, monkeypatch, "data", "info", "pets", "--json")
    found = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert found["images"] == 26 and found["classes"] == {name: {"train": 1, "val": 1} for name in (*BREEDS, "Other")}
    assert found["width"] == dict.fromkeys(("least", "median", "most"), 30) and found["height"]["median"] == 20
    assert (found["data"], found["parted"], found["skipped"]) == ("pets", "as given", [])
    code, out, _ = call(capsys, monkeypatch, "data", "info", "pets")
    assert code == 0 and len(out.splitlines()) == 19 and found["hash"] in out

    (tmp_path / "pets" / "images" / "pug_1.jpg").write_bytes(b"broken")
    _, out, _ = call(capsys, monkeypatch, "data", "info", "pets", "--json")
    again = json.loads(out)
    assert again["skipped"] == ["pug_1.jpg: no image that can be read"] and again["hash"] != found["hash"]
    assert again["classes"]["Other"] == {"train": 0, "val": 1}


def test_the_cache_folder_is_where_it_goes_by_itself(
    tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, out, _ = call(capsys, monkeypatch, "data", "get", "cats", "--source", source)
    assert code == 0 and Path(out.strip()) == tmp_path / "flops-fit" / "oxford-iiit-pet"


@pytest.mark.parametrize(("typed", "said"), [
    ("get dogs", "NAME: got 'dogs'; allowed are cats"),
    ("get cast", "did you mean cats?"),
    ("get cats --folder f --source here", "source: got 'here/annotations.tar.gz'; allowed are addresses such as https"),
    ("get cats --folder f --source SOURCE/gone", "answers 404 File not found; check the address"),
    ("get cats --folder f --source CLOSED", "source: cannot reach 127.0.0.1 ("),
    ("get cats --folder f --source CLOSED", "annotations.tar.gz by hand and put it at f/annotations.tar.gz"),
    ("info gone", "path: gone does not exist; allowed are the folder that `flops-fit data get cats` makes"),
    ("info .", "path: . holds no images; allowed are"),
])  # fmt: skip
def test_what_cannot_be(
    typed: str, said: str, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        words = typed.replace("SOURCE", source).replace("CLOSED", nobody).split()
        code, out, err = call(capsys, monkeypatch, "data", *words)
    assert code == 2 and not out
    assert said in err and err.count("\n") == 1 and err.startswith("error: ")
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_ctrl_c_says_that_it_goes_on(tmp_path: Path) -> None:
    """With a server that takes the call and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(WAIT_SECONDS)
        command = [sys.executable, "-m", "flops_fit.cli", "data", "get", "cats", "--folder", str(tmp_path / "pets"),
                   "--source", f"http://127.0.0.1:{silent.getsockname()[1]}"]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "no_proxy": "127.0.0.1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        with subprocess.Popen(command, env=environment, preexec_fn=heed, **pipes) as process:
            connection, _ = silent.accept()
            connection.recv(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=WAIT_SECONDS)
            connection.close()
    assert (process.returncode, out) == (130, "")
    assert err == "stopped; what came is kept, the same command goes on from there\n"
