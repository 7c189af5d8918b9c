"""Statistics of verdicts and measures: means with 95 % intervals, biases of a judge, corrections.

`points` are a model's points per prompt, `[n]`: 1 for a win, 0.5 for a tie, 0 for a loss, or a mean
of these over orders or training seeds; NaN where there is no valid verdict. Arguments of one call
are aligned, prompt by prompt.

Every interval is over *prompts*: it says how far the number would move on other prompts of the same
kind, with the trained models as they are. Of 100 such intervals, 93 to 97 hold the true value at
100 prompts and more, ties or not (simulated in the tests); exceptions are said where they are.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

CONFIDENCE, LEVEL = 0.95, 0.05
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
BOOTSTRAP_DRAWS = 10_000
# Resampled values that exist at one time; bounds a bootstrap's memory at any number of prompts.
CHUNK_VALUES = 4_000_000


class MetricError(ValueError):
    """Input that a measure cannot score; the message says why and what to do."""


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and from how many prompts, texts or articles.

    `replicates` are the value on parts of the data where no single prompt has a value of its own
    (MAUVE): the same parts for every estimate of equal n, so that differences are paired.
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

    With ties, or points averaged over orders or training seeds, the interval is a bootstrap over
    prompts (see `mean_estimate`): a tie makes the variance smaller than a binomial's. Without any,
    where the points are a plain count, it is Wilson's. So it is, less the variance that ties take
    away, within one point of all or nothing: a bootstrap of 99 losses and a tie has hardly anything
    to draw, and held the truth 90 times in 100; this one holds it more often than 95 times.

    Args:
        points: `[n]` in [0, 1]; NaN are left out (the caller reports how many).
        seed: of the bootstrap's draws.
        clusters: `[n]`, what each prompt belongs to, such as the article that it was cut from.
            Whole clusters are drawn, as prompts of one cluster are no independent evidence.

    Raises:
        MetricError: no valid point, a value outside [0, 1], or not one cluster per point.
    """
    valid, cluster = _valid(points, "points", clusters)
    if valid.min() < 0 or valid.max() > 1:
        raise MetricError(f"points lie in [0, 1], not {valid.min():g} to {valid.max():g}")
    counted = clusters is None and np.isin(valid, (0.0, 1.0)).all()
    units = int(cluster.max()) + 1
    if counted or min(valid.sum(), (1 - valid).sum()) <= len(valid) / units:
        return _score_interval(valid, units)
    return _bootstrap(np.bincount(cluster, valid), np.bincount(cluster), seed, len(valid))


def mean_estimate(
    values: npt.ArrayLike, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """Mean of one value per prompt, with a bootstrap over prompts, or over `clusters` of them.

    The interval is from percentiles of 10,000 draws, a little further out than 2.5 and 97.5 %, as
    Student's t and the variance's n - 1 would have it (Hesterberg 2015): it matters where few
    clusters are drawn. With fewer than some 50 of them and a rate near 0 or 1 it still holds the
    truth 90 to 93 times in 100 only. A single prompt, or cluster, has an interval of NaN.

    Args:
        values: `[n]`; NaN are left out.
        seed, clusters: as of `win_rate`.

    Raises:
        MetricError: nothing is left, an infinite value, or not one cluster per value.
    """
    valid, cluster = _valid(values, "values", clusters)
    return _bootstrap(np.bincount(cluster, valid), np.bincount(cluster), seed, len(valid))


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, seed: int = 0) -> Estimate:
    """Mean of `a - b` over the same prompts, with a paired bootstrap: whole prompts are drawn.

    Args:
        a, b: `[n]`, aligned; a prompt that is NaN in either is left out of both.
        seed: of the bootstrap's draws.

    Raises:
        MetricError: different lengths, or no prompt valid in both.
    """
    first, second = _aligned(a, b)
    return mean_estimate(first - second, seed)


