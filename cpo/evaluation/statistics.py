"""Statistics of verdicts and measures: means with 95 % intervals, judge biases, corrections.

`points` are a model's points per prompt, `[n]`: 1 for a win, 0.5 for a tie, 0 for a loss, or a mean
of these over orders or training seeds; NaN without a valid verdict. Array arguments of a call are
aligned by prompt.

Every interval is over *prompts*, with the trained models fixed; `seeds` adds the variance of their
trainings. From 100 prompts on, its coverage is 93 to 97 %, with or without ties (simulated in the
tests), except where noted.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

CONFIDENCE, LEVEL = 0.95, 0.05
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
BOOTSTRAP_DRAWS = 10_000
# Resampled values held at once: bounds the memory of a bootstrap.
CHUNK_VALUES = 500_000
# Samples of up to this many values are kept as counts, a byte each: statistics over the same number
# of prompts draw the same samples, and then need only a product.
KEPT_VALUES = 100_000_000


class MetricError(ValueError):
    """A measure cannot score its input. The message gives the reason and the remedy."""


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the number of prompts, texts or articles.

    `replicates` are values on parts of the data, for measures that no single prompt has (MAUVE).
    The parts depend only on n, so that differences are paired.
    """

    value: float
    low: float
    high: float
    n: int
    replicates: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


# --- Means and their intervals --------------------------------------------------------------------


