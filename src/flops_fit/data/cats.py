"""Cat images in 13 classes: the 12 cat breeds of the Oxford-IIIT Pet set, and Other, which are its dogs.

    get -> folder                      the official set: Parkhi et al. 2012, "Cats and Dogs", CVPR; CC BY-SA 4.0
    cat_pictures(path) -> Pictures     that folder, a folder with one subfolder a class, or a parquet file

Where the data name no held-out part, each class holds out the nearest whole number to HELD_OUT of its images (halves
up; of two or more at least one), those with the lowest SHA-256 of their file: the same on every machine, whatever the
files are called. Files with equal bytes are counted once, in the first of their classes, and are on one side.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flops_fit.data import download, parquet
from flops_fit.data.pictures import (
    IMAGE_COLUMNS,
    IMAGE_ENDINGS,
    TESTING,
    TRAINING,
    Pictures,
    bytes_in,
    decoded,
    dimensions,
    left_out,
)
from flops_fit.data.text import cache_folder, store
from flops_fit.errors import InputError
from flops_fit.records import Record

BREEDS = ("Abyssinian", "Bengal", "Birman", "Bombay", "British Shorthair", "Egyptian Mau", "Maine Coon", "Persian",
          "Ragdoll", "Russian Blue", "Siamese", "Sphynx")  # fmt: skip
CLASSES = (*BREEDS, "Other")
OTHER = len(BREEDS)
DOGS = (  # of the set
    "american bulldog", "american pit bull terrier", "basset hound", "beagle", "boxer", "chihuahua",
    "english cocker spaniel", "english setter", "german shorthaired", "great pyrenees", "havanese", "japanese chin",
    "keeshond", "leonberger", "miniature pinscher", "newfoundland", "pomeranian", "pug", "saint bernard", "samoyed",
    "scottish terrier", "shiba inu", "staffordshire bull terrier", "wheaten terrier", "yorkshire terrier",
)  # fmt: skip

OFFICIAL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"  # leads on to wherever the set lies now
ARCHIVES = {  # NAME.tar.gz holds the folder NAME: (bytes, checksum), as TensorFlow Datasets 4.9 states them
    "annotations": (19_173_078, "sha256:52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91"),
    "images": (791_918_971, "sha256:67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d"),
}

HELD_OUT = 15       # percent of each class, where the data name no held-out part
SPLITS = {name: "train" if name in TRAINING else "test" if name == "test" else "val" for name in (*TRAINING, *TESTING)}
LISTS = {"train": "trainval.txt", "val": "test.txt"}  # of the official set
WHOLE_LIST = "list.txt"
SPECIES = {"1": True, "2": False}  # in the lists: whether it is a cat
SIZE = 64           # pixels a side, where nothing else is asked for
KEPT_FROM = 500     # images, whose pixels are kept: to decode so many takes longer than to read them
FORMAT = 2          # of what is kept; another one is made anew
ALLOWED = (
    "the folder that `flops-fit data get cats` makes (or another with images/, and annotations/ or not), a folder with "
    "one subfolder of images a class (train/ and val/ or test/ above them or not), or a parquet file with the columns "
    f"jpeg, label (0 to {OTHER}) or breed, and split or not"
)


def class_number(name: str, argument: str = "class", classes: Sequence[str] = CLASSES) -> int:
    """Position among the classes; case does not matter, and underscores are blanks.

    Raises:
        InputError: it is none of them; the nearest are named.
    """
    spelled = " ".join(re.split(r"[\s_]+", name.strip())).title()
    if spelled not in classes:
        raise InputError.unknown(argument, spelled, classes)
    return classes.index(spelled)


# --- the official set -------------------------------------------------------------------------------------------------


def get(folder: str | os.PathLike[str] | None = None, source: str | None = None) -> Path:
    """The folder with images/ and annotations/ of the official set, fetched and unpacked where they are not there.

    Args:
        folder: None: oxford-iiit-pet in the user's cache folder. Archives that lie in it already are not fetched.
        source: address of a folder with the same archives; None: the official one.

    Raises:
        InputError: an archive cannot be fetched, is another one than the official, or cannot be unpacked. The same
            call goes on from what came.
    """
    home = cache_folder() / "oxford-iiit-pet" if folder is None else Path(folder).expanduser()
    for name, (size, digest) in ARCHIVES.items():
        if not (home / name).is_dir():
            url = f"{(source or OFFICIAL).rstrip('/')}/{name}.tar.gz"
            archive = download.fetch(url, home / f"{name}.tar.gz", digest, size)
            download.unpack(archive, home, name)
    return home


# --- reading ----------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """An image that has been found but not read."""

    name: str            # what messages call it
    encoded: bytes | Path
    label: int
    split: str           # train, val, test; "" where the data name none


@dataclass(frozen=True, slots=True)
class Found:
    """What a path holds: images in the order of their names, and "NAME: why" of those that are not even looked at."""

    rows: Sequence[Row]
    skipped: Sequence[str]

    def digests(self) -> list[bytes]:
        """SHA-256 of each image's bytes.

        All bytes are read for it, because names, sizes and times lie: a copy has
        other times, and a file that is written anew within one tick of the clock keeps its own.
        """
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            return list(threads.map(_digest, (row.encoded for row in self.rows)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents(Record):
    """What `flops-fit data info` tells of a data set."""

    data: str
    images: int                           # that can be used
    classes: Mapping[str, Mapping[str, int]]  # images by class and split
    parted: str                           # how the splits came about
    width: Mapping[str, int]              # pixels as stored: least, median, most
    height: Mapping[str, int]
    skipped: tuple[str, ...]              # "NAME: why" of each image that cannot be used
    hash: str                             # of names, labels, splits and the bytes of the images

    def __str__(self) -> str:
        splits = list(self.classes[CLASSES[0]])
        rows = [(name, *(count[split] for split in splits)) for name, count in self.classes.items()]
        total = ("all", *(sum(count[split] for count in self.classes.values()) for split in splits))
        shape = "; ".join(
            f"{name} {side['least']} to {side['most']} pixels, median {side['median']}"
            for name, side in (("width", self.width), ("height", self.height))
        )
        return "\n".join([
            f"{self.data}: {self.images:,} images; {shape}",
            f"{'class':<18}{''.join(f'{split:>8}' for split in splits)}",
            *(f"{name:<18}{''.join(f'{count:>8,}' for count in counts)}" for name, *counts in (*rows, total)),
            f"split {self.parted}",
            left_out(self.skipped),
            f"hash {self.hash}",
        ])  # fmt: skip


def cat_pictures(path: str | os.PathLike[str], size: int = SIZE) -> Pictures:
    """The cat images at `path`, `size` x `size`; labels are positions in CLASSES, splits train, val or test.

    Images are cropped to their central square. What is broken, no photograph (see `pictures.decoded`), or named in the
    official lists without being there is left out and told in `skipped`.

    Raises:
        InputError: `path` is nothing of the kind, a folder, breed, label or split is unknown, or images of fewer than
            two classes can be used.
        MissingExtra: Pillow or pyarrow is needed for it and not installed.
    """
    if size < 1:
        raise InputError(f"size: got {size}; allowed are whole numbers of pixels from 1 on")
    path = Path(path).expanduser()
    found = _found(path)
    return _read(path, found, found.digests(), size)[0]


def sha256(path: str | os.PathLike[str]) -> str:
    """Of a file its own; of a folder that of the names, classes, splits and bytes of its images."""
    path = Path(path).expanduser()
    if path.is_file():
        return _digest(path).hex()
    found = _found(path)
    return hashlib.sha256(_known(found, found.digests())).hexdigest()


def contents(path: str | os.PathLike[str]) -> Contents:
    """What `path` holds. Raises as `cat_pictures`."""
    path = Path(path).expanduser()
    found = _found(path)
    digests = found.digests()
    pictures, kept = _read(path, found, digests, SIZE)
    counts = Counter(zip(pictures.labels.tolist(), pictures.splits.tolist(), strict=True))
    splits = [split for split in dict.fromkeys(SPLITS.values()) if split in pictures.splits]
    stored = dimensions([found.rows[i].encoded for i in kept])
    sides = np.quantile(stored, [0, 0.5, 1], axis=0).round().astype(int).T.tolist()
    width, height = (dict(zip(("least", "median", "most"), side, strict=True)) for side in sides)
    return Contents(
        data=pictures.name, images=len(kept), parted=pictures.parted, width=width, height=height,
        classes={name: {split: counts[label, split] for split in splits} for label, name in enumerate(CLASSES)},
        skipped=pictures.skipped, hash=_content(found, digests),
    )  # fmt: skip


def _read(path: Path, found: Found, digests: Sequence[bytes], size: int) -> tuple[Pictures, list[int]]:
    """(the pictures, the rows that they are)."""
    pixels, broken = _pixels(found, digests, size)
    kept = [i for i in range(len(found.rows)) if i not in broken]
    rows = [found.rows[i] for i in kept]
    skipped = (*(f"{found.rows[i].name}: {why}" for i, why in broken.items()), *found.skipped)
    if len({row.label for row in rows}) < 2:
        held = f"{len(rows):,} images of {CLASSES[rows[0].label]} alone" if rows else "no image that can be used"
        told = f"path: {path} holds {held}, {left_out(skipped)}"
        raise InputError(f"{told}; give images of two classes at least")
    splits, parted = [row.split for row in rows], "as given"
    if {*splits} <= {"", "train"}:
        splits = _parted([row.label for row in rows], [digests[i] for i in kept])
        parted = f"by hash of the files, {HELD_OUT}% of each class held out"
    labels = np.array([row.label for row in rows], dtype=np.int64)
    name = path.resolve().name
    return Pictures(
        name=name, pixels=pixels, labels=labels, splits=np.array(splits), parted=parted, skipped=skipped
    ), kept


def _parted(labels: Sequence[int], digests: Sequence[bytes]) -> list[str]:
    """The split of each image, as the head of this file says."""
    first: dict[bytes, int] = {}  # of equal images the first class, in the order of the digests
    for digest, label in sorted(zip(digests, labels, strict=True)):
        first.setdefault(digest, label)
    held: set[bytes] = set()
    for label in {*labels}:
        own = [digest for digest, its in first.items() if its == label]
        held.update(own[: max(len(own) > 1, (HELD_OUT * len(own) + 50) // 100)])
    return ["val" if digest in held else "train" for digest in digests]


def _digest(encoded: bytes | Path) -> bytes:
    if isinstance(encoded, bytes):
        return hashlib.sha256(encoded).digest()
    with suppress(OSError), encoded.open("rb") as file:  # what cannot be read is told when it is decoded
        return hashlib.file_digest(file, "sha256").digest()
    return b""


# --- what is kept -----------------------------------------------------------------------------------------------------


def _content(found: Found, digests: Sequence[bytes]) -> str:
    """The hash of all that the pictures and what is told of them depend on."""
    return hashlib.sha256(_known(found, digests)).hexdigest()[:16]


def _known(found: Found, digests: Sequence[bytes]) -> bytes:
    known = [(row.name, row.label, row.split, digest.hex()) for row, digest in zip(found.rows, digests, strict=True)]
    return json.dumps(known).encode()


def _pixels(found: Found, digests: Sequence[bytes], size: int) -> tuple[Tensor, dict[int, str]]:
    """As `pictures.decoded`. Those of many are kept in the user's cache folder, by the hash of what they came from."""
    encoded = [row.encoded for row in found.rows]
    if len(encoded) < KEPT_FROM:
        return decoded(encoded, size, photographs=True)
    key = hashlib.sha256(json.dumps([FORMAT, _content(found, digests), size]).encode()).hexdigest()[:16]
    folder = cache_folder() / f"cats-{key}"
    with suppress(OSError, ValueError, EOFError):  # not there, or damaged
        broken = {int(i): str(why) for i, why in json.loads((folder / "broken.json").read_text("utf-8")).items()}
        pixels = np.load(folder / "pixels.npy")
        if pixels.shape == (len(encoded) - len(broken), 3, size, size):
            return torch.from_numpy(pixels), broken
    pixels, broken = decoded(encoded, size, photographs=True)

    def write(unfinished: Path) -> None:
        np.save(unfinished / "pixels.npy", pixels.numpy())
        (unfinished / "broken.json").write_text(json.dumps(broken), encoding="utf-8")

    with suppress(OSError):  # a full disk costs time only
        store(folder, write)
    return pixels, broken


