"""Intervals: values by hand, how often they hold the truth, and input that must not be scored."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from cpo.evaluation import statistics
from cpo.evaluation.statistics import Estimate, MetricError

# --- Values ---------------------------------------------------------------------------------------


def test_win_rate_by_hand() -> None:
    # 3 wins, 2 ties, 3 losses: (3 + 2 * 0.5) / 8 = 0.5. Var of one point = (6 * 0.25) / 8 = 0.1875,
    # so the bootstrap's standard error is sqrt(0.1875 / 8) = 0.153, and the ends are
    # t(7) sqrt(8 / 7) = 2.365 * 1.069 = 2.528 of them away, 0.387. The draws lie on a grid of 1/16,
    # so the ends may be one step off.
    estimate = statistics.win_rate([1, 1, 1, 0.5, 0.5, 0, 0, 0])
    assert estimate.value == 0.5
    assert estimate.n == 8
    assert estimate.low == pytest.approx(0.113, abs=1 / 16)
    assert estimate.high == pytest.approx(0.887, abs=1 / 16)


def test_without_ties_the_interval_is_wilsons() -> None:
    # Wilson, p = 0.3, n = 10, z = 1.959964: centre (p + z^2 / 2n) / (1 + z^2 / n) = 0.355507,
    # half width z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n) = 0.247715.
    estimate = statistics.win_rate([1] * 3 + [0] * 7)
    assert estimate.value == pytest.approx(0.3)
    assert estimate.low == pytest.approx(0.355507 - 0.247715, abs=2e-6)
    assert estimate.high == pytest.approx(0.355507 + 0.247715, abs=2e-6)
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    low, high = proportion.proportion_confint(3, 10, method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_a_certain_winner_still_has_an_interval() -> None:
    estimate = statistics.win_rate([1] * 20)
    assert estimate.high == pytest.approx(1)
    assert 0.8 < estimate.low < 0.9  # Wilson: n / (n + z^2) = 20 / 23.84 = 0.839


def test_ties_narrow_the_interval() -> None:
    with_ties = statistics.win_rate([1] * 50 + [0.5] * 100 + [0] * 50)
    without = statistics.win_rate([1] * 100 + [0] * 100)
    assert with_ties.high - with_ties.low < 0.8 * (without.high - without.low)


def test_invalid_points_are_left_out() -> None:
    estimate = statistics.win_rate([1, math.nan, 0.5, math.nan])
    assert estimate.value == 0.75
    assert estimate.n == 2


@pytest.mark.parametrize("points", [[], [math.nan], [1, 2], [-1, 0.5], [[1.0], [0.0]], [math.inf]])
def test_win_rate_refuses(points: list[float]) -> None:
    with pytest.raises(MetricError):
        statistics.win_rate(points)


def test_bootstrap_is_deterministic_and_seeded() -> None:
    values = np.random.default_rng(3).normal(size=200)
    assert statistics.mean_estimate(values) == statistics.mean_estimate(values)
    assert statistics.mean_estimate(values, seed=1) != statistics.mean_estimate(values, seed=2)


def test_chunks_do_not_change_what_is_drawn_of(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=50)
    whole = statistics.mean_estimate(values)
    monkeypatch.setattr(statistics, "CHUNK_VALUES", 333)  # 6 draws at a time, the last fewer
    statistics._kept_counts.cache_clear()
    chunked = statistics.mean_estimate(values)
    statistics._kept_counts.cache_clear()
    assert chunked == whole


@pytest.mark.parametrize("kept", [0, 10**8])
def test_sums_over_samples_are_those_of_the_drawn_units(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "KEPT_VALUES", kept)
    values = np.random.default_rng(3).normal(size=(20, 2))
    sums = statistics.bootstrap_sums(values, 30, seed=5)
    drawn = np.concatenate(list(statistics.resamples(20, 30, np.random.default_rng(5))))
    np.testing.assert_allclose(sums, values[drawn].sum(1), rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40))
def test_the_value_is_the_mean_and_lies_in_its_interval(points: list[float]) -> None:
    estimate = statistics.win_rate(points)
    assert estimate.value == pytest.approx(sum(points) / len(points))
    assert -1e-12 <= estimate.low <= estimate.value <= estimate.high <= 1 + 1e-12


def test_paired_difference_uses_the_pairs() -> None:
    draw = np.random.default_rng(0)
    hard = draw.normal(size=300)  # the prompts differ far more than the two models do
    estimate = statistics.paired_difference(hard + 0.1, hard)
    assert estimate.value == pytest.approx(0.1)
    assert estimate.high - estimate.low < 1e-9
    shuffled = statistics.paired_difference(hard + 0.1, draw.permutation(hard))
    assert shuffled.high - shuffled.low > 0.2


def test_paired_difference_by_hand_and_its_exclusions() -> None:
    # Prompt 2 is invalid in a, prompt 4 in b: what is left is (1 - 0.5), (0 - 1) -> mean -0.25.
    estimate = statistics.paired_difference([1, math.nan, 0, 1], [0.5, 1, 1, math.nan])
    assert estimate.value == pytest.approx(-0.25)
    assert estimate.n == 2
    with pytest.raises(MetricError, match="same prompts"):
        statistics.paired_difference([1, 0], [1])
    with pytest.raises(MetricError, match="no valid"):
        statistics.paired_difference([math.nan], [1])


def test_mean_over_seeds_keeps_what_any_seed_has() -> None:
    mean = statistics.mean_over_seeds([[1, math.nan, math.nan], [0.5, 0, math.nan]])
    assert mean[:2].tolist() == [0.75, 0]
    assert np.isnan(mean[2])


def test_token_mean_loss_weighs_by_tokens() -> None:
    # 12 nats over 8 tokens is 1.5; the mean of the two texts' own means, 3 and 1, would be 2.
    estimate = statistics.token_mean_loss([-6, -6], [2, 6])
    assert estimate.value == pytest.approx(1.5)
    assert (estimate.low, estimate.high) == (1, 3)  # both draws the same text
    assert estimate.n == 2


@pytest.mark.parametrize(
    ("logps", "tokens"), [([], []), ([-1.0], [0]), ([-1.0], [1, 2]), ([math.nan], [1])]
)
def test_token_mean_loss_refuses(logps: list[float], tokens: list[int]) -> None:
    with pytest.raises(MetricError):
        statistics.token_mean_loss(logps, tokens)


def test_within_one_point_of_the_end_the_interval_is_wilsons_less_the_ties() -> None:
    # 99 losses and a tie: mean 0.005, variance lost to ties 0.25 / 100 = 0.0025, k = 1.96^2 / 100 =
    # 0.038415. (0.005 - m)^2 = k (m (1 - m) - 0.0025) has the roots
    # (0.005 + k / 2) / (1 + k) = 0.023312, minus and plus
    # sqrt(0.023312^2 - (0.005^2 + 0.0025 k) / (1 + k)) = 0.020661.
    estimate = statistics.win_rate([0] * 99 + [0.5])
    assert estimate.low == pytest.approx(0.023312 - 0.020661, abs=2e-6)
    assert estimate.high == pytest.approx(0.023312 + 0.020661, abs=2e-6)
    mirrored = statistics.win_rate([1] * 99 + [0.5])
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - estimate.high, 1 - estimate.low))


# --- Clusters -------------------------------------------------------------------------------------


def test_prompts_of_one_cluster_are_no_evidence_of_their_own() -> None:
    # Every prompt five times over says no more than once.
    once = [1.0, 0.5, 0.0, 1.0, 0.5, 0.0, 0.0, 1.0, 0.5, 0.5]
    five = np.repeat(once, 5)
    articles = [f"article {index // 5}" for index in range(50)]
    estimate = statistics.win_rate(five, clusters=articles)
    alone = statistics.win_rate(once)
    assert (estimate.low, estimate.high) == (alone.low, alone.high)
    assert estimate.n == 50
    naive = statistics.win_rate(five)
    assert naive.high - naive.low < 0.6 * (estimate.high - estimate.low)


def test_clusters_weigh_by_their_prompts() -> None:
    # 1 of 1 and 1 of 4: 2 wins of 5, not the mean of 1 and 1/4. The two clusters are drawn as both
    # the first (1), both the second (1/4), or one each (2/5).
    estimate = statistics.mean_estimate([1, 1, 0, 0, 0], clusters=["a", *"bbbb"])
    assert (estimate.value, estimate.low, estimate.high) == (0.4, 0.25, 1)


def test_clusters_of_invalid_prompts_fall_away() -> None:
    points = [1, math.nan, 0, 0.5, 0.5, math.nan, 1, 0, 1, 0]
    groups = [1, 1, 1, 2, 2, 9, 3, 3, 4, 4]
    kept = [(point, group) for point, group in zip(points, groups, strict=True) if point == point]
    expected = statistics.win_rate([one for one, _ in kept], clusters=[one for _, one in kept])
    assert statistics.win_rate(points, clusters=groups) == expected


def test_of_one_cluster_no_interval_is_known() -> None:
    estimate = statistics.mean_estimate([1, 2, 3], clusters=["a", "a", "a"])
    assert estimate.value == 2 and math.isnan(estimate.low) and math.isnan(estimate.high)
    # A rate has Wilson's, as of a single prompt: 0.5 +- sqrt(0.25 - 0.25 / (1 + 1.96^2)) = 0.4454.
    wide = statistics.win_rate([1, 0, 1, 0], clusters=["a"] * 4)
    assert (wide.low, wide.high) == pytest.approx((0.0546, 0.9454), abs=1e-4)


def test_clusters_have_to_be_as_many_as_the_points() -> None:
    with pytest.raises(MetricError, match="3 points need as many clusters, not 2"):
        statistics.win_rate([1, 0, 1], clusters=["a", "b"])


# --- Coverage: how often the truth is inside ------------------------------------------------------

TRIALS = 2000
FEW_DRAWS = 500
Sampler = Callable[[np.random.Generator, int], Estimate]


def coverage(estimate: Sampler, truth: float) -> float:
    """Share of `TRIALS` samples whose interval holds the truth; its own standard error is 0.5 %."""
    draw = np.random.default_rng(0)
    found = (estimate(draw, trial) for trial in range(TRIALS))
    return sum(one.low - 1e-9 <= truth <= one.high + 1e-9 for one in found) / TRIALS


def judged(n: int, rate: float, ties: float) -> Sampler:
    """Win rates of n prompts, a share of `ties`, and wins as the rate asks for."""
    wins = rate - ties / 2
    chances = [1 - wins - ties, ties, wins]

    def sample(draw: np.random.Generator, trial: int) -> Estimate:
        return statistics.win_rate(np.repeat([0, 0.5, 1], draw.multinomial(n, chances)), trial)

    return sample


def clustered(clusters: int, size: int, rate: float, ties: float, ignored: bool = False) -> Sampler:
    """As `judged`; of each prompt the outcome is with 60 % its cluster's: a correlation of 0.36."""
    wins = rate - ties / 2

    def sample(draw: np.random.Generator, trial: int) -> Estimate:
        shared = draw.random((clusters, 1)).repeat(size, 1)
        own = draw.random((clusters, size))
        place = np.where(draw.random((clusters, size)) < 0.6, shared, own).ravel()
        points = np.where(place < wins, 1.0, np.where(place < wins + ties, 0.5, 0.0))
        which = np.repeat(np.arange(clusters), size).tolist()
        return statistics.win_rate(points, trial, None if ignored else which)

    return sample


