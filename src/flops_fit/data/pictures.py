"""Images with labels of any origin, decoded: a parquet file, a folder, CIFAR-10's own files, shapes drawn by code.

The home of Pillow, of the extra `data`; CIFAR-10's own files and the drawn shapes do without.
"""

from __future__ import annotations

import codecs
import io
import os
import pickle
import re
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flops_fit.data import parquet
from flops_fit.errors import InputError, MissingExtra
from flops_fit.progress import shown

MOST_CORRUPT = 0.01  # of the images; above it the data are at fault
TRAINING = ("train", "training")
TESTING = ("test", "val", "valid", "validation")
UP = 1e-9  # halves are rounded up on every machine, whichever way its last digits err: data are known by their hash
RESIZED_AT_ONCE = 64  # images, in float64
AT_ONCE = 256        # images that a thread decodes before it asks for more
TOLD_FROM = 4 * AT_ONCE  # images, of which a terminal shows how many are decoded
NAMED = 3            # images left out that a message names
LEAST_SIDE = 8       # pixels of a photograph
PHOTOGRAPHS = ("RGB", "L")  # modes, as Pillow calls them: 8 bits a channel, three of them or grey
IMAGE_COLUMNS = ("image", "img", "jpeg", "jpg", "png", "bytes")
LABEL_COLUMNS = ("label", "labels", "class", "fine_label")
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff"}
CIFAR_FILE = re.compile(r"(data_batch_[1-5]|test_batch)(\.bin)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Decoded images of any origin."""

    name: str
    pixels: Tensor               # (N, 3, S, S) uint8
    labels: np.ndarray           # (N,) whole numbers or text
    splits: np.ndarray           # (N,) text, lower case; "" where the data name none
    parted: str = "as given"     # how the splits came about
    skipped: tuple[str, ...] = ()  # images that are left out: "NAME: why"

    @property
    def corrupt(self) -> int:
        """Images that are left out."""
        return len(self.skipped)

    @property
    def but(self) -> str:
        """What a sentence about them must add: those that are left out, if any."""
        return f"; {left_out(self.skipped)}" if self.skipped else ""


def left_out(skipped: Sequence[str]) -> str:
    """How many images are left out, and why the first of them."""
    named = "; ".join([*skipped[:NAMED], *(["..."] if len(skipped) > NAMED else [])])
    return f"{len(skipped):,} left out" + (f" ({named})" if named else "")


# --- readers --------------------------------------------------------------------------------------------------------


def read(path: Path, size: int) -> Pictures:
    """The images at `path`, `size` x `size`. Raises: see `data.images.image_sets`."""
    if path.is_file():
        if path.suffix == ".parquet":
            return _parquet([path], size)
        if tarfile.is_tarfile(path):
            return _cifar(path, _from_tar(path), size)
    if path.is_dir():
        for folder in (path, *sorted(path.glob("cifar-10-batches-*"))):
            parts = {file.name: file.read_bytes() for file in folder.iterdir() if CIFAR_FILE.fullmatch(file.name)}
            if parts:
                return _cifar(path, parts, size)
        if tables := sorted(path.glob("*.parquet")):
            return _parquet(tables, size)
        return _folder(path, size)
    return _refuse(path, "is neither" if path.exists() else "does not exist")


def _refuse(path: Path, what: str) -> NoReturn:
    raise InputError(
        f"path: {path} {what}; allowed are a .parquet file (or a folder of them) with encoded images and labels, "
        "a folder with one subfolder of images a class (train/ and test/ above them or not), or CIFAR-10's own files "
        "(data_batch_*, binary or python version, in a folder or .tar.gz)"
    )


def _parquet(files: Sequence[Path], size: int) -> Pictures:
    """Files `train-*.parquet` and `test-*.parquet`, as on the Hugging Face Hub, or one with a column `split`."""
    encoded: list[bytes | Path] = []
    labels: list[Any] = []
    splits: list[str] = []
    for file in files:
        names = parquet.columns(file)
        image, label = (
            next((name for name in wanted if name in names), None) for wanted in (IMAGE_COLUMNS, LABEL_COLUMNS)
        )
        if image is None or label is None:
            raise InputError(
                f"path: {file} has columns {', '.join(names)}; one of {', '.join(IMAGE_COLUMNS)} must hold encoded "
                f"images and one of {', '.join(LABEL_COLUMNS)} their labels; rename yours"
            )
        found = [bytes_in(value, file) for value in parquet.column(file, image)]
        encoded += found
        labels += parquet.column(file, label)
        own = file.name.split("-")[0].removesuffix(".parquet") if len(files) > 1 else ""
        splits += parquet.column(file, "split") if "split" in names else [own] * len(found)
    if not all(isinstance(value, (int, float, str)) for value in labels):
        raise InputError(f"path: {files[0]}: column {label!r} holds something else than one number or text an image")
    return _decoded(files[0].name if len(files) == 1 else files[0].parent.name, encoded, labels, splits, size)


def bytes_in(value: Any, file: Path) -> bytes | Path:
    """The encoded image of a cell: bytes, or the struct {bytes, path} of Hugging Face's image feature."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or _beside(file, str(value.get("path")))
    if not isinstance(value, (bytes, Path)):
        raise InputError(f"path: {file}: its images are {type(value).__name__}, not encoded files (JPEG, PNG) as bytes")
    return value


def _beside(file: Path, name: str) -> Path:
    """A regular file in the folder of `file`, or below: a table may name no others of this machine."""
    found = (file.parent / name).resolve()
    if not found.is_file() or not found.is_relative_to(file.parent.resolve()):
        raise InputError(f"path: {file} names {name!r}, which is no file beside it; allowed are files in its folder")
    return found


def _folder(path: Path, size: int) -> Pictures:
    """One subfolder a class; above them train/ and test/ (or val/), or nothing."""
    below = sorted(folder for folder in path.iterdir() if folder.is_dir())
    named = [folder for folder in below if folder.name.lower() in (*TRAINING, *TESTING)]
    found = [
        (file, kind.name, side.name.lower() if side is not path else "")
        for side in named or [path]
        for kind in sorted(folder for folder in side.iterdir() if folder.is_dir())
        for file in sorted(kind.rglob("*")) if file.suffix.lower() in IMAGE_ENDINGS
    ]  # fmt: skip
    if not found:
        _refuse(path, "holds no images in subfolders")
    files, labels, splits = zip(*found, strict=True)
    return _decoded(path.name, files, labels, splits, size)


def _decoded(name: str, encoded: Sequence[bytes | Path], labels: Sequence[Any], splits: Sequence[Any], size: int
) -> Pictures:
    pixels, broken = decoded(encoded, size)
    if len(broken) > MOST_CORRUPT * len(encoded):
        raise InputError(
            f"path: {len(broken):,} of {len(encoded):,} images in {name} cannot be decoded, more than "
            f"{MOST_CORRUPT:.0%}; look at the files"
        )
    kept = np.array([i not in broken for i in range(len(encoded))], dtype=bool)
    sides = np.array(["" if split is None else str(split).lower() for split in splits])
    skipped = tuple(f"{_called(encoded[i], i)}: {why}" for i, why in broken.items())
    return Pictures(name=name, pixels=pixels, labels=np.array(labels)[kept], splits=sides[kept], skipped=skipped)


def _called(encoded: bytes | Path, row: int) -> str:
    return f"row {row}" if isinstance(encoded, bytes) else encoded.name


def decoded(encoded: Sequence[bytes | Path], size: int, photographs: bool = False) -> tuple[Tensor, dict[int, str]]:
    """((N, 3, size, size) uint8 of those that can be decoded, in order; why each of the others cannot, by position).

    Args:
        photographs: turned upright as their EXIF tells; and what is no photograph is left out too: a side of fewer than
            LEAST_SIDE pixels, a mode not in PHOTOGRAPHS, or more pixels than Pillow trusts (a decompression bomb).

    Raises:
        MissingExtra: Pillow is not installed.
    """
    pillow = _pillow()
    pixels = torch.empty(len(encoded), 3, size, size, dtype=torch.uint8)
    broken: dict[int, str] = {}

    def decode(start: int) -> None:  # each its own rows; decoding lets other threads go on
        for i in range(start, min(start + AT_ONCE, len(encoded))):
            image = _decode(pillow, size, encoded[i], photographs)
            if isinstance(image, str):
                broken[i] = image
            else:
                pixels[i] = image

    with warnings.catch_warnings(), _workers() as workers:
        if photographs:
            warnings.filterwarnings("ignore", module="PIL")  # of metadata that are not read
            warnings.filterwarnings("error", category=pillow.Image.DecompressionBombWarning)
        starts = range(0, len(encoded), AT_ONCE)
        parts = workers.map(decode, starts)
        for _ in shown(parts, len(starts), f"decoding {len(encoded):,} images", quiet=len(encoded) < TOLD_FROM):
            pass
    kept = [i for i in range(len(encoded)) if i not in broken]
    return pixels[kept] if broken else pixels, dict(sorted(broken.items()))


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """As many as there are cores, torch on one thread in each: teams of threads would stand in one another's way."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            len(os.sched_getaffinity(0)), initializer=torch.set_num_threads, initargs=(1,)
        ) as workers:
            yield workers
    finally:
        torch.set_num_threads(before)  # a thread's number becomes that of threads begun later


