"""Fetching: every break is gone on from, nothing half ever bears the name of the whole, refusals say what to do."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops_fit.data import download
from flops_fit.data.download import PAUSES, fetch, unpack
from flops_fit.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CONTENT = np.random.default_rng(0).bytes(40_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "no_proxy": "127.0.0.1"}
WAIT_SECONDS = 60.0  # generous: asserted is that it happens at all


@dataclass(frozen=True)
class Answer:
    """How the server answers one request; without arguments as a good one does."""

    status: int = 0          # an error instead of the file
    cut: int | None = None   # bytes after which it hangs up
    reset: bool = False      # it hangs up without a farewell
    stall: bool = False      # it falls silent instead of hanging up
    ranges: bool = True      # False: it sends the whole, whatever is asked for
    shift: int = 0           # it sends from so many bytes further on, and says so
    most: int | None = None  # of a part it sends so many bytes only, and says so
    tells_length: bool = True
    to: str = ""             # the address where it says that the file is
    content: bytes = field(default=CONTENT, repr=False)


GOOD = Answer()


class Server(ThreadingHTTPServer):
    """Holds one file. The first requests are answered as `script` says, then all as `rest` does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.let_go = threading.Event()
        self.stalled = threading.Event()
        self.play()

    def play(self, *script: Answer, rest: Answer = GOOD) -> None:
        self.script, self.rest = list(script), rest
        self.asked: list[int] = []  # the byte that each request began with

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"

    def handle_error(self, *_: Any) -> None:
        """The other side hung up, as it may."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        answer = self.server.script.pop(0) if self.server.script else self.server.rest
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.server.asked.append(start)
        whole = len(answer.content)
        if answer.status or answer.to:
            self._head(answer.status or 302, {"Location": answer.to, "Content-Length": "0"})
        elif answer.ranges and start >= whole:
            self._head(416, {"Content-Range": f"bytes */{whole}", "Content-Length": "0"})
        else:
            first = start + answer.shift if answer.ranges else 0
            part = answer.content[first:][: answer.most if first else None]
            head = {"Content-Length": str(len(part))} if answer.tells_length else {"Connection": "close"}
            if answer.ranges and start:
                head["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{whole}"
            self._head(206 if answer.ranges and start else 200, head)
            self.wfile.write(part[: answer.cut])
            self._leave(answer)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _leave(self, answer: Answer) -> None:
        self.wfile.flush()
        self.close_connection = True
        if answer.stall:
            self.server.stalled.set()
            self.server.let_go.wait()
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *words: Any) -> None: ...


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.let_go.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module", autouse=True)
def at_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "PAUSES", (0.0,) * len(PAUSES))
        patch.setenv("no_proxy", "127.0.0.1")
        yield


@pytest.fixture
def server(running: Server) -> Server:
    running.play()
    return running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "file.bin"


def part_of(target: Path) -> Path:
    return target.with_name("file.bin.part")


def half_done(target: Path, content: bytes) -> Path:
    target.parent.mkdir()
    part_of(target).write_bytes(content)
    return part_of(target)


def files(target: Path) -> set[str]:
    return {file.name for file in target.parent.iterdir()}


def refused(*arguments: Any) -> str:
    """The message, one line that names its argument."""
    with pytest.raises(InputError) as caught:
        fetch(*arguments)
    assert re.match(r"(source|folder|digest): [^\n]+; [^\n]+\Z", str(caught.value))
    return str(caught.value)


# --- what goes well ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", [None, SHA256, MD5])
@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_file_arrives_once(
    digest: str | None, size: int | None, server: Server, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second time without a request
        assert fetch(server.url, target, digest, size) == target
    assert target.read_bytes() == CONTENT
    assert (server.asked, files(target)) == ([0], {"file.bin"})
    assert capsys.readouterr() == ("", "")


def test_where_the_server_tells_no_length_the_end_is_the_end(server: Server, target: Path) -> None:
    server.play(rest=Answer(tells_length=False))
    assert fetch(server.url, target).read_bytes() == CONTENT


def test_a_redirection_is_followed_with_the_part_that_is_asked_for(server: Server, target: Path) -> None:
    half_done(target, CONTENT[:7_000])
    server.play(Answer(to=server.url))
    assert fetch(server.url, target, SHA256).read_bytes() == CONTENT
    assert server.asked == [7_000, 7_000]


# --- breaks -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(1, 9_000), max_size=12), ranges=st.booleans())
def test_whatever_breaks_off_the_file_is_whole_or_not_there(cuts: list[int], ranges: bool, running: Server) -> None:
    running.play(*(Answer(cut=cut, ranges=ranges) for cut in cuts), rest=Answer(ranges=ranges))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file.bin"
        told = ""
        try:
            fetch(running.url, target)
        except InputError as error:
            told = str(error)
        if told:
            assert "breaks off" in told and not target.exists()
            assert not ranges  # else every connection brings something new
        else:
            assert target.read_bytes() == CONTENT and files(target) == {"file.bin"}
    if ranges:
        gone_on = [0, *np.cumsum(cuts).tolist()]
        assert running.asked == [start for start in gone_on if start < len(CONTENT)][: len(running.asked)]


@pytest.mark.parametrize("broken", [
    Answer(cut=10_000, reset=True), Answer(cut=0), Answer(cut=0, reset=True), Answer(status=503), Answer(status=429),
], ids=str)  # fmt: skip
def test_a_break_is_followed_by_another_try(broken: Answer, server: Server, target: Path) -> None:
    server.play(broken)
    assert fetch(server.url, target, SHA256).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_server_that_falls_silent_is_called_anew(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.3)
    server.play(Answer(cut=10_000, stall=True))
    assert fetch(server.url, target, SHA256).read_bytes() == CONTENT
    assert server.asked == [0, 10_000]


def test_a_server_that_cannot_send_parts_begins_anew(server: Server, target: Path) -> None:
    server.play(Answer(cut=10_000, ranges=False), rest=Answer(ranges=False))
    assert fetch(server.url, target, SHA256).read_bytes() == CONTENT
    assert server.asked == [0, 10_000]


def test_a_server_that_sends_another_part_is_asked_for_the_whole(server: Server, target: Path) -> None:
    server.play(Answer(cut=10_000), Answer(shift=5))
    assert fetch(server.url, target).read_bytes() == CONTENT
    assert server.asked == [0, 10_000, 0]


def test_a_server_that_sends_small_parts_is_asked_again(server: Server, target: Path) -> None:
    server.play(Answer(cut=10_000), rest=Answer(most=11_000))
    assert fetch(server.url, target).read_bytes() == CONTENT
    assert server.asked == [0, 10_000, 21_000, 32_000]


@pytest.mark.parametrize(("always", "kept"), [
    (Answer(cut=0), 0), (Answer(cut=10_000, ranges=False), 10_000), (Answer(status=503), 0),
], ids=str)  # fmt: skip
def test_tries_that_bring_nothing_new_come_to_an_end(always: Answer, kept: int, server: Server, target: Path) -> None:
    server.play(rest=always)
    assert f"breaks off at {kept:,} bytes (" in refused(server.url, target)
    assert len(server.asked) == 1 + len(PAUSES)
    assert files(target) == ({"file.bin.part"} if kept else set())


def test_the_next_call_goes_on_with_what_an_earlier_one_left(server: Server, target: Path) -> None:
    server.play(Answer(cut=10_000), rest=Answer(cut=0))
    refused(server.url, target, SHA256)
    assert part_of(target).read_bytes() == CONTENT[:10_000]
    server.play()
    assert fetch(server.url, target, SHA256).read_bytes() == CONTENT
    assert server.asked == [10_000]


def test_a_server_that_goes_away_is_not_taken_for_one_that_never_was(target: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def once() -> None:
            connection, _ = listening.accept()
            listening.close()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n" + CONTENT[:500])

        thread = threading.Thread(target=once)
        thread.start()
        told = refused(f"http://127.0.0.1:{listening.getsockname()[1]}/file.bin", target)
        thread.join()
    assert "breaks off at 500 bytes (" in told and "what came is kept" in told
    assert part_of(target).read_bytes() == CONTENT[:500]


def test_a_killed_process_is_gone_on_from(server: Server, target: Path) -> None:
    server.play(Answer(cut=10_000, stall=True))
    code = ("import sys; from pathlib import Path; from flops_fit.data.download import fetch;"
            "fetch(sys.argv[1], Path(sys.argv[2]))")  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code, server.url, str(target)], env=ENVIRONMENT) as process:
        assert server.stalled.wait(WAIT_SECONDS)
        while not part_of(target).exists() or part_of(target).stat().st_size < 10_000:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert files(target) == {"file.bin.part"}
    assert fetch(server.url, target, SHA256).read_bytes() == CONTENT
    assert server.asked == [0, 10_000]


# --- parts of an earlier call -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_that_is_whole_is_not_fetched_again(size: int | None, server: Server, target: Path) -> None:
    half_done(target, CONTENT)
    assert fetch(server.url, target, SHA256, size).read_bytes() == CONTENT
    assert server.asked == ([] if size else [len(CONTENT)])  # without a size the server is asked: 416


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_longer_than_the_file_is_of_another_one(size: int | None, server: Server, target: Path) -> None:
    half_done(target, CONTENT + b"more")
    assert fetch(server.url, target, SHA256, size).read_bytes() == CONTENT
    assert server.asked == [len(CONTENT) + 4, 0]


def test_a_part_of_another_file_is_told_by_the_checksum_and_removed(server: Server, target: Path) -> None:
    half_done(target, b"x" * 10_000)
    came = hashlib.sha256(b"x" * 10_000 + CONTENT[10_000:]).hexdigest()
    told = refused(server.url, target, SHA256)
    assert f"has sha256:{came}, expected is {SHA256}" in told
    assert files(target) == set()
    assert fetch(server.url, target, SHA256).read_bytes() == CONTENT


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("digest", "size", "told"), [
    (f"sha256:{'0' * 64}", None, f"has {SHA256}, expected is sha256:{'0' * 64}"),
    (f"md5:{'0' * 32}", len(CONTENT), f"has {MD5}, expected is md5:{'0' * 32}"),
    (SHA256, 39_999, "has 40,000 bytes, expected are 39,999"),
    (SHA256, 40_001, "has 40,000 bytes, expected are 40,001"),
])  # fmt: skip
def test_another_file_than_expected(
    digest: str, size: int | None, told: str, server: Server, target: Path
) -> None:
    assert told in refused(server.url, target, digest, size)
    assert files(target) == set()


def test_another_length_is_told_before_anything_is_fetched_and_what_came_before_is_kept(
    server: Server, target: Path
) -> None:
    part = half_done(target, CONTENT[:10_000])
    for ranges in (True, False):
        server.play(rest=Answer(ranges=ranges, content=CONTENT + b"more"))
        assert "has 40,004 bytes, expected are 40,000" in refused(server.url, target, SHA256, 40_000)
        assert part.read_bytes() == CONTENT[:10_000]


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(server: Server, target: Path) -> None:
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/file.bin"
        told = refused(url, target)
    assert told.startswith("source: cannot reach 127.0.0.1 (")
    assert told.endswith(f"; fetch {url} by hand and put it at {target}")
    assert files(target) == set()
    target.write_bytes(CONTENT)  # by hand
    assert fetch(url, target, SHA256) == target


@pytest.mark.parametrize("status", [403, 404, 410])
def test_what_is_not_there_is_not_asked_for_twice(status: int, server: Server, target: Path) -> None:
    server.play(rest=Answer(status=status))
    assert f"{server.url} answers {status} " in refused(server.url, target)
    assert (len(server.asked), files(target)) == (1, set())


@pytest.mark.parametrize("url", [
    "", "images.tar.gz", "/etc/passwd", "file:///etc/passwd", "ftp://127.0.0.1/a", "http://", "http:///a",
    "http://127.0.0.1:99999/a", "http://127.0.0.1:x/a", "http://[::1/a", "http://127.0.0.1/a b", "http://127.0.0.1/ä",
])  # fmt: skip
def test_what_is_no_address(url: str, target: Path) -> None:
    assert f"got {url!r}" in refused(url, target)
    assert not target.exists()


@pytest.mark.parametrize("digest", ["", "0" * 64, "sha1:" + "0" * 40, "sha256:", "sha256:xyz"])
def test_what_is_no_checksum(digest: str, server: Server, target: Path) -> None:
    assert "allowed are sha256:HEX, md5:HEX" in refused(server.url, target, digest)
    assert server.asked == []


def test_a_file_that_is_there_and_wrong_is_left_alone(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    assert "remove it" in refused(server.url, target, SHA256)
    assert target.read_bytes() == b"mine" and server.asked == []


def test_a_folder_in_the_place_of_the_file(server: Server, target: Path) -> None:
    target.mkdir(parents=True)
    assert "is no file" in refused(server.url, target)


def test_a_redirection_that_never_ends(server: Server, target: Path) -> None:
    server.play(rest=Answer(to=server.url))
    assert "answers 302 " in refused(server.url, target)


def test_a_full_disk_is_told_and_what_came_is_kept(server: Server, target: Path) -> None:
    """The disk of this process is full after 10,000 bytes of a file."""
    code = """if True:
        import resource, sys
        from pathlib import Path
        from flops_fit.data.download import fetch
        from flops_fit.errors import InputError
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            fetch(sys.argv[1], Path(sys.argv[2]))
        except InputError as error:
            print(error)
    """
    told = subprocess.run([sys.executable, "-c", code, server.url, str(target)], env=ENVIRONMENT, capture_output=True)
    assert told.stdout.decode() == f"folder: {target.parent} cannot be written (File too large); make room, " \
                                   "and the same call goes on\n"  # fmt: skip
    assert part_of(target).read_bytes() == CONTENT[:10_000]
    assert fetch(server.url, target, SHA256).read_bytes() == CONTENT


def test_a_folder_that_cannot_be(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "give another folder" in refused(server.url, tmp_path / "file" / "below" / "file.bin")


def test_two_at_once_do_not_write_one_file(server: Server, target: Path) -> None:
    with half_done(target, CONTENT[:5]).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process is fetching" in refused(server.url, target)
    assert fetch(server.url, target, SHA256) == target


# --- progress ---------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_takes_long_tells_how_far_it_is(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half_done(target, CONTENT[:20_000])
    monkeypatch.setattr(download, "SAID_SECONDS", 0.0)
    fetch(server.url, target, SHA256)
    out, err = capsys.readouterr()
    assert out == "" and err.endswith("\n")
    for line in err.splitlines():
        assert re.fullmatch(r"file.bin: 0\.0 MB, [\d.]+ MB/s, of 0\.0 MB, \d+:\d\d left", line)
    monkeypatch.setattr(download, "DRAWN_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    fetch(server.url, target.with_name("again"), SHA256)
    drawn = sys.stderr.getvalue()
    assert "MB/s" in drawn and "\n" not in drawn and drawn.endswith("\r\x1b[K")  # the line is gone in the end


# --- archives ---------------------------------------------------------------------------------------------------------


def tar(path: Path, *members: tuple[str, bytes | str, bytes]) -> Path:
    """(name, content or where a link leads to, type) of each."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.mtime = kind, 0
            if isinstance(content, str):
                member.linkname = content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


