"""How far a judge agrees with people, and win rates corrected for its errors.

Preferences are points of response A, as in `judging`: 1 where A is preferred, 0.5 for a tie, 0
where B is, and NaN without a valid verdict. Judges and people are held to the same standard: each
is compared with one person at a time, and the comparisons are averaged. Pairs of one prompt are not
independent, so every interval draws whole prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from cpo.evaluation import statistics
from cpo.evaluation.judging import Verdicts, judge_responses
from cpo.evaluation.labelled import LabelledPairs
from cpo.evaluation.statistics import (
    BOOTSTRAP_DRAWS,
    Array,
    Estimate,
    MetricError,
    mean_estimate,
    mean_over_seeds,
    percentile_interval,
    resamples,
    win_rate,
)


@dataclass(frozen=True)
class Quality:
    """A judge's agreement with people.

    `agreement` is the share of labels that it gives as a person gave them, `kappa` Cohen's kappa,
    each the mean over people and orders of presentation. `over_longest` is the paired difference in
    agreement to the rule "the longer response". `accuracy` is the judge's mean points for the
    response that most people prefer, ties excluded: the error rate that `corrected_win_rate` needs.
    `pick_a` and `flip_rate` show position bias. What does not exist is None. `invalid` counts
    verdicts, `pairs x orders` in all; they count for nothing else.
    """

    judge: str
    pairs: int
    orders: int
    invalid: int
    agreement: Estimate
    kappa: Estimate
    over_longest: Estimate
    accuracy: Estimate | None = None
    pick_a: Estimate | None = None
    flip_rate: Estimate | None = None

    @property
    def beats_longest(self) -> bool:
        """Whether it agrees with people more often than the longer response does."""
        return self.over_longest.low > 0


def judge_quality(verdicts: Verdicts, pairs: LabelledPairs) -> Quality:
    """The quality of a judge from its verdicts on labelled pairs.

    Args:
        verdicts: as `judge_responses(judge, pairs.examples, pairs.responses, orders=2)`, or
            `pairs.recorded_verdicts`.

    Raises:
        MetricError: no verdict is valid, or kappa is undefined.
    """
    by_order = np.array(verdicts.by_order)  # [orders, n]
    if np.isnan(by_order).all():
        raise MetricError(
            f"none of the {by_order.size:,} verdicts of {verdicts.judge} is valid: nothing can be "
            "measured. Take another judge; for a local one, lower judge.minimum_mass"
        )
    said = np.repeat(by_order, len(pairs.labels), axis=0)
    labels = np.tile(pairs.labels, (len(by_order), 1))
    shown = [*verdicts.verdicts, *verdicts.exchanged]
    pick_a = accuracy = flip_rate = None
    with suppress(MetricError):  # a judge may say nothing but "tie"
        pick_a = statistics.pick_a(shown, clusters=pairs.prompts * len(by_order))
    with suppress(MetricError):  # the people may agree on nothing but ties
        accuracy = win_rate(_points_of_better(verdicts.points, pairs), clusters=pairs.prompts)
    if len(by_order) > 1:
        flips = np.where(np.isnan(by_order).any(0), math.nan, by_order[0] != by_order[1])
        with suppress(MetricError):  # no pair may be valid in both orders
            flip_rate = win_rate(flips, clusters=pairs.prompts)
    return Quality(
        verdicts.judge,
        len(verdicts),
        len(by_order),
        int(np.isnan(by_order).sum()),
        *_compared(said, labels, pairs),
        accuracy=accuracy,
        pick_a=pick_a,
        flip_rate=flip_rate,
    )


def human_quality(pairs: LabelledPairs) -> Quality | None:
    """One person against the others, the mean over people; None where each pair has one label."""
    people, count = pairs.labels.shape
    if people < 2:
        return None
    one, other = np.array(list(permutations(range(people), 2))).T
    found = _compared(pairs.labels[one], pairs.labels[other], pairs)
    return Quality("one person against the others", count, 1, 0, *found)


def _compared(
    said: Array, labels: Array, pairs: LabelledPairs
) -> tuple[Estimate, Estimate, Estimate]:
    """Agreement, kappa and the lead over the longer response, of preferences `[comparisons, n]`."""
    [longest] = judge_responses("longest", pairs.examples, pairs.responses).by_order
    agreement = agreement_of(said, labels)
    lead = agreement - agreement_of(np.tile(longest, (len(pairs.labels), 1)), pairs.labels)
    prompts = pairs.prompts
    return (
        win_rate(agreement, clusters=prompts),
        mean_kappa(said, labels, prompts),
        mean_estimate(lead, clusters=prompts),
    )


def agreement_of(said: npt.ArrayLike, labels: npt.ArrayLike) -> Array:
    """Share of a pair's comparisons that agree, `[comparisons, n]` twice to `[n]`.

    NaN are left out; the share is NaN if all are.
    """
    first, second = np.asarray(said, dtype=float), np.asarray(labels, dtype=float)
    missing = np.isnan(first) | np.isnan(second)
    return mean_over_seeds([*np.where(missing, math.nan, first == second)])


def mean_kappa(
    said: npt.ArrayLike, labels: npt.ArrayLike, clusters: Sequence[Hashable], seed: int = 0
) -> Estimate:
    """Cohen's kappa of each comparison, averaged; with a bootstrap over clusters.

    Args:
        said, labels: `[comparisons, n]`, 1, 0.5 or 0; a pair that is NaN in either is left out.
        clusters: `[n]`, the prompt of each pair.
        seed: of the bootstrap.

    Raises:
        MetricError: kappa is undefined: both sides of a comparison give one verdict throughout.
    """
    first, second = np.atleast_2d(said).astype(float), np.atleast_2d(labels).astype(float)
    comparison, pair = np.nonzero(~np.isnan(first) & ~np.isnan(second))
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    cluster = np.array([numbers[name] for name in clusters])
    tables = np.zeros((len(numbers), len(first), 3, 3), dtype=np.int32)
    rows, columns = ((2 * side[comparison, pair]).astype(int) for side in (first, second))
    np.add.at(tables, (cluster[pair], comparison, rows, columns), 1)
    value, n = float(_kappa(tables.sum(0))), len(np.unique(pair))
    if math.isnan(value):
        raise MetricError(
            f"kappa is undefined on {n} pairs: both sides give one verdict throughout. Take more "
            "pairs"
        )
    if len(numbers) == 1:
        return Estimate(value, math.nan, math.nan, n)
    random = np.random.default_rng(seed)
    samples = resamples(len(tables), BOOTSTRAP_DRAWS, random, tables[0].size)
    drawn = np.concatenate([_kappa(tables[units].sum(1)) for units in samples])
    return percentile_interval(value, drawn[~np.isnan(drawn)], len(tables), n)


def _kappa(tables: npt.NDArray[np.integer]) -> Array:
    """Mean kappa of tables of counts `[..., comparisons, 3, 3]`, `[...]`; NaN if one has none."""
    shares = tables / np.maximum(tables.sum((-2, -1), keepdims=True), 1)
    observed = np.trace(shares, axis1=-2, axis2=-1)
    expected = (shares.sum(-1) * shares.sum(-2)).sum(-1)
    chance = np.where(expected < 1, 1 - expected, math.nan)
    return ((observed - expected) / chance).mean(-1)


def _points_of_better(points: Array, pairs: LabelledPairs) -> Array:
    """The judge's points for the response that more than half of the people prefer, `[n]`."""
    for_a, for_b = ((pairs.labels == point).mean(0) > 0.5 for point in (1.0, 0.0))
    return np.select([for_a, for_b], [points, 1 - points], math.nan)


