"""The paper's claims, and a verdict on each: holds, fails, undecided, or not run.

A profile names the comparisons of every claim before anything runs, as in `t2/ANR > t2/MLE1`. A
claim holds if all its comparisons hold and fails if one of them fails. Every comparison of all
claims is in one family, whose intervals are adjusted after Holm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from cpo.evaluation.intervals import MetricError
from cpo_suite.comparison import Comparison, Relation
from cpo_suite.paper import ROWS, continued_mle

if TYPE_CHECKING:
    from cpo_suite.suite import Suite

Array = npt.NDArray[np.float64]
Verdict = Literal["holds", "fails", "undecided", "not run"]

LEVEL = 0.05
MARGIN = 0.02  # two points of win rate: what `>=` may lack and `~` may differ
OVERHEAD_MARGIN = (
    1.15  # seconds over tokens, both against MLE, that still count as "only the batch"
)
FLOOR = 0.05  # a win rate below which rows have little room to differ, which the note then says
DRAWS = 20_000

CLAIMS = {
    1: "CPO beats MLE continued for the same steps",
    2: "CPO beats DPO and parallel scheduled sampling",
    3: "CPO beats MLE under every decoding",
    4: "ranking the negatives helps",
    5: "BNR and TNR are alike, and no worse than MNR",
    6: "some ensemble strictly between is at least as good as either end",
    7: "the better alpha is larger for GPT-2 and for articles than for Llama on instructions",
    8: "CPO raises MAUVE",
    9: "the training overhead is only that of the larger batch",
    10: "autoregressive negatives gain more than those that are cheap to make",
    11: "more negatives help",
    12: "the gain grows with the model",
}


@dataclass(frozen=True)
class Outcome:
    """What became of a comparison: effect `left - right` (of `overhead`, the ratio), its adjusted
    interval, and a verdict."""

    comparison: str
    verdict: Verdict
    effect: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    note: str = ""


# --- Statistics -----------------------------------------------------------------------------------


def bootstrap_difference(groups: Sequence[Array], seed: int = 0) -> tuple[float, Array]:
    """Mean of a difference and its bootstrap distribution, `[DRAWS]`.

    Args:
        groups: one array `[S, n]` for each set of prompts: weighted points of S training seeds on
            the same n prompts. Sets are independent of each other. Whole prompts are drawn, and
            with more than one seed first the seeds: S trainings are a sample, too.
    """
    generator = np.random.default_rng(seed)
    drawn = np.zeros(DRAWS)
    for values in groups:
        seeds, n = values.shape
        chunk = max(1, 4_000_000 // (n * seeds))
        for start in range(0, DRAWS, chunk):
            count = min(chunk, DRAWS - start)
            prompts = generator.integers(n, size=(count, n))
            if seeds == 1:
                drawn[start : start + count] += values[0][prompts].mean(-1)
                continue
            which = generator.integers(seeds, size=(count, seeds))
            means = np.stack([one[prompts].mean(-1) for one in values])
            drawn[start : start + count] += np.take_along_axis(means.T, which, 1).mean(-1)
    return float(sum(values.mean() for values in groups)), drawn


def p_value(drawn: Array, relation: Relation) -> float:
    """How often the bootstrap contradicts a decision, at least one in `DRAWS`.

    `>`: twice the smaller share on either side of 0; `>=`: of -`MARGIN`; `overhead`: of
    `OVERHEAD_MARGIN`; `~`: twice the larger share beyond either margin.
    """
    if relation == "overhead":
        p = 2 * min((drawn <= OVERHEAD_MARGIN).mean(), (drawn >= OVERHEAD_MARGIN).mean())
    elif relation == ">":
        p = 2 * min((drawn <= 0).mean(), (drawn >= 0).mean())
    elif relation == ">=":
        p = 2 * min((drawn <= -MARGIN).mean(), (drawn >= -MARGIN).mean())
    else:
        p = 2 * max((drawn <= -MARGIN).mean(), (drawn >= MARGIN).mean())
    return float(min(1.0, max(p, 1 / DRAWS)))


def holm_levels(p_values: Sequence[float], level: float = LEVEL) -> list[float]:
    """The level at which each comparison's interval is drawn (Holm 1979).

    The i-th smallest of m p-values has `level / (m - i + 1)`, i from 1, as long as all before it
    are within theirs; from the first that is not, all keep that one's level.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    levels, stopped = [0.0] * len(p_values), None
    for place, index in enumerate(order):
        own = level / (len(order) - place)
        levels[index] = own if stopped is None else stopped
        if stopped is None and p_values[index] > own:
            stopped = own
    return levels