FILE = tarfile.REGTYPE
NOISE = np.random.default_rng(1).bytes(3_000)


def test_an_archive_is_unpacked_once(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", ("top/a", b"1", FILE), ("top/sub/b", NOISE, FILE))
    assert unpack(archive, tmp_path, "top") == tmp_path / "top"
    assert (tmp_path / "top" / "sub" / "b").read_bytes() == NOISE
    archive.unlink()
    assert unpack(archive, tmp_path, "top") == tmp_path / "top"  # it is there


@pytest.mark.parametrize("member", [
    ("../evil", b"x", FILE), ("top/../../evil", b"x", FILE), ("top/link", "/etc", tarfile.SYMTYPE),
    ("top/link", "../../evil", tarfile.SYMTYPE), ("top/link", "../evil", tarfile.LNKTYPE),
    ("top/pipe", "", tarfile.FIFOTYPE),
], ids=str)  # fmt: skip
def test_an_archive_that_leaves_its_folder_is_refused(member: tuple[str, bytes | str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    archive = tar(tmp_path / "a.tar.gz", ("top/a", b"1", FILE), member)
    with pytest.raises(InputError, match=r"\Asource: [^\n]+ is refused \([^\n]+give another source\Z"):
        unpack(archive, folder, "top")
    assert list(folder.iterdir()) == []
    assert {file.name for file in tmp_path.iterdir()} == {"inside", "a.tar.gz"}


@settings(deadline=None, max_examples=20)
@given(cut=st.integers(0, 3_000))
def test_a_cut_archive_leaves_nothing(cut: int) -> None:
    with tempfile.TemporaryDirectory() as at:
        archive = tar(Path(at) / "a.tar.gz", ("top/a", NOISE, FILE))
        whole = archive.read_bytes()
        assert len(whole) > 3_000
        archive.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"\Asource: [^\n]+ cannot be unpacked into [^\n]+fetch it again\Z"):
            unpack(archive, Path(at), "top")
        assert os.listdir(at) == ["a.tar.gz"]


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no folder top; it is another archive"):
        unpack(tar(tmp_path / "a.tar.gz", ("other/a", b"1", FILE)), tmp_path, "top")
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(b"hello" * 1000))
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(tmp_path / "b.tar.gz", tmp_path, "top")
