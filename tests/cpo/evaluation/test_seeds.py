"""Intervals over training seeds and prompts: by hand, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cpo.evaluation import seeds, statistics
from cpo.evaluation.statistics import Estimate


def test_standard_error_by_hand() -> None:
    # Seeds 0.1, 0.2, 0.3 have the variance 0.01, their mean 0.01 / 3. With as much from prompts the
    # total is 0.02 / 3, and the degrees of freedom (total / seeds' part)^2 (S - 1) = 2^2 * 2.
    error, freedom = seeds.standard_error(0.01 / 3, [0.1, 0.2, 0.3])
    assert error == pytest.approx(math.sqrt(0.02 / 3))
    assert freedom == pytest.approx(8)
    assert seeds.standard_error(0.0, [0.1, 0.2, 0.3])[1] == pytest.approx(2)
    assert seeds.standard_error(0.04, [0.5]) == (pytest.approx(0.2), math.inf)
    assert seeds.standard_error(0.04, [0.5, 0.5]) == (pytest.approx(0.2), math.inf)


def test_an_interval_over_seeds_by_hand() -> None:
    # Nothing from prompts: Student's interval of three values, 0.2 +- 4.303 * 0.1 / sqrt(3).
    found = seeds.over_seeds(Estimate(0.2, 0.2, 0.2, 50), [0.1, 0.2, 0.3])
    assert (found.low, found.high) == (
        pytest.approx(-0.0484, abs=1e-4),
        pytest.approx(0.4484, abs=1e-4),
    )
    assert found.n == 50
    one = Estimate(0.2, 0.15, 0.3, 50, (0.1, 0.3))
    assert seeds.over_seeds(one, [0.2]) is one
    # Equal seeds add nothing, and both halves keep their lengths.
    equal = seeds.over_seeds(one, [0.2, 0.2])
    assert (equal.low, equal.high) == (pytest.approx(0.15), pytest.approx(0.3))


def test_seeds_widen_a_win_rate_and_leave_its_value() -> None:
    points = np.array([[1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 50])
    both = seeds.win_rate_over_seeds(points)
    prompts = statistics.win_rate(points.mean(0))
    assert both.value == prompts.value == pytest.approx(0.55)
    assert both.low < prompts.low and prompts.high < both.high
    assert seeds.win_rate_over_seeds(points[:1]) == statistics.win_rate(points[0])
    # No seed ever wins: the interval stays in [0, 1] and is not a point.
    never = seeds.win_rate_over_seeds(np.zeros((3, 100)))
    assert never.low == 0 < never.high < 0.05


def test_a_prompt_without_a_verdict_for_one_seed_counts_with_the_others() -> None:
    found = seeds.win_rate_over_seeds([[1, math.nan, 0, math.nan], [1, 1, 0, math.nan]])
    assert (found.value, found.n) == (pytest.approx(2 / 3), 3)


def test_a_difference_is_paired_by_prompt_and_by_seed() -> None:
    draw = np.random.default_rng(0)
    hard, trained = draw.random((1, 400)), np.array([[0.0], [0.2], [0.4]])
    # Prompts and seeds move both rows alike: of their difference, 0.1, nothing varies.
    found = seeds.difference_over_seeds(hard + trained + 0.1, hard + trained)
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low < 1e-9
    # Against a row of one training's level, the seeds' spread is the difference's.
    apart = seeds.difference_over_seeds(hard + trained, np.repeat(hard, 3, axis=0))
    # 0.2 +- 4.303 * 0.2 / sqrt(3)
    assert apart.high - apart.low == pytest.approx(2 * 0.4968, rel=1e-3)


@pytest.mark.parametrize(("spread", "least"), [(0.01, 0.94), (0.04, 0.93), (0.15, 0.89)])
def test_intervals_hold_the_truth(spread: float, least: float) -> None:
    """95 intervals of 100 hold the mean over all trainings; 91 where seeds vary most."""
    draw, held, trials = np.random.default_rng(1), 0, 1000
    for _ in range(trials):
        levels = draw.normal(0, spread, (3, 1))
        prompts = draw.normal(0, 0.4, 150)
        points = levels + prompts + draw.normal(0, 0.2, (3, 150))
        mean = points.mean(0)
        half = statistics.Z * mean.std(ddof=1) / math.sqrt(150)
        over_prompts = Estimate(mean.mean(), mean.mean() - half, mean.mean() + half, 150)
        found = seeds.over_seeds(over_prompts, points.mean(1).tolist())
        held += found.low <= 0 <= found.high
    # 1,000 trials at 95 %: standard deviation 0.7 points.
    assert least <= held / trials <= 0.985
