"""Intervals over training seeds as well as prompts: another training would give other numbers.

The variance of S trainings is added to that of the prompts. Few seeds say little about their own
variance, so intervals use Student's quantiles, with degrees of freedom after Satterthwaite (1946).
Three seeds that vary more than the prompts do bring the coverage of 95 % down to 91 % (simulated in
the tests).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cpo.evaluation.statistics import (
    CONFIDENCE,
    Estimate,
    Z,
    mean_over_seeds,
    paired_difference,
    win_rate,
)


def over_seeds(over_prompts: Estimate, by_seed: Sequence[float]) -> Estimate:
    """An estimate whose interval is over training seeds as well as prompts.

    Args:
        over_prompts: the mean over seeds, with its interval over prompts.
        by_seed: `[S]`, the value of each seed. With one seed, nothing is known of their variance,
            and the estimate stays as it is.

    Either half of the interval gets the seeds' variance added and Student's quantile of
    `standard_error`'s degrees of freedom. What seeds and prompts share is counted twice: the
    interval is rather too wide than too narrow.
    """
    if len(by_seed) < 2:
        return over_prompts
    from scipy.stats import t

    value, ends = over_prompts.value, []
    for end in (over_prompts.low, over_prompts.high):
        error, freedom = standard_error(((end - value) / Z) ** 2, by_seed)
        ends.append(error * float(t.ppf((1 + CONFIDENCE) / 2, freedom)))
    return Estimate(value, value - ends[0], value + ends[1], over_prompts.n)


def standard_error(over_prompts: float, by_seed: Sequence[float]) -> tuple[float, float]:
    """The standard error of a mean over prompts and S training seeds, and its degrees of freedom.

    Args:
        over_prompts: variance of the mean over prompts; its own degrees of freedom are many.
        by_seed: `[S]`, the value of each seed; their mean has the variance `var / S`.

    Degrees of freedom are Satterthwaite's (1946): S - 1 if prompts add nothing, and infinitely many
    if the seeds are equal or only one.
    """
    seeds = len(by_seed)
    of_seeds = float(np.var(by_seed, ddof=1)) / seeds if seeds > 1 else 0.0
    total = over_prompts + of_seeds
    freedom = (seeds - 1) * (total / of_seeds) ** 2 if of_seeds else math.inf
    return math.sqrt(total), freedom


def win_rate_over_seeds(points: Sequence[npt.ArrayLike]) -> Estimate:
    """Win rate over training seeds: `win_rate` with an interval over prompts and seeds, in [0, 1].

    Args:
        points: `[S, n]`, of S seeds on the same prompts; NaN without a valid verdict.

    Raises:
        MetricError: as `win_rate`.
    """
    over_prompts = win_rate(mean_over_seeds(points))
    found = over_seeds(over_prompts, _means(points))
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high), found.n)


def difference_over_seeds(a: Sequence[npt.ArrayLike], b: Sequence[npt.ArrayLike]) -> Estimate:
    """`paired_difference` of `[S, n]` and `[S, n]`, with an interval over prompts and seeds.

    Raises:
        MetricError: as `paired_difference`.
    """
    over_prompts = paired_difference(mean_over_seeds(a), mean_over_seeds(b))
    return over_seeds(over_prompts, _means(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)))


def _means(points: npt.ArrayLike | Sequence[npt.ArrayLike]) -> list[float]:
    """The mean of each seed, over its prompts that are not NaN; seeds without any are left out."""
    rows = [row[~np.isnan(row)] for row in np.asarray(points, dtype=float)]
    return [float(row.mean()) for row in rows if len(row)]
