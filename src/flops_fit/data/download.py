"""Files from the network: gone on with where they were cut off, checked, and never half there. Standard library only.

    URL -> TARGET.part (outlives a broken connection and a killed process) -> checked -> TARGET -> unpacked
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from io import FileIO
from pathlib import Path

from flops_fit.errors import InputError

BLOCK = 1 << 18               # bytes asked for at a time, at most
TIMEOUT_SECONDS = 30.0        # without a byte, until a connection counts as broken
PAUSES = (1.0, 3.0, 10.0)     # seconds before further tries; so many in a row that bring nothing new end it
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may be gone a moment later
PAST_THE_END = 416
DRAWN_SECONDS = 0.5           # between two lines of progress on a terminal, where each replaces the last
SAID_SECONDS = 30.0           # elsewhere, where each stays
DIGESTS = ("sha256", "md5")


def fetch(url: str, target: Path, digest: str | None = None, size: int | None = None) -> Path:
    """`target` as `url` gives it, whole or not at all. A call that was cut off is gone on with by the next one.

    Args:
        url: http or https. A server that cannot send a part of a file begins anew.
        digest: "sha256:HEX" or "md5:HEX" of the content, as its publisher states it; None: nobody does.
        size: its bytes; None: what the server tells.

    Raises:
        InputError: the server cannot be reached, has no such file or another one, or `target` cannot be written.
    """
    _host(url)
    if digest is not None and not re.fullmatch(rf"({'|'.join(DIGESTS)}):[0-9a-f]+", digest):
        raise InputError(f"digest: got {digest!r}; allowed are {', '.join(f'{name}:HEX' for name in DIGESTS)}")
    if target.exists():
        if wrong := _wrong(target, digest, size):
            raise InputError(f"folder: {target} is there and {wrong}; remove it, and it is fetched anew")
        return target
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("ab", buffering=0)  # what is written outlives a killed process
    except OSError as error:
        raise InputError(f"folder: {part} cannot be written ({error.strerror}); give another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"folder: another process is fetching {part}; wait for it") from error
        try:
            _Transfer(url, target, file, size).run()
            if wrong := _wrong(part, digest, size):
                file.truncate(0)
                raise InputError(f"source: what {url} gave {wrong}; it is removed: try again, or give another source")
            part.replace(target)
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
    return target


def _host(url: str) -> str:
    """Raises InputError for what is no address."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts.hostname
    except ValueError:
        pass  # the port, or brackets
    raise InputError(f"source: got {url!r}; allowed are addresses such as https://HOST/FOLDER")


def _wrong(file: Path, digest: str | None, size: int | None) -> str:
    """In what `file` is not what it must be; "" where it is."""
    if not file.is_file():
        return "is no file"
    if size is not None and file.stat().st_size != size:
        return f"has {file.stat().st_size:,} bytes, expected are {size:,}"
    if digest is not None:
        with file.open("rb") as opened:
            algorithm = digest.partition(":")[0]
            found = f"{algorithm}:{hashlib.file_digest(opened, algorithm).hexdigest()}"
        if found != digest:
            return f"has {found}, expected is {digest}"
    return ""


