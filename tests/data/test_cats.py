"""Cats: one set of images from every layout, one split for ever, and no bad image that is fatal or silent."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import os
import re
import struct
import sys
import tarfile
import tempfile
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flops_fit.data import cats, pictures
from flops_fit.data.cats import ARCHIVES, BREEDS, CLASSES, HELD_OUT, OTHER, cat_pictures, class_number, contents, get
from flops_fit.data.images import sides
from flops_fit.data.pictures import Pictures
from flops_fit.data.text import cache_folder
from flops_fit.errors import InputError, MissingExtra

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'flops-fit[data]'")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'flops-fit[data]'")
arrow = sys.modules["pyarrow"]

DOGS = ("american_bulldog", "pug")
SIDE = 24    # pixels of the images here


def drawn(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """(H, W, 3) uint8: a smooth image, another for each seed."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, kind, **options)
    return stream.getvalue()


def labelled(found: Pictures) -> Counter[tuple[bytes, int, str]]:
    """Pixels, label and split of every image."""
    rows = zip(found.pixels, found.labels.tolist(), found.splits.tolist(), strict=True)
    return Counter((image.numpy().tobytes(), label, split) for image, label, split in rows)


# --- the same animals in every layout ---------------------------------------------------------------------------------

ANIMALS = [(name.replace(" ", "_"), label) for label, name in enumerate(BREEDS)] + [(name, OTHER) for name in DOGS]
SET = [(f"{name}_{number}", label, "val" if number == 3 else "train", encoded(drawn(9 * i + number), "JPEG"))
       for i, (name, label) in enumerate(ANIMALS) for number in (1, 2, 3)]  # fmt: skip


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def line(name: str, label: int) -> str:
    """Of a list: class, species and breed are numbered from 1 on; only the species is read."""
    return f"{name} {label + 1} {2 if label == OTHER else 1} 1\n"


def official(folder: Path, lists: tuple[str, ...] = ("trainval.txt", "test.txt", "list.txt")) -> Path:
    """What `data get cats` leaves, with what else lies in the true archives."""
    for name, _, _, jpeg in SET:
        write(folder / "images" / f"{name}.jpg", jpeg)
    write(folder / "images" / "Abyssinian_100.mat", b"not an image")
    write(folder / "images" / "._Abyssinian_1.jpg", b"what macOS leaves")
    named = {"trainval.txt": "train", "test.txt": "val"}
    for file in lists:
        head = "#Image CLASS-ID SPECIES BREED ID\n# more\n\n" if file == "list.txt" else ""
        rows = [line(name, label) for name, label, split, _ in SET if named.get(file, split) == split]
        write(folder / "annotations" / file, (head + "".join(rows)).encode())
    return folder


def by_class(folder: Path) -> Path:
    for name, label, split, jpeg in SET:
        write(folder / split / CLASSES[label].replace(" ", "_") / "deeper" / f"{name}.JPG", jpeg)
    write(folder / "train" / "Siamese" / ".hidden.jpg", b"x")
    write(folder / "train" / "Siamese" / "notes.txt", b"x")
    return folder


def as_table(folder: Path, **changes: list[Any] | None) -> Path:
    """With the columns of `changes` instead, or without those that are None."""
    columns: dict[str, Any] = {
        "jpeg": [jpeg for *_, jpeg in SET], "label": [float(label) for _, label, _, _ in SET],
        "breed": [CLASSES[label].replace(" ", "_") for _, label, _, _ in SET],
        "split": [split for _, _, split, _ in SET],
    }  # fmt: skip
    kept = {name: values for name, values in {**columns, **changes}.items() if values is not None}
    parquet.write_table(arrow.table(kept), folder / "cats.parquet")
    return folder / "cats.parquet"


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "official": official,
    "folders": by_class,
    "lower-case folders": lambda at: lower_case(by_class(at)),
    "table": as_table,
    "numbers alone": lambda at: as_table(at, breed=None),
    "breeds alone": lambda at: as_table(at, label=None),
    "other names of splits": lambda at: as_table(at, split=["Training" if s == "train" else "validation"
                                                            for _, _, s, _ in SET]),
}  # fmt: skip


def lower_case(folder: Path) -> Path:
    for side, other in (("train", "Training"), ("val", "valid")):
        for kind in (folder / side).iterdir():
            kind.rename(kind.with_name(kind.name.lower().replace("_", " ")))
        (folder / side).rename(folder / other)
    return folder


