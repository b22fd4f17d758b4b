"""The vision transformer against an independent implementation, its symmetry, its count and its FLOPs by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flops_fit.models.patches import grid_positions
from flops_fit.models.vit import VisionTransformer
from flops_fit.train.measure import count_flops

SAME = 1e-12   # float64, sums in another order
WAVES = 1e-6   # float32 sines and cosines of angles up to 11


def model(d_model: int = 16, image_size: int = 8, **kwargs: int) -> VisionTransformer:
    torch.manual_seed(0)
    made = VisionTransformer(d_model, image_size=image_size, patch=2, channels=2, classes=5, heads=4, **kwargs).double()
    for parameter in made.parameters():  # much starts at zero, which would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def plain(vit: VisionTransformer, image: Tensor, heads: int, patch: int) -> Tensor:
    """The same network for one image (C, S, S), written from its papers: one patch, one head, one sum at a time."""
    weight = dict(vit.named_parameters())
    side = image.shape[-1] // patch
    cut = [
        image[:, patch * r : patch * (r + 1), patch * c : patch * (c + 1)].reshape(-1)
        for r in range(side) for c in range(side)
    ]  # fmt: skip
    x = torch.stack([weight["embedding.weight"] @ one + weight["embedding.bias"] for one in cut])
    x = x + vit.positions.double()
    width = x.shape[1] // heads

    def norm(z: Tensor, name: str) -> Tensor:
        centred = z - z.mean(-1, keepdim=True)
        scaled = weight[f"{name}.weight"] * centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
        return scaled + weight.get(f"{name}.bias", torch.zeros(()))

    for i in range(len(vit.blocks)):
        at = f"blocks.{i}"
        q, k, v = (norm(x, f"{at}.attention_norm") @ weight[f"{at}.qkv.weight"].T).chunk(3, dim=1)
        mixed = torch.zeros_like(x)
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            for t in range(len(x)):
                shares = torch.softmax(k[:, part] @ q[t, part] / math.sqrt(width), dim=0)
                mixed[t, part] = shares @ v[:, part]
        x = x + mixed @ weight[f"{at}.attention_out.weight"].T
        hidden = norm(x, f"{at}.mlp_norm") @ weight[f"{at}.mlp_in.weight"].T
        x = x + (hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))) @ weight[f"{at}.mlp_out.weight"].T
    return norm(x, "final_norm").mean(0) @ weight["head.weight"].T + weight["head.bias"]


@pytest.mark.parametrize("depth", [1, 2])
def test_equals_a_plain_implementation(depth: int) -> None:
    vit = model(depth=depth)
    images = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    by_hand = torch.stack([plain(vit, image, heads=4, patch=2) for image in images])
    torch.testing.assert_close(vit(images), by_hand, rtol=SAME, atol=SAME)


def test_the_order_of_the_patches_counts_only_through_their_positions() -> None:
    vit = model(depth=2)
    images = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    swapped = images.clone()
    swapped[:, :, 0:2, 4:6], swapped[:, :, 6:8, 0:2] = images[:, :, 6:8, 0:2], images[:, :, 0:2, 4:6]
    assert (vit(images) - vit(swapped)).abs().max() > 1e-3
    vit.positions.zero_()
    torch.testing.assert_close(vit(images), vit(swapped), rtol=SAME, atol=SAME)


def test_positions_are_waves_of_row_and_column() -> None:
    side, width = 8, 16
    table = grid_positions(side, width)
    assert table.shape == (64, 16)
    frequency = [math.pi / 2, math.pi / 4, math.pi / 8, math.pi / 16]
    for row, column in [(0, 0), (3, 5), (7, 1)]:
        waves = [wave(at * f) for at in (row, column) for wave in (math.sin, math.cos) for f in frequency]
        assert table[row * side + column].tolist() == pytest.approx(waves, abs=WAVES)
    closest = torch.cdist(table, table).fill_diagonal_(math.inf).min()
    assert closest > 0.1  # no two patches share a position


@pytest.mark.parametrize(("d_model", "classes"), [(16, 10), (64, 10), (64, 100)])
def test_it_starts_exactly_at_chance(d_model: int, classes: int) -> None:
    torch.manual_seed(0)
    logits = VisionTransformer(d_model, classes=classes)(torch.randn(8, 3, 32, 32))
    assert torch.equal(logits, torch.zeros(8, classes))


def test_blocks_start_as_the_identity() -> None:
    torch.manual_seed(0)
    deep, flat = VisionTransformer(32, depth=3), VisionTransformer(32, depth=1)
    torch.nn.init.normal_(deep.head.weight)
    flat.load_state_dict({name: value for name, value in deep.state_dict().items() if name in flat.state_dict()})
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(deep(images), flat(images))
    assert deep(images).abs().max() > 0.1


@pytest.mark.parametrize(("d_model", "depth"), [(16, 1), (64, 1), (128, 2), (384, 6)])
def test_one_dial_sets_depth_and_count(d_model: int, depth: int) -> None:
    with torch.device("meta"):
        vit = VisionTransformer(d_model)
    assert len(vit.blocks) == depth
    ends = (3 * 4 * 4 + 1) * d_model + 2 * d_model + (d_model + 1) * 10
    assert vit.num_params() == depth * (12 * d_model**2 + 2 * d_model) + ends


def test_flops_are_those_of_its_matrix_products() -> None:
    """Forward and backward; a multiply-add is 2; pixels need no gradient, so the patch embedding's backward is once."""
    d, batch, depth, tokens, pixels, classes = 32, 3, 2, 64, 48, 10
    with torch.device("meta"):
        vit = VisionTransformer(d, depth=depth)
        images, labels = torch.zeros(batch, 3, 32, 32), torch.zeros(batch, dtype=torch.long)
    blocks = depth * (12 * d * d + 2 * tokens * d) * tokens
    by_hand = 2 * batch * (3 * blocks + 2 * pixels * d * tokens + 3 * d * classes)
    assert count_flops(lambda: F.cross_entropy(vit(images), labels).backward()) == by_hand


def test_it_learns_which_half_is_bright() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(16, image_size=8, patch=2, channels=1, classes=2)
    optimizer = torch.optim.AdamW(vit.parameters(), lr=0.01)
    for _ in range(60):
        labels = torch.randint(2, (32,))
        images = torch.randn(32, 1, 8, 8)
        images[labels == 1, :, :, :4] += 1.0
        images[labels == 0, :, :, 4:] += 1.0
        loss = F.cross_entropy(vit(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.2  # ln 2 = 0.69 is chance; it can be seen only through positions


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ValueError, match="multiple of its 4 heads"):
        VisionTransformer(18)
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        VisionTransformer(18, heads=2)
    with pytest.raises(ValueError, match="multiple of patch=5"):
        VisionTransformer(16, patch=5)
    with pytest.raises(ValueError, match=r"got \(3, 28, 28\), the model takes \(3, 32, 32\)"):
        VisionTransformer(16)(torch.zeros(1, 3, 28, 28))
