"""Exposure bias: what a model's own text costs it, sentence by sentence.

At training a model reads true text, at generation its own. The *exposure gap* at n is the grade of
the n-th sentence after n - 1 true sentences, minus its grade after the model's own n - 1. If errors
accumulate, the gap grows with n. After Arora et al. (2022), "Why Exposure Bias Matters: An
Imitation Learning Perspective of Error Accumulation in Language Generation", who compare losses
under an oracle model token by token; here an oracle grades sentences.

Every interval is over examples: an example is drawn with all its sentences.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpo.evaluation.statistics import (
    BOOTSTRAP_DRAWS,
    Array,
    Estimate,
    MetricError,
    bootstrap_sums,
    mean_estimate,
    percentile_interval,
)

LEAST_EXAMPLES = 50
FIRST_MEASURED = 2  # at n = 1 both contexts are the prefix, and the gap is 0 by construction


@dataclass(frozen=True)
class SentenceGrades:
    """Grades of E examples' sentences n = 1 to N, after true text and after the model's own.

    `true` and `own` are `[E, N]`, in [0, 1], NaN where the model wrote no n-th sentence; `asked`,
    `[E, N]`, says whether the true text has an n-th sentence. `ids` are the examples'. An example
    that stands for several trainings has a row for each.
    """

    ids: tuple[Hashable, ...]
    true: Array
    own: Array
    asked: npt.NDArray[np.bool_]

    @property
    def gaps(self) -> Array:
        """`true - own`, `[E, N]`; NaN unless both exist."""
        return self.true - self.own

    @classmethod
    def joined(cls, parts: Sequence[SentenceGrades]) -> SentenceGrades:
        """The rows of all parts, such as training seeds, with the same N."""
        return cls(
            tuple(id for part in parts for id in part.ids),
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("true", "own", "asked")
            ),
        )


@dataclass(frozen=True)
class ExposureGap:
    """The gap at one n: means over the examples that have both sentences, and who has not.

    `true_missing` and `own_missing` are the shares, among examples whose true text has an n-th
    sentence, for which the model wrote none after true text and after its own.
    """

    n: int
    true: float
    own: float
    gap: Estimate
    true_missing: float
    own_missing: float


def exposure_gaps(grades: SentenceGrades, least: int = LEAST_EXAMPLES) -> list[ExposureGap]:
    """The gap at every n at which at least `least` rows have both sentences, paired by example."""
    found = []
    for column in _columns(grades, least):
        true, own, gap = (one[:, column] for one in (grades.true, grades.own, grades.gaps))
        paired, asked = ~np.isnan(gap), grades.asked[:, column]
        found.append(
            ExposureGap(
                n=column + 1,
                true=float(true[paired].mean()),
                own=float(own[paired].mean()),
                gap=mean_estimate(gap, clusters=grades.ids),
                true_missing=float(np.isnan(true[asked]).mean()),
                own_missing=float(np.isnan(own[asked]).mean()),
            )
        )
    return found


def mean_gap(grades: SentenceGrades) -> Estimate:
    """The mean gap over all sentences from the second on.

    Raises:
        MetricError: no example has both sentences.
    """
    return _mean_of_sentences(grades.gaps, grades.ids)


def gap_difference(a: SentenceGrades, b: SentenceGrades) -> Estimate:
    """The mean of a's gap minus b's, over the sentences from the second on that have both gaps.

    Args:
        a, b: of two models, on the same examples in the same order.

    Raises:
        MetricError: other examples, or no sentence with both gaps.
    """
    if a.ids != b.ids:
        raise MetricError("gaps of different examples cannot be paired")
    return _mean_of_sentences(a.gaps - b.gaps, a.ids)


def gap_growth(grades: SentenceGrades, least: int = LEAST_EXAMPLES, seed: int = 0) -> Estimate:
    """The slope of the gap over n, in grade per sentence, from the second sentence on.

    Weighted least squares over the n of `exposure_gaps`, each weighted by its number of gaps: the
    least-squares line through all single gaps. n = 1 is left out, as its gap is 0 by construction.

    Raises:
        MetricError: fewer than two n with at least `least` gaps.
    """
    columns = [one for one in _columns(grades, least) if one + 1 >= FIRST_MEASURED]
    if len(columns) < 2:
        raise MetricError(f"a slope needs two sentences n with {least} examples each")
    gaps = grades.gaps[:, columns]
    _, cluster = np.unique([str(id) for id in grades.ids], return_inverse=True)
    units = int(cluster.max()) + 1
    sums, counts = np.zeros((2, units, len(columns)))
    np.add.at(sums, cluster, np.nan_to_num(gaps))
    np.add.at(counts, cluster, ~np.isnan(gaps))
    n = np.array(columns) + 1.0
    drawn_sums, drawn_counts = (
        bootstrap_sums(values, BOOTSTRAP_DRAWS, seed) for values in (sums, counts)
    )
    drawn = _slope(n, drawn_sums, drawn_counts)
    value = float(_slope(n, sums.sum(0), counts.sum(0)))
    return percentile_interval(value, drawn, units, int(counts.sum()))


def _slope(n: Array, sums: Array, counts: Array) -> Array:
    """Slope of the means `sums / counts`, both `[..., N]`, over n, weighted by the counts."""
    centre = (counts * n).sum(-1, keepdims=True) / counts.sum(-1, keepdims=True)
    distance = n - centre
    return (distance * sums).sum(-1) / (counts * distance**2).sum(-1)


def _columns(grades: SentenceGrades, least: int) -> Iterator[int]:
    """The columns with at least `least` gaps."""
    yield from np.flatnonzero((~np.isnan(grades.gaps)).sum(0) >= least).tolist()


def _mean_of_sentences(gaps: Array, ids: Sequence[Hashable]) -> Estimate:
    later = gaps[:, FIRST_MEASURED - 1 :]
    of_example = [id for id in ids for _ in range(later.shape[1])]
    return mean_estimate(later.ravel(), clusters=of_example)