def decide(low: float, high: float, relation: Relation) -> Verdict:
    """The verdict that an interval of `left - right` (of `overhead`, of the ratio) allows."""
    if relation == "overhead":
        holds, fails = high <= OVERHEAD_MARGIN, low > OVERHEAD_MARGIN
        return "holds" if holds else "fails" if fails else "undecided"
    if relation == ">":
        return "holds" if low > 0 else "fails" if high < 0 else "undecided"
    if relation == ">=":
        return "holds" if low > -MARGIN else "fails" if high < -MARGIN else "undecided"
    if low > -MARGIN and high < MARGIN:
        return "holds"
    return "fails" if low > MARGIN or high < -MARGIN else "undecided"


def combined(outcomes: Sequence[Outcome]) -> Verdict:
    """A claim's verdict from those of its comparisons: all have to hold, one can break it."""
    verdicts = {one.verdict for one in outcomes}
    if "fails" in verdicts:
        return "fails"
    if verdicts == {"holds"}:
        return "holds"
    return "not run" if not outcomes or verdicts == {"not run"} else "undecided"


# --- From a suite ---------------------------------------------------------------------------------


def judge_claims(suite: Suite) -> dict[int, list[Outcome]]:
    """Every claim's comparisons with their outcomes; an empty list for one that names none.

    Makes what it needs: verdicts and measures of the rows named, and for `best` and `ends` those on
    validation prompts.
    """
    named = {number: suite.profile.claims.get(number, ()) for number in CLAIMS}
    outcomes: dict[str, Outcome] = {}
    judged: dict[str, tuple[Comparison, float, Array, str]] = {}
    for text in (text for texts in named.values() for text in texts):
        comparison = Comparison.parse(text)
        missing = [row for row in comparison.rows if row not in suite.profile.rows]
        by_mauve = any(ROWS[row].measure == "mauve" for row in comparison.rows)
        needs_judge = comparison.relation != "overhead" and not by_mauve
        if needs_judge and suite.profile.judge.kind == "none":
            outcomes[text] = Outcome(text, "not run", note="there is no judge to compare responses")
        elif missing:
            note = f"the profile {suite.profile.name} leaves out {', '.join(missing)}"
            outcomes[text] = Outcome(text, "not run", note=note)
        elif comparison.relation == "overhead":
            judged[text] = (comparison, *_overhead(suite, comparison.rows[0]))
        elif by_mauve:
            scored = _mauve_difference(suite, comparison)
            if scored is None:
                note = "the profile gives MAUVE no features, or a row's texts have no MAUVE"
                outcomes[text] = Outcome(text, "not run", note=note)
            else:
                judged[text] = (comparison, *scored)
        else:
            weights, note = _chosen(suite, comparison)
            if max(np.nanmean(_points(suite, row, "test")) for row in weights) < FLOOR:
                note += f"{'; ' if note else ''}every row wins below {FLOOR:.0%}, hardly can differ"
            effect, drawn = bootstrap_difference(_weighted_points(suite, weights))
            judged[text] = (comparison, effect, drawn, note)
    levels = holm_levels([p_value(drawn, one.relation) for one, _, drawn, _ in judged.values()])
    for (text, (comparison, effect, drawn, note)), level in zip(
        judged.items(), levels, strict=True
    ):
        low, high = np.percentile(drawn, [50 * level, 100 - 50 * level])
        verdict = decide(low, high, comparison.relation)
        outcomes[text] = Outcome(text, verdict, effect, float(low), float(high), note)
    return {number: [outcomes[text] for text in texts] for number, texts in named.items()}