def token_mean_loss(logps: npt.ArrayLike, tokens: npt.ArrayLike, seed: int = 0) -> Estimate:
    """Mean loss per token in nats, `-sum(logps) / sum(tokens)`, over examples of any length.

    A ratio of two sums: the bootstrap draws examples, each with its log-probability and its tokens.

    Args:
        logps: `[n]`, sum of the continuation's token log-probabilities.
        tokens: `[n]`, how many tokens that is.

    Raises:
        MetricError: different lengths, an example without tokens, or nothing to score.
    """
    sums, counts = _aligned(logps, tokens)
    if not np.isfinite(np.asarray(logps, dtype=float)).all() or counts.min() < 1:
        raise MetricError("a loss needs examples of one token or more, and finite values")
    return _bootstrap(-sums, counts, seed, len(sums))


def mean_over_seeds(points: Sequence[npt.ArrayLike]) -> Array:
    """Points per prompt averaged over training seeds, `[S, n]` to `[n]`; NaN where no seed has one.

    A bootstrap of the result is still over prompts: S seeds are no S-fold sample of them.
    """
    stacked = np.asarray(points, dtype=float)
    return np.ma.masked_invalid(stacked).mean(0).filled(math.nan)


def both_orders(first: npt.ArrayLike, second: npt.ArrayLike) -> Array:
    """Points per prompt over both orders, `[n]`: their mean, in which position bias cancels.

    A prompt with one valid verdict has that one's points: it was paid for, and leaving it out would
    choose prompts by the judge's trouble with them; NaN only without any.
    """
    return mean_over_seeds([first, second])


