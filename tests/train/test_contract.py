"""Every breach of the contract, each by the smallest offender; what is allowed passes."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flops_fit.errors import ContractError
from flops_fit.train.contract import check_class, check_probe
from flops_fit.train.loss import Objective
from flops_fit.train.measure import Measurer

CPU = torch.device("cpu")
BATCH = [torch.randn(2, 4), torch.randn(2, 1)]


class Good(nn.Module):
    def __init__(self, width: int, depth: int = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 1)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Any:
        return self.second(self.first(x))


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def refused(model_cls: Any = Good, size: str = "width", kwargs: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(ContractError) as caught:
        check_class(model_cls, size, kwargs or {})
    return str(caught.value).splitlines()


def probe(model_cls: Any = Good, batch: Any = BATCH, sizes: tuple[int, ...] = (8, 16), **loss: Any) -> None:
    """Raises ContractError with every breach; None is the contract kept."""
    objective = Objective(**loss or {"loss_fn": squared})
    check_probe(Measurer(model_cls, "width", {}, objective, batch, 1), sizes, CPU)


# --- the class -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "told"), [
    ((Good(8),), "model_cls: got an instance of Good; pass the class itself: model_cls=Good, without parentheses"),
    (("Good",), "model_cls: got 'Good'; pass a class or a function"),
    ((Good, "widht"), "model_size_param: the model takes no argument 'widht'; did you mean 'width'?"),
    ((Good, "zzz"), "model_size_param: the model takes no argument 'zzz'; it takes width, depth"),
    ((Good, "width", {"dept": 2}), "model_kwargs: the model takes no argument 'dept'; did you mean 'depth'?"),
    ((Good, "depth"), "model_kwargs: Good also needs width; add it to model_kwargs"),
])  # fmt: skip
def test_the_class_and_its_arguments(given: tuple[Any, ...], told: str) -> None:
    lines = refused(*given)
    assert lines[0].startswith(told)
    assert len(lines) == 1 + (given[1:] == ("zzz",))  # then width is missing too


def test_a_class_without_num_params_is_told_how_to_write_it() -> None:
    class Bare(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()

    [line] = refused(Bare)
    assert "Bare has no num_params(); add a method `def num_params(self): return sum(" in line


def test_all_breaches_of_a_class_come_together() -> None:
    class Two(nn.Module):
        def __init__(self, hidden: int, heads: int) -> None:
            super().__init__()

    lines = refused(Two, "widht", {"head": 1})
    assert [line.split(":")[0] for line in lines] == ["model_size_param", "model_kwargs", "model_kwargs", "model_cls"]
    assert "needs hidden, heads; add them" in lines[2]


def test_the_size_among_the_other_arguments_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"model_kwargs\['width'\] = 8 is ignored: width is the size parameter"):
        check_class(Good, "width", {"width": 8})


@pytest.mark.parametrize("model_cls", [
    Good, functools.partial(Good, depth=2), lambda width: Good(width), lambda **kwargs: Good(**kwargs),
], ids=["class", "partial", "lambda", "open"])  # fmt: skip
def test_classes_partials_and_functions_pass(model_cls: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_class(model_cls, "width", {})
    probe(model_cls)


class Uninspectable:
    """A callable whose signature cannot be had, like many that are written in C."""

    __signature__ = "none"

    def __call__(self, width: int) -> nn.Module:
        return Good(width)


def test_a_callable_that_cannot_be_inspected_passes() -> None:
    check_class(Uninspectable(), "anything", {"other": 1})
    probe(Uninspectable())


# --- the count -----------------------------------------------------------------------------------------------------


class Tied(Good):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("table", torch.zeros(7))


def with_count(count: Any) -> type[Good]:
    class Miscounts(Tied):
        def num_params(self) -> Any:
            return count(self)

    return Miscounts


REAL = 8 * 4 + 8 + 8 + 1  # of width 8


@pytest.mark.parametrize(("count", "told"), [
    (lambda m: sum(p.numel() for p in m.second.parameters()), "the 40 of 'first' are left out"),
    (lambda m: REAL + m.first.weight.numel(), "the 32 of 'first.weight' are counted twice (tied weights?)"),
    (lambda m: REAL + 7, "the 7 numbers in buffers are counted, they are not trained"),
    (lambda m: REAL - 3, "3 too few"),
    (lambda m: REAL + 5, "5 too many"),
    (lambda m: float(REAL), "num_params() gives 49.0"),
    (lambda m: "many", "it must return an int"),
])  # fmt: skip
def test_a_wrong_count_is_explained(count: Any, told: str) -> None:
    with pytest.raises(ContractError, match="num_params") as caught:
        probe(with_count(count))
    assert told in str(caught.value)
    assert f"{REAL} trainable parameters" in str(caught.value)


def test_a_count_with_or_without_frozen_parameters_passes() -> None:
    class Frozen(Good):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.first.weight.requires_grad_(False)

    class Trainable(Frozen):
        def num_params(self) -> int:
            return sum(p.numel() for p in self.parameters() if p.requires_grad)

    counted = Frozen(8).num_params(), Trainable(8).num_params()
    assert counted[0] - counted[1] == Frozen(8).first.weight.numel()  # two honest counts of one model, and both pass:
    assert probe(Frozen) is None
    assert probe(Trainable) is None


def test_what_is_built_must_be_a_module_with_a_count() -> None:
    with pytest.raises(ContractError, match=r"it returned dict, not a torch\.nn\.Module"):
        probe(lambda width: {})
    with pytest.raises(ContractError, match=r"Linear has no num_params\(\)"):
        probe(lambda width: nn.Linear(4, 1))


def test_a_class_that_raises_for_every_size_is_told_with_its_error() -> None:
    def raises(width: int) -> nn.Module:
        raise ValueError("width must be odd")

    with pytest.raises(ContractError, match="raised for width=8, 16: ValueError: width must be odd; check model_kw"):
        probe(raises)


def test_one_size_that_can_be_built_is_enough() -> None:
    def even(width: int) -> nn.Module:
        if width < 16:
            raise ValueError("too narrow")
        return Good(width)

    with pytest.raises(ContractError, match="too narrow"):
        probe(even, sizes=(8, 12))
    assert probe(even, sizes=(8, 16)) is None  # the same model, with one size that it takes


# --- one step ------------------------------------------------------------------------------------------------------


class NoInput(Good):
    def forward(self) -> Tensor:  # type: ignore[override]
        return torch.zeros(())


@pytest.mark.parametrize(("arguments", "told"), [
    ({"loss_fn": lambda out: out.mean()}, "loss_fn: it must be callable as loss_fn(outputs, targets)"),
    ({"loss_fn": lambda a, b, c: a.mean()}, "its arguments are (a, b, c)"),
    ({"objective": lambda model: model}, "objective: it must be callable as objective(model, batch)"),
    ({"loss_fn": lambda out, y: out - y}, "loss_fn: it must return a scalar tensor, got (2, 1); reduce it"),
    ({"loss_fn": lambda out, y: 1.0}, "got float; reduce it"),
    ({"loss_fn": lambda out, y: (out - y).mean() * torch.nan}, "loss_fn: the loss is nan before any training (size 8)"),
    ({"loss_fn": lambda out, y: out.mean() + torch.inf}, "loss_fn: the loss is inf before any training"),
    ({"loss_fn": lambda out, y: out.detach().mean()}, "does not depend on the parameters (no gradient)"),
    ({"loss_fn": lambda out, y: (out @ y).mean()}, "loss_fn: one batch through Good at size 8 raised RuntimeError"),
    ({"objective": lambda model, batch: model(batch[2]).mean()}, "objective: one batch through Good at size 8 raised"),
])  # fmt: skip
def test_a_loss_that_cannot_be_trained(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ContractError) as caught:
        probe(**arguments)
    assert told in str(caught.value)


def test_a_forward_without_input_is_told() -> None:
    with pytest.raises(ContractError, match="NoInput.forward takes no input; it must take the inputs of a batch"):
        probe(NoInput)


def test_samples_that_are_no_pairs_are_told() -> None:
    with pytest.raises(ContractError, match=r"loss_fn needs samples of \(inputs, targets\), a batch came as a tensor"):
        probe(batch=torch.randn(2, 4))


@pytest.mark.parametrize("loss", [{}, {"loss_fn": squared, "objective": squared}])
def test_exactly_one_loss(loss: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match="give exactly one"):
        Objective(**loss)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.functional.mse_loss, lambda *both: squared(*both)])
def test_modules_functions_and_open_signatures_are_losses(loss: Any) -> None:
    assert probe(loss_fn=loss) is None
