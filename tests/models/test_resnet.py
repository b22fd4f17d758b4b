"""ResNet against an independent implementation, and against torchvision by names, shapes, counts and cost."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.models.resnet import ResNet
from flops_fit.train.measure import count_flops

SAME = 1e-10    # float64, sums in another order through up to 36 layers
ROUNDED = 5e-4  # published to three digits


def plain(weight: dict[str, Tensor], blocks: list[int], image: Tensor) -> Tensor:
    """The paper's Table 1 and Fig. 2 for one image (3, S, S): every convolution a matrix product over its windows."""

    def conv(x: Tensor, name: str, stride: int) -> Tensor:
        w = weight[f"{name}.weight"]
        out, _, k, _ = w.shape
        side = (x.shape[1] + 2 * (k // 2) - k) // stride + 1
        windows = F.unfold(x[None], k, padding=k // 2, stride=stride)[0]  # (C k k, side^2)
        return (w.reshape(out, -1) @ windows).view(out, side, side)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (weight[f"{name}.{w}"] for w in ("running_mean", "running_var", "weight", "bias"))
        flat = (x.flatten(1).T - mean) / torch.sqrt(var + 1e-5) * scale + shift
        return flat.T.reshape(x.shape)

    x = norm(conv(image, "conv1", 2), "bn1").clamp(min=0)
    padded = F.pad(x, (1, 1, 1, 1))  # zeros: nothing is below them after the clamp
    x = padded.unfold(1, 3, 2).unfold(2, 3, 2).amax((3, 4))
    for number, count in enumerate(blocks, start=1):
        for i in range(count):
            at, stride = f"layer{number}.{i}", 2 if i == 0 and number > 1 else 1
            y = norm(conv(x, f"{at}.conv1", stride), f"{at}.bn1").clamp(min=0)
            y = norm(conv(y, f"{at}.conv2", 1), f"{at}.bn2")
            if f"{at}.downsample.0.weight" in weight:
                x = norm(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            x = (x + y).clamp(min=0)
    return weight["fc.weight"] @ x.mean((1, 2)) + weight["fc.bias"]


@pytest.mark.parametrize(("depth", "blocks"), [(18, [2, 2, 2, 2]), (34, [3, 4, 6, 3])])
def test_equals_a_plain_implementation(depth: int, blocks: list[int]) -> None:
    torch.manual_seed(0)
    model = ResNet(depth, classes=7).double()
    for _ in range(2):  # statistics that are not those of the start
        model(torch.randn(4, 3, 48, 48, dtype=torch.float64) + 0.5)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # scales of 1 and shifts of 0 would hide mistakes
            torch.nn.init.uniform_(parameter, 0.5, 1.0) if name.endswith("weight") else torch.nn.init.normal_(parameter)
    images = torch.randn(2, 3, 65, 65, dtype=torch.float64)
    with torch.no_grad():
        found = model.eval()(images)
        by_hand = torch.stack([plain(model.state_dict(), blocks, image) for image in images])
    assert found.std() > 0.1
    torch.testing.assert_close(found, by_hand, rtol=SAME, atol=SAME)


# SHA-256 of the lines "name shape" of state_dict(), sorted; parameters and multiply-adds at 224 px (weights.meta):
# torchvision 0.28.0, models.resnet18 and resnet34.
@pytest.mark.parametrize(
    ("depth", "digest", "params", "gmacs"),
    [
        (18, "5191d63ec398959223d67ef37376f9061e6965b859fc2d4e40e23d037147a0d7", 11_689_512, 1.814),
        (34, "f8de2a1812ef85e46b3f60c61589921afee0c2a6d4165e27508ad215f101671b", 21_797_672, 3.664),
    ],
)
def test_names_shapes_size_and_cost_are_torchvisions(depth: int, digest: str, params: int, gmacs: float) -> None:
    with torch.device("meta"):
        model, image = ResNet(depth), torch.zeros(1, 3, 224, 224)
    lines = "\n".join(f"{name} {tuple(value.shape)}" for name, value in sorted(model.state_dict().items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == digest
    assert model.num_params() == params
    assert count_flops(lambda: model(image)) / 2e9 == pytest.approx(gmacs, abs=ROUNDED)


def test_without_classes_it_gives_features() -> None:
    torch.manual_seed(0)
    whole, bare = ResNet(18).eval(), ResNet(18, None).eval()
    bare.load_state_dict({name: value for name, value in whole.state_dict().items() if not name.startswith("fc.")})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert bare(images).shape == (2, 512)
        assert torch.equal(bare(images), whole.features(images))


def test_another_depth_is_told() -> None:
    with pytest.raises(InputError, match=r"depth: got 50; allowed are 18 and 34"):
        ResNet(50)
