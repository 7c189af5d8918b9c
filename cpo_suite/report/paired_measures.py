"""Automatic measures against continued MLE, paired by prompt; and degeneration at the mode.

A measure of single responses (repetition, ROUGE-L, length, ...) is paired response by response; one
of all responses together (MAUVE, distinct n-grams) over the same random halves of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cpo.evaluation import metrics
from cpo.evaluation.statistics import Array, Estimate, mean_estimate
from cpo_suite.paper import Relation, Row, continued_mle, distinct_models
from cpo_suite.report.claims import adjusted_intervals, students
from cpo_suite.report.tables import MEASURE_COLUMNS, measures_frame
from cpo_suite.suite import Suite

AGAINST_COLUMNS = ["row", "against", "measure", "value", "low", "high", "n"]
# What degeneration shows in: repetition, diversity, likeness to recorded text, and length.
DEGENERATION = ("seq_rep_4", "distinct_pieces", "mauve", "tokens")
MODE_COLUMNS = [
    "row", "decoding", *MEASURE_COLUMNS[1:], "against_mle", "against_low", "against_high",
]  # fmt: skip
RECORDED = "recorded"


class Difference(NamedTuple):
    """A row's measure minus continued MLE's: by training seed `[S]`, the variance of their mean
    over prompts, and the number of prompts."""

    by_seed: Array
    over_prompts: float
    n: int

    @property
    def drawn(self) -> tuple[float, Array]:
        """The mean, and quantiles of its distribution over prompts and seeds."""
        return students(float(self.by_seed.mean()), self.over_prompts, self.by_seed)


def measures_against_mle(suite: Suite) -> pd.DataFrame:
    """Each distinct model's measures minus those of MLE continued as long: one line each.

    `value` is the difference, with its 95 % interval over prompts (and training seeds) after Holm's
    adjustment for the rows of a measure. With `sampling_seeds`, differences of sampled responses
    follow, averaged over these seeds by prompt, as `sampled_...`.
    """
    profile = suite.profile
    rows = [row for row in distinct_models(profile.trained_rows) if _has_mle(suite, row)]
    sampled = [row for row in profile.sampled_rows if profile.samplings and _has_mle(suite, row)]
    found = [
        (row, prefix + measure, difference)
        for prefix, some, samplings in (("", rows, ()), ("sampled_", sampled, profile.samplings))
        for row in some
        for measure, difference in differences(suite, row, samplings).items()
    ]
    lines = []
    for measure in dict.fromkeys(name for _, name, _ in found):
        of_measure = [(row, one) for row, name, one in found if name == measure]
        family: list[tuple[Array, Relation]] = [(one.drawn[1], ">") for _, one in of_measure]
        for (row, one), ends in zip(of_measure, adjusted_intervals(family), strict=True):
            value = float(one.by_seed.mean())
            lines.append((row.id, continued_mle(row).id, measure, value, *ends, one.n))
    return pd.DataFrame(lines, columns=AGAINST_COLUMNS)


def _has_mle(suite: Suite, row: Row) -> bool:
    mle = continued_mle(row).id
    return row.id != mle and mle in suite.profile.rows


def differences(suite: Suite, row: Row, samplings: Sequence[str] = ()) -> dict[str, Difference]:
    """A row's measures minus continued MLE's, by measure; of sampled responses with `samplings`."""
    ours, theirs = (
        _MeasuredRow(suite, row_id, samplings) for row_id in (row.id, continued_mle(row).id)
    )
    found = {}
    for name in ours.responses:
        gaps = ours.responses[name] - theirs.responses[name]  # [S, n]
        found[name] = _of_responses(gaps, ours.weights if name == "held_out_loss" else None)
    for name in ours.of_all.keys() & theirs.of_all.keys():
        gaps = ours.of_all[name] - theirs.of_all[name]  # [S, 1 + halves]
        over_prompts = float(gaps.mean(0)[1:].var(ddof=1))
        found[name] = Difference(gaps[:, 0], over_prompts, ours.weights.size)
    order = [*ours.responses, *sorted(ours.of_all)]
    return {name: found[name] for name in order if name in found}


class _MeasuredRow:
    """The measures of a row by training seed, averaged over sampling seeds where there are several.

    Attributes:
        responses: of each response, `[S, n]` by name.
        of_all: of all responses together, `[S, 1 + halves]` by name: values and replicates.
        weights: `[n]`, the recorded responses' tokens, which weigh the held-out loss.
    """

    def __init__(self, suite: Suite, row_id: str, samplings: Sequence[str]) -> None:
        seeds = range(suite.profile.seeds)
        decodings: list[str | None] = [*samplings] or [None]
        of_each = [[suite.responses(row_id, seed, one) for one in decodings] for seed in seeds]
        self.weights = of_each[0][0]["recorded_tokens"]
        left_out = {"recorded_tokens"} | ({"held_out_loss"} if samplings else set())
        self.responses = {
            name: np.array([[run[name] for run in runs] for runs in of_each]).mean(1)
            for name in of_each[0][0]
            if name not in left_out
        }
        estimates = [[suite.measures(row_id, seed, one) for one in decodings] for seed in seeds]
        runs = [run for of_seed in estimates for run in of_seed]
        self.of_all = {
            name: np.array(
                [[_with_replicates(run[name]) for run in of_seed] for of_seed in estimates]
            ).mean(1)
            for name in runs[0]
            if all(name in run and run[name].replicates for run in runs)
        }


def _with_replicates(estimate: Estimate) -> list[float]:
    return [estimate.value, *estimate.replicates]


def _of_responses(gaps: Array, weights: Array | None = None) -> Difference:
    """The weighted mean of differences `[S, n]`, with the variance of a ratio over prompts."""
    n = gaps.shape[1]
    weights = np.ones(n) if weights is None else weights
    share = weights / weights.sum()
    mean = gaps.mean(0)
    spread = share * (mean - share @ mean)
    return Difference(gaps @ share, float((spread**2).sum()) * n / max(1, n - 1), n)


# --- Degeneration at the mode ---------------------------------------------------------------------


def degeneration_frame(suite: Suite) -> pd.DataFrame:
    """Repetition, diversity, MAUVE and length of the rows `x/mode`, and of the recorded texts.

    `against_mle` is the difference to continued MLE under the same decoding method, paired, with
    its 95 % interval. Empty where the profile trains no such row.
    """
    rows = [row for row in suite.profile.trained_rows if row.table == "mode"]
    lines = [] if not rows else _recorded(suite, rows[0])
    for row in rows:
        values = measures_frame(suite, [row.id]).set_index("measure")
        paired = differences(suite, row) if _has_mle(suite, row) else {}
        for measure in [one for one in DEGENERATION if one in values.index]:
            line: dict[str, Any] = {"row": row.id, "decoding": row.decoding, "measure": measure}
            line |= {name: values.at[measure, name] for name in ("value", "low", "high", "n")}
            if measure in paired:
                effect, drawn = paired[measure].drawn
                low, high = np.percentile(drawn, [2.5, 97.5])
                line |= {"against_mle": effect, "against_low": low, "against_high": high}
            lines.append(line)
    return pd.DataFrame(lines, columns=MODE_COLUMNS).astype({"n": "Int64"})


def _recorded(suite: Suite, row: Row) -> list[dict[str, Any]]:
    """The same measures of the recorded texts: what people repeat."""
    eos = suite.tokenizer(row.model).eos_token_id
    texts = [
        [token for token in one.continuation_ids if token != eos]
        for one in suite.tokenized(row.model, "test", row.task)
    ]
    estimates = {
        "seq_rep_4": mean_estimate([metrics.repeated_ngrams(text) for text in texts]),
        "distinct_pieces": metrics.distinct_ngrams(texts, 1, share=False),
        "tokens": mean_estimate([len(text) for text in texts]),
    }
    return [
        {"row": RECORDED, "decoding": "", "measure": name} | vars(one)
        for name, one in estimates.items()
    ]
