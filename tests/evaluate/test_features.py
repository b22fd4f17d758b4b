"""Extractors of features: named by their weights, the same for a batch as for its pictures, refused with the reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from flops_fit.errors import InputError, MissingExtra
from flops_fit.evaluate.features import AT_ONCE, EXTRACTORS, extractor_named
from flops_fit.models import efficientnet
from flops_fit.models.efficientnet import EfficientNetLite0, pretrained_lite0

FLOAT32 = 1e-4  # of features of about 1, summed in another order in another batch


def some(n: int, size: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_lite0_is_named_by_the_file_that_it_came_from_and_gives_its_features() -> None:
    look, pixels = extractor_named("efficientnet-lite0"), some(3, 224)
    network = EfficientNetLite0().eval()
    network.load_state_dict(network.state_dict() | pretrained_lite0())
    with torch.no_grad():
        expected = network.features((pixels.float() - 127) / 128)  # as its package documents
    torch.testing.assert_close(look(pixels), expected, rtol=FLOAT32, atol=FLOAT32)
    assert (look.name, look.sha256, look.width) == ("efficientnet-lite0", efficientnet.SHA256, 1280)


def test_a_picture_has_the_features_that_it_has_alone() -> None:
    look, pixels = extractor_named("efficientnet-lite0"), some(AT_ONCE + 2, 8)
    together = look(pixels)
    assert together.shape == (AT_ONCE + 2, 1280)
    torch.testing.assert_close(together[-1:], look(pixels[-1:]), rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize(("name", "said"), [
    ("efficientnet", "did you mean efficientnet-lite0"),
    ("efficientnet-lite0:mine", "leave mine"),
    ("inception:gone", "inception:gone; no such file"),
    ("dinov2", "give dinov2:FOLDER"),
])  # fmt: skip
def test_what_cannot_be_named(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        extractor_named(name)


@pytest.mark.parametrize("pixels", [torch.zeros(2, 3, 8, 8), some(2)[:, :1], some(2)[0]])
def test_what_are_no_pictures(pixels: torch.Tensor) -> None:
    with pytest.raises(InputError, match="allowed is uint8 of shape"):
        extractor_named("efficientnet-lite0")(pixels)


def test_dinov2_from_a_folder_is_that_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra dinov2 is not installed")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56
    )
    torch.manual_seed(0)
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(tmp_path)
    look, pixels = extractor_named(f"dinov2:{tmp_path}"), some(2, 224)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = network((pixels / 255 - mean[:, None, None]) / std[:, None, None]).pooler_output
    torch.testing.assert_close(look(pixels), expected, rtol=FLOAT32, atol=FLOAT32)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        extractor_named(f"dinov2:{tmp_path}")


def test_inception_from_a_file_is_that_of_torch_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as module
    except (ImportError, RuntimeError) as error:  # torchvision of another build than torch raises the latter
        pytest.skip(f"the extra inception is not installed: {error}")
    file = tmp_path / "inception.pth"
    torch.save({}, file)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:  # a network with weights of chance: nothing is fetched
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file)).eval()
    torch.save(network.state_dict(), file)
    look, pixels = extractor_named(f"inception:{file}"), some(2, 80)
    with torch.no_grad():
        expected = network(pixels)[0]
    torch.testing.assert_close(look(pixels), expected, rtol=FLOAT32, atol=FLOAT32)
    assert look.width == expected.shape[1] == 2048
    file.write_bytes(b"torn")
    with pytest.raises(InputError, match="Inception's weights cannot be had"):
        extractor_named(f"inception:{file}")


def test_an_extractor_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name, extra in (("inception", "inception"), (f"dinov2:{tmp_path}", "dinov2")):
        with pytest.raises(MissingExtra, match=rf"flops-fit\[{extra}\]"):
            extractor_named(name)
    assert set(EXTRACTORS) == {"efficientnet-lite0", "inception", "dinov2"}
