"""What verdicts say beyond a win rate: of the judge's pull to a side or to length, of two models on
the same prompts, and of two judges.

`points` are a model's points per prompt, `[n]`: 1 for a win, 0.5 for a tie, 0 for a loss, or a mean
of these over orders or training seeds; NaN where there is no valid verdict. Arguments of one call
are aligned, prompt by prompt; lists of different length raise `MetricError`, and so does having
nothing left to estimate from.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpo.evaluation.intervals import Array, Estimate, MetricError, mean_over_seeds, win_rate

# --- Verdicts that are missing, and the two orders ------------------------------------------------


def bounds(points: npt.ArrayLike) -> tuple[float, float]:
    """The win rate if every invalid verdict were a loss, and if it were a win.

    Give single verdicts or the mean of two orders; a mean over training seeds hides what is missing
    from some.
    """
    [given] = _aligned(points)
    return float(np.nan_to_num(given, nan=0.0).mean()), float(np.nan_to_num(given, nan=1.0).mean())


def pick_a(verdicts: Sequence[str], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """How often the judge says A, of its verdicts A and B; Wilson's interval.

    Where the order is drawn by a coin, or both are judged, a judge without a pull to one side has
    one half, whatever the models are worth.

    Args:
        verdicts: "A", "B", "tie" or "invalid"; the last two are left out.
        clusters: `[n]`, the prompt that each verdict is on, if there are several to one, as with
            both orders: whole prompts are drawn then.

    Raises:
        MetricError: another verdict, or neither an A nor a B.
    """
    said = {"A": 1.0, "B": 0.0, "tie": math.nan, "invalid": math.nan}
    unknown = sorted(set(verdicts) - set(said))
    if unknown:
        raise MetricError(f"a verdict is A, B, tie or invalid, not {unknown[0]!r}")
    return win_rate([said[verdict] for verdict in verdicts], clusters=clusters)


def flip_rate(first: npt.ArrayLike, second: npt.ArrayLike) -> Estimate:
    """How often the outcome changes when the two responses change places; Wilson's interval.

    Args:
        first, second: points in one order and in the other. A prompt without a valid verdict in
            both is left out; from a win to a tie is a change, too.
    """
    one, other = _aligned(first, second)
    changed = np.where(np.isnan(one) | np.isnan(other), math.nan, one != other)
    return win_rate(changed)


def both_orders(first: npt.ArrayLike, second: npt.ArrayLike) -> Array:
    """Points per prompt over both orders, `[n]`: their mean, in which a pull to one side cancels.

    A prompt with one valid verdict has that one's points: it was paid for, and leaving it out would
    choose prompts by the judge's trouble with them; NaN only without any.
    """
    return mean_over_seeds(_aligned(first, second))


# --- Length ---------------------------------------------------------------------------------------


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
    won, difference = _points_and_difference(points, lengths, recorded_lengths)
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
    won, difference = _points_and_difference(points, lengths, recorded_lengths)
    if not difference.any():
        return win_rate(won)
    if np.ptp(difference) == 0:
        raise MetricError(
            f"every response is {difference[0]:g} longer than the other: no prompt tells what "
            "equally long ones would win"
        )
    # One regressor: the likelihood has a maximum if and only if wins and losses overlap in it, a
    # tie being half of each.
    with_win, with_loss = difference[won > 0], difference[won < 1]
    if (
        not len(with_win)
        or not len(with_loss)
        or max(with_win) <= min(with_loss)
        or max(with_loss) <= min(with_win)
    ):
        raise MetricError(
            f"no length-controlled win rate of {len(won)} verdicts: all are alike, or the "
            "difference in length alone tells wins from losses. Report longer_wins beside the win "
            "rate."
        )
    from scipy.special import expit
    from statsmodels.api import GLM, families

    regressors = np.column_stack([np.ones(len(won)), np.tanh(difference / difference.std())])
    fit = GLM(won, regressors, family=families.Binomial()).fit(cov_type="HC0")
    low, high = expit(fit.conf_int()[0])
    return Estimate(float(expit(fit.params[0])), float(low), float(high), len(won))


# --- Two models, many rows ------------------------------------------------------------------------


@dataclass(frozen=True)
class McNemar:
    """On how many prompts only the first, only the second model wins, and the two-sided p-value of
    that under a fair coin."""

    only_a: int
    only_b: int
    p: float


def mcnemar(points_a: npt.ArrayLike, points_b: npt.ArrayLike) -> McNemar:
    """Exact test of two models that were judged on the same prompts, against the same responses.

    Won is more than half a point: a tie is not, nor is a prompt won in one order and lost in the
    other. So it overlooks what turns a loss into a tie, which `paired_difference`, beside which it
    belongs, counts. Prompts are taken as independent. p is 1 where no prompt tells the two apart.
    """
    a, b = _aligned(points_a, points_b)
    valid = ~np.isnan(a) & ~np.isnan(b)
    wins_a, wins_b = a[valid] > 0.5, b[valid] > 0.5
    only_a, only_b = int((wins_a & ~wins_b).sum()), int((wins_b & ~wins_a).sum())
    from statsmodels.stats.contingency_tables import mcnemar as exact_test

    p = exact_test([[0, only_a], [only_b, 0]], exact=True).pvalue
    return McNemar(only_a, only_b, float(p))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of one table, each adjusted for there being so many (Holm 1979), in their order.

    Raises:
        MetricError: a value that is no probability.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise MetricError(f"p-values lie in [0, 1]: {list(p_values)}")
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist()


# --- Two judges -----------------------------------------------------------------------------------


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
    from statsmodels.stats.inter_rater import cohens_kappa

    table = np.zeros((len(kinds), len(kinds)))
    for one, other in pairs:
        table[kinds.index(one), kinds.index(other)] += 1
    found = cohens_kappa(table)
    low, high = max(-1.0, found.kappa_low), min(1.0, found.kappa_upp)
    return Estimate(float(found.kappa), float(low), float(high), len(pairs))


def _aligned(*columns: npt.ArrayLike) -> list[Array]:
    arrays = [np.asarray(column, dtype=float) for column in columns]
    shapes = [array.shape for array in arrays]
    if any(shape != shapes[0] or len(shape) != 1 for shape in shapes):
        raise MetricError(f"one number per prompt, for the same prompts, not arrays of {shapes}")
    if not shapes[0][0]:
        raise MetricError("there is no prompt to compare on")
    return arrays


def _points_and_difference(
    points: npt.ArrayLike, lengths: npt.ArrayLike, recorded_lengths: npt.ArrayLike
) -> tuple[Array, Array]:
    """Valid points, and by how much the model's response is longer, both `[m]`."""
    given, ours, theirs = _aligned(points, lengths, recorded_lengths)
    valid = ~np.isnan(given)
    if not valid.any():
        raise MetricError(f"no valid points among {len(given)}: there is nothing to estimate")
    return given[valid], (ours - theirs)[valid]
