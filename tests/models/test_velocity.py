"""One contract over all velocity networks, then what each claims of itself."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from flops_fit.errors import InputError, MissingExtra
from flops_fit.models import ARCHITECTURES, AdaLNBlock, DiTVelocityNetwork, SimpleMLP, UNetMLP, create_model
from flops_fit.models.ssm import PlainMamba, StateSpaceNetwork, selective_scan
from flops_fit.models.time import TimeEmbedding

DIM = 32
FLOAT32 = 1e-5  # rounding of a few layers

every = pytest.mark.parametrize("name", ARCHITECTURES)


def awake(model: nn.Module) -> nn.Module:
    """The model with no number at zero, as after some training: zero-initialised parts hide faults."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def batch(rows: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, DIM, generator=generator), torch.linspace(0.1, 0.9, rows)


# --- the contract ---------------------------------------------------------------------------------------------------


@every
def test_an_untrained_one_predicts_zero(name: str) -> None:
    x, t = batch()
    assert torch.equal(create_model(name, "tiny", dim=DIM)(x, t), torch.zeros(3, DIM))


@every
def test_rows_do_not_see_each_other(name: str) -> None:
    model, (x, t) = awake(create_model(name, "tiny", dim=DIM)), batch()
    with torch.no_grad():
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(model(x, t), alone, rtol=FLOAT32, atol=FLOAT32)


@every
def test_every_number_of_x_and_the_time_reach_every_output(name: str) -> None:
    model, (x, t) = awake(create_model(name, "tiny", dim=DIM)), batch(1)
    x, t = x.requires_grad_(), t.requires_grad_()
    out = model(x, t)[0]  # (D,)
    for i in range(DIM):
        by_x, by_t = torch.autograd.grad(out[i], (x, t), retain_graph=True)
        assert bool((by_x != 0).all()) and bool((by_t != 0).all())


@every
def test_every_parameter_learns(name: str) -> None:
    model, (x, t) = awake(create_model(name, "tiny", dim=DIM)).train(), batch()
    model(x, t).square().sum().backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)}
    attention_over_one = {f"blocks.{i}.qkv.{kind}" for i in range(2) for kind in ("weight", "bias")}
    assert still <= attention_over_one if name == "dit" else not still


@every
def test_params_are_counted_on_the_model(name: str) -> None:
    sizes = [create_model(name, size).num_params() for size in ("tiny", "small", "base")]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
    model = create_model(name, "tiny", dim=DIM)
    assert model.num_params() == sum(p.numel() for p in model.parameters())


@every
def test_unknown_arguments_are_told(name: str) -> None:
    with pytest.raises(InputError, match=f"argument of {name}: got 'hiden'; allowed are hidden.*did you mean hidden"):
        create_model(name, hiden=3)


# --- each -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "low", "high"), [
    ("mlp", 0.915e6, 0.925e6), ("dit", 9.0e6, 10.0e6), ("unet", 6.85e6, 6.95e6),
])  # fmt: skip
def test_sizes_that_were_asked_for(name: str, low: float, high: float) -> None:
    assert low <= create_model(name).num_params() <= high


def test_times_apart_look_different_and_near_ones_alike() -> None:
    torch.manual_seed(0)
    embedding = TimeEmbedding(16)
    angle = torch.linspace(0, 1, 201)[:, None] * embedding.frequencies
    waves = torch.cat((angle.sin(), angle.cos()), dim=1)
    unit = waves / waves.norm(dim=1, keepdim=True)
    alike = unit @ unit.T
    assert float(alike[0, 1]) > 0.9 and float(alike[0, 100:].max()) < 0.7
    assert bool((waves.std(dim=0) > 0.05).all())  # no wave stands still on the unit interval


def test_dit_is_adaln_zero() -> None:
    block = AdaLNBlock(16, 2)
    x, c = torch.randn(3, 5, 16), torch.randn(3, 16)
    assert torch.equal(block(x, c), x)


def test_attention_of_the_chunked_one_mixes_and_knows_places() -> None:
    model = awake(DiTVelocityNetwork(hidden=16, dim=DIM, layers=1, heads=2, tokens=4))
    x, t = batch(1)
    swapped = x.view(1, 4, 8)[:, [1, 0, 2, 3]].reshape(1, DIM)
    out, other = (model(one, t).view(4, 8) for one in (x, swapped))
    assert not torch.allclose(out[[1, 0, 2, 3]], other, atol=1e-3)


