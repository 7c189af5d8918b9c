"""The exposure gap and its growth: values by hand, whole examples drawn, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cpo.evaluation.exposure_bias import (
    SentenceGrades,
    exposure_gaps,
    gap_difference,
    gap_growth,
    mean_gap,
)
from cpo.evaluation.statistics import MetricError

NONE = math.nan


def grades(true: object, own: object, asked: object = None) -> SentenceGrades:
    """Grades of examples 0, 1, ...; every sentence asked for unless stated."""
    after_true, after_own = np.array(true, dtype=float), np.array(own, dtype=float)
    everywhere = np.ones(after_true.shape, dtype=bool) if asked is None else np.array(asked, bool)
    return SentenceGrades(tuple(range(len(after_true))), after_true, after_own, everywhere)


def with_gaps(gaps: object) -> SentenceGrades:
    """Grades whose gaps are these."""
    return grades(gaps, np.zeros(np.shape(gaps)))


def test_the_gap_is_a_mean_over_examples_with_both_sentences():
    # At n = 2, examples 0 and 1 have both: true (1 + 0.5) / 2 = 0.75, own (0 + 0.5) / 2 = 0.25.
    # Of the three whose true text has a second sentence, the model ended before it once after its
    # own text and never after true text; example 3 has none to ask for.
    found = exposure_gaps(
        grades(
            true=[[1, 1], [1, 0.5], [0, 0.2], [0, NONE]],
            own=[[1, 0], [1, 0.5], [0, NONE], [0, 0.9]],
            asked=[[1, 1], [1, 1], [1, 1], [1, 0]],
        ),
        least=2,
    )
    assert [one.n for one in found] == [1, 2]
    second = found[1]
    assert (second.true, second.own) == (0.75, 0.25)
    assert (second.gap.value, second.gap.n) == (0.5, 2)
    assert second.true_missing == 0
    assert second.own_missing == pytest.approx(1 / 3)


def test_an_n_with_too_few_examples_is_left_out():
    few = [[0, 0.1, 0.2]] * 49 + [[0, 0.1, NONE]]
    assert [one.n for one in exposure_gaps(with_gaps(few))] == [1, 2]
    assert [one.n for one in exposure_gaps(with_gaps(few), least=49)] == [1, 2, 3]


def test_the_growth_is_a_weighted_slope_without_the_first_sentence():
    # Means 0.1, 0.2 and 0.6 at n = 2, 3, 4 with 4, 3 and 1 examples: the weighted mean of n is
    # (8 + 9 + 4) / 8 = 2.625, distances -0.625, 0.375, 1.375. Numerator
    # 4 (-0.625) 0.1 + 3 (0.375) 0.2 + 1.375 (0.6) = -0.25 + 0.225 + 0.825 = 0.8; denominator
    # 4 (0.390625) + 3 (0.140625) + 1.890625 = 3.875. A gap at n = 1 would have changed it.
    gaps = [
        [9, 0.1, 0.2, 0.6],
        [9, 0.1, 0.2, NONE],
        [9, 0.1, 0.2, NONE],
        [9, 0.1, NONE, NONE],
    ]
    growth = gap_growth(with_gaps(gaps * 20), least=20)
    assert growth.value == pytest.approx(0.8 / 3.875)
    assert growth.n == 160
    assert growth.low < growth.value < growth.high
    # numpy's weighted fit agrees; its weights multiply residuals, not their squares.
    fitted = np.polyfit([2, 3, 4], [0.1, 0.2, 0.6], 1, w=np.sqrt([4, 3, 1]))
    assert growth.value == pytest.approx(fitted[0])


def test_the_slope_s_interval_holds_a_planted_slope_and_excludes_another():
    random = np.random.default_rng(0)
    n = np.arange(1, 6)
    level = random.normal(0, 0.2, size=(400, 1))  # an example's own, shared by its sentences
    gaps = 0.05 * (n - 1) + level + random.normal(0, 0.1, size=(400, 5))
    growth = gap_growth(with_gaps(gaps))
    assert growth.low < 0.05 < growth.high
    assert growth.low > 0.04
    # Ordinary least squares: one example's slope has variance 0.1^2 / 5 at n = 2 to 5 (its level
    # cancels, the squared distances from 3.5 add up to 5), the mean of 400 a deviation of 0.00224.
    assert growth.high - growth.low == pytest.approx(2 * 1.96 * 0.00224, rel=0.15)


def test_whole_examples_are_drawn():
    # Four sentences of an example have the same gap: they say no more than one of them.
    level = np.random.default_rng(1).normal(size=(100, 1))
    many, one = with_gaps(np.repeat(level, 5, axis=1)), with_gaps(np.repeat(level, 2, axis=1))
    assert mean_gap(many).value == pytest.approx(mean_gap(one).value)
    assert mean_gap(many).low == pytest.approx(mean_gap(one).low)
    # As single values they would give half that interval: 400 of them instead of 100.
    width = mean_gap(many).high - mean_gap(many).low
    assert width == pytest.approx(2 * 1.98 * level.std(ddof=1) / 10, rel=0.1)
    # Their slope is 0 in every sample, as each example's is.
    growth = gap_growth(many)
    assert (growth.low, growth.high) == pytest.approx((0, 0), abs=1e-12)


def test_two_trainings_of_an_example_are_one_unit():
    random = np.random.default_rng(2)
    once = with_gaps(random.normal(size=(80, 3)))
    twice = SentenceGrades.joined([once, once])
    for measure in (mean_gap, gap_growth):
        assert measure(twice).value == pytest.approx(measure(once).value)
        assert measure(twice).low == pytest.approx(measure(once).low)
        assert measure(twice).n == 2 * measure(once).n


def test_the_difference_of_gaps_is_paired_by_sentence():
    # Sentences with both gaps, n = 2 on: 0.3 - 0.1, 0.5 - 0.1 and 0.2 - 0.2: 0.6 / 3 = 0.2.
    a = with_gaps([[9, 0.3, 0.5], [9, 0.2, 0.8]])
    b = with_gaps([[0, 0.1, 0.1], [0, 0.2, NONE]])
    assert gap_difference(a, b).value == pytest.approx(0.2)
    assert gap_difference(a, b).n == 3
    others = SentenceGrades(("x", "y"), b.true, b.own, b.asked)
    with pytest.raises(MetricError, match="different examples"):
        gap_difference(a, others)


def test_a_slope_needs_two_measured_sentences():
    with pytest.raises(MetricError, match="two sentences"):
        gap_growth(with_gaps([[0.0, 0.1]] * 60))
    with pytest.raises(MetricError):
        mean_gap(with_gaps([[0.0, NONE]] * 60))