def _chosen(suite: Suite, comparison: Comparison) -> tuple[dict[str, int], str]:
    """The comparison's rows with `best` and `ends` replaced by what validation prompts choose."""
    weights: dict[str, int] = {}
    notes = []
    for name, weight in comparison.weights.items():
        choice = comparison.choices.get(name)
        if choice:
            points = {row: np.nanmean(_points(suite, row, "validation")) for row in choice}
            best = max(points, key=points.__getitem__)
            notes.append(f"{name} is {best} by validation prompts")
            name = best
        weights[name] = weights.get(name, 0) + weight
    return weights, "; ".join(notes)


def _weighted_points(suite: Suite, weights: Mapping[str, int]) -> list[Array]:
    """Weighted points `[S, n]` of each task's prompts, those valid for every row."""
    by_task: dict[str, Array] = {}
    for row, weight in weights.items():
        task = ROWS[row].task
        by_task[task] = by_task.get(task, 0.0) + weight * _points(suite, row, "test")
    valid = [values[:, ~np.isnan(values).any(0)] for values in by_task.values()]
    if any(values.shape[1] == 0 for values in valid):
        raise MetricError(f"no prompt has a verdict for all of {', '.join(weights)}")
    return valid


def _points(suite: Suite, row: str, split: str) -> Array:
    """Points per training seed and prompt, `[S, n]`; NaN without a verdict."""
    verdicts = [suite.verdicts(row, None, seed, split) for seed in range(suite.profile.seeds)]
    return np.stack([one.points for one in verdicts if one is not None])


def _mauve_difference(suite: Suite, comparison: Comparison) -> tuple[float, Array, str] | None:
    """Effect, its distribution and a note; None where a row has no MAUVE.

    Rows are scored on the same random halves of the articles, so the differences' standard
    deviation over halves is that of a paired difference (see `metrics.mauve_score`); training seeds
    add their own. The distribution is the normal one: its tails are what Holm's levels ask for.
    """
    each: Array | float = 0.0  # [S, 1 + halves], the value and its replicates
    for row, weight in comparison.weights.items():
        found = [suite.measures(row, seed).get("mauve") for seed in range(suite.profile.seeds)]
        if None in found:
            return None
        each = each + weight * np.array([[one.value, *one.replicates] for one in found if one])
    each = np.atleast_2d(each)
    variance = each.mean(0)[1:].var(ddof=1)
    if len(each) > 1:
        variance += each[:, 0].var(ddof=1) / len(each)
    effect = float(each[:, 0].mean())
    normal = np.random.default_rng(0).normal(size=DRAWS)
    drawn = effect + math.sqrt(variance) * normal
    return effect, drawn, "MAUVE, paired over halves of the articles"


def _overhead(suite: Suite, row_id: str) -> tuple[float, Array, str]:
    """Training seconds against MLE's, over tokens against MLE's: 1 is "only the larger batch".

    Both rows train on the same plan, step by step on the same prompts: steps are drawn.
    """
    rows = (continued_mle(ROWS[row_id]).id, row_id)
    seconds = np.array([[line["seconds"] for line in suite.history(row)] for row in rows])
    negatives = suite.negatives(row_id)
    tokens = np.zeros((2, len(negatives.prefixes)))
    for row, prefix in enumerate(negatives.prefixes):
        candidates = negatives.candidates(row)
        tokens[0, row] = len(prefix) + len(candidates[0])
        tokens[1, row] = sum(len(prefix) + len(one) for one in candidates if one)
    steps = seconds.shape[1]
    tokens = tokens.reshape(2, steps, -1).sum(-1)
    drawn = np.random.default_rng(0).integers(steps, size=(DRAWS, steps))
    (mle_time, time), (mle_tokens, batch) = seconds.sum(1), tokens.sum(1)
    drawn_time, drawn_tokens = (
        values[1][drawn].sum(1) / values[0][drawn].sum(1) for values in (seconds, tokens)
    )
    note = (
        f"{time:.0f} against {mle_time:.0f} s of training, {time / mle_time:.1f} times the time "
        f"for {batch / mle_tokens:.1f} times the tokens; effect is their ratio, margin "
        f"{OVERHEAD_MARGIN}"
    )
    effect = float(time / mle_time / (batch / mle_tokens))
    return effect, drawn_time / drawn_tokens, note
