"""The GPT against an independent implementation, its causality, its count and its FLOPs by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.models.gpt import ATTENTION, GPT, READOUT, TABLE_LR, VECTOR_LR, rotate
from flops_fit.train.measure import count_flops
from flops_fit.train.options import TrainOptions

SAME = 1e-12     # float64, sums in another order
CAUSAL = 1e-13   # float64; attention may group its sums by the values it sees
TURNED = 1e-10   # float64: cosines and sines of angles up to 40, sums of 16 products


def model(d_model: int = 32, **kwargs: int) -> GPT:
    torch.manual_seed(0)
    made = GPT(d_model, vocab_size=11, context=12, heads=4, **kwargs).double()
    for parameter in made.parameters():  # outputs of the blocks start at zero, which would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def plain(gpt: GPT, ids: Tensor, head_dim: int) -> Tensor:
    """The same network written from its papers: complex rotations, explicit softmax, one position at a time."""
    weight = dict(gpt.named_parameters())
    batch, tokens = ids.shape
    table = weight["embedding.weight"]
    x = table[ids]
    before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)
    x = x + weight["previous"] * before
    width = x.shape[-1]
    turn = torch.polar(
        torch.ones(tokens, head_dim // 2, dtype=torch.float64),
        torch.arange(tokens)[:, None] * 10_000.0 ** (-2 * torch.arange(head_dim // 2) / head_dim).double(),
    )

    def norm(z: Tensor, gain: Tensor) -> Tensor:
        centred = z - z.mean(-1, keepdim=True)
        return gain * centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)

    def rotated(z: Tensor) -> Tensor:  # z (T, K)
        turned = torch.complex(z[:, : head_dim // 2], z[:, head_dim // 2 :]) * turn
        return torch.cat((turned.real, turned.imag), dim=-1)

    for i in range(len(gpt.blocks)):
        own = {name.removeprefix(f"blocks.{i}."): p for name, p in weight.items() if name.startswith(f"blocks.{i}.")}
        q, k, v = (norm(x, own["attention_norm.weight"]) @ own["qkv.weight"].T).split(width, dim=-1)
        mixed = torch.zeros_like(x)
        for b in range(batch):
            for h in range(width // head_dim):
                at = slice(h * head_dim, (h + 1) * head_dim)
                queries, keys = rotated(q[b, :, at]), rotated(k[b, :, at])
                for t in range(tokens):
                    weights = torch.softmax(keys[: t + 1] @ queries[t] / math.sqrt(head_dim), dim=0)
                    mixed[b, t, at] = weights @ v[b, : t + 1, at]
        x = x + mixed @ own["attention_out.weight"].T
        hidden = norm(x, own["mlp_norm.weight"]) @ own["mlp_in.weight"].T
        x = x + (hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))) @ own["mlp_out.weight"].T
    return norm(x, weight["final_norm.weight"]) @ table.T


@pytest.mark.parametrize("depth", [1, 2])
def test_equals_a_plain_implementation(depth: int) -> None:
    gpt = model(depth=depth)
    gpt.cos, gpt.sin = rotary(12, 8)  # buffers made in float32 would limit the comparison
    ids = torch.randint(11, (2, 12))
    torch.testing.assert_close(gpt(ids)[0], plain(gpt, ids, 8), rtol=SAME, atol=SAME)


def rotary(context: int, head_dim: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(context)[:, None] * 10_000.0 ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    return angle.cos(), angle.sin()


def test_a_later_token_changes_nothing_before_it() -> None:
    gpt = model(depth=2)
    ids = torch.randint(11, (1, 12))
    changed = ids.clone()
    changed[0, 7] = (ids[0, 7] + 1) % 11
    one, two = gpt(ids)[0], gpt(changed)[0]
    torch.testing.assert_close(one[:, :7], two[:, :7], rtol=0, atol=CAUSAL)
    assert not torch.equal(one[:, 7:], two[:, 7:])


def test_a_shorter_text_has_the_logits_of_its_beginning() -> None:
    gpt = model(depth=2)
    ids = torch.randint(11, (1, 12))
    torch.testing.assert_close(gpt(ids[:, :5])[0], gpt(ids)[0][:, :5], rtol=0, atol=CAUSAL)


def test_rotation_keeps_lengths_and_sees_only_distances() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, 1, 1, 16, generator=generator, dtype=torch.float64).expand(1, 1, 40, 16) for _ in range(2))
    at_q, at_k = (rotate(x, *rotary(40, 16))[0, 0] for x in (q, k))
    torch.testing.assert_close(at_q.norm(dim=1), q[0, 0].norm(dim=1), rtol=TURNED, atol=0)
    scores = at_q @ at_k.T
    for distance in (0, 1, 7):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=TURNED)
    assert (scores.diagonal(0)[0] - scores.diagonal(-7)[0]).abs() > 0.01


@pytest.mark.parametrize("d_model", [16, 64, 256])
def test_it_starts_near_chance(d_model: int) -> None:
    """Nothing is learned yet, so the loss on random targets is ln 256 or more; what the table's 0.1 adds is bounded.

    A logit is norm(x) . row, of variance s^2 = 0.01 D, which adds s^2/2; the token's own row adds its larger logit.
    """
    torch.manual_seed(0)
    gpt = GPT(d_model, context=32)
    ids, targets = torch.randint(256, (64, 32)), torch.randint(256, (64, 32))
    loss = F.cross_entropy(gpt(ids)[0].flatten(0, 1), targets.flatten()).item()
    own = 0.1 * d_model**0.5 * d_model**0.5 * 2 / 5**0.5  # norm(x) has length sqrt D, the row 0.1 sqrt D, their cosine
    spread = math.log(math.exp(0.005 * d_model) + math.exp(own) / 256)
    sampling = 0.05 + 0.005 * d_model  # 64 x 32 targets among rows that are not quite orthogonal
    assert math.log(256) - sampling < loss < math.log(256) + spread + sampling


@pytest.mark.parametrize(("d_model", "depth"), [(16, 1), (104, 1), (128, 1), (256, 2), (384, 3)])
def test_one_dial_sets_depth_and_count(d_model: int, depth: int) -> None:
    with torch.device("meta"):
        gpt = GPT(d_model)
    assert len(gpt.blocks) == depth
    assert gpt.num_params() == depth * (12 * d_model**2 + 2 * d_model) + 256 * d_model + 2 * d_model


@pytest.mark.parametrize("parameterization", ["standard", "u-mup"])
def test_blocks_start_as_the_identity(parameterization: Any) -> None:
    torch.manual_seed(0)
    deep, flat = (GPT(32, depth=depth, parameterization=parameterization) for depth in (3, 1))
    flat.load_state_dict({name: value for name, value in deep.state_dict().items() if name in flat.state_dict()})
    ids = torch.randint(256, (2, 16))
    assert torch.equal(deep(ids)[0], flat(ids)[0])


@pytest.mark.parametrize("parameterization", ["standard", "u-mup"])
def test_flops_are_those_of_its_matrix_products(parameterization: Any) -> None:
    """Forward and backward, attention as two full T x T products; a multiply-add is 2, backward twice the forward."""
    d, context, batch, depth, vocab = 32, 24, 3, 2, 256
    with torch.device("meta"):
        gpt = GPT(d, context=context, depth=depth, parameterization=parameterization)
        ids = torch.zeros(batch, context, dtype=torch.long)
    matrices = depth * 12 * d * d + vocab * d
    attention = depth * 2 * context * d
    by_hand = 3 * 2 * (matrices + attention) * batch * context
    measured = count_flops(lambda: F.cross_entropy(gpt(ids)[0].flatten(0, 1), ids.flatten()).backward())
    assert measured == by_hand


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ValueError, match="must be a multiple of 8, twice the 4 heads"):
        GPT(44)
    with pytest.raises(ValueError, match="context is 8"):
        GPT(32, context=8)(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match='parameterization=.mup.; allowed are "standard" and "u-mup"'):
        GPT(32, parameterization="mup")  # type: ignore[arg-type]


# --- u-mup ---------------------------------------------------------------------------------------------------------

UNIT = 2.0          # factor: attention averages tokens that were averaged before; a GELU of what is not quite normal
UNIT_GRADIENT = 7.0  # factor: q and k have less than v, and a branch passes on less than the stream does
WIDER = 1.3         # factor: entries of a few thousand random numbers, LayerNorm of 64 rather than 512 of them
RATIO = 1e-9        # float64: a gradient against another, through two blocks
ABOVE_EPS = 100     # AdamW's eps moves a step by 1% where a gradient is this many times it

DEPTH, CONTEXT, VOCAB, HEAD_DIM = 2, 32, 256, 8  # not 16, where ATTENTION / K would be 1 / sqrt(K)


def unit_gpt(d_model: int) -> GPT:
    """With projections into the stream that do not start at zero, which would hide all that lies in the branches."""
    torch.manual_seed(0)
    gpt = GPT(d_model, VOCAB, CONTEXT, depth=DEPTH, heads=d_model // HEAD_DIM, parameterization="u-mup")
    for name, parameter in gpt.named_parameters():
        if name.endswith("_out.weight"):
            nn.init.normal_(parameter)
    return gpt


def loss_of(gpt: GPT, batch: int, multiplier: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    ids, targets = torch.randint(VOCAB, (2, batch, CONTEXT), generator=generator)
    return F.cross_entropy(multiplier * gpt(ids)[0].flatten(0, 1), targets.flatten())


def multipliers(d_model: int) -> dict[str, Tensor]:
    """What each weight is multiplied by in the forward pass, by the table of Blake et al. 2024, written out by hand."""
    flat = 1 / (1 + 4 * HEAD_DIM / ATTENTION**2)
    sigma = math.exp(flat * math.log(1.0) + (1 - flat) * math.log(math.sqrt(math.log(CONTEXT) / CONTEXT)))
    z = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    gelu_rms = math.sqrt(torch.trapezoid(F.gelu(z) ** 2 * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), z).item())
    into_qkv = torch.full((3 * d_model, 1), d_model**-0.5, dtype=torch.float64)
    into_qkv[:d_model] *= ATTENTION / math.sqrt(HEAD_DIM)  # ATTENTION / K where the standard network has 1 / sqrt(K)
    by_hand = {
        "qkv": into_qkv,
        "attention_out": 1 / (sigma * math.sqrt(DEPTH * d_model)),
        "mlp_in": 1 / math.sqrt(d_model),
        "mlp_out": 1 / (round(gelu_rms, 3) * math.sqrt(DEPTH * 4 * d_model)),
    }
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in by_hand.items()}


def multiplier_of(name: str, d_model: int) -> Tensor:
    module = name.split(".")[-2] if "." in name else name
    return multipliers(d_model).get(module, torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("d_model", [16, 64])
def test_unit_weights_times_their_multipliers_are_the_standard_network(d_model: int) -> None:
    """Same outputs; the same gradients up to one positive number a tensor, which AdamW does not see."""
    unit = unit_gpt(d_model).double()
    plain_one = GPT(d_model, VOCAB, CONTEXT, depth=DEPTH, heads=d_model // HEAD_DIM).double()
    plain_one.load_state_dict({n: multiplier_of(n, d_model) * p.detach() for n, p in unit.named_parameters()})
    ids = torch.randint(VOCAB, (2, CONTEXT))
    torch.testing.assert_close(unit(ids)[0], READOUT / d_model * plain_one(ids)[0], rtol=SAME, atol=SAME)
    assert unit(ids)[1] is None
    loss_of(unit, 4).backward()
    loss_of(plain_one, 4, READOUT / d_model).backward()
    plain_gradients = {name: p.grad for name, p in plain_one.named_parameters()}
    for name, parameter in unit.named_parameters():
        of_loss = multiplier_of(name, d_model) * plain_gradients[name]
        constant = (parameter.grad.norm() / of_loss.norm()).item()
        torch.testing.assert_close(parameter.grad, constant * of_loss, rtol=RATIO, atol=RATIO * of_loss.abs().max())


def scales(d_model: int) -> tuple[dict[str, float], dict[str, float]]:
    """(root mean square of what each module gives, of the gradient of each parameter in units of 1/sqrt(N B T))."""
    gpt, given, batch = unit_gpt(d_model), {}, 32

    def note(name: str) -> Any:
        return lambda module, inputs, output: given.update({name: output.square().mean().sqrt().item()})

    for name, module in gpt.named_modules():
        if name.count(".") == 2 or name == "final_norm":  # not the stream itself, which has variance 1.25 to 3.25 or so
            module.register_forward_hook(note(name))
    loss_of(gpt, batch).backward()
    unit = 1 / math.sqrt(gpt.num_params() * batch * CONTEXT)
    return given, {name: p.grad.square().mean().sqrt().item() / unit for name, p in gpt.named_parameters()}


def outside(values: dict[str, float], factor: float) -> dict[str, float]:
    return {name: value for name, value in values.items() if not 1 / factor < value < factor}


def test_activations_and_gradients_have_unit_scale_at_every_width() -> None:
    (narrow, narrow_gradients), (wide, wide_gradients) = scales(64), scales(512)
    for given, gradients in ((narrow, narrow_gradients), (wide, wide_gradients)):
        assert outside(given, UNIT) == {}
        assert outside(gradients, UNIT_GRADIENT) == {}
    matrices = [name for name in wide_gradients if "norm" not in name]  # the table's own tokens are in the last gain
    assert outside({name: wide[name] / narrow[name] for name in wide}, WIDER) == {}
    assert outside({name: wide_gradients[name] / narrow_gradients[name] for name in matrices}, WIDER) == {}


@pytest.mark.parametrize("d_model", [64, 512])
def test_adamw_does_not_notice_its_eps(d_model: int) -> None:
    gpt = unit_gpt(d_model)
    loss_of(gpt, 32).backward()
    for name, parameter in gpt.named_parameters():
        assert parameter.grad.abs().median() > ABOVE_EPS * TrainOptions().eps, name


@pytest.mark.parametrize("d_model", [16, 128])
def test_both_parameterizations_have_the_same_parameters(d_model: int) -> None:
    with torch.device("meta"):
        standard, unit = (GPT(d_model, depth=2, parameterization=name) for name in ("standard", "u-mup"))
    assert unit.num_params() == standard.num_params()
    assert {n: p.shape for n, p in unit.named_parameters()} == {n: p.shape for n, p in standard.named_parameters()}
    assert standard.lr_factors() == {}


@pytest.mark.parametrize(("d_model", "depth"), [(16, 1), (64, 2), (256, 3)])
def test_learning_rates_follow_the_fan_in_and_the_depth(d_model: int, depth: int) -> None:
    with torch.device("meta"):
        gpt = GPT(d_model, depth=depth, heads=4, parameterization="u-mup")
    by_hand = {"embedding.weight": TABLE_LR, "previous": VECTOR_LR, "final_norm.weight": VECTOR_LR}
    for i in range(depth):
        by_hand |= {f"blocks.{i}.{name}.weight": VECTOR_LR for name in ("attention_norm", "mlp_norm")}
        by_hand |= {f"blocks.{i}.{n}.weight": (d_model * depth) ** -0.5 for n in ("qkv", "attention_out", "mlp_in")}
        by_hand |= {f"blocks.{i}.mlp_out.weight": (4 * d_model * depth) ** -0.5}
    assert gpt.lr_factors() == pytest.approx(by_hand, rel=SAME)
    assert gpt.lr_factors().keys() == dict(gpt.named_parameters()).keys()
