"""Classifiers: counts by hand, published definitions in plain loops, intervals that cover, the best temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.evaluate import accuracy as module
from flops_fit.evaluate.accuracy import (
    BINS,
    TEMPERATURES,
    accuracy,
    balanced_accuracy,
    calibration_error,
    class_score,
    classification,
    confusion,
    line_of_odds,
    negative_log_likelihood,
    per_class,
    temperature,
)
from flops_fit.evaluate.metric import share_of

INDEPENDENT = 1e-9  # relative, of two float64 sums; the bar is 1e-3
WIDTH = 0.3  # relative, of an interval: the spread of 60 sets is known to 9%, three of its standard errors
SEEDS = st.integers(0, 10_000)

# Four rows of class 0, two of 1, none of 2; said: 0 0 0 1 and 1 2.
LABELS = torch.tensor([0, 0, 0, 0, 1, 1])
SAID = torch.tensor([0, 0, 0, 1, 1, 2])
LOGITS = torch.nn.functional.one_hot(SAID, 3).double()


def world(n: int, classes: int = 5, seed: int = 0, sharp: float = 1.0) -> tuple[Tensor, Tensor]:
    """Labels drawn from softmax(z): sharp = 1 is rightly sure, more is too sure; the best temperature is `sharp`."""
    generator = torch.Generator().manual_seed(seed)
    true = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return sharp * true, torch.multinomial(true.softmax(dim=1), 1, generator=generator)[:, 0]


def loss(logits: Tensor, labels: Tensor, by: float = 1.0) -> float:
    return float(torch.nn.functional.cross_entropy(logits.double() / by, labels))


# --- counts ---------------------------------------------------------------------------------------------------------


def test_counts_by_hand() -> None:
    assert confusion(LOGITS, LABELS).tolist() == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert accuracy(LOGITS, LABELS) == share_of("accuracy", np.array([1, 1, 1, 0, 1, 0], bool))
    assert balanced_accuracy(LOGITS, LABELS).value == pytest.approx((3 / 4 + 1 / 2) / 2)  # class 2 does not occur
    found = {metric.name: (metric.value, metric.n) for metric in per_class(LOGITS, LABELS, ["a", "b", "c"])}
    assert found == {  # c did not come, and was said only once
        "recall_a": (0.75, 4), "precision_a": (1.0, 3), "recall_b": (0.5, 2), "precision_b": (0.5, 2),
    }  # fmt: skip


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.integers(2, 6))
def test_the_confusion_matrix_holds_all_that_is_counted(seed: int, classes: int) -> None:
    logits, labels = world(60, classes, seed)
    table = confusion(logits, labels)
    assert table.dtype == np.int64 and table.shape == (classes, classes) and table.sum() == 60
    assert table.sum(axis=1).tolist() == torch.bincount(labels, minlength=classes).tolist()
    assert accuracy(logits, labels).value == pytest.approx(np.trace(table) / 60, rel=INDEPENDENT)
    rows = [table[i, i] / table[i].sum() for i in range(classes) if table[i].sum()]
    assert balanced_accuracy(logits, labels).value == pytest.approx(np.mean(rows), rel=INDEPENDENT)
    named = {metric.name: metric for metric in per_class(logits, labels, [str(i) for i in range(classes)])}
    for i in range(classes):
        for kind, number in (("recall", table[i].sum()), ("precision", table[:, i].sum())):
            assert (f"{kind}_{i}" in named) == (number >= 2)
            if number >= 2:
                assert named[f"{kind}_{i}"].value == pytest.approx(table[i, i] / number, rel=INDEPENDENT)


def test_one_class_that_is_always_said_is_no_better_than_chance() -> None:
    """90 rows of one class and 10 of another: accuracy .9, balanced accuracy .5."""
    labels = torch.tensor([0] * 90 + [1] * 10)
    logits = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    assert accuracy(logits, labels).value == 0.9
    found = balanced_accuracy(logits, labels)
    assert found.value == found.lo == 0.5


def test_the_interval_of_balanced_accuracy_covers_it() -> None:
    tables = [confusion(*world(400, 3, seed)) for seed in range(100, 160)]
    expected = np.mean([np.diag(table) / table.sum(axis=1) for table in tables])
    found = [balanced_accuracy(*world(80, 3, seed)) for seed in range(20)]
    assert sum(one.lo <= expected <= one.hi for one in found) >= 16  # of 20 at 95%: fewer have a chance of .3%


# --- probabilities --------------------------------------------------------------------------------------------------


def test_the_likelihood_is_torchs_and_log_k_of_who_knows_nothing() -> None:
    logits, labels = world(200)
    assert negative_log_likelihood(logits, labels).value == pytest.approx(loss(logits, labels), rel=INDEPENDENT)
    assert negative_log_likelihood(torch.zeros(9, 5), torch.arange(9) % 5).value == pytest.approx(math.log(5))
    sure = torch.tensor([[2000.0, 0.0], [2000.0, 0.0]])  # exp overflows and underflows
    assert negative_log_likelihood(sure, torch.tensor([0, 1])).value == pytest.approx(1000)


@settings(deadline=None, max_examples=10)
@given(SEEDS, st.integers(2, 6), st.floats(0.2, 5))
def test_the_calibration_error_is_guos(seed: int, classes: int, sharp: float) -> None:
    logits, labels = world(70, classes, seed, sharp)
    sure, said = logits.softmax(dim=1).max(dim=1)
    expected = 0.0
    for place in range(BINS):
        chosen = (sure > place / BINS) & (sure <= (place + 1) / BINS)
        if chosen.any():
            right = (said == labels)[chosen].double().mean()
            expected += float(chosen.double().mean() * (right - sure[chosen].mean()).abs())
    assert calibration_error(logits, labels).value == pytest.approx(expected, rel=INDEPENDENT, abs=INDEPENDENT)


def test_calibration_errors_that_are_known() -> None:
    """Always sure and right half of the time: 1/2; p = 3/4 and right three times of four: 0."""
    labels = torch.tensor([0, 0, 0, 1])
    certain, fair = (torch.tensor([[above, 0.0]]).repeat(4, 1) for above in (50.0, math.log(3)))
    assert calibration_error(certain, torch.tensor([0, 0, 1, 1])).value == pytest.approx(0.5)
    assert calibration_error(fair, labels).value == pytest.approx(0, abs=1e-7)  # log 3 in float32


def test_the_upper_end_of_a_bin_belongs_to_it() -> None:
    """p = 1/3 = 5/15 and right, p a little more and wrong: two bins, in one they would make up for each other."""
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.05, 0.0, 0.0]], dtype=torch.float64)
    more = float(logits[1].softmax(dim=0)[0])
    found = calibration_error(logits, torch.tensor([0, 1])).value
    assert found == pytest.approx((2 / 3 + more) / 2, rel=INDEPENDENT)


def test_who_is_too_sure_is_told_so_and_temperature_cures_it() -> None:
    logits, labels = world(4000, sharp=3.0)
    right, over = calibration_error(logits / 3, labels), calibration_error(logits, labels)
    assert over.lo > right.hi
    found = temperature(logits, labels)
    assert found == pytest.approx(3.0, rel=0.08)  # the slope of 4,000 rows leaves some 2%
    assert calibration_error(logits / found, labels).value < 0.04  # what 4,000 rows show of none


def test_the_interval_of_the_calibration_error_holds_what_such_sets_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS", 300)  # as wide, and less time
    shown = [calibration_error(*world(150, seed=seed, sharp=4.0)).value for seed in range(100, 160)]
    found = [calibration_error(*world(150, seed=seed, sharp=4.0)) for seed in range(20)]
    assert all(one.lo <= one.value <= one.hi for one in found)
    assert sum(one.lo <= np.mean(shown) <= one.hi for one in found) >= 16  # of 20 at 95%: fewer have a chance of .3%
    assert np.mean([one.hi - one.lo for one in found]) == pytest.approx(2 * 1.96 * np.std(shown), rel=WIDTH)


@settings(deadline=None, max_examples=5)  # each is twelve intervals
@given(SEEDS)
def test_order_of_rows_classes_and_what_all_logits_share_change_nothing(seed: int) -> None:
    logits, labels = world(40, 4, seed)
    rows, places = torch.randperm(40), torch.randperm(4)
    known = [metric.value for metric in classification(logits, labels)]
    for same in (
        (logits[rows], labels[rows]),
        (logits[:, places], places.argsort()[labels]),
        (logits + torch.randn(40, 1, dtype=torch.float64), labels),
    ):
        assert [metric.value for metric in classification(*same)] == pytest.approx(known, abs=INDEPENDENT)
        assert class_score(same[0]).value == pytest.approx(class_score(logits).value, rel=INDEPENDENT)


def test_all_at_once() -> None:
    found = classification(*world(50))
    names = ["accuracy", "balanced_accuracy", "negative_log_likelihood", "calibration_error"]
    assert [metric.name for metric in found] == names
    assert all(metric.lo < metric.value < metric.hi and metric.n == 50 for metric in found)
    assert found == classification(*world(50))  # the same draws


# --- temperature ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(0.05, 20))
def test_no_other_temperature_is_better(seed: int, sharp: float) -> None:
    logits, labels = world(60, 4, seed, sharp)
    found = temperature(logits, labels)
    targets = torch.full((60, 4), 1 / 62 / 3, dtype=torch.float64)
    targets[torch.arange(60), labels] = 61 / 62

    def loss_of(by: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / by, targets))

    grid = np.geomspace(*TEMPERATURES, 200)
    assert loss_of(found) <= min(loss_of(other) for other in grid) + 1e-12  # rounding
    for near in (0.99, 1.01):
        if TEMPERATURES[0] < found < TEMPERATURES[1]:
            assert loss_of(found) < loss_of(near * found)


def test_few_rows_that_are_all_right_are_not_quite_sure() -> None:
    """Four rows of three classes: the labels are told with (4 + 1) / (4 + 2), however large the logits."""
    labels = torch.tensor([0, 1, 2, 0])
    right = torch.nn.functional.one_hot(labels, 3).double()
    for scale in (0.1, 1.0, 100.0):
        sure = (scale * right / temperature(scale * right, labels)).softmax(dim=1)
        assert sure[torch.arange(4), labels].tolist() == pytest.approx([5 / 6] * 4, rel=1e-9)  # brentq's 2e-12


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(0.1, 10))
def test_it_scales_with_the_logits(seed: int, scale: float) -> None:
    logits, labels = world(80, 4, seed)
    assert temperature(scale * logits, labels) == pytest.approx(scale * temperature(logits, labels), rel=1e-6)


def test_temperatures_without_end_end() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    right = torch.nn.functional.one_hot(labels, 3).double()
    assert temperature(1e-3 * right, labels) == TEMPERATURES[0]  # all right, and hardly said
    assert temperature(1e4 * right, labels) == TEMPERATURES[1]  # too sure, even of what is right
    assert temperature(-right, labels) == TEMPERATURES[1]  # all wrong: best to know nothing
    assert temperature(-100 * right, labels) == TEMPERATURES[1]
    for level in (0.0, 0.1, 3.7):
        assert temperature(torch.full((4, 3), level), labels) == 1.0  # nothing is known, whatever it is divided by


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(0.1, 10), st.floats(-3, 3))
def test_no_other_line_is_better(seed: int, slope: float, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(80, generator=generator, dtype=torch.float64)
    labels = (torch.rand(80, generator=generator) < torch.sigmoid(slope * z + offset)).long()
    yes = int(labels.sum())
    targets = torch.where(labels == 1, (yes + 1) / (yes + 2), 1 / (80 - yes + 2)).double()

    def loss_of(a: float, b: float) -> float:
        return float(torch.nn.functional.binary_cross_entropy_with_logits(a * z + b, targets))

    a, b = line_of_odds(z, labels)
    for da, db in ((0.01, 0.0), (-0.01, 0.0), (0.0, 0.01), (0.0, -0.01)):
        assert loss_of(a, b) < loss_of(a + da, b + db)
    scaled = line_of_odds(3 * z - 2, labels)  # a line of a line
    assert (3 * scaled[0], scaled[1] - 2 * scaled[0]) == pytest.approx((a, b), abs=1e-5)  # the gradient ends at 1e-10


def test_odds_of_many_rows_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(40_000, generator=generator, dtype=torch.float64)
    labels = (torch.rand(40_000, generator=generator) < torch.sigmoid(2 * z - 1)).long()
    assert line_of_odds(z, labels) == pytest.approx((2, -1), abs=0.1)  # four standard errors


def test_lines_that_have_no_end_without_doubt() -> None:
    z, labels = torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([0, 0, 1, 1])
    a, b = line_of_odds(z, labels)
    assert 0 < a < math.inf and b == pytest.approx(0, abs=1e-6)
    assert line_of_odds(torch.ones(4), labels)[0] == 1.0
    slope, offset = line_of_odds(z, torch.ones(4, dtype=torch.int64))  # one class alone: as likely as it was seen
    assert torch.sigmoid(slope * z + offset) == pytest.approx(torch.full((4,), 5 / 6), abs=1e-6)
    with pytest.raises(InputError, match=r"logits: got shape \(4, 1\)"):
        line_of_odds(z[:, None], labels)


# --- class score ----------------------------------------------------------------------------------------------------


def wave(n: int, dims: int, phase: float) -> Tensor:
    """Numbers of -1 to 1 without a pattern, the same on every machine."""
    i, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(dims, dtype=torch.float64)
    return ((i * 12.9898 + j * 78.233 + phase).sin() * 43758.5453).frac()


# torch-fidelity 0.4.0, metric_isc.isc_features_to_metric with one split, of 4 wave(n, D, 0)
PEER = {(300, 12): 2.6584891795012124, (100, 40): 2.907793126400699, (60, 100): 2.8730792171405604}


@pytest.mark.parametrize(("n", "dims"), PEER)
def test_the_class_score_is_that_of_torch_fidelity(n: int, dims: int) -> None:
    assert class_score(4 * wave(n, dims, 0)).value == pytest.approx(PEER[n, dims], rel=1e-6)  # both in float64


def test_class_scores_that_are_known() -> None:
    """Sure of a class each, all equally often: K. The same for every row: 1."""
    sure = 1000 * torch.nn.functional.one_hot(torch.arange(40) % 8, 8).double()
    assert class_score(sure).value == pytest.approx(8)
    assert class_score(torch.randn(1, 8).repeat(40, 1)).value == pytest.approx(1)
    some = class_score(world(100)[0])
    assert 1 <= some.lo < some.value < some.hi and some.n == 100 and some.name == "class_score"


def test_the_interval_of_the_class_score_holds_what_such_sets_show() -> None:
    shown = [class_score(world(60, 8, seed)[0]).value for seed in range(100, 160)]
    found = [class_score(world(60, 8, seed)[0]) for seed in range(20)]
    assert sum(one.lo <= np.mean(shown) <= one.hi for one in found) >= 16  # of 20 at 95%: fewer have a chance of .3%
    assert np.mean([one.hi - one.lo for one in found]) == pytest.approx(2 * 1.96 * np.std(shown), rel=WIDTH)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [accuracy, balanced_accuracy, confusion, negative_log_likelihood, calibration_error,
                                     temperature, classification])  # fmt: skip
def test_what_cannot_be(measure: object) -> None:
    logits, labels = world(10, 3)
    broken = logits.clone()
    broken[3, 0] = math.nan
    for came, told in (
        ((logits, labels[:9]), "labels: got torch.int64 of shape .9,. for logits of shape .10, 3."),
        ((logits, labels.double()), "labels: got torch.float64"),
        ((logits, labels[:, None]), "allowed are whole numbers of shape .10,."),
        ((logits, labels.masked_fill(torch.arange(10) == 4, 3)), "labels: got 3 in row 4; allowed are 0 to 2"),
        ((logits, labels.masked_fill(torch.arange(10) == 4, -1)), "labels: got -1 in row 4; allowed are 0 to 2"),
        ((broken, labels), "logits: got NaN or infinity in 1 of 10 rows, the first at 3"),
        ((logits[:1], labels[:1]), "logits: got 1 rows; an interval needs at least 2"),
        ((logits[:, :1], labels), "logits: got shape .10, 1.; allowed is .n, K. with K >= 2"),
        ((logits[0], labels), "logits: got shape .3,."),
    ):
        with pytest.raises(InputError, match=told):
            measure(*came)  # type: ignore[operator]


def test_what_cannot_be_named_or_scored() -> None:
    logits, labels = world(10, 3)
    for names in (["a", "b"], ["a", "b", "a"], ["a", "b", "c", "c"]):
        with pytest.raises(InputError, match="for 3 columns of logits"):
            per_class(logits, labels, names)
    with pytest.raises(InputError, match="at least 2"):
        class_score(logits[:1])
    with pytest.raises(InputError, match="NaN or infinity"):
        class_score(logits.masked_fill(torch.arange(10)[:, None] == 2, math.inf))
