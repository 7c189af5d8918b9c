"""The paper's claims, and a verdict on each: holds, fails, undecided, uninformative, or not run.

A profile names the comparisons of every claim before anything runs, as in `t2/ANR > t2/MLE1`. A
claim holds if all its comparisons hold and fails if one of them fails. Every comparison of all
claims is in one family, whose intervals are adjusted after Holm. A comparison of rows that nearly
always lose, or win, is uninformative, whatever its interval.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from cpo.evaluation.seeds import standard_error
from cpo.evaluation.statistics import Array, MetricError, bootstrap_sums, holm_levels
from cpo_suite.paper import ROWS, Comparison, Relation, continued_mle
from cpo_suite.report.names import comparison_name
from cpo_suite.suite import Suite

ClaimVerdict = Literal["holds", "fails", "undecided", "uninformative", "not run"]

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
FLOOR = 0.05  # below this win rate, and above 1 - FLOOR, rows have no room to differ
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
    13: "on articles, batch negatives at the best alpha beat MLE",
}
CLAIM_COLUMNS = [
    "claim", "verdict", "comparison", "effect", "low", "high", "paper_effect", "excludes_paper",
    "note",
]  # fmt: skip


class Evidence(NamedTuple):
    """An effect, its distribution over prompts and seeds `[DRAWS]`, and a note."""

    effect: float
    drawn: Array
    note: str = ""
    informative: bool = True


@dataclass(frozen=True)
class Outcome:
    """The outcome of a comparison: effect `left - right` (of `overhead`, the ratio), its adjusted
    interval, a verdict, and the effect of the paper's printed numbers."""

    comparison: str
    verdict: ClaimVerdict
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    note: str = ""
    paper_effect: float | None = None

    @property
    def excludes_paper(self) -> bool | None:
        """Whether the interval excludes the paper's effect; None without either."""
        if self.paper_effect is None or math.isnan(self.low):
            return None
        return not self.low <= self.paper_effect <= self.high

    def __str__(self) -> str:
        text = f"{comparison_name(self.comparison)}: {self.verdict}"
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
    outcomes = judge_comparisons(suite, chain(*named.values()))
    return {number: [outcomes[text] for text in texts] for number, texts in named.items()}


def judge_comparisons(suite: Suite, texts: Iterable[str]) -> dict[str, Outcome]:
    """Comparisons, which are one family, with their outcomes; each once."""
    outcomes: dict[str, Outcome] = {}
    tested: dict[str, tuple[Comparison, Evidence]] = {}
    for text in texts:
        comparison = Comparison.parse(text)
        evidence = _evidence(suite, comparison)
        if isinstance(evidence, str):
            outcomes[text] = Outcome(
                text, "not run", note=evidence, paper_effect=comparison.paper_effect
            )
        else:
            tested[text] = (comparison, evidence)
    family = [(evidence.drawn, comparison.relation) for comparison, evidence in tested.values()]
    for (text, (comparison, evidence)), (low, high) in zip(
        tested.items(), adjusted_intervals(family), strict=True
    ):
        verdict = decide(low, high, comparison.relation)
        if not evidence.informative:
            verdict = "uninformative"
        outcomes[text] = Outcome(
            text, verdict, evidence.effect, low, high, evidence.note, comparison.paper_effect
        )
    return outcomes


def adjusted_intervals(family: Sequence[tuple[Array, Relation]]) -> list[tuple[float, float]]:
    """The interval of each comparison of one family, 95 % after Holm's adjustment.

    Args:
        family: for each comparison, its effect's distribution `[DRAWS]` and its relation.
    """
    levels = holm_levels([p_value(drawn, relation) for drawn, relation in family])
    ends = [
        np.percentile(drawn, [50 * level, 100 - 50 * level]).tolist()
        for level, (drawn, _) in zip(levels, family, strict=True)
    ]
    return [(low, high) for low, high in ends]


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


def combined(verdicts: Iterable[str]) -> str:
    """A claim's verdict from those of its comparisons: all have to hold, one can break it.

    It is uninformative if none of the comparisons that were run is informative.
    """
    found = set(verdicts) or {"not run"}
    if "fails" in found:
        return "fails"
    if found == {"uninformative", "not run"}:
        return "uninformative"
    return found.pop() if len(found) == 1 else "undecided"


