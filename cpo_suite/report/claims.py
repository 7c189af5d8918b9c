"""The paper's claims, and a verdict on each: holds, fails, undecided, or not run.

A profile names the comparisons of every claim before anything runs, as in `t2/ANR > t2/MLE1`. A
claim holds if all its comparisons hold and fails if one of them fails. Every comparison of all
claims is in one family, whose intervals are adjusted after Holm.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import pandas as pd

from cpo.evaluation.statistics import Array, MetricError, holm_levels, resamples
from cpo_suite.paper import ROWS, Comparison, Relation, continued_mle
from cpo_suite.suite import Suite

ClaimVerdict = Literal["holds", "fails", "undecided", "not run"]
Evidence = tuple[float, Array, str]  # an effect, its bootstrap distribution `[DRAWS]`, and a note

MARGIN = 0.02  # two points of win rate: what `>=` may lack and `~` may differ
# Seconds over tokens, both against MLE, that still count as "only the larger batch".
OVERHEAD_MARGIN = 1.15
# Where an effect, `left - right` or the ratio of `overhead`, has to lie for a comparison to hold.
HOLDS_WITHIN: dict[Relation, tuple[float, float]] = {
    ">": (0.0, math.inf),
    ">=": (-MARGIN, math.inf),
    "~": (-MARGIN, MARGIN),
    "overhead": (-math.inf, OVERHEAD_MARGIN),
}
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
CLAIM_COLUMNS = ["claim", "verdict", "comparison", "effect", "low", "high", "note"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a comparison: effect `left - right` (of `overhead`, the ratio), its adjusted
    interval, and a verdict."""

    comparison: str
    verdict: ClaimVerdict
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.comparison}: {self.verdict}"
        if math.isfinite(self.effect):
            text += f" {self.effect:+.3f}"
        if math.isfinite(self.low):
            text += f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{text} ({self.note})" if self.note else text


# --- The rule -------------------------------------------------------------------------------------


def judge_claims(suite: Suite) -> dict[int, list[Outcome]]:
    """Every claim's comparisons with their outcomes; an empty list for one that names none.

    Makes what it needs: verdicts and measures of the rows named, and for `best` and `ends` those on
    validation prompts.
    """
    named = {number: suite.profile.claims.get(number, ()) for number in CLAIMS}
    outcomes: dict[str, Outcome] = {}
    tested: dict[str, tuple[Relation, Evidence]] = {}
    for text in chain(*named.values()):
        comparison = Comparison.parse(text)
        evidence = _evidence(suite, comparison)
        if isinstance(evidence, str):
            outcomes[text] = Outcome(text, "not run", note=evidence)
        else:
            tested[text] = (comparison.relation, evidence)
    levels = holm_levels([p_value(drawn, relation) for relation, (_, drawn, _) in tested.values()])
    for level, (text, (relation, (effect, drawn, note))) in zip(
        levels, tested.items(), strict=True
    ):
        low, high = np.percentile(drawn, [50 * level, 100 - 50 * level]).tolist()
        outcomes[text] = Outcome(text, decide(low, high, relation), effect, low, high, note)
    return {number: [outcomes[text] for text in texts] for number, texts in named.items()}


def p_value(drawn: Array, relation: Relation) -> float:
    """How often the bootstrap contradicts a decision, at least one in `DRAWS`.

    For `~`, twice the larger share beyond either margin; for the others, twice the smaller share on
    either side of their one margin.
    """
    below, above = HOLDS_WITHIN[relation]
    if relation == "~":
        p = 2 * max((drawn <= below).mean(), (drawn >= above).mean())
    else:
        margin = below if math.isfinite(below) else above
        p = 2 * min((drawn <= margin).mean(), (drawn >= margin).mean())
    return float(min(1.0, max(p, 1 / DRAWS)))


def decide(low: float, high: float, relation: Relation) -> ClaimVerdict:
    """The verdict that an interval of `left - right` (of `overhead`, of the ratio) allows."""
    below, above = HOLDS_WITHIN[relation]
    # The margin of an overhead is within it, those of differences are not.
    if below < low and (high <= above if relation == "overhead" else high < above):
        return "holds"
    return "fails" if high < below or low > above else "undecided"


def combined(outcomes: Sequence[Outcome]) -> ClaimVerdict:
    """A claim's verdict from those of its comparisons: all have to hold, one can break it."""
    verdicts = {outcome.verdict for outcome in outcomes} or {"not run"}
    if "fails" in verdicts:
        return "fails"
    return verdicts.pop() if len(verdicts) == 1 else "undecided"


def claims_frame(outcomes: Mapping[int, Sequence[Outcome]]) -> pd.DataFrame:
    """One line for each of the paper's claims, with the comparison that decided it.

    That is, of the comparisons with the claim's verdict, the one with the smallest effect; the note
    holds all of them.
    """
    records = []
    for number, compared in outcomes.items():
        verdict = combined(compared)
        deciding = [outcome for outcome in compared if outcome.verdict == verdict] or compared
        least = min(deciding, key=lambda outcome: outcome.effect, default=Outcome("", verdict))
        note = "; ".join(map(str, compared)) or "the profile names no comparison"
        records.append(vars(least) | {
            "claim": number, "verdict": verdict, "note": f"{CLAIMS[number]}. {note}"
        })  # fmt: skip
    return pd.DataFrame(records, columns=CLAIM_COLUMNS)


# --- Evidence from a suite ------------------------------------------------------------------------