def paired(n: int, gap: float) -> Sampler:
    """Differences of two models, of which one wins `gap` more often where both see one prompt."""

    def sample(draw: np.random.Generator, trial: int) -> Estimate:
        easy, luck = draw.random(n), draw.normal(0, 0.2, (2, n))
        a, b = (np.digitize(easy + one, [0.55, 0.75]) / 2 for one in luck)
        better = draw.random(n) < gap  # a wins, b loses, whatever it was
        return statistics.paired_difference(
            np.where(better, 1.0, a), np.where(better, 0.0, b), trial
        )

    return sample


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that thousands of intervals take seconds. It costs the coverage some tenths of a point."""
    monkeypatch.setattr(statistics, "BOOTSTRAP_DRAWS", FEW_DRAWS)


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("rate", [0.5, 0.3, 0.1, 0.9, 0.05])
def test_win_rates_without_ties_hold_the_truth(n: int, rate: float) -> None:
    # Only n + 1 results are possible: no need to draw them, their chances are known.
    found = [statistics.win_rate([1] * wins + [0] * (n - wins)) for wins in range(n + 1)]
    inside = [one.low <= rate <= one.high for one in found]
    assert 0.93 <= binom.pmf(np.arange(n + 1), n, rate) @ inside <= 0.97


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize(
    ("n", "rate", "ties"),
    [
        *((100, rate, 0.1) for rate in (0.5, 0.3, 0.1)),
        *((100, rate, 0.4) for rate in (0.5, 0.3)),
        (1000, 0.3, 0.1),
    ],
)
def test_win_rates_hold_the_truth(n: int, rate: float, ties: float) -> None:
    assert 0.93 <= coverage(judged(n, rate, ties), rate) <= 0.97


@pytest.mark.slow
@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize(
    ("n", "rate", "ties"),
    [
        (100, 0.9, 0.1),
        *((1000, rate, 0.1) for rate in (0.5, 0.1, 0.9, 0.06)),
        *((1000, rate, 0.4) for rate in (0.5, 0.3, 0.22)),
        *((1000, rate, 0.02) for rate in (0.05, 0.02)),
        *((100, rate, 0.02) for rate in (0.5, 0.3, 0.1, 0.9, 0.05)),
        *((100, rate, 0.05) for rate in (0.5, 0.3, 0.1, 0.05)),
    ],
)
def test_win_rates_hold_the_truth_at_more_places(n: int, rate: float, ties: float) -> None:
    assert 0.93 <= coverage(judged(n, rate, ties), rate) <= 0.97


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize(("rate", "ties"), [(0.02, 0.02), (0.03, 0.02), (0.02, 0.01)])
def test_near_the_end_they_hold_it_rather_more_often(rate: float, ties: float) -> None:
    # Two or three points in 100: a bootstrap alone would hold it 90 to 92 times in 100.
    assert coverage(judged(100, rate, ties), rate) >= 0.93


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize(
    ("clusters", "size", "rate", "ties"),
    [(20, 5, 0.5, 0.1), (20, 5, 0.3, 0.1), (50, 2, 0.3, 0.4), (200, 5, 0.3, 0.1)],
)
def test_with_clusters_they_hold_it_too(clusters: int, size: int, rate: float, ties: float) -> None:
    assert 0.93 <= coverage(clustered(clusters, size, rate, ties), rate) <= 0.97


@pytest.mark.usefixtures("few_draws")
def test_without_their_clusters_prompts_claim_too_much() -> None:
    # The variance is 1 + 4 * 0.36 = 2.44 times that of 100 prompts: 1.96 deviations are 1.25, 79 %.
    assert coverage(clustered(20, 5, 0.5, 0.1, ignored=True), 0.5) < 0.85


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("n", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("gap", [0.0, 0.05])
def test_paired_differences_hold_the_truth(n: int, gap: float) -> None:
    # By symmetry the models are alike but for the prompts, a share `gap`, that a wins and b loses.
    assert 0.93 <= coverage(paired(n, gap), gap) <= 0.97