def claims_frame(outcomes: Mapping[int, Sequence[Outcome]]) -> pd.DataFrame:
    """One line for each comparison of each claim; `verdict` is the comparison's own.

    A claim without comparisons has a line without one, which was not run.
    """
    unnamed = [Outcome("", "not run", note="the profile names no comparison")]
    parts = [
        comparisons_frame(compared or unnamed).assign(claim=number)
        for number, compared in outcomes.items()
    ]
    return pd.concat(parts, ignore_index=True)[CLAIM_COLUMNS]


def comparisons_frame(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """One line for each comparison: the columns of `claims_frame` without the claim."""
    records = [vars(one) | {"excludes_paper": one.excludes_paper} for one in outcomes]
    return pd.DataFrame(records, columns=CLAIM_COLUMNS[1:])


def verdicts_by_claim(frame: pd.DataFrame) -> pd.DataFrame:
    """One line for each claim of a `claims_frame`: `claim`, `the paper says`, `verdict`, and what
    became of its comparisons."""
    records = []
    for number in map(int, frame["claim"].unique()):
        verdicts = frame["verdict"][frame["claim"] == number].tolist()
        counts = Counter(verdicts)
        records.append({
            "claim": number,
            "the paper says": CLAIMS[number],
            "verdict": combined(verdicts),
            "comparisons": ", ".join(f"{count} {verdict}" for verdict, count in counts.items()),
        })  # fmt: skip
    return pd.DataFrame(records)


# --- Evidence from a suite ------------------------------------------------------------------------


def _evidence(suite: Suite, comparison: Comparison) -> Evidence | str:
    """The evidence for a comparison, or why it was not run."""
    missing = [row for row in comparison.rows if row not in suite.profile.rows]
    measures = {ROWS[row].measure for row in comparison.rows}
    by_judge = comparison.relation != "overhead" and measures == {"win_rate"}
    if by_judge and suite.profile.judge.kind == "none":
        return "there is no judge to compare responses"
    if missing:
        return f"the profile {suite.profile.name} leaves out {', '.join(missing)}"
    if by_judge:
        return _win_rate_difference(suite, comparison)
    if comparison.relation == "overhead":
        return _overhead(suite, comparison.rows[0])
    if "mauve" in measures:
        return _mauve_difference(suite, comparison)
    return _response_difference(suite, comparison)


def _win_rate_difference(suite: Suite, comparison: Comparison) -> Evidence:
    """Difference in points, paired by prompt; `best` and `ends` chosen by validation prompts."""
    weights: Counter[str] = Counter()
    notes = []
    for name, weight in comparison.weights.items():
        row = name
        if choice := comparison.choices.get(name):
            row = max(choice, key=lambda row: np.nanmean(points_of(suite, row, "validation")))
            notes.append(f"{name} is {row} by validation prompts")
        weights[row] += weight
    points = {row: points_of(suite, row, "test") for row in weights}
    rates = [float(np.nanmean(values)) for values in points.values()]
    if floor := on_a_floor(rates):
        notes.append(floor)
    by_task: defaultdict[str, Any] = defaultdict(float)  # prompts are paired within a task
    for row, weight in weights.items():
        by_task[ROWS[row].task] += weight * points[row]
    # Prompts with a verdict for every row.
    valid = [values[:, ~np.isnan(values).any(0)] for values in by_task.values()]
    if any(values.shape[1] == 0 for values in valid):
        raise MetricError(f"no prompt has a verdict for all of {', '.join(weights)}")
    return Evidence(*bootstrap_difference(valid), "; ".join(notes), informative=not floor)


def on_a_floor(win_rates: Sequence[float]) -> str:
    """Why rows of these win rates have no room to differ; empty where they have."""
    if max(win_rates) < FLOOR:
        return f"every row wins below {FLOOR:.0%}, too low to differ"
    if min(win_rates) > 1 - FLOOR:
        return f"every row wins above {1 - FLOOR:.0%}, too high to differ"
    return ""


def points_of(suite: Suite, row: str, split: str = "test", decoding: str | None = None) -> Array:
    """Points per training seed and prompt, `[S, n]`; NaN without a verdict. `decoding` replaces the
    row's own method."""
    seeds = range(suite.profile.seeds)
    verdicts = [suite.verdicts(row, decoding, seed, split) for seed in seeds]
    return np.stack([judged.points for judged in verdicts if judged is not None])


def bootstrap_difference(groups: Sequence[Array], seed: int = 0) -> tuple[float, Array]:
    """Mean of a difference and its distribution, `[DRAWS]`.

    With one training seed it is a bootstrap over prompts, of which whole ones are drawn. With
    several it is Student's, with the variances of prompts and seeds: see `cpo.evaluation.seeds`.

    Args:
        groups: one array `[S, n]` for each set of prompts: weighted points of S training seeds on
            the same n prompts. Sets are independent of each other.
    """
    by_seed = np.sum([values.mean(1) for values in groups], axis=0)  # [S]
    means = [values.mean(0) for values in groups]  # [n] each
    if len(by_seed) > 1:
        over_prompts = sum(mean.var(ddof=1) / len(mean) for mean in means)
        return students(float(by_seed.mean()), float(over_prompts), by_seed)
    drawn = sum(
        bootstrap_sums(mean, DRAWS, (seed, number)) / len(mean) for number, mean in enumerate(means)
    )
    return float(by_seed[0]), np.asarray(drawn)


def students(effect: float, over_prompts: float, by_seed: Array) -> tuple[float, Array]:
    """An effect and the quantiles of its distribution `[DRAWS]`, over prompts and seeds `[S]`.

    With one seed the distribution is normal, with the variance `over_prompts`.
    """
    from scipy.stats import t

    error, freedom = standard_error(over_prompts, by_seed.tolist())
    return effect, effect + error * t.ppf((np.arange(DRAWS) + 0.5) / DRAWS, freedom)


def _mauve_difference(suite: Suite, comparison: Comparison) -> Evidence | str:
    """Difference in MAUVE, with a normal distribution: its tails are what Holm's levels ask for.

    Rows are scored on the same random halves of the articles, so the differences' standard
    deviation over halves is that of a paired difference (see `metrics.mauve_score`); training seeds
    add their own, and make the distribution Student's.
    """
    difference: Any = 0.0  # [S, 1 + halves], the value and its replicates
    for row, weight in comparison.weights.items():
        per_seed = [suite.measures(row, seed).get("mauve") for seed in range(suite.profile.seeds)]
        scores = [[score.value, *score.replicates] for score in per_seed if score]
        if len(scores) < len(per_seed):
            return "the profile gives MAUVE no features, or a row's texts have no MAUVE"
        difference += weight * np.array(scores)
    by_seed = difference[:, 0]
    found = students(float(by_seed.mean()), float(difference.mean(0)[1:].var(ddof=1)), by_seed)
    return Evidence(*found, "MAUVE, paired over halves of the articles")


def _response_difference(suite: Suite, comparison: Comparison) -> Evidence:
    """Difference in a measure of single responses, such as repetition, paired by prompt."""
    measure = ROWS[comparison.rows[0]].measure
    difference: Any = 0.0  # [S, n]
    for row, weight in comparison.weights.items():
        per_seed = [suite.responses(row, seed)[measure] for seed in range(suite.profile.seeds)]
        difference += weight * np.array(per_seed)
    return Evidence(*bootstrap_difference([difference]), f"{measure}, paired by prompt")


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
    batch, steps = suite.profile.continuation.batch, seconds.shape[1]
    per_batch = np.array(per_prompt, dtype=float).T.reshape(2, -1, batch).sum(-1)
    tokens = per_batch[:, np.arange(steps) % per_batch.shape[1]]  # in each pass again

    def ratio(sums: Array) -> Array:
        """The row's over MLE's, of `[2, ...]`."""
        return sums[1] / sums[0]

    drawn = ratio(bootstrap_sums(seconds.T, DRAWS).T) / ratio(bootstrap_sums(tokens.T, DRAWS).T)
    (mle_time, time), more = seconds.sum(1), ratio(tokens.sum(1))
    slower = time / mle_time
    note = (
        f"{time:.0f} against {mle_time:.0f} s of training, {slower:.1f} times the time "
        f"for {more:.1f} times the tokens; effect is their ratio, margin {OVERHEAD_MARGIN}"
    )
    return Evidence(float(slower / more), drawn, note)