# --- the three layouts ------------------------------------------------------------------------------------------------


def _found(path: Path) -> Found:
    if path.is_file() and path.suffix == ".parquet":
        found = _table(path)
    elif path.is_dir() and _images_in(path / "images"):
        found = _official(path / "images", path / "annotations")
    elif path.is_dir() and _folders_in(path):
        found = _by_class(path)
    elif path.is_dir() and _images_in(path):
        found = _official(path, path / "annotations")
    else:
        what = "holds no images" if path.is_dir() else "is neither" if path.exists() else "does not exist"
        raise InputError(f"path: {path} {what}; allowed are {ALLOWED}")
    with_split = sum(row.split != "" for row in found.rows)
    if 0 < with_split < len(found.rows):
        bare = next(row.name for row in found.rows if not row.split)
        told = f"split: {len(found.rows) - with_split:,} of {len(found.rows):,} images of {path} are in none"
        raise InputError(f"{told}, {bare} for one; name the split of all or of none")
    return found


def _images_in(folder: Path) -> list[Path]:
    return [file for file in _visible(folder) if file.suffix.lower() in IMAGE_ENDINGS]


def _folders_in(folder: Path) -> list[Path]:
    return [below for below in _visible(folder) if below.is_dir()]


def _visible(folder: Path) -> list[Path]:
    """In the order of their names; what begins with a dot is no image, whatever its name says (macOS writes such)."""
    return sorted(below for below in folder.iterdir() if not below.name.startswith(".")) if folder.is_dir() else []


