"""Changes of training images: what they keep, that each image has its own, and that a seed repeats them."""

from __future__ import annotations

import pytest
import torch

from flops_fit.data.augment import LEVELS, SMALLEST, Augmented, coloured, cropped, flipped, patched
from flops_fit.data.batches import prepare, seeded
from flops_fit.data.images import Images
from flops_fit.errors import InputError

FLOAT = 1e-5  # rounding of a bilinear mean of four pixels


def images(count: int = 8, size: int = 16) -> Images:
    pixels = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(pixels, torch.arange(count) % 2, torch.tensor([0.5] * 3), torch.tensor([0.25] * 3))


@pytest.mark.parametrize("level", LEVELS)
def test_shape_and_labels_stay_and_a_seed_repeats_them(level: str) -> None:
    data, found = Augmented(images(), level), []
    for seed in (1, 1, 2):
        with seeded(seed):
            found.append(data.batch([3, 0, 3, 5]))
    for x, labels in found:
        assert x.shape == (4, 3, 16, 16) and labels.tolist() == [1, 0, 1, 1] and bool(x.isfinite().all())
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][0], found[2][0]) == (level == "none")
    if level == "full":
        assert not torch.equal(found[0][0][0], found[0][0][2])  # each by its own dice
    assert prepare(data, images()).samples == 8


def test_a_crop_of_a_ramp_is_a_part_of_it_and_still_straight() -> None:
    """Of an image whose value is its column: equal steps, of the share of the width that was left."""
    ramp = torch.arange(64.0).expand(200, 1, 64, 64).contiguous()
    torch.manual_seed(0)
    made = cropped(ramp)
    inner = made[:, :, :, 2:-2]  # at the rim the mean is of reflected pixels
    steps = inner.diff(dim=3)
    assert (steps - steps.mean(dim=(1, 2, 3), keepdim=True)).abs().max() < 64 * FLOAT
    width = steps.mean(dim=(1, 2, 3))
    assert width.max() <= 1 + FLOAT and width.min() > 0.8 * SMALLEST and width.std() > 0.05
    assert made.min() >= -FLOAT and made.max() <= 63 + FLOAT


def test_half_are_mirrored() -> None:
    x = torch.randn(400, 1, 4, 4)
    torch.manual_seed(0)
    made = flipped(x)
    same = torch.tensor([torch.equal(a, b) for a, b in zip(made, x, strict=True)])
    assert torch.equal(made[~same], x[~same].flip(3))
    assert 150 < int(same.sum()) < 250  # 400 coins, five deviations


def test_colours_change_and_what_is_where_does_not() -> None:
    """Grey stays grey, and the order of brightness within a grey image stays."""
    grey = torch.randn(50, 1, 4, 4).expand(-1, 3, -1, -1)
    torch.manual_seed(0)
    made = coloured(grey)
    assert (made - made[:, :1]).abs().max() < FLOAT
    assert torch.equal(made[:, 0].flatten(1).argsort(dim=1), grey[:, 0].flatten(1).argsort(dim=1))
    assert (made - grey).flatten(1).abs().amax(dim=1).min() > 0


def test_a_patch_is_a_rectangle_of_another_image_and_its_share_is_told() -> None:
    """Images that are one number each: every pixel says whose it is."""
    x = torch.arange(200.0)[:, None, None, None].expand(-1, 3, 16, 12).contiguous()
    torch.manual_seed(0)
    made, others, own = patched(x)
    assert sorted(others.tolist()) == list(range(200))
    foreign = made[:, 0] != x[:, 0]  # (B, H, W)
    for number in foreign.flatten(1).any(dim=1).nonzero()[:, 0].tolist():
        rows, columns = (foreign[number].any(dim=way) for way in (1, 0))
        assert torch.equal(foreign[number], rows[:, None] & columns)  # a rectangle, without holes:
        assert int(rows.int().diff().abs().sum()) <= 2 and int(columns.int().diff().abs().sum()) <= 2
        assert bool((made[number][:, foreign[number]] == others[number]).all())
        assert float(own[number]) == pytest.approx(1 - float(foreign[number].float().mean()), abs=FLOAT)
    mixed = foreign.flatten(1).any(dim=1)
    assert bool((own[~mixed & (others != torch.arange(200))] == 1).all())
    assert 65 < int(mixed.sum()) < 135  # 200 coins, five deviations; few rectangles miss every pixel
    assert own.min() < 0.3 and 0.7 < float(own.mean()) < 0.95


def test_an_unknown_level_is_told() -> None:
    with pytest.raises(InputError, match="did you mean full"):
        Augmented(images(), "ful")
