"""The paper's claims, and a verdict on each: holds, fails, undecided, or not run.

A profile names the comparisons of every claim before anything runs, as in `t2/ANR > t2/MLE1`. A
claim holds if all its comparisons hold and fails if one of them fails. Every comparison of all
claims is in one family, whose intervals are adjusted after Holm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from cpo.comparison import Comparison, Relation
from cpo.metrics import MetricError
from cpo.paper import ROWS, continued_mle

if TYPE_CHECKING:
    from cpo.experiments import Suite

Array = npt.NDArray[np.float64]
Verdict = Literal["holds", "fails", "undecided", "not run"]

LEVEL = 0.05
MARGIN = 0.02  # two points of win rate: what `>=` may lack and `~` may differ
OVERHEAD_MARGIN = (
    1.15  # seconds over tokens, both against MLE, that still count as "only the batch"
)
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
    """What became of a comparison: effect `left - right`, its adjusted interval, and a verdict."""

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

    `>`: twice the smaller share on either side of 0; `>=`: the share not above -`MARGIN`, or not
    below it, whichever is smaller; `~`: the larger share beyond either margin.
    """
    if relation == ">":
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
    """The verdict that an interval of `left - right` allows."""
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
        if missing:
            note = f"the profile {suite.profile.name} leaves out {', '.join(missing)}"
            outcomes[text] = Outcome(text, "not run", note=note)
        elif comparison.relation == "overhead":
            outcomes[text] = _overhead(suite, comparison.rows[0], text)
        elif any(ROWS[row].measure == "mauve" for row in comparison.weights if row in ROWS):
            outcomes[text] = _mauve_difference(suite, comparison)
        elif suite.profile.judge.kind == "none":
            outcomes[text] = Outcome(text, "not run", note="there is no judge to compare responses")
        else:
            weights, note = _chosen(suite, comparison)
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


def _mauve_difference(suite: Suite, comparison: Comparison) -> Outcome:
    """MAUVE has no value per prompt: the interval is from the ends of the two ranges over the seeds
    of its clustering (and, over training seeds, from the widest), and no part of Holm's family."""
    effect, low, high = 0.0, 0.0, 0.0
    for row, weight in comparison.weights.items():
        found = [suite.measures(row, seed).get("mauve") for seed in range(suite.profile.seeds)]
        each = [one for one in found if one is not None]
        if not each:
            return Outcome(comparison.text, "not run", note="the profile gives MAUVE no features")
        ends = (min(one.low for one in each), max(one.high for one in each))
        effect += weight * float(np.mean([one.value for one in each]))
        low += weight * ends[0 if weight > 0 else 1]
        high += weight * ends[1 if weight > 0 else 0]
    verdict = decide(low, high, comparison.relation)
    note = "MAUVE; the interval spans clustering seeds, not articles"
    return Outcome(comparison.text, verdict, effect, low, high, note)


def _overhead(suite: Suite, row_id: str, text: str) -> Outcome:
    """Training seconds against MLE's, over tokens against MLE's: 1 is "only the larger batch"."""
    trained = [suite.model(one).recipe for one in (continued_mle(ROWS[row_id]).id, row_id)]
    seconds = [float(suite.store.manifest(recipe)["seconds"]) for recipe in trained]
    negatives = suite.negatives(row_id)
    tokens = [0, 0]
    for row, prefix in enumerate(negatives.prefixes):
        candidates = negatives.candidates(row)
        tokens[0] += len(prefix) + len(candidates[0])
        tokens[1] += sum(len(prefix) + len(one) for one in candidates if one)
    ratio, batch = seconds[1] / seconds[0], tokens[1] / tokens[0]
    verdict: Verdict = "holds" if ratio / batch <= OVERHEAD_MARGIN else "fails"
    note = (
        f"{seconds[1]:.0f} against {seconds[0]:.0f} s, {ratio:.1f} times the time for {batch:.1f} "
        "times the tokens, one run of each, no interval; effect is their ratio"
    )
    return Outcome(text, verdict, ratio / batch, note=note)