def _pillow() -> Any:
    """Imported before the threads begin, so that its absence is told once."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise MissingExtra.of("Pillow", "data", "to decode images") from error
    return PIL


def _decode(pillow: Any, size: int, encoded: bytes | Path, photograph: bool = False) -> Tensor | str:
    """(3, S, S) uint8, or why it cannot be decoded."""
    try:
        with pillow.Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            if photograph and (why := _no_photograph(image.mode, image.size)):
                return why
            image.draft("RGB", (size, size))  # a large JPEG is decoded at a fraction of its size
            if photograph:
                with suppress(Exception):  # what its EXIF means is unknown when it is broken
                    pillow.ImageOps.exif_transpose(image, in_place=True)
            whole = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)  # (3, H, W)
    except pillow.UnidentifiedImageError:
        return "no image that can be read"
    except Exception as error:  # decoders raise whatever a broken file makes them stumble over; it is told
        return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return _square(whole[None], size)[0]


def _no_photograph(mode: str, shape: tuple[int, int]) -> str:
    """Why an image of that mode, width and height is left out; "" where it is not."""
    if mode not in PHOTOGRAPHS:
        return f"its pixels are {mode}, not 8-bit RGB or grey"
    return f"{shape[0]}x{shape[1]} pixels, fewer than {LEAST_SIDE} a side" if min(shape) < LEAST_SIDE else ""


def write_png(path: Path, pixels: Tensor) -> None:
    """One image (3, H, W) uint8.

    Raises:
        InputError: the folder is not there or cannot be written.
        MissingExtra: Pillow is not installed.
    """
    content = png(pixels)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"out: {path} cannot be written ({error}); give a folder that exists") from error


def writable(folder: Path, argument: str) -> Path:
    """The folder, there from now on: asked for before the work whose results it is to hold.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("no right to write into it")
    except OSError as error:
        raise InputError(f"{argument}: got {folder}, which is no folder to write to ({error}); give another") from error
    return folder