def corrected_win_rate(rate: Estimate, accuracy: Estimate) -> Estimate:
    """The win rate that people would give, from a judge's win rate and its accuracy.

    Rogan and Gladen (1978): (rate + specificity - 1) / (sensitivity + specificity - 1). As the
    model's side is drawn, position bias cancels, and either is the judge's accuracy m, its mean
    points for the better response. So the rate is 1/2 + (rate - 1/2) / (2 m - 1), with ties as half
    a win, too. The interval is Fieller's (1954), with the errors of rate and accuracy. Value and
    ends are clipped to [0, 1].

    Args:
        rate: the judge's win rate of a model.
        accuracy: `Quality.accuracy`, from other pairs. The correction holds as far as the judge
            errs on the model's responses as often as on these.

    Raises:
        MetricError: the accuracy's interval reaches one half: such verdicts tell nothing.
    """
    lead, scale = rate.value - 0.5, 2 * accuracy.value - 1
    # Squared half-widths: Z times the standard errors of `lead` and `scale`.
    of_lead, of_scale = ((rate.high - rate.low) / 2) ** 2, (accuracy.high - accuracy.low) ** 2
    if not (scale > 0 and (room := scale**2 - of_scale) > 0):
        raise MetricError(
            f"no corrected win rate: the judge's accuracy, {accuracy}, is not above one half. Take "
            "another judge, or measure it on more pairs"
        )
    half = math.sqrt(of_lead * room + of_scale * lead**2)
    low, high = ((lead * scale + end) / room for end in (-half, half))
    value, low, high = (min(1.0, max(0.0, 0.5 + end)) for end in (lead / scale, low, high))
    return Estimate(value, low, high, rate.n)