class _Transfer:
    """Brings a URL into an open file, behind what is in it already.

    Args:
        target: where a user would put what is fetched by hand.
        size: bytes of the whole, or None where only the server knows.
    """

    def __init__(self, url: str, target: Path, file: FileIO, size: int | None) -> None:
        self.url, self.target, self.file, self.size = url, target, file, size
        self.progress = _Progress(target.name)

    @property
    def have(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def run(self) -> None:
        """Until all is there. Raises InputError when nothing more comes."""
        most, failures = self.have, 0
        try:
            while (broken := self._try()) is not None:
                if self.have > most:
                    most, failures = self.have, 0
                if failures == len(PAUSES):
                    told = f"source: {self.url} breaks off at {self.have:,} bytes ({broken})"
                    raise InputError(f"{told}; what came is kept, the same call goes on from there")
                time.sleep(PAUSES[failures])
                failures += 1
        finally:
            self.progress.end()

    def _try(self) -> str | None:
        """One connection. None: all is there; else what broke it off."""
        start = self.have
        if start and start == self.size:
            return None
        headers = {"User-Agent": "flops-fit", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            request = urllib.request.Request(self.url, headers=headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return self._take(answer, start)
        except urllib.error.HTTPError as error:
            with error:
                return self._refused(error, start)
        except urllib.error.URLError as error:
            if not self.progress.received:
                told = f"source: cannot reach {_host(self.url)} ({_line(error.reason)})"
                raise InputError(f"{told}; fetch {self.url} by hand and put it at {self.target}") from error
            return _line(error.reason)
        except (http.client.InvalidURL, UnicodeError) as error:
            raise InputError(f"source: got {self.url!r} ({_line(error)}); give a whole address") from error
        except (OSError, http.client.HTTPException) as error:
            return _line(error)

    def _refused(self, error: urllib.error.HTTPError, start: int) -> str | None:
        """As `_try`, for an answer that is no file."""
        told = f"{error.code} {_line(error.reason)}"
        if error.code == PAST_THE_END and start:
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return None
            self.file.truncate(0)  # there is more here than there: it is of another file
            return self._try()
        if error.code in PASSING:
            return told
        raise InputError(f"source: {self.url} answers {told}; check the address, or give another source") from error

    def _take(self, answer: http.client.HTTPResponse, start: int) -> str | None:
        """As `_try`, for an answer with the file, or with its end from byte `start` on."""
        have, length = 0, answer.headers.get("Content-Length", "")
        if answer.status == http.client.PARTIAL_CONTENT:
            have, (part, _, length) = start, answer.headers.get("Content-Range", "").partition("/")
            if not part.startswith(f"bytes {start}-"):
                self.file.truncate(0)
                return "it sent another part than was asked for"
        total = int(length) if length.isdecimal() else self.size
        if None not in (total, self.size) and total != self.size:
            told = f"source: {self.url} has {total:,} bytes, expected are {self.size:,}"
            raise InputError(f"{told}; it is another file: give another source")
        if not have:
            self.file.truncate(0)
        while block := answer.read1(BLOCK):
            self._write(block)
            have += len(block)
            self.progress.came(len(block), have, total)
        return f"it ended after {have:,} of {total:,} bytes" if total is not None and have < total else None

    def _write(self, block: bytes) -> None:
        try:
            while block:
                block = block[self.file.write(block) :]
        except OSError as error:
            told = f"folder: {self.target.parent} cannot be written ({error.strerror})"
            raise InputError(f"{told}; make room, and the same call goes on") from error


class _Progress:
    """What came, how fast, and the time left, on stderr; what arrives at once tells nothing."""

    def __init__(self, name: str) -> None:
        self.name, self.received = name, 0
        self._terminal = sys.stderr.isatty()
        self._begun = self._told = time.monotonic()
        self._drawn = False

    def came(self, count: int, have: int, total: int | None) -> None:
        """`count` bytes more, which makes `have` of `total`."""
        self.received += count
        now = time.monotonic()
        if now - self._told < (DRAWN_SECONDS if self._terminal else SAID_SECONDS):
            return
        self._told = now
        pace = self.received / (now - self._begun)  # of this call: what was there before says nothing of it
        told = f"{self.name}: {have / 1e6:,.1f} MB, {pace / 1e6:.2f} MB/s"
        if total is not None:
            minutes, seconds = divmod(round((total - have) / pace), 60)
            told = f"{told}, of {total / 1e6:,.1f} MB, {minutes}:{seconds:02d} left"
        self._drawn = self._terminal
        sys.stderr.write(f"\r\x1b[K{told}" if self._terminal else f"{told}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _line(reason: object) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__


def unpack(archive: Path, folder: Path, top: str) -> Path:
    """`folder`/`top`, as the tar archive holds it: whole or not at all, and at once where it is there already.

    Raises:
        InputError: it cannot be read, holds no such folder, or a member of it would lie outside; then nothing is kept.
    """
    goal = folder / top
    if goal.is_dir():
        return goal
    try:
        with tempfile.TemporaryDirectory(prefix=f"{top}-", dir=folder) as unfinished:
            with tarfile.open(archive) as opened:
                opened.extractall(unfinished, filter="data")
            if not (Path(unfinished) / top).is_dir():
                raise InputError(f"source: {archive} holds no folder {top}; it is another archive, give another source")
            (Path(unfinished) / top).rename(goal)
    except tarfile.FilterError as error:
        told = f"source: {archive} is refused ({_line(error)})"
        raise InputError(f"{told}; it would write outside its folder: give another source") from error
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        told = f"source: {archive} cannot be unpacked into {folder} ({_line(error)})"
        raise InputError(f"{told}; remove it and fetch it again") from error
    return goal