def _official(images: Path, annotations: Path) -> Found:
    """Oxford-IIIT Pet: breed and number are the file's name; the lists tell cats from dogs, and the split."""
    files, listed = {file.stem: file for file in _images_in(images)}, _listed(annotations)
    if not listed:
        return Found([Row(file.name, file, _class_by_name(file), "") for file in files.values()], [])
    skipped = [f"{file.name}: in none of the lists" for name, file in files.items() if name not in listed]
    rows = []
    for name, (is_cat, split) in sorted(listed.items()):
        label = class_number(name.rpartition("_")[0], f"path: {name} in {annotations}") if is_cat else OTHER
        if name in files:
            rows.append(Row(files[name].name, files[name], label, split))
        else:
            skipped.append(f"{name}: in a list, but not there")
    return Found(rows, skipped)


def _listed(annotations: Path) -> dict[str, tuple[bool, str]]:
    """(is it a cat, its split) of each image in trainval.txt and test.txt, or in list.txt; empty without any."""
    lists = {annotations / name: split for split, name in LISTS.items() if (annotations / name).is_file()}
    if len(lists) < len(LISTS) and (annotations / WHOLE_LIST).is_file():
        lists = {annotations / WHOLE_LIST: ""}
    listed: dict[str, tuple[bool, str]] = {}
    for file, split in lists.items():
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            name, *numbers = line.split() or ["#"]
            if name.startswith("#"):
                continue
            if len(numbers) < 2 or numbers[1] not in SPECIES:
                told = f"path: {file}, line {number}: got {line[:80]!r}"
                raise InputError(f"{told}; allowed are NAME CLASS SPECIES BREED, where SPECIES is 1 (cat) or 2 (dog)")
            if listed.get(name, (None, split))[1] != split:
                told = f"path: {file}, line {number}: {name} is in the other list too"
                raise InputError(f"{told}; an image is to train on or held out: take it out of one")
            listed[name] = (SPECIES[numbers[1]], split)
    return listed


