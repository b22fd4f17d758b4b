"""Images with classes through a transformer: patches come back, positions and labels count, shortcuts agree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.models.patches import patchify, unpatchify
from flops_fit.models.tinydit import PRESETS, Prepared, TinyDiT

FLOAT32 = 2e-5  # rounding of a few layers
SMALL = {"hidden": 32, "image_size": 16, "patch": 4, "layers": 4, "heads": 2, "classes": 3}

both = pytest.mark.parametrize("skips", [False, True])


def awake(model: nn.Module) -> TinyDiT:
    """With no number at zero, as after some training: zero-initialised parts hide faults."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    assert isinstance(model, TinyDiT)
    return model.eval()


def batch(rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return x, torch.linspace(0.1, 0.9, rows), torch.arange(rows) % 4


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_patches_come_back(side: int, patch: int, channels: int, rows: int) -> None:
    images = torch.randn(rows, channels, side * patch, side * patch)
    tokens = patchify(images, patch)
    assert tokens.shape == (rows, side**2, channels * patch**2)
    assert torch.equal(unpatchify(tokens, patch), images)
    corner = images[:, :, :patch, (side - 1) * patch :]  # the last patch of the first row
    assert torch.equal(tokens[:, side - 1], corner.flatten(1))


@both
def test_an_untrained_one_predicts_zero(skips: bool) -> None:
    assert torch.equal(TinyDiT(**SMALL, skips=skips)(*batch()), torch.zeros(3, 3, 16, 16))


@both
def test_rows_do_not_see_each_other(skips: bool) -> None:
    model, parts = awake(TinyDiT(**SMALL, skips=skips)), batch()
    with torch.no_grad():
        alone = torch.cat([model(*(part[i : i + 1] for part in parts)) for i in range(3)])
        torch.testing.assert_close(model(*parts), alone, rtol=FLOAT32, atol=FLOAT32)


@both
def test_pixels_time_and_label_reach_every_pixel(skips: bool) -> None:
    model, (x, t, labels) = awake(TinyDiT(**SMALL, skips=skips)).double(), batch(1)
    x, t = x.double(), t.double()  # in float32 one pixel of thousands may round to where it was
    with torch.no_grad():
        here = model(x, t, labels)
        for other in ((x, t + 0.05, labels), (x, t, labels + 1)):
            assert (model(*other) - here).abs().min() > 0
        x = x.clone()
        x[0, 0, 0, 0] += 1
        assert (model(x, t, labels) - here).abs().min() > 0


def test_patches_in_another_order_are_another_picture() -> None:
    """Without positions the output would be the same in that order: the fault of the system that this one replaces."""
    model, (x, t, labels) = awake(TinyDiT(**SMALL)), batch(1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        shuffled = model(unpatchify(patchify(x, 4)[:, order], 4), t, labels)
        straight = patchify(model(x, t, labels), 4)[:, order]
    assert (patchify(shuffled, 4) - straight).abs().max() > 0.01


@pytest.mark.parametrize(("name", "params"), [("tinydit-128", 33_056_256), ("tinydit-64", None), ("tinydit-32", None)])
def test_presets_can_be_built(name: str, params: int | None) -> None:
    with torch.device("meta"):
        model = TinyDiT(**PRESETS[name])
    size, per = PRESETS[name]["image_size"], PRESETS[name]["patch"]
    assert model.num_params() == sum(p.numel() for p in model.parameters())
    assert model.positions.shape == ((size // per) ** 2, PRESETS[name]["hidden"])
    if params is not None:
        assert abs(model.num_params() - params) < 0.01 * params


@both
def test_what_is_prepared_says_the_same(skips: bool) -> None:
    model, (x, _, labels) = awake(TinyDiT(**SMALL, skips=skips)), batch(5)
    times = torch.tensor([0.0, 0.25, 0.5])
    with torch.no_grad():
        prepared = Prepared(model, times, labels)
        calls = []
        model.time.register_forward_hook(lambda *_: calls.append(1))
        for time in (0.0, 0.25, 0.5):
            t = torch.full((5,), time)
            said = prepared(x, t, labels=labels)
            assert not calls
            torch.testing.assert_close(said, model(x, t, labels), rtol=FLOAT32, atol=FLOAT32)
            calls.clear()
        elsewhere = torch.full((5,), 0.3)  # which nobody announced
        assert torch.equal(prepared(x, elsewhere, labels=labels), model(x, elsewhere, labels))


def test_changes_of_the_picture_are_told_and_none_is_no_change() -> None:
    model, (x, t, labels) = awake(TinyDiT(**SMALL, augments=2)), batch()
    with torch.no_grad():
        plain = model(x, t, labels)
        assert torch.equal(model(x, t, labels, augment=torch.zeros(3, 2)), plain)
        assert (model(x, t, labels, augment=torch.ones(3, 2)) - plain).abs().min() > 0
    with pytest.raises(InputError, match="augment: got changes that this network was not built for"):
        TinyDiT(**SMALL)(x, t, labels, augment=torch.ones(3, 2))


@pytest.mark.parametrize(("changes", "said"), [
    ({"image_size": 18}, "image_size: got 18, no multiple of patch=4; allowed are 16, 20"),
    ({"hidden": 30}, "hidden: got 30; allowed are multiples of 4 and of the 2 heads"),
])  # fmt: skip
def test_what_cannot_be_built(changes: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TinyDiT(**{**SMALL, **changes})


def test_what_cannot_be_asked() -> None:
    model, (x, t, labels) = TinyDiT(**SMALL), batch()
    with pytest.raises(InputError, match="labels: got 4; allowed are 0 to 2, and 3 for none"):
        model(x, t, labels + 2)
    with pytest.raises(InputError, match="labels: got -1"):
        model(x, t, labels - 1)
    with pytest.raises(InputError, match=r"x: got shape .* allowed is \(B, 3, 16, 16\)"):
        model(x[:, :, :8], t, labels)