def win_rate(
    points: npt.ArrayLike, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """Mean of the points per prompt.

    For points of 0 and 1 only, the interval is Wilson's. With ties or averaged points it is a
    bootstrap over prompts (`mean_estimate`), as the variance is smaller than a binomial's. Within
    one point of 0 or n it is Wilson's with this smaller variance: with 99 losses and a tie, the
    bootstrap covers the truth 90 % of the time, this interval more than 95 %.

    Args:
        points: `[n]` in [0, 1]; NaN are left out (the caller reports how many).
        seed: of the bootstrap.
        clusters: `[n]`, what each prompt belongs to, such as its article. Whole clusters are drawn:
            prompts of one cluster are not independent.

    Raises:
        MetricError: no valid point, a value outside [0, 1], or clusters of another length.
    """
    valid, cluster = _valid(points, "points", clusters)
    if valid.min() < 0 or valid.max() > 1:
        raise MetricError(f"points lie in [0, 1], not {valid.min():g} to {valid.max():g}")
    binary = clusters is None and np.isin(valid, (0.0, 1.0)).all()
    units = int(cluster.max()) + 1
    if binary or min(valid.sum(), (1 - valid).sum()) <= len(valid) / units:
        return _score_interval(valid, units)
    return _bootstrap(np.bincount(cluster, valid), np.bincount(cluster), seed, len(valid))


def mean_estimate(
    values: npt.ArrayLike, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """Mean of one value per prompt, with a bootstrap over prompts or `clusters` of them.

    The interval is an expanded percentile interval of 10,000 draws (Hesterberg 2015): Student's t
    and n - 1 widen it when clusters are few. With fewer than about 50 clusters and a rate near 0 or
    1, its coverage is only 90 to 93 %. For a single prompt or cluster it is NaN.

    Args:
        values: `[n]`; NaN are left out.
        seed, clusters: as in `win_rate`.

    Raises:
        MetricError: no valid value, an infinite value, or clusters of another length.
    """
    valid, cluster = _valid(values, "values", clusters)
    return _bootstrap(np.bincount(cluster, valid), np.bincount(cluster), seed, len(valid))


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, seed: int = 0) -> Estimate:
    """Mean of `a - b` over the same prompts, with a paired bootstrap over prompts.

    Args:
        a, b: `[n]`; a prompt that is NaN in either is left out.
        seed: of the bootstrap.

    Raises:
        MetricError: different lengths, or no prompt valid in both.
    """
    first, second = _aligned(a, b)
    return mean_estimate(first - second, seed)


def token_mean_loss(logps: npt.ArrayLike, tokens: npt.ArrayLike, seed: int = 0) -> Estimate:
    """Mean loss per token in nats, `-sum(logps) / sum(tokens)`, over examples of any length.

    The bootstrap of this ratio draws examples, each with its log-probability and its tokens.

    Args:
        logps: `[n]`, log-probability of each continuation.
        tokens: `[n]`, number of its tokens.

    Raises:
        MetricError: different lengths, an example without tokens, or no example.
    """
    sums, counts = _aligned(logps, tokens)
    if not np.isfinite(np.asarray(logps, dtype=float)).all() or counts.min() < 1:
        raise MetricError("every example needs at least one token and a finite log-probability")
    return _bootstrap(-sums, counts, seed, len(sums))


def mean_over_seeds(points: Sequence[npt.ArrayLike]) -> Array:
    """Mean points per prompt over training seeds or orders, `[S, n]` to `[n]`; NaN if all are NaN.

    A bootstrap of the result remains over prompts: S seeds are no S-fold sample of them. `seeds`
    adds their variance.
    """
    stacked = np.asarray(points, dtype=float)
    return np.ma.masked_invalid(stacked).mean(0).filled(math.nan)


def resamples(
    units: int, draws: int, random: np.random.Generator, values_per_unit: int = 1
) -> Iterator[Indices]:
    """Bootstrap samples in chunks of indices `[c, units]`, `draws` rows in total.

    Chunks bound the memory when each unit has `values_per_unit` values.
    """
    chunk = max(1, CHUNK_VALUES // (units * values_per_unit))
    for start in range(0, draws, chunk):
        yield random.integers(units, size=(min(chunk, draws - start), units))


def bootstrap_sums(
    values: npt.NDArray[Any], draws: int, seed: int | tuple[int, ...] = 0
) -> npt.NDArray[Any]:
    """Sums over `draws` bootstrap samples, `[draws, ...]`, of values of m units, `[m, ...]`.

    Samples depend on m, `draws` and `seed` alone, so that sums of several values are paired.
    """
    by_unit = values.reshape(len(values), -1).astype(float)
    count = _kept_counts if len(values) * draws <= KEPT_VALUES else _sample_counts
    sums = [counts.astype(float) @ by_unit for counts in count(len(values), draws, seed)]
    return np.concatenate(sums).reshape(draws, *values.shape[1:])


def _sample_counts(
    units: int, draws: int, seed: int | tuple[int, ...]
) -> Iterator[npt.NDArray[np.uint8]]:
    """How often each unit is in each bootstrap sample, in chunks `[c, units]`."""
    for rows in resamples(units, draws, np.random.default_rng(seed)):
        cells = rows + units * np.arange(len(rows))[:, None]
        counts = np.bincount(cells.ravel(), minlength=rows.size)
        # A unit drawn more than 255 times is less probable than 1e-300.
        yield counts.astype(np.uint8).reshape(rows.shape)


@lru_cache(maxsize=4)
def _kept_counts(
    units: int, draws: int, seed: int | tuple[int, ...]
) -> tuple[npt.NDArray[np.uint8], ...]:
    return tuple(_sample_counts(units, draws, seed))


def _bootstrap(sums: npt.NDArray[Any], sizes: npt.NDArray[Any], seed: int, n: int) -> Estimate:
    """Bootstrap of `sum(sums) / sum(sizes)` over m units, both `[m]`."""
    value, units = float(sums.sum() / sizes.sum()), len(sums)
    if units == 1:
        return Estimate(value, math.nan, math.nan, n)
    drawn = bootstrap_sums(np.column_stack([sums, sizes]), BOOTSTRAP_DRAWS, seed)
    return percentile_interval(value, drawn[:, 0] / drawn[:, 1], units, n)


def percentile_interval(value: float, drawn: Array, units: int, n: int) -> Estimate:
    """Expanded percentile interval (Hesterberg 2015) of a statistic.

    Args:
        value: the statistic of the whole sample.
        drawn: `[draws]`, the statistic of bootstrap samples.
        units: at least 2, what was drawn: prompts, or clusters of them.
        n: the number of values, for the estimate.
    """
    from scipy.stats import t

    quantile = t.ppf((1 + CONFIDENCE) / 2, units - 1) * math.sqrt(units / (units - 1))
    tail = 100 * NormalDist().cdf(-quantile)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return _around(value, float(low), float(high), n)


def _score_interval(valid: Array, units: int) -> Estimate:
    """Score interval: all means m within 1.96 standard errors, computed at m, of the sample mean.

    Points x in [0, 1] of mean m have the variance m (1 - m) - mean(x (1 - x)). Without ties the
    last term is 0, and the interval is Wilson's. `units` is n or the number of clusters, each
    counted as one prompt.
    """
    mean, lost = float(valid.mean()), float((valid * (1 - valid)).mean())
    k = Z**2 / units
    # Roots of (mean - m)^2 = k (m (1 - m) - lost).
    middle = (mean + k / 2) / (1 + k)
    half = math.sqrt(max(0.0, middle**2 - (mean**2 + k * lost) / (1 + k)))
    return _around(mean, middle - half, middle + half, len(valid))


def _around(value: float, low: float, high: float, n: int) -> Estimate:
    """An estimate whose interval holds its value despite rounding."""
    return Estimate(value, min(low, value), max(high, value), n)


# --- Biases of a judge ----------------------------------------------------------------------------


def pick_a(verdicts: Sequence[str], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Share of A among the judge's verdicts A and B, with Wilson's interval.

    It is one half without position bias if the order is random or both orders are judged, whatever
    the models' quality.

    Args:
        verdicts: "A", "B", "tie" or "invalid"; the last two are left out.
        clusters: `[n]`, the prompt of each verdict if prompts have several, as with both orders:
            whole prompts are drawn.

    Raises:
        MetricError: an unknown verdict, or neither A nor B among them.
    """
    points = {"A": 1.0, "B": 0.0, "tie": math.nan, "invalid": math.nan}
    unknown = sorted(set(verdicts) - set(points))
    if unknown:
        raise MetricError(f"a verdict is A, B, tie or invalid, not {unknown[0]!r}")
    return win_rate([points[verdict] for verdict in verdicts], clusters=clusters)


def flip_rate(first: npt.ArrayLike, second: npt.ArrayLike) -> Estimate:
    """Share of prompts whose outcome changes with the order, with Wilson's interval.

    Args:
        first, second: points in either order. A prompt counts if both are valid; from win to tie is
            a change.
    """
    points, exchanged_points = _aligned(first, second)
    return win_rate(points != exchanged_points)


def longer_wins(
    points: npt.ArrayLike, lengths: npt.ArrayLike, recorded_lengths: npt.ArrayLike
) -> Estimate:
    """Win rate of the longer response, over pairs of different length.

    Ties count one half, so points may be means over both orders. Length and quality may correlate:
    this alone does not show length bias.

    Args:
        points: the model's.
        lengths, recorded_lengths: `[n]`, of its responses and the recorded ones, in any unit.
    """
    won, ours, theirs = _aligned(points, lengths, recorded_lengths)
    difference = ours - theirs
    return win_rate(np.where(difference > 0, won, 1 - won)[difference != 0])


def length_controlled_win_rate(
    points: npt.ArrayLike, lengths: npt.ArrayLike, recorded_lengths: npt.ArrayLike
) -> Estimate:
    """Win rate at equal response lengths, predicted by a logistic regression.

    As in AlpacaEval 2 (Dubois et al. 2024), for one model: logit P(win) = a + b tanh(d / s), where
    d is the difference in length and s its standard deviation. The value is logistic(a). The
    interval is logistic(a +- 1.96 robust standard errors, HC0), valid with ties. If all lengths are
    equal, this is the plain win rate.

    Args:
        points, lengths, recorded_lengths: as in `longer_wins`.

    Raises:
        MetricError: also if the fit is undetermined: all differences in length are equal, all
            verdicts are equal, or a difference in length separates wins from losses.
    """
    won, ours, theirs = _aligned(points, lengths, recorded_lengths)
    difference = ours - theirs
    if not difference.any():
        return win_rate(won)
    # With one regressor, the likelihood has a maximum if and only if wins and losses overlap in it;
    # a tie is half of each.
    with_win, with_loss = difference[won > 0], difference[won < 1]
    separated = (
        not len(with_win)
        or not len(with_loss)
        or max(with_win) <= min(with_loss)
        or max(with_loss) <= min(with_win)
    )
    if separated:
        raise MetricError(
            f"no length-controlled win rate of {len(won)} verdicts, on responses "
            f"{difference.min():g} to {difference.max():g} longer than the recorded ones: all "
            "verdicts or all differences are equal, or length separates wins from losses. Report "
            "longer_wins beside the win rate."
        )
    from scipy.special import expit
    from statsmodels.api import GLM, families

    regressors = np.column_stack([np.ones(len(won)), np.tanh(difference / difference.std())])
    fit = GLM(won, regressors, family=families.Binomial()).fit(cov_type="HC0")
    low, high = expit(fit.conf_int()[0])
    return Estimate(float(expit(fit.params[0])), float(low), float(high), len(won))


def kappa(first: Sequence[str], second: Sequence[str]) -> Estimate:
    """Cohen's kappa of two judges: agreement beyond chance, at most 1; asymptotic interval.

    Args:
        first, second: their verdicts on the same items in the same order. Items with an invalid
            verdict are left out.

    Raises:
        MetricError: also if both judges give one verdict throughout: chance agreement is then 1.
    """
    if len(first) != len(second):
        raise MetricError(f"verdicts on different items: {len(first)} against {len(second)}")
    pairs = [pair for pair in zip(first, second, strict=True) if "invalid" not in pair]
    kinds = sorted({verdict for pair in pairs for verdict in pair})
    if len(kinds) < 2:
        raise MetricError(f"kappa is undefined on {len(pairs)} items with the verdicts {kinds}")
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    result = cohens_kappa(to_table(np.array(pairs))[0])
    low, high = max(-1.0, result.kappa_low), min(1.0, result.kappa_upp)
    return Estimate(float(result.kappa), float(low), float(high), len(pairs))


# --- Tests and multiple comparisons ---------------------------------------------------------------


def mcnemar(points_a: npt.ArrayLike, points_b: npt.ArrayLike) -> float:
    """Exact two-sided p-value of two models judged on the same prompts and recorded responses.

    A win is more than half a point, so neither a tie nor one win in two orders. Changes from loss
    to tie are ignored: report it beside `paired_difference`, which counts them. Prompts are treated
    as independent. Without discordant prompts, p is 1.
    """
    a, b = _aligned(points_a, points_b)
    wins_a, wins_b = a > 0.5, b > 0.5
    only_a, only_b = int((wins_a & ~wins_b).sum()), int((wins_b & ~wins_a).sum())
    from statsmodels.stats.contingency_tables import mcnemar as exact_test

    return float(exact_test([[0, only_a], [only_b, 0]], exact=True).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of one table, corrected for multiple comparisons (Holm 1979), in order.

    Raises:
        MetricError: a value outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise MetricError(f"p-values lie in [0, 1], unlike {list(p_values)}")
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist()


def holm_levels(p_values: Sequence[float], level: float = LEVEL) -> list[float]:
    """Significance level of each comparison's interval (Holm 1979).

    The i-th smallest of m p-values, i from 1, has the level `level / (m - i + 1)`. From the first
    p-value above its level on, all share that level.
    """
    # Not by statsmodels, as `holm` is: it collects garbage at each call, of which there are many.
    p = np.asarray(p_values, dtype=float)
    rank = np.argsort(np.argsort(p, kind="stable"))
    stop = rank[p > level / (len(p) - rank)].min(initial=len(p))  # the first above its level
    return (level / (len(p) - np.minimum(rank, stop))).tolist()


# --- Input ----------------------------------------------------------------------------------------


def _aligned(*columns: npt.ArrayLike) -> list[Array]:
    """Columns without the prompts that are NaN in any, `[m]` each.

    Raises `MetricError` for columns that are empty, of different lengths or not one-dimensional.
    """
    arrays = [np.asarray(column, dtype=float) for column in columns]
    shapes = [array.shape for array in arrays]
    if any(shape != shapes[0] or len(shape) != 1 for shape in shapes):
        raise MetricError(f"one number per prompt, for the same prompts, not arrays of {shapes}")
    if not shapes[0][0]:
        raise MetricError("there are no prompts to compare")
    valid = ~np.isnan(arrays).any(0)
    return [array[valid] for array in arrays]


def _valid(
    values: npt.ArrayLike, name: str, clusters: Sequence[Hashable] | None
) -> tuple[Array, Indices]:
    """The values that are not NaN, `[m]`, and their cluster numbers from 0, `[m]`."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise MetricError(f"{name} are one number per prompt, not an array of shape {array.shape}")
    known = ~np.isnan(array)
    valid = array[known]
    if not len(valid):
        raise MetricError(f"no valid {name} among {len(array)}")
    if not np.isfinite(valid).all():
        raise MetricError(f"{name} contain an infinite value")
    if clusters is None:
        return valid, np.arange(len(valid))
    if len(clusters) != len(array):
        raise MetricError(f"{len(array)} {name} need as many clusters, not {len(clusters)}")
    numbers: dict[Hashable, int] = {}
    kept = [cluster for cluster, is_known in zip(clusters, known, strict=True) if is_known]
    return valid, np.array([numbers.setdefault(cluster, len(numbers)) for cluster in kept])