def _class_by_name(file: Path) -> int:
    """By the beginning of the name: a class, or a breed of the set's dogs."""
    spelled = re.sub(r"[\s_-]+", " ", file.stem).casefold()
    known = {name.casefold(): label for label, name in enumerate(CLASSES)} | dict.fromkeys(DOGS, OTHER)
    for name, label in known.items():
        if re.match(rf"{name}(?![a-z])", spelled):
            return label
    return class_number(re.split(r"[_\s-]*\d", file.stem)[0], f"path: the beginning of {file}")


def _by_class(path: Path) -> Found:
    below = _folders_in(path)
    sides = [(side, SPLITS[side.name.lower()]) for side in below if side.name.lower() in SPLITS]
    kinds = [(kind, "") for kind in below if kind.name.lower() not in SPLITS]
    kinds += [(kind, split) for side, split in sides for kind in _folders_in(side)]
    rows = []
    for kind, split in kinds:
        label = class_number(kind.name, f"path: folder {kind}")
        inside = [file for file in sorted(kind.rglob("*")) if not file.name.startswith(".")]
        rows += [Row(str(file.relative_to(path)), file, label, split)
                 for file in inside if file.suffix.lower() in IMAGE_ENDINGS]  # fmt: skip
    apart = [file for folder in (path, *(side for side, _ in sides)) for file in _images_in(folder)]
    return Found(rows, [f"{file.relative_to(path)}: in no folder of a class" for file in apart])