def resamples(
    units: int, draws: int, random: np.random.Generator, values_per_unit: int = 1
) -> Iterator[Indices]:
    """Bootstrap samples of `units` units: indices `[c, units]`, `draws` rows in all.

    They come in chunks of bounded memory, where a unit has `values_per_unit` values.
    """
    chunk = max(1, CHUNK_VALUES // (units * values_per_unit))
    for start in range(0, draws, chunk):
        yield random.integers(units, size=(min(chunk, draws - start), units))


def _bootstrap(sums: npt.NDArray[Any], sizes: npt.NDArray[Any], seed: int, n: int) -> Estimate:
    """Bootstrap of `sum(sums) / sum(sizes)`, both `[m]`, over the m units that are drawn."""
    value, units = float(sums.sum() / sizes.sum()), len(sums)
    if units == 1:
        return Estimate(value, math.nan, math.nan, n)
    from scipy.stats import t

    samples = resamples(units, BOOTSTRAP_DRAWS, np.random.default_rng(seed))
    drawn = np.concatenate([sums[which].sum(-1) / sizes[which].sum(-1) for which in samples])
    quantile = t.ppf((1 + CONFIDENCE) / 2, units - 1) * math.sqrt(units / (units - 1))
    tail = 100 * NormalDist().cdf(-quantile)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return _around(value, float(low), float(high), n)


def _score_interval(valid: Array, units: int) -> Estimate:
    """The means m that are within 1.96 of the standard errors which they would have themselves.

    The variance of points in [0, 1] of mean m is m (1 - m) - mean(x (1 - x)): a binomial's, less
    what lies between 0 and 1. Without ties that is Wilson's interval, and `units` is n; with
    clusters their number, as if a cluster were one prompt.
    """
    mean, lost = float(valid.mean()), float((valid * (1 - valid)).mean())
    k = Z**2 / units
    # Roots of (mean - m)^2 = k (m (1 - m) - lost).
    middle = (mean + k / 2) / (1 + k)
    half = math.sqrt(max(0.0, middle**2 - (mean**2 + k * lost) / (1 + k)))
    return _around(mean, middle - half, middle + half, len(valid))


def _around(value: float, low: float, high: float, n: int) -> Estimate:
    """An estimate that rounding in the last bits does not put outside its own interval."""
    return Estimate(value, min(low, value), max(high, value), n)


# --- Biases of a judge ----------------------------------------------------------------------------


def pick_a(verdicts: Sequence[str], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """How often the judge says A, of its verdicts A and B; Wilson's interval.

    Where the order is drawn by a coin, or both are judged, a judge without position bias has one
    half, whatever the models are worth.

    Args:
        verdicts: "A", "B", "tie" or "invalid"; the last two are left out.
        clusters: `[n]`, the prompt that each verdict is on, if there are several to one, as with
            both orders: whole prompts are drawn then.

    Raises:
        MetricError: another verdict, or neither an A nor a B.
    """
    points = {"A": 1.0, "B": 0.0, "tie": math.nan, "invalid": math.nan}
    unknown = sorted(set(verdicts) - set(points))
    if unknown:
        raise MetricError(f"a verdict is A, B, tie or invalid, not {unknown[0]!r}")
    return win_rate([points[verdict] for verdict in verdicts], clusters=clusters)


def flip_rate(first: npt.ArrayLike, second: npt.ArrayLike) -> Estimate:
    """How often the outcome changes when the two responses change places; Wilson's interval.

    Args:
        first, second: points in one order and in the other. A prompt without a valid verdict in
            both is left out; from a win to a tie is a change, too.
    """
    one_way, other_way = _aligned(first, second)
    return win_rate(one_way != other_way)


def longer_wins(
    points: npt.ArrayLike, lengths: npt.ArrayLike, recorded_lengths: npt.ArrayLike
) -> Estimate:
    """What the longer of the two responses wins, where their lengths differ: its win rate.

    Ties count one half here, too: so the mean over both orders can be given as well. Length and
    worth may go together: this alone does not show that the judge is to blame.

    Args:
        points: the model's.
        lengths, recorded_lengths: `[n]`, of its responses and of those it is judged against, in any
            unit.
    """
    won, ours, theirs = _aligned(points, lengths, recorded_lengths)
    difference = ours - theirs
    return win_rate(np.where(difference > 0, won, 1 - won)[difference != 0])


def length_controlled_win_rate(
    points: npt.ArrayLike, lengths: npt.ArrayLike, recorded_lengths: npt.ArrayLike
) -> Estimate:
    """The win rate that a logistic regression predicts where both responses are equally long.

    As AlpacaEval 2 does it (Dubois et al. 2024), for one model: logit P(win) = a + b tanh(d / s), d
    the difference of the lengths and s its standard deviation. The value is logistic(a), the
    interval a +- 1.96 robust standard errors (HC0), which hold with ties, too. Where all lengths
    are equal, it is the win rate.

    Args:
        points, lengths, recorded_lengths: as of `longer_wins`.

    Raises:
        MetricError: also where lengths and verdicts leave the fit undetermined: all differ by the
            same, all verdicts are the same, or one length parts all wins from all losses.
    """
    won, ours, theirs = _aligned(points, lengths, recorded_lengths)
    difference = ours - theirs
    if not difference.any():
        return win_rate(won)
    # One regressor: the likelihood has a maximum if and only if wins and losses overlap in it, a
    # tie being half of each.
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
            f"{difference.min():g} to {difference.max():g} longer than the other: all verdicts or "
            "all lengths are alike, or length alone tells wins from losses. Report longer_wins "
            "beside the win rate."
        )
    from scipy.special import expit
    from statsmodels.api import GLM, families

    regressors = np.column_stack([np.ones(len(won)), np.tanh(difference / difference.std())])
    fit = GLM(won, regressors, family=families.Binomial()).fit(cov_type="HC0")
    low, high = expit(fit.conf_int()[0])
    return Estimate(float(expit(fit.params[0])), float(low), float(high), len(won))


def kappa(first: Sequence[str], second: Sequence[str]) -> Estimate:
    """Cohen's kappa of two judges: agreement beyond that of chance, 1 at most; asymptotic interval.

    Args:
        first, second: their verdicts on the same items, shown in the same order. An item that
            either found invalid is left out.

    Raises:
        MetricError: also where both give a single verdict throughout: agreement by chance is
            certain then.
    """
    if len(first) != len(second):
        raise MetricError(f"two judges of the same items: {len(first)} against {len(second)}")
    pairs = [pair for pair in zip(first, second, strict=True) if "invalid" not in pair]
    kinds = sorted({verdict for pair in pairs for verdict in pair})
    if len(kinds) < 2:
        raise MetricError(f"{len(pairs)} items with the verdicts {kinds}: agreement means nothing")
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    result = cohens_kappa(to_table(np.array(pairs))[0])
    low, high = max(-1.0, result.kappa_low), min(1.0, result.kappa_upp)
    return Estimate(float(result.kappa), float(low), float(high), len(pairs))


# --- Tests, and many of them at once --------------------------------------------------------------


def mcnemar(points_a: npt.ArrayLike, points_b: npt.ArrayLike) -> float:
    """Exact two-sided p-value of two models judged on the same prompts, against the same responses.

    Won is more than half a point: a tie is not, nor is a prompt won in one order and lost in the
    other. So it overlooks what turns a loss into a tie, which `paired_difference`, beside which it
    belongs, counts. Prompts are taken as independent. It is 1 where no prompt tells the two apart.
    """
    a, b = _aligned(points_a, points_b)
    wins_a, wins_b = a > 0.5, b > 0.5
    only_a, only_b = int((wins_a & ~wins_b).sum()), int((wins_b & ~wins_a).sum())
    from statsmodels.stats.contingency_tables import mcnemar as exact_test

    return float(exact_test([[0, only_a], [only_b, 0]], exact=True).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of one table, each adjusted for there being so many (Holm 1979), in their order.

    Raises:
        MetricError: a value that is no probability.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise MetricError(f"p-values lie in [0, 1]: {list(p_values)}")
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist()


def holm_levels(p_values: Sequence[float], level: float = LEVEL) -> list[float]:
    """The level at which each comparison's interval is drawn (Holm 1979).

    The i-th smallest of m p-values has `level / (m - i + 1)`, i from 1, as long as all before it
    are within theirs; from the first that is not, all keep that one's level.
    """
    from statsmodels.stats.multitest import multipletests

    rank = np.argsort(np.argsort(p_values, kind="stable"))
    stop = multipletests(p_values, level, method="holm")[0].sum()  # the first that is not within
    return (level / (len(p_values) - np.minimum(rank, stop))).tolist()


# --- Input ----------------------------------------------------------------------------------------


def _aligned(*columns: npt.ArrayLike) -> list[Array]:
    """Columns of one number per prompt, without the prompts that are NaN in any, `[m]` each; lists
    of other lengths or of none raise."""
    arrays = [np.asarray(column, dtype=float) for column in columns]
    shapes = [array.shape for array in arrays]
    if any(shape != shapes[0] or len(shape) != 1 for shape in shapes):
        raise MetricError(f"one number per prompt, for the same prompts, not arrays of {shapes}")
    if not shapes[0][0]:
        raise MetricError("there is no prompt to compare on")
    valid = ~np.isnan(arrays).any(0)
    return [array[valid] for array in arrays]


def _valid(
    values: npt.ArrayLike, name: str, clusters: Sequence[Hashable] | None
) -> tuple[Array, Indices]:
    """The values that are not NaN, and the number, from 0, of the cluster that each is of."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise MetricError(f"{name} are one number per prompt, not an array of shape {array.shape}")
    known = ~np.isnan(array)
    valid = array[known]
    if not len(valid):
        raise MetricError(f"no valid {name} among {len(array)}: there is nothing to estimate")
    if not np.isfinite(valid).all():
        raise MetricError(f"{name} hold an infinite value")
    if clusters is None:
        return valid, np.arange(len(valid))
    if len(clusters) != len(array):
        raise MetricError(f"{len(array)} {name}, but the clusters of {len(clusters)}")
    numbers: dict[Hashable, int] = {}
    kept = [cluster for cluster, is_known in zip(clusters, known, strict=True) if is_known]
    return valid, np.array([numbers.setdefault(cluster, len(numbers)) for cluster in kept])