@pytest.fixture(scope="module")
def expected() -> Counter[tuple[bytes, int, str]]:
    """By Pillow alone: at their own size images are not resized."""
    planes = [np.asarray(Image.open(io.BytesIO(jpeg))).transpose(2, 0, 1).tobytes() for *_, jpeg in SET]
    return Counter((plane, label, split) for plane, (_, label, split, _) in zip(planes, SET, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_images_come_out_of_every_layout(
    layout: str, tmp_path: Path, expected: Counter[tuple[bytes, int, str]]
) -> None:
    found = cat_pictures(LAYOUTS[layout](tmp_path), SIDE)
    assert labelled(found) == expected
    assert (found.labels.dtype, found.skipped, found.parted) == (np.int64, (), "as given")
    train, held, how = sides(found)
    assert (len(train), len(held), how) == (28, 14, "as given (val)")


def test_train_val_and_test_stay_apart(tmp_path: Path) -> None:
    splits = ["train", "val", "test"] * 14
    assert cat_pictures(as_table(tmp_path, split=splits), SIDE).splits.tolist() == splits


@pytest.mark.parametrize("lists", [("list.txt",), ("list.txt", "trainval.txt"), ("trainval.txt",), ()])
def test_without_both_lists_classes_are_the_same_and_the_split_is_by_hash(
    lists: tuple[str, ...], tmp_path: Path, expected: Counter[tuple[bytes, int, str]]
) -> None:
    found = cat_pictures(official(tmp_path, lists), SIDE)
    labels = {plane: label for plane, label, _ in expected}
    assert all(labels[plane] == label for plane, label, _ in labelled(found))
    only_training = lists == ("trainval.txt",)
    assert len(found.labels) == (28 if only_training else 42)
    assert found.parted == "by hash of the files, 15% of each class held out"
    assert [reason for reason in found.skipped if "in none of the lists" not in reason] == []
    assert len(found.skipped) == (14 if only_training else 0)


def test_lists_and_files_that_do_not_match_are_told(tmp_path: Path) -> None:
    official(tmp_path)
    (tmp_path / "images" / "pug_1.jpg").unlink()
    write(tmp_path / "images" / "Siamese_77.jpg", SET[0][-1])
    found = cat_pictures(tmp_path, SIDE)
    assert found.skipped == ("Siamese_77.jpg: in none of the lists", "pug_1: in a list, but not there")
    assert len(found.labels) == 41


def test_the_lists_say_what_is_a_dog(tmp_path: Path) -> None:
    """Whatever its name: species 2 is Other."""
    official(tmp_path)
    changed = (tmp_path / "annotations" / "trainval.txt").read_text().replace("Bengal_1 2 1", "Bengal_1 2 2")
    (tmp_path / "annotations" / "trainval.txt").write_text(changed)
    assert np.bincount(cat_pictures(tmp_path, SIDE).labels).tolist() == [3, 2, *[3] * 10, 7]


@pytest.mark.parametrize(("name", "label"), [
    ("Abyssinian_100.jpg", 0), ("British_Shorthair_7.jpg", 4), ("british shorthair-7.png", 4), ("Siamese.jpg", 10),
    ("siamese12.jpg", 10), ("MAINE_COON (2).jpeg", 6), ("pug_17.jpg", OTHER), ("yorkshire_terrier_1.jpg", OTHER),
    ("Other_3.jpg", OTHER), ("other-3.jpg", OTHER),
])  # fmt: skip
def test_a_flat_folder_is_read_by_its_names(name: str, label: int, tmp_path: Path) -> None:
    for i, other in enumerate(("Birman_1.jpg", "Bombay_1.jpg")):
        write(tmp_path / other, SET[i][-1])
    write(tmp_path / name, SET[9][-1])
    found = cat_pictures(tmp_path, SIDE)
    assert sorted(found.labels.tolist()) == sorted([2, 3, label])


@pytest.mark.parametrize(("name", "said"), [
    ("simaese_3.jpg", "did you mean Siamese"), ("kitten_1.jpg", "got 'Kitten'"), ("img_001.jpg", "got 'Img'"),
    ("pugs_1.jpg", "got 'Pugs'"),
])  # fmt: skip
def test_a_name_that_is_no_breed_is_told(name: str, said: str, tmp_path: Path) -> None:
    """It would else be learned as a dog."""
    for other in ("Birman_1.jpg", name):
        write(tmp_path / other, SET[0][-1])
    with pytest.raises(InputError, match=rf"path: the beginning of .*{name}: .*{said}"):
        cat_pictures(tmp_path, SIDE)


# --- class names ------------------------------------------------------------------------------------------------------


def test_the_classes_are_the_breeds_in_order_and_other() -> None:
    assert len(CLASSES) == 13 and CLASSES[OTHER] == "Other" and list(BREEDS) == sorted(BREEDS)


@given(st.sampled_from(CLASSES), st.randoms(use_true_random=False), st.sampled_from([" ", "_", "  ", "_ "]))
def test_case_and_underscores_do_not_matter(name: str, random: Any, between: str) -> None:
    spelled = "".join(letter.upper() if random.random() < 0.5 else letter.lower() for letter in name)
    assert class_number(spelled.replace(" ", between)) == CLASSES.index(name)


@pytest.mark.parametrize(("name", "nearest"), [
    ("siamse", "Siamese"), ("MAINE_COOM", "Maine Coon"), ("british_short_hair", "British Shorthair"),
    ("rag doll", "Ragdoll"),
])  # fmt: skip
def test_an_unknown_name_is_told_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=rf"class: got .*; allowed are Abyssinian, .*; did you mean {nearest}[ ?]"):
        class_number(name)


@given(st.text("abenglOothr_ 0\n", max_size=12))
def test_nothing_else_is_a_class(name: str) -> None:
    if " ".join(name.replace("_", " ").split()).casefold() not in {known.casefold() for known in CLASSES}:
        with pytest.raises(InputError):
            class_number(name)


# --- the split by hash ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many() -> list[bytes]:
    return [encoded(drawn(seed, 8, 8)) for seed in range(120)]


def unsplit(folder: Path, content: dict[str, list[bytes]], names: Iterator[int] | None = None) -> Path:
    names = names or itertools.count()
    for kind, images in content.items():
        for image in images:
            write(folder / kind / f"{next(names)}.png", image)
    return folder


def held_of(found: Pictures, images: list[bytes]) -> set[bytes]:
    """Which of the images are held out, found by their pixels."""
    of_pixels = {np.asarray(Image.open(io.BytesIO(image))).transpose(2, 0, 1).tobytes(): image for image in images}
    return {of_pixels[image.numpy().tobytes()] for image in found.pixels[torch.from_numpy(found.splits == "val")]}


def lowest(images: list[bytes], count: int) -> set[bytes]:
    return set(sorted(images, key=lambda image: hashlib.sha256(image).digest())[:count])


@settings(deadline=None, max_examples=15)
@example(counts=[0, 1, 2])
@given(counts=st.lists(st.integers(0, 40), min_size=3, max_size=3).filter(lambda counts: sum(map(bool, counts)) > 1))
def test_each_class_holds_out_its_lowest_hashes(counts: list[int], many: list[bytes]) -> None:
    starts = [0, *itertools.accumulate(counts)]
    content = {kind: many[start : start + count] for kind, start, count in zip(CLASSES, starts, counts, strict=False)}
    with tempfile.TemporaryDirectory() as at:
        found = cat_pictures(unsplit(Path(at) / "one", content), 8)
        renamed = cat_pictures(unsplit(Path(at) / "two", content, iter(range(1000, 0, -1))), 8)
    shares = {kind: len(images) * HELD_OUT / 100 for kind, images in content.items()}
    numbers = {kind: int(share) + (share % 1 >= 0.5) for kind, share in shares.items()}
    numbers |= {kind: 1 for kind, images in content.items() if 1 < len(images) <= 3}  # of two one, so that it is judged
    held = set().union(*(lowest(content[kind], number) for kind, number in numbers.items()))
    same = held_of(found, many) == held_of(renamed, many) == held
    assert same  # by name: what pytest would print of the images is longer than hypothesis bears
    assert found.parted == "by hash of the files, 15% of each class held out"
    assert not held or sides(found)[2] == f"{found.parted} (val)"


def test_equal_images_are_on_one_side_in_whatever_classes(tmp_path: Path, many: list[bytes]) -> None:
    content = {"Bengal": many[:40] * 2, "Siamese": many[20:60], "Persian": many[60:] + many[:20]}
    found = cat_pictures(unsplit(tmp_path, content), 8)
    side: dict[bytes, set[str]] = {}
    for image, split in zip(found.pixels, found.splits.tolist(), strict=True):
        side.setdefault(image.numpy().tobytes(), set()).add(split)
    assert len(side) == 120 and all(len(splits) == 1 for splits in side.values())
    own = lowest(many[:40], 6) | lowest(many[40:60], 3) | lowest(many[60:], 9)  # each counts in its first class
    assert held_of(found, many) == own


def test_what_cannot_be_used_does_not_count(tmp_path: Path, many: list[bytes]) -> None:
    unsplit(tmp_path, {"Bengal": [bytes([i]) for i in range(20)] + many[:20], "Siamese": many[20:40]})
    found = cat_pictures(tmp_path, 8)
    assert len(found.skipped) == 20
    assert held_of(found, many) == lowest(many[:20], 3) | lowest(many[20:40], 3)


# --- images that cannot be used ---------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A grey PNG that claims this size; nobody gets as far as its pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
              for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def picture(mode: str, size: tuple[int, int] = (SIDE, SIDE)) -> Any:
    return Image.fromarray(drawn(5, size[1], size[0])).convert(mode)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "no image that can be read"),
    "text": (lambda: b"<html>404 Not Found</html>", "no image that can be read"),
    "cut": (lambda: SET[0][-1][:-20], "truncated"),
    "cut in its head": (lambda: SET[0][-1][:300], "Truncated File Read|no image that can be read"),
    "half a PNG": (lambda: encoded(drawn(1))[:200], "truncated|not enough"),
    "CMYK": (lambda: encoded(picture("CMYK"), "JPEG"), "its pixels are CMYK, not 8-bit RGB or grey"),
    "palette": (lambda: encoded(picture("P"), "GIF"), "its pixels are P,"),
    "16 bit": (lambda: encoded(np.full((SIDE, SIDE), 9000, np.uint16)), "its pixels are I;16,"),
    "alpha": (lambda: encoded(picture("RGBA")), "its pixels are RGBA,"),
    "one bit": (lambda: encoded(picture("1")), "its pixels are 1,"),
    "tiny": (lambda: encoded(picture("RGB", (7, 40))), "7x40 pixels, fewer than 8 a side"),
    "huge": (lambda: png_of(10_000, 9_500), r"95000000 pixels\) exceeds limit"),
    "enormous": (lambda: png_of(200_000, 200_000), "40000000000 pixels"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("layout", ["folder", "table"])
def test_a_bad_image_is_left_out_and_told(
    name: str, layout: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, reason = BAD[name]
    content = [*(jpeg for *_, jpeg in SET[:6]), make()]
    if layout == "folder":
        for i, image in enumerate(content):
            write(tmp_path / CLASSES[i % 2] / f"{i}.jpg", image)
        path, called = tmp_path, "Abyssinian/6.jpg"
    else:
        labels = [i % 2 for i in range(7)]
        path, called = as_table(tmp_path, jpeg=content, label=labels, breed=None, split=None), "row 6"
    found = cat_pictures(path, SIDE)
    assert len(found.pixels) == len(found.labels) == len(found.splits) == 6
    [skipped] = found.skipped
    assert skipped.startswith(f"{called}: ") and re.search(reason, skipped) and "\n" not in skipped
    assert "0x" not in skipped  # no address: the same image is told in the same words
    assert found.corrupt == 1
    assert capfd.readouterr() == ("", "")


def test_grey_and_oblong_photographs_are_used(tmp_path: Path) -> None:
    grey, wide = encoded(picture("L"), "JPEG"), encoded(drawn(3, 16, 40))
    write(tmp_path / "Bengal" / "a.jpg", grey)
    write(tmp_path / "Siamese" / "a.png", wide)
    first, second = cat_pictures(tmp_path, 16).pixels
    assert torch.equal(first[0], first[1]) and torch.equal(first[1], first[2])
    assert np.array_equal(second.numpy(), drawn(3, 16, 40)[:, 12:28].transpose(2, 0, 1))


@pytest.mark.parametrize(("orientation", "turned"), [
    (2, Image.Transpose.FLIP_LEFT_RIGHT), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90),
    (8, Image.Transpose.ROTATE_270),
])  # fmt: skip
def test_photographs_are_turned_upright(orientation: int, turned: Any, tmp_path: Path) -> None:
    """As a phone stores them: sideways, with a note how to hold them."""
    upright, exif = Image.fromarray(drawn(4)), Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path / "Bengal" / "a.png", encoded(upright.transpose(turned), exif=exif))
    write(tmp_path / "Siamese" / "a.png", encoded(upright, exif=b"Exif\0\0broken"))  # as it is: nobody knows better
    for image in cat_pictures(tmp_path, SIDE).pixels:
        assert np.array_equal(image.numpy(), drawn(4).transpose(2, 0, 1))


