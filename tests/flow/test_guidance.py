"""Guidance in a world whose conditional velocities are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.flow.baselines import zero
from flops_fit.flow.guidance import autoguidance, classifier_free, projection, towards_higher
from flops_fit.flow.paths import PATHS
from flops_fit.flow.solvers import solve
from flow.worlds import Mixture, three

LINEAR = PATHS["linear"]
NULL = 3


def network(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The velocity of one part of the mixture by its label; of all of it for the null label."""
    world = three()
    found = world.velocity(LINEAR, x, t)
    for part in range(3):
        one = Mixture(torch.ones(1, dtype=torch.float64), world.means[[part]], world.widths[[part]])
        rows = labels == part
        found[rows] = one.velocity(LINEAR, x[rows], t[rows])
    return found


def start(n: int = 400) -> Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def labels(n: int = 400) -> Tensor:
    return torch.arange(n) % 3


def test_scale_one_is_the_conditional_and_zero_the_unconditional_velocity() -> None:
    x, t = start(), torch.full((400,), 0.6, dtype=torch.float64)
    one = classifier_free(network, labels(), NULL, 1.0)(x, t)
    none = classifier_free(network, labels(), NULL, 0.0)(x, t)
    assert torch.equal(one, network(x, t, labels=labels()))
    torch.testing.assert_close(none, network(x, t, torch.full((400,), NULL)))


def test_guidance_is_the_line_through_both() -> None:
    x, t = start(), torch.full((400,), 0.3, dtype=torch.float64)
    towards, anyhow = network(x, t, labels()), network(x, t, torch.full((400,), NULL))
    found = classifier_free(network, labels(), NULL, 2.5)(x, t)
    torch.testing.assert_close(found, anyhow + 2.5 * (towards - anyhow))


def test_samples_are_of_their_label_and_guided_ones_more_so() -> None:
    """Distance to the nearest other part's mean: guidance drives samples away from what other labels look like."""
    world = three()

    def off(scale: float, **kw: object) -> tuple[float, float]:
        x = solve(classifier_free(network, labels(), NULL, scale, **kw), start(), "heun", 40).x  # type: ignore[arg-type]
        nearest = torch.cdist(x, world.means).argmin(dim=1)
        return float((nearest == labels()).double().mean()), float(x.var(dim=0).mean())

    right, _ = off(1.0)
    guided, _ = off(3.0)
    interval, _ = off(3.0, interval=(0.3, 0.7))
    optimised, _ = off(3.0, optimised=True, still_until=0.02)
    assert right > 0.9  # parts overlap a little
    assert guided > right and interval > right and optimised > right