def test_attention_over_one_token_is_its_value() -> None:
    """Said in the docstring: with one token q and k change nothing."""
    model, (x, t) = awake(DiTVelocityNetwork(hidden=16, dim=DIM, layers=1, heads=2)), batch()
    before = model(x, t)
    with torch.no_grad():
        model.blocks[0].qkv.weight[:32].zero_()  # q and k
    torch.testing.assert_close(model(x, t), before, rtol=FLOAT32, atol=FLOAT32)


def test_the_scan_is_the_recurrence() -> None:
    """Against the recurrence written number by number."""
    torch.manual_seed(0)
    rows, tokens, channels, state = 2, 5, 3, 4
    u, b, c = torch.randn(rows, tokens, channels), torch.randn(rows, tokens, state), torch.randn(rows, tokens, state)
    step, a = torch.rand(rows, tokens, channels), -torch.rand(channels, state)
    found = selective_scan(u, step, a, b, c)
    for i in range(rows):
        for e in range(channels):
            h = [0.0] * state
            for k in range(tokens):
                for s in range(state):
                    decay = float(torch.exp(step[i, k, e] * a[e, s]))
                    h[s] = decay * h[s] + float(step[i, k, e] * b[i, k, s] * u[i, k, e])
                expected = sum(h[s] * float(c[i, k, s]) for s in range(state))
                assert float(found[i, k, e]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_scan_of_constant_coefficients_is_a_convolution() -> None:
    torch.manual_seed(0)
    u, step = torch.randn(1, 12, 1, dtype=torch.float64), torch.full((1, 12, 1), 0.3, dtype=torch.float64)
    a = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    b, c = (torch.tensor(v, dtype=torch.float64).expand(1, 12, 2) for v in ([0.5, 1.0], [2.0, -1.0]))
    kernel = [float((c[0, 0] * torch.exp(0.3 * a[0] * lag) * 0.3 * b[0, 0]).sum()) for lag in range(12)]
    expected = [sum(kernel[k - j] * float(u[0, j, 0]) for j in range(k + 1)) for k in range(12)]
    torch.testing.assert_close(selective_scan(u, step, a, b, c)[0, :, 0], torch.tensor(expected, dtype=torch.float64))


def test_one_direction_sees_what_came_and_both_see_all() -> None:
    torch.manual_seed(0)
    one, x = PlainMamba(8), torch.randn(1, 6, 8, requires_grad=True)
    seen = torch.autograd.grad(one(x)[0, 2].sum(), x)[0][0].abs().sum(dim=1)
    assert (seen > 0).tolist() == [True] * 3 + [False] * 3


class Mamba(nn.Module):
    """A stand-in with mamba-ssm's interface, `Mamba(d_model, d_state, d_conv, expand)`: no such package runs here."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(d_model, d_model)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.layer(hidden_states)


def test_mamba_ssm_takes_the_place_of_the_plain_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(MissingExtra, match="mamba-ssm is needed"):
        StateSpaceNetwork(16, DIM, mixer="mamba")
    package = ModuleType("mamba_ssm")
    package.Mamba = Mamba  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mamba_ssm", package)
    model, (x, t) = StateSpaceNetwork(16, DIM, mixer="mamba"), batch()
    assert model(x, t).shape == x.shape
    assert any(isinstance(part, Mamba) for part in model.modules())


@pytest.mark.parametrize(("make", "said"), [
    (lambda: create_model("dti"), "architecture: got 'dti'; .*did you mean dit"),
    (lambda: create_model("mlp", "tinny"), "size: got 'tinny'; allowed are tiny, small, base; did you mean tiny"),
    (lambda: create_model("dit", heads=5), "dit: hidden=384 must be a multiple of its 5 heads"),
    (lambda: create_model("ssm", dim=100), "ssm: dim=100 must be a multiple of tokens=16"),
    (lambda: create_model("unet", hidden=30), "unet: hidden=30 must be a multiple of 4"),
    (lambda: create_model("dit", heads=0), "heads of dit: got 0; allowed is a whole number from 1 on"),
    (lambda: create_model("mlp", hidden="64"), "hidden of mlp: got '64'"),
    (lambda: create_model("ssm", mixer="plian"), "ssm: mixer='plian' must be one of plain, mamba"),
    (lambda: create_model("mlp", layers=1), "mlp: layers=1 must be at least 2"),
])  # fmt: skip
def test_what_cannot_be(make: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()  # type: ignore[operator]


def test_names_of_before() -> None:
    assert SimpleMLP(hidden=8, dim=4).num_params() < UNetMLP(hidden=8, dim=4).num_params()