def png(pixels: Tensor) -> bytes:
    """One image (3, H, W) uint8 as a PNG file. Raises MissingExtra without Pillow."""
    found = io.BytesIO()
    _pillow().Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(found, format="PNG")  # (H, W, 3)
    return found.getvalue()


def sheet(pixels: Tensor, columns: int, gap: int = 2) -> Tensor:
    """(n, 3, S, S) uint8 -> (3, H, W): the images row by row, white between them."""
    count, channels, size, _ = pixels.shape
    rows, step = -(-count // columns), size + gap
    made = torch.full((channels, rows * step - gap, columns * step - gap), 255, dtype=torch.uint8)
    for number, image in enumerate(pixels):
        down, right = (step * place for place in divmod(number, columns))
        made[:, down : down + size, right : right + size] = image
    return made


def dimensions(encoded: Sequence[bytes | Path]) -> np.ndarray:
    """(N, 2): width and height of each image as it is stored, read from its head alone."""
    pillow, found = _pillow(), []
    for one in encoded:
        with pillow.Image.open(io.BytesIO(one) if isinstance(one, bytes) else one) as image:
            found.append(image.size)
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _square(pixels: Tensor, size: int) -> Tensor:
    """(N, C, H, W) uint8 -> (N, C, size, size): the central square, averaged down or interpolated up."""
    height, width = pixels.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = pixels[..., top : top + side, left : left + side]
    if side == size:
        return pixels
    found = torch.empty(*pixels.shape[:2], size, size, dtype=torch.uint8)
    for some, into in zip(pixels.split(RESIZED_AT_ONCE), found.split(RESIZED_AT_ONCE), strict=True):
        resized = F.interpolate(some.double(), size=(size, size), mode="bilinear", antialias=True)
        into.copy_((resized + UP).round().clamp(0, 255))
    return found


# --- CIFAR-10's own files -------------------------------------------------------------------------------------------


def _from_tar(path: Path) -> dict[str, bytes]:
    parts = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name, content = Path(member.name).name, archive.extractfile(member)
                if content is not None and CIFAR_FILE.fullmatch(name):
                    parts[name] = content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"path: {path} cannot be unpacked ({error}); fetch it again") from error
    if not parts:
        _refuse(path, "is an archive without them")
    return parts


