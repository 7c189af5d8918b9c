"""Comparisons: values by hand, parity with other implementations, planted biases recovered."""

from __future__ import annotations

import json
import math
import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from cpo.evaluation import statistics
from cpo.evaluation.statistics import MetricError, win_rate

NAN = math.nan

# --- The two orders -------------------------------------------------------------------------------


def test_pick_a_counts_a_among_a_and_b() -> None:
    estimate = statistics.pick_a(["A", "tie", "A", "B", "invalid", "A"])
    assert (estimate.value, estimate.n) == (0.75, 4)
    assert (estimate.low, estimate.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson's
    with pytest.raises(MetricError, match="not 'a'"):
        statistics.pick_a(["A", "a"])
    with pytest.raises(MetricError, match="no valid"):
        statistics.pick_a(["tie", "invalid"])


def test_pick_a_over_both_orders_draws_whole_prompts() -> None:
    # Each prompt has the same letter in both orders: 40 verdicts that are worth 20.
    verdicts, ids = ["A"] * 12 + ["B"] * 8, [f"p{number}" for number in range(20)]
    both = statistics.pick_a([*verdicts, *verdicts], clusters=[*ids, *ids])
    taken_as_40 = statistics.pick_a([*verdicts, *verdicts])
    assert (both.value, both.n) == (0.6, 40)
    assert both.high - both.low > 1.3 * (taken_as_40.high - taken_as_40.low)


def test_flip_rate_by_hand() -> None:
    # Valid in both: win-win, win-loss, tie-win, loss-loss. Two of four change.
    first, second = [1, 1, 0.5, 0, NAN, 1], [1, 0, 1, 0, 1, NAN]
    estimate = statistics.flip_rate(first, second)
    assert (estimate.value, estimate.n) == (0.5, 4)
    with pytest.raises(MetricError, match="same prompts"):
        statistics.flip_rate([1, 0], [1])
    with pytest.raises(MetricError, match="no valid"):
        statistics.flip_rate([1, NAN], [NAN, 1])


def test_both_orders_average_and_keep_what_one_order_has() -> None:
    found = statistics.mean_over_seeds([[1, 1, NAN, NAN, 0.5], [0, 1, 1, NAN, 0]])
    np.testing.assert_array_equal(found, [0.5, 1, 1, NAN, 0.25])


# --- Length ---------------------------------------------------------------------------------------


def test_longer_wins_by_hand() -> None:
    # Longer and won (1), longer and lost (0), shorter and lost (1), longer and tied (0.5); equal
    # lengths and invalid verdicts do not count: 2.5 of 4.
    points = [1, 0, 0, 0.5, 1, NAN]
    estimate = statistics.longer_wins(points, [9, 9, 2, 9, 5, 9], [5] * 6)
    assert (estimate.value, estimate.n) == (0.625, 4)
    with pytest.raises(MetricError, match="no valid"):
        statistics.longer_wins([1, 0], [5, 5], [5, 5])
    with pytest.raises(MetricError, match="no valid"):
        statistics.longer_wins([NAN], [5], [6])


def planted(
    draw: np.random.Generator, n: int, slope: float, constant: float = 0.0, ties: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points and lengths under a judge with logit P(win) = constant + slope tanh(d / s)."""
    lengths, recorded = draw.integers(10, 200, n), draw.integers(10, 160, n)
    difference = lengths - recorded
    chances = expit(constant + slope * np.tanh(difference / difference.std()))
    points = (draw.random(n) < chances).astype(float)
    return np.where(draw.random(n) < ties, 0.5, points), lengths, recorded


@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_length_control_is_a_logistic_fit_with_robust_errors(ties: float) -> None:
    points, lengths, recorded = planted(np.random.default_rng(1), 400, 1.2, 0.4, ties)
    difference = lengths - recorded
    x = np.column_stack([np.ones(400), np.tanh(difference / difference.std())])

    def loss(weights: np.ndarray) -> float:
        z = x @ weights
        return float((np.logaddexp(0, z) - points * z).sum())

    weights = minimize(loss, [0, 0], method="BFGS", options={"gtol": 1e-8}).x
    chances = expit(x @ weights)
    bread = np.linalg.inv(x.T @ (x * (chances * (1 - chances))[:, None]))
    scores = x * (points - chances)[:, None]
    variance = (bread @ scores.T @ scores @ bread)[0, 0]
    ends = expit(weights[0] + np.array([-1.959964, 1.959964]) * math.sqrt(variance))
    estimate = statistics.length_controlled_win_rate(points, lengths, recorded)
    assert estimate.n == 400
    assert estimate.value == pytest.approx(expit(weights[0]), abs=1e-5)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(ends), abs=1e-5)


def test_length_control_of_equal_lengths_is_the_win_rate() -> None:
    points = [1, 0, 1, 0.5, 1]
    assert statistics.length_controlled_win_rate(points, [7] * 5, [7] * 5) == win_rate(points)


@pytest.mark.parametrize(
    ("points", "lengths", "reason"),
    [
        ([1, 0, 1, 0], [9, 9, 9, 9], "4 to 4 longer"),  # nothing near equal length
        ([1, 1, 1, 1], [3, 5, 7, 9], "all verdicts or"),
        ([0, 0, 1, 1], [3, 4, 7, 9], "separates wins from losses"),
        ([1, 1, 0, 0], [3, 4, 7, 9], "separates wins from losses"),
        (
            [0, 0.5, 1, 1],
            [3, 4, 4, 9],
            "separates wins from losses",
        ),  # they touch, and do not overlap
        ([NAN, NAN], [3, 4], "no valid"),
        ([1], [3, 4], "same prompts"),
    ],
)
def test_length_control_refuses_what_no_fit_can_tell(
    points: list[float], lengths: list[float], reason: str
) -> None:
    with pytest.raises(MetricError, match=reason):
        statistics.length_controlled_win_rate(points, lengths, [5] * len(lengths))


# --- Planted biases: every reported effect holds what was planted ---------------------------------

TRIALS = 400
# Of 400 intervals of 95 %, the share that holds the truth has a standard error of 1.1 points.
OFTEN = (0.92, 0.98)


def test_a_planted_pull_to_a_is_recovered() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(TRIALS):
        verdicts = np.where(draw.random(300) < 0.6, "A", "B").astype(object)
        verdicts[draw.random(300) < 0.1] = "tie"
        verdicts[draw.random(300) < 0.05] = "invalid"
        estimate = statistics.pick_a(verdicts.tolist())
        held += estimate.low <= 0.6 <= estimate.high
    assert OFTEN[0] <= held / TRIALS <= OFTEN[1]


def test_a_planted_pull_to_a_leaves_the_win_rate_at_a_half_and_flips() -> None:
    # Blind to the texts, twice: points are a coin's; two letters alike, 0.6^2 + 0.4^2 = 0.52 of all
    # prompts, give the win to one model and then to the other.
    draw = np.random.default_rng(0)
    model_is_a, letters = draw.random(4000) < 0.5, draw.random((2, 4000)) < 0.6
    first, second = letters[0] == model_is_a, letters[1] != model_is_a
    flips = statistics.flip_rate(first, second)
    assert flips.low <= 0.52 <= flips.high
    for points in (first, second, statistics.mean_over_seeds([first, second])):
        rate = win_rate(points)
        assert rate.low <= 0.5 <= rate.high


def test_a_planted_pull_to_length_is_recovered() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(TRIALS):
        ours, theirs = draw.integers(5, 60, (2, 300))
        longer_is_said = draw.random(300) < 0.8
        points = (ours > theirs) == longer_is_said
        estimate = statistics.longer_wins(points, ours, theirs)
        held += estimate.low <= 0.8 <= estimate.high
    assert OFTEN[0] <= held / TRIALS <= OFTEN[1]


@pytest.mark.parametrize(("constant", "ties"), [(0.0, 0.0), (-0.8, 0.0), (0.0, 0.3)])
def test_length_control_finds_the_rate_beneath_a_planted_slope(
    constant: float, ties: float
) -> None:
    # The model's responses are longer by 20 on average: the plain win rate is off by several points
    # and its interval misses; at equal length the judge's own chance is logistic(constant). Ties
    # draw it towards a half.
    truth = float((1 - ties) * expit(constant) + ties / 2)
    draw = np.random.default_rng(0)
    held = held_plainly = 0
    for _ in range(TRIALS):
        points, lengths, recorded = planted(draw, 500, 1.5, constant, ties)
        estimate = statistics.length_controlled_win_rate(points, lengths, recorded)
        held += estimate.low <= truth <= estimate.high
        wilson = win_rate(points[points != 0.5])
        held_plainly += wilson.low <= expit(constant) <= wilson.high
    assert OFTEN[0] <= held / TRIALS <= OFTEN[1]
    assert held_plainly / TRIALS < 0.5


# --- Two models, many rows ------------------------------------------------------------------------


def test_mcnemar_by_hand() -> None:
    # a alone wins 8, b alone 2, both 5, none 3; two are invalid in one of them. Two-sided under a
    # fair coin: 2 (C(10, 0) + C(10, 1) + C(10, 2)) / 2^10 = 2 * 56 / 1024.
    a = [1] * 8 + [0] * 2 + [1] * 5 + [0] * 3 + [NAN, 1]
    b = [0] * 8 + [1] * 2 + [1] * 5 + [0] * 3 + [0, NAN]
    assert statistics.mcnemar(a, b) == pytest.approx(112 / 1024)
    assert statistics.mcnemar(b, a) == pytest.approx(112 / 1024)


def test_mcnemar_counts_no_tie_as_won() -> None:
    # a wins three times where b ties (counts), and twice ties where b loses (does not): 2 / 2^3.
    assert statistics.mcnemar([1, 1, 1, 0.5, 0.5], [0.5, 0.5, 0.5, 0, 0]) == pytest.approx(1 / 4)
    assert statistics.mcnemar([1, 0.5], [0.5, 1]) == 1  # one alone each
    assert statistics.mcnemar([1, 0], [1, 0]) == 1
    assert statistics.mcnemar([NAN, 1], [1, NAN]) == 1
    with pytest.raises(MetricError, match="same prompts"):
        statistics.mcnemar([1, 0], [1])


def test_holm_by_hand() -> None:
    # 0.01 * 3; then 0.03 * 2; 0.04 * 1 is not below the one before.
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []
    assert statistics.holm([0.2]) == [0.2]
    for wrong in (-0.1, 1.2, NAN):
        with pytest.raises(MetricError, match="p-values"):
            statistics.holm([0.5, wrong])


# --- Two judges -----------------------------------------------------------------------------------


def test_kappa_by_hand() -> None:
    # 20 + 15 of 50 agree, 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5: (0.7 - 0.5) / 0.5 = 0.4.
    first = ["A"] * 25 + ["B"] * 25 + ["invalid", "A"]
    second = ["A"] * 20 + ["B"] * 5 + ["A"] * 10 + ["B"] * 15 + ["A", "invalid"]
    estimate = statistics.kappa(first, second)
    assert (estimate.value, estimate.n) == (pytest.approx(0.4), 50)
    assert statistics.kappa(["A", "B", "tie"], ["A", "B", "tie"]).value == 1
    with pytest.raises(MetricError, match="kappa is undefined"):
        statistics.kappa(["A", "A"], ["A", "A"])
    with pytest.raises(MetricError, match="2 against 1"):
        statistics.kappa(["A", "B"], ["A"])


def test_kappas_interval_is_as_wide_as_new_items_scatter() -> None:
    draw = np.random.default_rng(0)

    def two_judges() -> tuple[list[str], list[str]]:
        first = draw.choice(["A", "B", "tie"], size=200, p=[0.45, 0.4, 0.15])
        second = np.where(draw.random(200) < 0.7, first, draw.permutation(first))
        return first.tolist(), second.tolist()

    found = [statistics.kappa(*two_judges()) for _ in range(400)]
    width = np.mean([one.high - one.low for one in found])
    assert width / (2 * 1.96) == pytest.approx(np.std([one.value for one in found]), rel=0.1)


def test_kappa_of_pandalms_annotators() -> None:
    folder = os.environ.get("CPO_DATA")
    if not folder:
        pytest.skip("CPO_DATA is not set: the folder of the real data")
    rows = json.loads((Path(folder) / "pandalm" / "testset-v1.json").read_text(encoding="utf-8"))
    said = [[["tie", "A", "B"][row[f"annotator{number}"]] for row in rows] for number in (1, 2, 3)]
    found = [statistics.kappa(*pair) for pair in combinations(said, 2)]
    assert [round(one.value, 2) for one in found] == [0.85, 0.88, 0.86]
    assert all(one.n == 999 and 0.04 < one.high - one.low < 0.08 for one in found)