def test_metadata_that_nobody_reads_warn_nobody(tmp_path: Path) -> None:
    for name in ("Bengal", "Siamese"):
        write(tmp_path / name / "a.jpg", encoded(drawn(4), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0"))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert len(cat_pictures(tmp_path, SIDE).pixels) == 2
        assert seen == []
        Image.open(tmp_path / "Bengal" / "a.jpg").getexif()
        assert "Corrupt EXIF" in str(seen[0].message)


def test_what_is_left_out_of_the_official_set_is_named_by_its_file(tmp_path: Path) -> None:
    official(tmp_path)
    for name in ("Egyptian_Mau_1", "Abyssinian_2"):
        write(tmp_path / "images" / f"{name}.jpg", encoded(picture("P"), "GIF"))  # as some of the true ones are
    found = cat_pictures(tmp_path, SIDE)
    assert [reason.split(":")[0] for reason in found.skipped] == ["Abyssinian_2.jpg", "Egyptian_Mau_1.jpg"]
    assert len(found.labels) == 40


# --- what cannot be read at all ---------------------------------------------------------------------------------------

ROWS = len(SET)
NUMBERS = [label for _, label, _, _ in SET]


def changed(values: list[Any], row: int, value: Any) -> list[Any]:
    return [value if i == row else one for i, one in enumerate(values)]


def listed(at: Path, file: str, text: str) -> Path:
    write(official(at) / "annotations" / file, text.encode())
    return at


def named(at: Path, *names: str) -> Path:
    """Good images under these names."""
    for name, (*_, jpeg) in zip(names, SET, strict=False):
        write(at / name, jpeg)
    return at


def one_broken(at: Path) -> Path:
    write(at / "Siamese" / "a.jpg", b"")
    return named(at, "Bengal/a.jpg")


def relabelled(row: int, value: Any, **columns: Any) -> Callable[[Path], Path]:
    """A table with one other label."""
    return lambda at: as_table(at, label=changed([float(n) for n in NUMBERS], row, value), **columns)


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda at: at / "nowhere", r"path: .*nowhere does not exist; allowed are the folder that"),
    "another file": (lambda at: write(at / "a.csv", b"x"), "path: .*a.csv is neither; allowed are"),
    "an empty folder": (lambda at: at, "path: .* holds no images; allowed are"),
    "no parquet": (lambda at: write(at / "a.parquet", b"x"), "not a parquet file that can be read"),
    "a class misspelled": (lambda at: named(at, "Bengal/a.jpg", "Siamse/a.jpg"),
                           r"folder .*/Siamse: got 'Siamse'; allowed are .*; did you mean Siamese\?"),
    "an unknown class below train": (lambda at: named(at, "train/Bengal/a.jpg", "train/labrador/a.jpg"),
                                     "folder .*/train/labrador: got 'Labrador'; allowed are Abyssinian"),
    "a class beside train": (lambda at: named(at, "train/Bengal/a.jpg", "Siamese/a.jpg"),
                             "split: 1 of 2 images of .* are in none, Siamese/a.jpg for one"),
    "one class": (lambda at: named(at, "Bengal/a.jpg", "Bengal/b.jpg"),
                  "holds 2 images of Bengal alone, 0 left out; give images of two classes"),
    "one class that can be read": (one_broken, r"1 images of Bengal alone, 1 left out \(Siamese/a.jpg: no image"),
    "nothing that can be read": (lambda at: as_table(at, jpeg=[b"x"] * ROWS),
                                 r"no image that can be used, 42 left out \(row 0: .*; row 2: [^;]*; \.\.\.\)"),
    "no rows": (lambda at: as_table(at, jpeg=[], label=[], breed=None, split=None), "image that can be used, 0 left"),
    "an unknown name": (lambda at: named(at, "Bengal_1.jpg", "IMG_1234.jpg"),
                        "the beginning of .*IMG_1234.jpg: got 'Img'"),
    "a breed nearly": (lambda at: named(at, "Bengal_1.jpg", "Siamise_2.jpg"), "got 'Siamise'.*did you mean Siamese"),
    "no image column": (lambda at: as_table(at, jpeg=None), "has columns label, breed, split; one of image, img, jpeg"),
    "no label column": (lambda at: as_table(at, label=None, breed=None), "columns jpeg, split; .* and label or breed"),
    "paths for images": (lambda at: as_table(at, jpeg=["a.png"] * ROWS), "its images are str, not encoded files"),
    "a label too large": (relabelled(5, 13.0, breed=None), r"label: got 13.0 in row 5 of .*; allowed are whole numbers "
                                                           r"from 0 \(Abyssinian\) to 12 \(Other\)"),
    "a label below": (relabelled(0, -1.0), "label: got -1.0 in row 0"),
    "half a label": (relabelled(1, 0.5), "label: got 0.5 in row 1"),
    "no number": (relabelled(1, float("nan")), "label: got nan in row 1"),
    "no label": (relabelled(7, None, breed=None), "label: got none in row 7 of .*, and no breed"),
    "both, and not alike": (relabelled(4, 2.0), r"label: got 2 \(Birman\) and breed 'Bengal' in row 4"),
    "names as labels": (lambda at: as_table(at, label=["Siamese"] * ROWS), "label: got 'Siamese'.*names go into breed"),
    "truth as labels": (lambda at: as_table(at, label=[True] * ROWS), "label: got True"),
    "an unknown breed": (lambda at: as_table(at, breed=["Sphinx"] * ROWS, label=None),
                         "breed: row 0 of .*: got 'Sphinx'; .*did you mean Sphynx"),
    "an unknown split": (lambda at: as_table(at, split=["dev"] * ROWS), "split: got 'dev' in row 0.*allowed are train"),
    "half a split": (lambda at: as_table(at, split=changed(["train"] * ROWS, 3, None)),
                     "split: 1 of 42 images .*, row 3 for one"),
    "a line that is none": (lambda at: listed(at, "test.txt", "# head\nBengal_3 2\n"), "line 2: got 'Bengal_3 2'"),
    "an unknown species": (lambda at: listed(at, "test.txt", "Bengal_3 2 3 1\n"), "are NAME CLASS SPECIES BREED"),
    "an image on both sides": (lambda at: listed(at, "test.txt", "Bengal_1 2 1 1\n"), "Bengal_1 is in the other list"),
    "a cat of no breed": (lambda at: listed(at, "test.txt", "Tabby_1 2 1 1\n"), "Tabby_1 in .*: got 'Tabby'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    with pytest.raises(InputError, match=message) as caught:
        cat_pictures(make(tmp_path), SIDE)
    assert re.match(r"(path|label|breed|split|data): [^\n]+\Z", str(caught.value))


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_that_is_none(size: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"size: got {size}; allowed"):
        cat_pictures(by_class(tmp_path), size)


def test_an_image_that_lies_in_no_class_is_told(tmp_path: Path) -> None:
    by_class(tmp_path)
    for name in ("stray.jpg", "train/stray.jpg"):
        write(tmp_path / name, SET[0][-1])
    assert cat_pictures(tmp_path, SIDE).skipped == tuple(
        f"{name}: in no folder of a class" for name in ("stray.jpg", "train/stray.jpg")
    )


def test_a_missing_pillow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = by_class(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "PIL"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"pip install 'flops-fit\[data\]'"):
        cat_pictures(path)


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cats, "KEPT_FROM", 1)
    return cache_folder()


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were asked for, each time."""
    asked: list[int] = []

    def counted(encoded: list[Any], size: int, photographs: bool = False) -> Any:
        asked.append(len(encoded))
        return pictures.decoded(encoded, size, photographs)

    monkeypatch.setattr(cats, "decoded", counted)
    return asked


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def same(first: Pictures, second: Pictures) -> bool:
    return torch.equal(first.pixels, second.pixels) and all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in ("labels", "splits", "skipped", "name", "parted")
    )


def test_the_second_time_nothing_is_decoded(tmp_path: Path, cache: Path, decodings: list[int]) -> None:
    official(tmp_path / "pets")
    write(tmp_path / "pets" / "images" / "Birman_2.jpg", b"broken")
    first = cat_pictures(tmp_path / "pets", SIDE)
    assert same(cat_pictures(tmp_path / "pets", SIDE), first) and decodings == [42]
    assert len(first.skipped) == 1 and len(list(cache.iterdir())) == 1
    copy = tmp_path / "elsewhere" / "pets"
    copy.parent.mkdir()
    (tmp_path / "pets").rename(copy)
    for file in (copy / "images").iterdir():
        os.utime(file, (0, 0))
    assert same(cat_pictures(copy, SIDE), first) and decodings == [42]  # the content counts, not place and time


def test_whatever_changes_is_decoded_anew(tmp_path: Path, cache: Path, decodings: list[int]) -> None:
    path = by_class(tmp_path / "pets")
    before = cat_pictures(path, SIDE)
    file = path / "train" / "Siamese" / "deeper" / "Siamese_1.JPG"
    told = file.stat()
    other = bytearray(file.read_bytes())
    other[-40] ^= 1
    file.write_bytes(other)
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))  # size, name and times are the same as before
    assert not torch.equal(cat_pictures(path, SIDE).pixels, before.pixels)
    file.rename(path / "train" / "Bengal" / file.name)
    assert np.bincount(cat_pictures(path, SIDE).labels).tolist() != np.bincount(before.labels).tolist()
    cat_pictures(path, SIDE + 1)
    assert len(decodings) == 4


@pytest.mark.parametrize("file", ["pixels.npy", "broken.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"{}", None, saved(np.zeros((2, 3, SIDE, SIDE), np.uint8))])
def test_a_damaged_cache_is_made_anew(
    file: str, content: bytes | None, tmp_path: Path, cache: Path, decodings: list[int]
) -> None:
    path = by_class(tmp_path / "pets")
    write(path / "train" / "Siamese" / "broken.jpg", b"broken")
    first = cat_pictures(path, SIDE)
    [folder] = cache.iterdir()
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    assert same(cat_pictures(path, SIDE), first) and len(decodings) == 2
    assert same(cat_pictures(path, SIDE), first) and len(decodings) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[int]
) -> None:
    monkeypatch.setattr(cats, "KEPT_FROM", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(write(tmp_path / "file", b"")))
    path = by_class(tmp_path / "pets")
    assert same(cat_pictures(path, SIDE), cat_pictures(path, SIDE)) and len(decodings) == 2


# --- fetching ---------------------------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012  one server at a time

    def log_request(self, *_: Any) -> None:
        self.asked.append(self.path)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def mirror(folder: Path) -> Iterator[str]:
    """The address of a server with the files of a folder."""
    Quiet.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/pets"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to serve, with pets/images.tar.gz and pets/annotations.tar.gz, which are taken for the official ones."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    home = tmp_path / "served" / "pets"
    whole, expected = official(tmp_path / "packed"), {}
    home.mkdir(parents=True)
    for name in ARCHIVES:
        with tarfile.open(home / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(whole / name, name)
        content = (home / f"{name}.tar.gz").read_bytes()
        expected[name] = (len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")
    monkeypatch.setattr(cats, "ARCHIVES", expected)
    return home.parent


def test_the_official_set_is_fetched_unpacked_and_read(
    tmp_path: Path, archives: Path, expected: Counter[tuple[bytes, int, str]]
) -> None:
    with mirror(archives) as source:
        folder = get(tmp_path / "mine", source + "/")
        assert sorted(Quiet.asked) == ["/pets/annotations.tar.gz", "/pets/images.tar.gz"]
        assert get(tmp_path / "mine", source) == folder and len(Quiet.asked) == 2
    assert labelled(cat_pictures(folder, SIDE)) == expected
    for archive in folder.glob("*.tar.gz"):
        archive.unlink()
    assert get(folder, "http://nobody.invalid") == folder  # it is there: nobody is asked


def test_archives_brought_by_hand_are_unpacked(
    tmp_path: Path, archives: Path, expected: Counter[tuple[bytes, int, str]]
) -> None:
    folder = get(archives / "pets", "http://nobody.invalid")
    assert labelled(cat_pictures(folder, SIDE)) == expected


def test_the_user_s_cache_folder_is_the_default(archives: Path, cache: Path) -> None:
    with mirror(archives) as source:
        assert get(source=source) == cache / "oxford-iiit-pet"


def test_another_archive_than_the_official_is_refused(tmp_path: Path, archives: Path) -> None:
    changed = bytearray((archives / "pets" / "images.tar.gz").read_bytes())
    changed[100] ^= 1
    (archives / "pets" / "images.tar.gz").write_bytes(changed)
    with mirror(archives) as source, pytest.raises(InputError, match="source: .*has sha256:.*, expected is sha256:"):
        get(tmp_path / "mine", source)
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == ["annotations", "annotations.tar.gz"]


def test_the_checksums_are_whole() -> None:
    assert set(ARCHIVES) == {"images", "annotations"}
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for _, digest in ARCHIVES.values())


# --- what is told -----------------------------------------------------------------------------------------------------


def test_what_a_set_holds(tmp_path: Path) -> None:
    official(tmp_path / "pets")
    write(tmp_path / "pets" / "images" / "pug_1.jpg", b"broken")
    write(tmp_path / "pets" / "images" / "pug_2.jpg", encoded(drawn(1, 30, 100), "JPEG"))
    found = contents(tmp_path / "pets")
    assert (found.data, found.images, found.parted) == ("pets", 41, "as given")
    assert found.classes == {name: {"train": 2, "val": 1} for name in BREEDS} | {"Other": {"train": 3, "val": 2}}
    assert found.width == {"least": SIDE, "median": SIDE, "most": 100}
    assert found.height == {"least": SIDE, "median": SIDE, "most": 30}
    assert found.skipped == ("pug_1.jpg: no image that can be read",)
    text = str(found)
    assert re.search(r"^Siamese +2 +1$", text, re.M) and re.search(r"^all +27 +14$", text, re.M)
    assert "1 left out (pug_1.jpg: no image that can be read)" in text
    assert contents(tmp_path / "pets").hash == found.hash
    write(tmp_path / "pets" / "images" / "pug_1.jpg", b"broken in another way")
    assert contents(tmp_path / "pets").hash != found.hash


def test_the_hash_is_of_labels_and_splits_too(tmp_path: Path) -> None:
    splits = [split for _, _, split, _ in SET]
    tables = [{}, {"label": changed(NUMBERS, 3, 2)}, {"split": changed(splits, 0, "val")}, {"label": NUMBERS}]
    one, two, three, four = (contents(as_table(tmp_path, breed=None, **change)).hash for change in tables)
    assert len({one, two, three}) == 3 and one == four  # whole numbers are the same in any type


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Path:
    given = os.environ.get("FLOPS_FIT_SHARED")
    base = Path(given) if given else Path(__file__).resolve().parents[2].parent / "shared"
    path = base / "data" / "cats" / "breeds_64.parquet"
    if not path.is_file():
        pytest.skip("the cats are not here: set FLOPS_FIT_SHARED to a folder that holds data/cats/breeds_64.parquet")
    return path


def test_real_cats(real: Path) -> None:
    found = cat_pictures(real)
    assert (tuple(found.pixels.shape), found.skipped) == ((2190, 3, 64, 64), ())
    assert Counter(found.splits.tolist()) == {"train": 1867, "val": 323}
    assert set(found.labels.tolist()) == set(range(13))
    train, held, how = sides(found)
    assert (len(train), len(held), how) == (1867, 323, "as given (val)")
    assert found.labels.tolist() == [int(label) for label in parquet.read_table(real)["label"].to_pylist()]
    row = parquet.read_table(real).slice(1000, 1).to_pylist()[0]
    alone = np.asarray(Image.open(io.BytesIO(row["jpeg"]))).transpose(2, 0, 1)
    assert np.array_equal(found.pixels[1000].numpy(), alone)
    assert same(cat_pictures(real), found)


def test_the_real_cats_without_their_split(real: Path, tmp_path: Path) -> None:
    table = parquet.read_table(real).drop_columns(["split", "label"])
    parquet.write_table(table, tmp_path / "cats.parquet")
    found = cat_pictures(tmp_path / "cats.parquet")
    for label, whole in enumerate(np.bincount(found.labels)):
        held = int((found.splits[found.labels == label] == "val").sum())
        assert abs(held - HELD_OUT / 100 * whole) <= 0.5