def _cifar(path: Path, parts: Mapping[str, bytes], size: int) -> Pictures:
    """Krizhevsky 2009. A record of the binary version: label, then 3,072 bytes of red, green, blue, row by row."""
    tables, splits = [], []
    for name in sorted(parts):
        try:
            table = np.frombuffer(parts[name], np.uint8) if name.endswith(".bin") else _unpickled(parts[name])
            tables.append(table.reshape(-1, 1 + 3 * 32 * 32))
        except (pickle.UnpicklingError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"path: {name} in {path} is not a file of CIFAR-10 ({error}); fetch it again") from error
        splits += ["test" if name.startswith("test") else "train"] * len(tables[-1])
    table = np.concatenate(tables)
    pixels = torch.from_numpy(table[:, 1:].reshape(-1, 3, 32, 32))
    return Pictures(name="CIFAR-10", pixels=_square(pixels, size), labels=table[:, 0], splits=np.array(splits))


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled numpy arrays and plain values, and runs nothing else that a pickle may name."""

    ALLOWED: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes in an old protocol
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only numpy arrays are read")
        return self.ALLOWED[module, name]


def _unpickled(content: bytes) -> np.ndarray:
    """(n, 1 + 3072) uint8: the records of the binary version."""
    batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    return np.column_stack((np.asarray(batch[b"labels"], np.uint8), np.asarray(batch[b"data"], np.uint8)))


# --- drawn by code --------------------------------------------------------------------------------------------------

# of points (u, v) with r2 = u^2 + v^2 and wide = max(|u|, |v|), (n, S, S) each: which ones are inside
SHAPES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "disc": lambda u, v, r2, wide: r2 < 1,
    "ring": lambda u, v, r2, wide: (r2 < 1) & (r2 > 0.4),
    "half disc": lambda u, v, r2, wide: (r2 < 1) & (v > 0),
    "square": lambda u, v, r2, wide: wide < 0.85,
    "frame": lambda u, v, r2, wide: (wide < 0.9) & (wide > 0.5),
    "cross": lambda u, v, r2, wide: (wide < 1) & (torch.minimum(u.abs(), v.abs()) < 0.3),
    "triangle": lambda u, v, r2, wide: (v > -0.6) & (1.7 * u.abs() + v < 1.2),
    "drop": lambda u, v, r2, wide: (r2 < 0.5) | ((v > 0) & (1.5 * u.abs() + v < 1.25)),
    "stripes": lambda u, v, r2, wide: (r2 < 1) & ((7 * u).sin() > 0),
    "checks": lambda u, v, r2, wide: (wide < 0.85) & ((5 * u).sin() * (5 * v).sin() > 0),
}


def drawn_shapes(size: int = 32, count: int = 44_000, held_out: int = 4_000, seed: int = 0) -> Pictures:
    """Ten kinds of light shape on dark, of random colour, place, size and angle, under noise; always the same."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(SHAPES)
    pixels = torch.cat([_drawn(chunk, size, generator) for chunk in labels.split(1000)])
    splits = np.array(["test"] * held_out + ["train"] * (count - held_out))
    return Pictures(name="shapes drawn by code", pixels=pixels, labels=labels.numpy(), splits=splits)


def _drawn(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """(N, 3, S, S) uint8: one shape of each label in `labels` (N,)."""
    count = len(labels)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    line = torch.linspace(-1, 1, size)
    x, y = line - between(-0.3, 0.3, 1, 1), line[:, None] - between(-0.3, 0.3, 1, 1)  # (N, 1, S), (N, S, 1)
    angle, radius = between(-0.3, 0.3, 1, 1), between(0.4, 0.9, 1, 1)
    u, v = (x * angle.cos() + y * angle.sin()) / radius, (y * angle.cos() - x * angle.sin()) / radius  # (N, S, S)
    inside = torch.empty(count, size, size, dtype=torch.bool)
    for label, shape in enumerate(SHAPES.values()):
        of = labels == label
        inside[of] = shape(u[of], v[of], u[of].square() + v[of].square(), torch.maximum(u[of].abs(), v[of].abs()))
    paper, ink = between(0, 0.5, 3, 1, 1), between(0.4, 1, 3, 1, 1)
    picture = torch.where(inside[:, None], ink, paper)  # (N, 3, S, S)
    noise = torch.randn(picture.shape, generator=generator).mul_(between(0.02, 0.2, 1, 1, 1))
    return noise.add_(picture).mul_(256).clamp_(0, 255).byte()
