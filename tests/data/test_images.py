"""Images from every kind of place: read as they are, parted once, moved at random, refused with a reason."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.source import SourceContract
from flops_fit.data.batches import MapSource, prepare, seeded
from flops_fit.data.images import SHIFT, Augment, Images, ImageSets, image_sets, mirrored
from flops_fit.data.pictures import SHAPES, _square, drawn_shapes, read, sheet, write_png
from flops_fit.errors import InputError, MissingExtra

FLOAT = 1e-6   # float32 means of a few thousand bytes, and one multiply-add a pixel
RESIZED = 1.0  # of 255: another program's antialiasing rounds differently

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'flops-fit[data]'")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'flops-fit[data]'")
arrow = sys.modules["pyarrow"]

COUNT, CLASSES = 40, 4


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """(40, 32, 32, 3) uint8; sample i is of class i % 4."""
    return np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


# --- every way of storing the same images -----------------------------------------------------------------------------


def is_test(i: int) -> bool:
    return i % 5 == 0


def as_table(folder: Path, pixels: np.ndarray) -> Path:
    rows = {"jpeg": [encoded(image) for image in pixels], "label": [i % CLASSES for i in range(COUNT)],
            "split": ["test" if is_test(i) else "train" for i in range(COUNT)]}  # fmt: skip
    parquet.write_table(arrow.table(rows), folder / "images.parquet")
    return folder / "images.parquet"


def as_hub(folder: Path, pixels: np.ndarray) -> Path:
    """One file a split, images as {bytes, path}: the layout that the Hugging Face Hub stores."""
    for split in ("train", "test"):
        chosen = [i for i in range(COUNT) if is_test(i) == (split == "test")]
        rows = {"img": [{"bytes": encoded(pixels[i]), "path": None} for i in chosen],
                "label": [i % CLASSES for i in chosen]}  # fmt: skip
        parquet.write_table(arrow.table(rows), folder / f"{split}-00000-of-00001.parquet")
    return folder


def as_folders(folder: Path, pixels: np.ndarray) -> Path:
    for i, image in enumerate(pixels):
        home = folder / ("val" if is_test(i) else "train") / f"class {i % CLASSES}"
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{i:03d}.png").write_bytes(encoded(image))
    return folder


def cifar_parts(pixels: np.ndarray) -> dict[str, tuple[np.ndarray, list[int]]]:
    planes = pixels.transpose(0, 3, 1, 2).reshape(COUNT, -1)
    chosen = {"test_batch": [i for i in range(COUNT) if is_test(i)],
              **{f"data_batch_{k}": [i for i in range(COUNT) if i % 5 == k] for k in (1, 2, 3, 4)}}  # fmt: skip
    return {name: (planes[rows], [i % CLASSES for i in rows]) for name, rows in chosen.items()}


def as_binary(folder: Path, pixels: np.ndarray) -> Path:
    for name, (planes, labels) in cifar_parts(pixels).items():
        records = b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, planes, strict=True))
        (folder / f"{name}.bin").write_bytes(records)
    return folder


def as_pickles(folder: Path, pixels: np.ndarray) -> Path:
    home = folder / "cifar-10-batches-py"
    home.mkdir()
    for name, (planes, labels) in cifar_parts(pixels).items():
        content = {b"batch_label": b"x", b"labels": labels, b"data": planes, b"filenames": [b"a.png"] * len(labels)}
        (home / name).write_bytes(pickle.dumps(content, protocol=2))
    (home / "batches.meta").write_bytes(b"not read")
    return folder


def as_archive(folder: Path, pixels: np.ndarray) -> Path:
    as_pickles(folder, pixels)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    return folder / "cifar-10-python.tar.gz"


WAYS = [as_table, as_hub, as_folders, as_binary, as_pickles, as_archive]


def contents(images: Images) -> set[tuple[bytes, int]]:
    return {(image.numpy().tobytes(), int(label)) for image, label in zip(images.pixels, images.labels, strict=True)}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_images_come_out_of_every_kind_of_storage(
    way: Callable[..., Path], tmp_path: Path, pixels: np.ndarray
) -> None:
    sets = image_sets(way(tmp_path, pixels))
    planes = pixels.transpose(0, 3, 1, 2)
    for images, held_out in ((sets.training, False), (sets.held_out, True)):
        expected = {(planes[i].tobytes(), i % CLASSES) for i in range(COUNT) if is_test(i) == held_out}
        assert contents(images) == expected
    assert sets.classes == CLASSES
    assert "32 images of 32x32 in 4 classes to train on" in sets.description
    assert "8 held out as given" in sets.description


@pytest.mark.parametrize("augment", get_args(Augment))
def test_only_training_images_are_ever_augmented(augment: Augment, tmp_path: Path, pixels: np.ndarray) -> None:
    sets = image_sets(as_table(tmp_path, pixels), augment=augment)
    assert (sets.training.augment, sets.held_out.augment) == (augment, "none")
    assert ("mirrored" in sets.description, "moved" in sets.description) == (augment != "none", augment == "moved")


def test_without_a_split_equal_images_stay_together(tmp_path: Path) -> None:
    kinds = np.random.default_rng(1).integers(0, 256, (120, 32, 32, 3), dtype=np.uint8)
    for i in range(360):
        home = tmp_path / str(i % 2)
        home.mkdir(exist_ok=True)
        (home / f"{i}.png").write_bytes(encoded(kinds[i % 120]))
    sets = image_sets(tmp_path)
    sides = [{image for image, _ in contents(images)} for images in (sets.training, sets.held_out)]
    assert len(sides[0]) + len(sides[1]) == 120
    assert not sides[0] & sides[1]
    assert 2 <= len(sides[1]) <= 30  # a tenth of 120, by hash
    assert "by hash of the pixels" in sets.description


def test_text_labels_are_numbered_by_name(tmp_path: Path, pixels: np.ndarray) -> None:
    names = ["wolf", "ant", "bee", "wolf"] * 10
    rows = {"image": [encoded(image) for image in pixels], "label": names}
    rows["split"] = ["validation" if is_test(i) else "train" for i in range(COUNT)]
    parquet.write_table(arrow.table(rows), tmp_path / "t.parquet")
    sets = image_sets(tmp_path / "t.parquet")
    found = dict(contents(sets.training) | contents(sets.held_out))
    for i, image in enumerate(pixels.transpose(0, 3, 1, 2)):
        assert found[image.tobytes()] == {"ant": 0, "bee": 1, "wolf": 2}[names[i]]


@pytest.mark.parametrize("upright", [False, True])
def test_another_size_is_cropped_to_its_centre_and_resized(upright: bool, tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64), 1.6 * np.arange(96))[:, :, None].repeat(3, 2).astype(np.uint8)
    middle = Image.fromarray(smooth[:, 16:80])
    if upright:
        smooth, middle = smooth.transpose(1, 0, 2), middle.transpose(Image.Transpose.TRANSPOSE)
    for label in range(2):
        for side in ("train", "test"):
            (tmp_path / side / str(label)).mkdir(parents=True)
            (tmp_path / side / str(label) / "a.png").write_bytes(encoded(np.ascontiguousarray(smooth)))
    images = image_sets(tmp_path, size=16).training.pixels
    small = np.asarray(middle.resize((16, 16), Image.Resampling.BILINEAR))
    expected = torch.from_numpy(small.transpose(2, 0, 1).astype(np.float32))
    assert images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(images[0].float(), expected, rtol=0, atol=RESIZED)


# --- broken and wrong input -------------------------------------------------------------------------------------------


def broken_table(path: Path, broken: int, count: int = 300) -> Path:
    image = encoded(np.zeros((32, 32, 3), np.uint8), "JPEG")
    rows = {"jpeg": [image[: len(image) // 4] if i < broken else image for i in range(count)],
            "label": [i % 2 for i in range(count)],
            "split": ["test" if i % 3 else "train" for i in range(count)]}  # fmt: skip
    parquet.write_table(arrow.table(rows), path)
    return path


def test_halves_are_rounded_up_when_resized() -> None:
    """Half of the size by the triangle of Pillow and torch: (1, 3, 3, 1) / 8 along each side, in whole numbers. Where
    halves fell as the last digits of a machine have it, data would not be known by their hash on another."""
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    triangle = torch.tensor([1, 3, 3, 1])
    windows = pixels[:, :, 1:, 1:].long().unfold(2, 4, 2).unfold(3, 4, 2)  # (4, 3, 14, 14, 4, 4): those that are whole
    exact = (windows * triangle[:, None] * triangle).sum(dim=(4, 5))  # 64 times as large
    assert bool((exact % 64 == 32).any())
    assert torch.equal(_square(pixels, 16)[:, :, 1:-1, 1:-1], ((exact + 32) // 64).byte())


def test_a_few_corrupt_images_are_left_out_and_counted(tmp_path: Path) -> None:
    path = broken_table(tmp_path / "a.parquet", broken=3)
    sets = image_sets(path)
    assert len(sets.training) + len(sets.held_out) == 297
    assert "; 3 that cannot be decoded are left out" in sets.description
    assert [reason.split(":")[0] for reason in read(path, 32).skipped] == ["row 0", "row 1", "row 2"]


def test_more_than_one_percent_corrupt_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"4 of 300 images in a.parquet cannot be decoded, more than 1%"):
        image_sets(broken_table(tmp_path / "a.parquet", broken=4))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def table(folder: Path, **columns: list[Any]) -> Path:
    parquet.write_table(arrow.table(columns), folder / "x.parquet")
    return folder / "x.parquet"


def archive(folder: Path) -> Path:
    with tarfile.open(folder / "x.tar.gz", "w:gz") as made:
        made.add(write(folder / "a.txt", b"a"))
    return folder / "x.tar.gz"


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda at: at / "nowhere", r"nowhere does not exist; allowed are a .parquet file"),
    "a text file": (lambda at: write(at / "a.txt", b"hello"), r"a.txt is neither; allowed are"),
    "an empty folder": (lambda at: at, "holds no images in subfolders; allowed are"),
    "no parquet": (lambda at: write(at / "a.parquet", b"hello"), "not a parquet file that can be read"),
    "no image column": (lambda at: table(at, text=["a"], label=[1]), "has columns text, label; one of image, img"),
    "paths for images": (lambda at: table(at, image=["a.png"], label=[1]), "its images are str, not encoded files"),
    "no label": (lambda at: table(at, image=[b"x"], label=[None]), "column 'label' holds something else"),
    "one class": (lambda at: one_class(at), "in 1 classes; both sides need some, and two classes"),
    "an archive of other things": (archive, "is an archive without them"),
    "a cut binary": (lambda at: write(at / "data_batch_1.bin", b"12345").parent, "is not a file of CIFAR-10"),
    "a cut archive": (lambda at: cut_archive(at), "cannot be unpacked|is neither"),
}


def one_class(folder: Path) -> Path:
    for i in range(40):
        (folder / "only").mkdir(exist_ok=True)
        (folder / "only" / f"{i}.png").write_bytes(encoded(np.full((32, 32, 3), i, np.uint8)))
    return folder


def cut_archive(folder: Path) -> Path:
    whole = folder / "whole.tar.gz"
    write(folder / "data_batch_1.bin", np.random.default_rng(0).bytes(3073 * 50))
    with tarfile.open(whole, "w:gz") as made:
        made.add(folder / "data_batch_1.bin", "data_batch_1.bin")
    return write(folder / "cut.tar.gz", whole.read_bytes()[:60_000])


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_told(name: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    with pytest.raises(InputError, match=message) as caught:
        image_sets(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(("path: ", "data: "))


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


def test_a_pickle_that_names_anything_but_arrays_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    harmful = pickle.dumps({b"data": Harmful(), b"labels": [0]}, protocol=2)
    write(tmp_path / "data_batch_1", harmful)
    with pytest.raises(InputError, match=r"it names \w+\.system, and only numpy arrays are read"):
        image_sets(tmp_path)
    assert not (tmp_path / "harmed").exists()
    pickle.loads(harmful)  # the same bytes do harm where pickle may name anything
    assert (tmp_path / "harmed").exists()


@pytest.mark.parametrize(("module", "way"), [("pyarrow", as_table), ("PIL", as_folders)])
def test_a_missing_extra_is_named(
    module: str, way: Callable[..., Path], tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = way(tmp_path, pixels)
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"pip install 'flops-fit\[data\]'"):
        image_sets(path)


# --- the data set itself ----------------------------------------------------------------------------------------------


def small(augment: Augment = "none", count: int = 30, told: bool = False) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 12, 12), dtype=torch.uint8, generator=generator)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    return Images(pixels, torch.arange(count) % 3, mean, std, augment, told)


def raw(images: Images, batch: Tensor) -> Tensor:
    """Pixels 0..255 again."""
    return ((batch * images.std[:, None, None] + images.mean[:, None, None]) * 255).round().byte()


def test_normalisation_is_by_the_training_images_alone(tmp_path: Path, pixels: np.ndarray) -> None:
    sets = image_sets(as_table(tmp_path, pixels))
    plain = np.stack([pixels[i] for i in range(COUNT) if not is_test(i)]).astype(np.float64).reshape(-1, 3) / 255
    for images in (sets.training, sets.held_out):
        assert images.mean.tolist() == pytest.approx(plain.mean(0).tolist(), abs=FLOAT)
        assert images.std.tolist() == pytest.approx(plain.std(0).tolist(), abs=FLOAT)
    seen = sets.held_out.batch([2])[0]
    by_hand = (sets.held_out.pixels[2].double() / 255 - torch.tensor(plain.mean(0))[:, None, None]) / torch.tensor(
        plain.std(0)
    )[:, None, None]
    torch.testing.assert_close(seen[0].double(), by_hand, rtol=0, atol=10 * FLOAT)


def test_a_batch_is_its_samples() -> None:
    images = small()
    batch, labels = images.batch([4, 0, 4])
    assert batch.dtype == torch.float32
    assert labels.tolist() == [1, 0, 1]
    for row, index in enumerate([4, 0, 4]):
        assert torch.equal(batch[row], images[index][0])
    assert torch.equal(raw(images, batch), images.pixels[[4, 0, 4]])


@pytest.mark.parametrize(("augment", "shift"), [("mirrored", 0), ("moved", SHIFT)])
def test_every_augmented_image_is_a_shift_and_perhaps_a_mirror_image(augment: Augment, shift: int) -> None:
    """Each image that comes is one of those that padding by mirror, cropping and flipping can make."""
    images, offsets = small(augment), 2 * shift + 1
    padded = np.pad(images.pixels[7].numpy(), ((0, 0), (shift, shift), (shift, shift)), mode="reflect")
    allowed: dict[bytes, tuple[int, int, bool]] = {}
    for down in range(offsets):
        for right in range(offsets):
            crop = padded[:, down : down + 12, right : right + 12]
            allowed[crop.tobytes()] = (down, right, False)
            allowed[crop[:, :, ::-1].tobytes()] = (down, right, True)
    assert len(allowed) == 2 * offsets**2
    with seeded(3):
        batch = raw(images, images.batch([7] * 600)[0])
    came = [allowed[image.numpy().tobytes()] for image in batch]
    assert {down for down, _, _ in came} == {right for _, right, _ in came} == set(range(offsets))
    assert 240 < sum(flip for _, _, flip in came) < 360  # 600 coins, 4.9 standard deviations
    assert len(set(came)) > 0.7 * len(allowed)  # rows, columns and coins are drawn apart, and anew for each image


def test_how_far_an_image_was_moved_is_told() -> None:
    """Away from the rim it is the image itself or its mirror image, so many pixels further down and right."""
    images, inside = small("moved", told=True), slice(SHIFT, 12 - SHIFT)
    with seeded(3):
        batch, _, moves = images.batch([7] * 200)
    way = (moves * SHIFT).long()
    assert way.unique().tolist() == list(range(-SHIFT, SHIFT + 1))
    for image, (down, right) in zip(raw(images, batch), way.tolist(), strict=True):
        moved = [one.roll((down, right), (1, 2)) for one in (images.pixels[7], images.pixels[7].flip(2))]
        assert any(torch.equal(image[:, inside, inside], one[:, inside, inside]) for one in moved)
    plain = small("none", told=True)
    assert torch.equal(plain.batch([0, 1])[2], torch.zeros(2, 2)) and len(plain[0]) == 3
    assert plain.fingerprint != small("none").fingerprint


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(InputError, match='augment: got True; allowed are .none., .mirrored., .moved.'):
        small(True)  # type: ignore[arg-type]


def test_augmentation_follows_the_global_seed() -> None:
    images = small("moved")
    drawn = []
    for seed in (1, 1, 2):
        with seeded(seed):
            drawn.append(images.batch([0, 1, 2])[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_mirrored_positions() -> None:
    assert mirrored(torch.arange(-3, 8), 5).tolist() == [3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1]


def test_all_that_can_change_a_batch_is_in_the_fingerprint() -> None:
    base = small()
    one_pixel = base.pixels.clone()
    one_pixel[11, 1, 5, 5] ^= 1
    one_label = base.labels.clone()
    one_label[3] = 2
    others = [
        Images(one_pixel, base.labels, base.mean, base.std),
        Images(base.pixels, one_label, base.mean, base.std),
        Images(base.pixels, base.labels, base.mean + 0.01, base.std),
        Images(base.pixels, base.labels, base.mean, base.std * 1.01),
        small("moved"),
        small("mirrored"),
    ]
    assert len({images.fingerprint for images in (base, *others)}) == 7
    assert small().fingerprint == base.fingerprint
    assert prepare(base).fingerprint == base.fingerprint * 2  # used as it is, no sample probed


def test_it_travels_to_workers_whole() -> None:
    images = small("moved")
    packed = pickle.dumps(images)
    again = pickle.loads(packed)
    assert len(packed) < images.pixels.numel() + 8 * len(images) + 3000
    assert (again.fingerprint, again.augment) == (images.fingerprint, "moved")
    with seeded(0):
        first = images.batch([5, 6])
    with seeded(0):
        second = again.batch([5, 6])
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


class TestSource(SourceContract):
    """300 images of one colour each, which is their identity too."""

    @pytest.fixture
    def dataset(self) -> Images:
        index = torch.arange(300)
        pixels = torch.stack((index // 256, index % 256, index * 0), 1).byte()[:, :, None, None].expand(-1, -1, 8, 8)
        return Images(pixels.contiguous(), index, torch.zeros(3), torch.ones(3))

    def test_samples_are_whole(self, source: MapSource) -> None:
        images, index = next(source.batches(32, seed=1))
        high, low, _ = (255 * images).round().long().unbind(1)  # (32, 8, 8) each
        assert torch.equal(256 * high + low, index[:, None, None].expand(-1, 8, 8))


# --- drawn by code ----------------------------------------------------------------------------------------------------


def test_drawn_shapes_are_the_same_every_time_and_all_different() -> None:
    first, second = (drawn_shapes(count=1200, held_out=200) for _ in range(2))
    assert torch.equal(first.pixels, second.pixels)
    assert len({hashlib.sha256(image.numpy()).digest() for image in first.pixels}) == 1200
    assert np.bincount(first.labels).tolist() == [120] * len(SHAPES)
    assert not torch.equal(drawn_shapes(count=1200, held_out=200, seed=1).pixels, first.pixels)


def test_shapes_of_a_class_are_told_apart_by_where_their_ink_is() -> None:
    """Undisturbed shapes: each class has its own share of ink around its centre, or its own symmetry."""
    line = torch.linspace(-1.2, 1.2, 121)
    u, v = torch.meshgrid(line, line, indexing="xy")
    masks = {name: inside(u, v, u.square() + v.square(), torch.maximum(u.abs(), v.abs())).float()
             for name, inside in SHAPES.items()}  # fmt: skip
    for name, mask in masks.items():
        assert 0.05 < mask.mean() < 0.6, name
        for other, theirs in masks.items():
            overlap = (mask * theirs).sum() / torch.maximum(mask, theirs).sum()
            assert name == other or overlap < 0.85, (name, other)


@pytest.fixture(scope="module")
def built_in() -> ImageSets:
    return image_sets()


def test_without_a_path_shapes_are_drawn_and_said_to_be(built_in: ImageSets) -> None:
    assert built_in.description.startswith("shapes drawn by code: 40,000 images of 32x32 in 10 classes")
    assert (len(built_in.training), len(built_in.held_out), built_in.classes) == (40_000, 4_000, 10)
    share = built_in.held_out.labels.bincount() / 4_000
    assert share.tolist() == pytest.approx([0.1] * 10)


# --- the real thing ---------------------------------------------------------------------------------------------------


def test_cifar_10_has_the_statistics_that_everybody_quotes(tmp_path: Path) -> None:
    given = os.environ.get("FLOPS_FIT_SHARED")
    base = Path(given) if given else Path(__file__).resolve().parents[2].parent / "shared"
    path = base / "data" / "cifar10" / "cifar10.parquet"
    if not path.is_file():
        pytest.skip("CIFAR-10 is not here: set FLOPS_FIT_SHARED to a folder that holds data/cifar10/cifar10.parquet")
    whole = parquet.read_table(path)
    parquet.write_table(whole.take(np.arange(0, len(whole), 25)), tmp_path / "part.parquet")
    sets = image_sets(tmp_path / "part.parquet")
    assert (len(sets.training), len(sets.held_out), sets.classes) == (2000, 200, 10)
    standard_error = 0.25 / 2000**0.5 * 2  # pixels of an image lean the same way: twice that of 2,000 lone pixels
    assert sets.training.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=4 * standard_error)
    assert sets.training.std.tolist() == pytest.approx([0.247, 0.2435, 0.2616], abs=4 * standard_error)


def test_pictures_that_are_written_can_be_read(tmp_path: Path) -> None:
    pixels = small().pixels[:5]
    for number, image in enumerate(pixels):
        (tmp_path / "all" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        write_png(tmp_path / "all" / str(number % 2) / f"{number}.png", image)
    found = read(tmp_path / "all", 12)
    assert torch.equal(found.pixels, pixels[[0, 2, 4, 1, 3]])  # class by class
    with pytest.raises(InputError, match="out: .* cannot be written"):
        write_png(tmp_path / "gone" / "a.png", pixels[0])


def test_a_sheet_holds_every_picture_at_its_place() -> None:
    pixels = small().pixels[:5]
    made = sheet(pixels, columns=3, gap=2)
    assert made.shape == (3, 2 * 12 + 2, 3 * 12 + 4)
    assert torch.equal(made[:, 14:26, 14:26], pixels[4]) and torch.equal(made[:, :12, 28:40], pixels[2])
    assert (made[:, 12:14] == 255).all() and (made[:, 14:26, 28:] == 255).all()  # between, and where none is left