def test_outside_of_its_interval_guidance_costs_one_pass_and_changes_nothing() -> None:
    rows = []

    def counted(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        rows.append(len(x))
        return network(x, t, labels)

    guided = classifier_free(counted, labels(8), NULL, 3.0, interval=(0.4, 0.6))
    for t in (0.2, 0.5, 0.8):
        guided(start(8), torch.full((8,), t, dtype=torch.float64))
    assert rows == [8, 16, 8]


def test_nothing_moves_before_the_first_motion() -> None:
    guided = classifier_free(network, labels(8), NULL, 3.0, still_until=0.1)
    assert torch.equal(guided(start(8), torch.full((8,), 0.05, dtype=torch.float64)), torch.zeros(8, 2).double())
    assert bool((guided(start(8), torch.full((8,), 0.1, dtype=torch.float64)) != 0).any())


def test_the_projection_is_the_nearest_multiple() -> None:
    onto, value = start(6).view(3, 2, 2), start(12)[6:].view(3, 2, 2)
    found = projection(onto, value)
    torch.testing.assert_close(((onto - found) * value).flatten(1).sum(dim=1), torch.zeros(3).double())
    torch.testing.assert_close(projection(value, value), value)
    assert torch.equal(projection(onto, torch.zeros_like(onto)), torch.zeros_like(onto))


def test_autoguidance_leads_away_from_the_worse_model() -> None:
    """The worse model has wider parts; guided samples end up less spread than either."""
    world = three()
    wide = Mixture(world.weights, world.means, 2 * world.widths)

    def good(x: Tensor, t: Tensor) -> Tensor:
        return world.velocity(LINEAR, x, t)

    def worse(x: Tensor, t: Tensor) -> Tensor:
        return wide.velocity(LINEAR, x, t)

    def density(velocity: object) -> float:
        return float(world.log_prob(solve(velocity, start(), "heun", 40).x).mean())  # type: ignore[arg-type]

    assert density(worse) < density(good) < density(autoguidance(good, worse, 2.0))
    x, t = start(5), torch.full((5,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(autoguidance(good, worse, 1.0)(x, t), good(x, t))


def test_samples_go_where_the_score_is_higher() -> None:
    world = three()
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return world.velocity(LINEAR, x, t)

    def score(strength: float, **kw: object) -> float:
        guided = towards_higher(velocity, lambda data: direction.expand_as(data), LINEAR, strength, **kw)  # type: ignore[arg-type]
        return float((solve(guided, start(), "heun", 40).x @ direction).mean())

    assert score(0.0) < score(0.2) < score(0.5)
    assert score(0.5, still_until=0.6) < score(0.5)
    assert score(50.0, clip=0.5) == pytest.approx(score(0.5), rel=1e-9)  # no more than half of the velocity's length


def test_adaptive_guidance_does_not_ask_how_steep_the_score_is() -> None:
    x, t = start(5), torch.full((5,), 0.5, dtype=torch.float64)

    def added(steepness: float, adaptive: bool) -> Tensor:
        guided = towards_higher(lambda x, t: torch.ones_like(x), lambda data: steepness * data, LINEAR, 0.1, adaptive)
        return guided(x, t) - 1

    torch.testing.assert_close(added(1.0, True), added(1000.0, True))
    torch.testing.assert_close(added(1.0, True).norm(dim=1), torch.full((5,), 0.1 * 2**0.5).double())
    torch.testing.assert_close(10 * added(0.01, False), added(0.1, False))
    assert torch.equal(added(0.0, True), torch.zeros(5, 2).double())  # a flat score leads nowhere


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="interval: got"):
        classifier_free(network, labels(), NULL, 2.0, interval=(0.7, 0.3))
    for scale in (math.nan, math.inf, -1.0):
        with pytest.raises(InputError, match="guidance: got"):
            classifier_free(network, labels(), NULL, scale)
        with pytest.raises(InputError, match="guidance: got"):
            autoguidance(zero, zero, scale)


@pytest.mark.parametrize("steepness", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_no_square_of_a_steep_or_flat_score_leaves_the_range_of_float32(steepness: float) -> None:
    x, t = start(5).float(), torch.full((5,), 0.5)
    guided = towards_higher(lambda x, t: torch.ones_like(x), lambda data: steepness * data, LINEAR, 0.1)
    torch.testing.assert_close((guided(x, t) - 1).norm(dim=1), torch.full((5,), 0.1 * 2**0.5))


def test_a_score_without_a_gradient_is_told() -> None:
    guided = towards_higher(lambda x, t: torch.ones_like(x), lambda data: data * float("nan"), LINEAR, 0.1)
    with pytest.raises(InputError, match="gradient: got NaN or infinity in 5 of 5 rows"):
        guided(start(5), torch.full((5,), 0.5, dtype=torch.float64))


def test_a_step_that_begins_at_an_end_of_the_interval_is_guided() -> None:
    """In float32, .6 is more than .6."""
    x = start(6)
    for end in (0.1, 0.3, 0.6, 0.7):
        t = torch.full((6,), end, dtype=torch.float32)
        guided = classifier_free(network, labels(6), NULL, 2.0, interval=(0.0, end))(x, t)
        assert not torch.equal(guided, network(x, t, labels(6)))