def _evidence(suite: Suite, comparison: Comparison) -> Evidence | str:
    """The evidence for a comparison, or why it was not run."""
    missing = [row for row in comparison.rows if row not in suite.profile.rows]
    by_mauve = any(ROWS[row].measure == "mauve" for row in comparison.rows)
    by_judge = comparison.relation != "overhead" and not by_mauve
    if by_judge and suite.profile.judge.kind == "none":
        return "there is no judge to compare responses"
    if missing:
        return f"the profile {suite.profile.name} leaves out {', '.join(missing)}"
    if by_judge:
        return _win_rate_difference(suite, comparison)
    if by_mauve:
        return _mauve_difference(suite, comparison)
    return _overhead(suite, comparison.rows[0])


def _win_rate_difference(suite: Suite, comparison: Comparison) -> Evidence:
    """Difference in points, paired by prompt; `best` and `ends` chosen by validation prompts."""
    weights: Counter[str] = Counter()
    notes = []
    for name, weight in comparison.weights.items():
        row = name
        if choice := comparison.choices.get(name):
            row = max(choice, key=lambda row: np.nanmean(_points(suite, row, "validation")))
            notes.append(f"{name} is {row} by validation prompts")
        weights[row] += weight
    points = {row: _points(suite, row, "test") for row in weights}
    if max(map(np.nanmean, points.values())) < FLOOR:
        notes.append(f"every row wins below {FLOOR:.0%}, too low to differ by much")
    by_task: defaultdict[str, Any] = defaultdict(float)  # prompts are paired within a task
    for row, weight in weights.items():
        by_task[ROWS[row].task] += weight * points[row]
    # Prompts with a verdict for every row.
    valid = [values[:, ~np.isnan(values).any(0)] for values in by_task.values()]
    if any(values.shape[1] == 0 for values in valid):
        raise MetricError(f"no prompt has a verdict for all of {', '.join(weights)}")
    return *bootstrap_difference(valid), "; ".join(notes)


def _points(suite: Suite, row: str, split: str) -> Array:
    """Points per training seed and prompt, `[S, n]`; NaN without a verdict."""
    verdicts = [suite.verdicts(row, None, seed, split) for seed in range(suite.profile.seeds)]
    return np.stack([judged.points for judged in verdicts if judged is not None])


def bootstrap_difference(groups: Sequence[Array], seed: int = 0) -> tuple[float, Array]:
    """Mean of a difference and its bootstrap distribution, `[DRAWS]`.

    Args:
        groups: one array `[S, n]` for each set of prompts: weighted points of S training seeds on
            the same n prompts. Sets are independent of each other. Whole prompts are drawn, and
            with more than one seed first the seeds: S trainings are a sample, too.
    """
    random = np.random.default_rng(seed)
    drawn = np.zeros(DRAWS)
    for values in groups:
        seeds, n = values.shape
        chunks = []
        for prompts in resamples(n, DRAWS, random, seeds):
            means = np.stack([points[prompts].mean(-1) for points in values])  # [S, c]
            if seeds > 1:
                which = random.integers(seeds, size=(len(prompts), seeds))
                means = np.take_along_axis(means.T, which, 1).mean(-1)[None]
            chunks.append(means[0])
        drawn += np.concatenate(chunks)
    return float(sum(values.mean() for values in groups)), drawn


def _mauve_difference(suite: Suite, comparison: Comparison) -> Evidence | str:
    """Difference in MAUVE, with a normal distribution: its tails are what Holm's levels ask for.

    Rows are scored on the same random halves of the articles, so the differences' standard
    deviation over halves is that of a paired difference (see `metrics.mauve_score`); training seeds
    add their own.
    """
    difference: Any = 0.0  # [S, 1 + halves], the value and its replicates
    for row, weight in comparison.weights.items():
        per_seed = [suite.measures(row, seed).get("mauve") for seed in range(suite.profile.seeds)]
        scores = [[score.value, *score.replicates] for score in per_seed if score]
        if len(scores) < len(per_seed):
            return "the profile gives MAUVE no features, or a row's texts have no MAUVE"
        difference += weight * np.array(scores)
    variance = difference.mean(0)[1:].var(ddof=1)
    if len(difference) > 1:
        variance += difference[:, 0].var(ddof=1) / len(difference)
    effect = float(difference[:, 0].mean())
    drawn = effect + math.sqrt(variance) * np.random.default_rng(0).normal(size=DRAWS)
    return effect, drawn, "MAUVE, paired over halves of the articles"


def _overhead(suite: Suite, row_id: str) -> Evidence:
    """Training seconds against MLE's, over tokens against MLE's: 1 is "only the larger batch".

    Both rows train on the same plan, step by step on the same prompts: steps are drawn.
    """
    rows = (continued_mle(ROWS[row_id]).id, row_id)
    seconds = np.array([[line["seconds"] for line in suite.history(row)] for row in rows])
    negatives = suite.negatives(row_id)
    per_prompt = []  # tokens that MLE reads, and the row
    for row, prefix in enumerate(negatives.prefixes):
        lengths = [len(prefix) + len(ids) for ids in negatives.candidates(row) if ids]
        per_prompt.append((lengths[0], sum(lengths)))
    tokens = np.array(per_prompt, dtype=float).T.reshape(2, seconds.shape[1], -1).sum(-1)

    def over_mle(values: Array) -> Array:
        """The row's sum over MLE's, of `[2, ..., steps]`."""
        return values[1].sum(-1) / values[0].sum(-1)

    samples = resamples(seconds.shape[1], DRAWS, np.random.default_rng(0))
    drawn = [over_mle(seconds[:, steps]) / over_mle(tokens[:, steps]) for steps in samples]
    (mle_time, time), slower, more = seconds.sum(1), over_mle(seconds), over_mle(tokens)
    note = (
        f"{time:.0f} against {mle_time:.0f} s of training, {slower:.1f} times the time "
        f"for {more:.1f} times the tokens; effect is their ratio, margin {OVERHEAD_MARGIN}"
    )
    return float(slower / more), np.concatenate(drawn), note