def _table(file: Path) -> Found:
    names = parquet.columns(file)
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None or not {"label", "breed"} & {*names}:
        told = f"path: {file} has columns {', '.join(names)}"
        raise InputError(f"{told}; one of {', '.join(IMAGE_COLUMNS)} must hold encoded images, and label or breed what")
    encoded = [b"" if value is None else bytes_in(value, file) for value in parquet.column(file, image)]
    labels, breeds, splits = (
        list(parquet.column(file, name)) if name in names else [None] * len(encoded)
        for name in ("label", "breed", "split")
    )
    rows = []
    for i, (label, breed, split) in enumerate(zip(labels, breeds, splits, strict=True)):
        where = f"row {i}"
        if split is not None and str(split).lower() not in SPLITS:
            raise InputError(f"split: got {split!r} in {where} of {file}; allowed are {', '.join(SPLITS)}")
        rows.append(Row(where, encoded[i], _class_told(label, breed, f"{where} of {file}"),
                        "" if split is None else SPLITS[str(split).lower()]))  # fmt: skip
    return Found(rows, [])


def _class_told(label: Any, breed: Any, where: str) -> int:
    """The class that a row names by number, by breed, or by both alike."""
    allowed = f"allowed are whole numbers from 0 ({CLASSES[0]}) to {OTHER} ({CLASSES[OTHER]}); names go into breed"
    if label is None and breed is None:
        raise InputError(f"label: got none in {where}, and no breed; {allowed}")
    named = None if breed is None else class_number(str(breed), f"breed: {where}")
    if label is None:
        assert named is not None  # one of the two is there
        return named
    if isinstance(label, bool) or not isinstance(label, (int, float)) or label not in range(len(CLASSES)):
        raise InputError(f"label: got {label!r} in {where}; {allowed}")
    if named not in (None, label):
        told = f"label: got {label:g} ({CLASSES[int(label)]}) and breed {breed!r} in {where}"
        raise InputError(f"{told}; give the same class in both, or leave one column out")
    return int(label)
