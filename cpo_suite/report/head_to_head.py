"""Head to head: a row's answers against those of MLE continued for as many steps.

The same judge compares the two models' answers to each prompt: claim 1 of the paper, asked directly
and of every trained model. All rows are one family, whose intervals are adjusted after Holm.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from cpo.evaluation.judging import Judge, judge_responses
from cpo.evaluation.statistics import Array
from cpo_suite.paper import Relation, Row, continued_mle, distinct_models
from cpo_suite.report.claims import adjusted_intervals, bootstrap_difference
from cpo_suite.report.tables import MEASURE_COLUMNS
from cpo_suite.suite import Suite

AGAINST_MLE = "win_rate_vs_mle"  # the measure's name in `measures.csv`


def head_to_head(suite: Suite) -> pd.DataFrame:
    """The win rate of each distinct model against continued MLE, as lines of `measures.csv`.

    Intervals are over prompts, and over training seeds where there are several, 95 % after Holm's
    adjustment for all lines: above or below one half, the row beats MLE or loses to it. `n` counts
    prompts with a verdict for every seed. Empty without a judge, and with a paid one, which is
    asked about the recorded responses alone.
    """
    profile = suite.profile
    rows = [
        row
        for row in distinct_models(profile.trained_rows)
        if row.id != (mle := continued_mle(row).id) and mle in profile.rows
        if profile.judge.kind != "none" and not profile.judge.paid
    ]
    judges = {task: suite.judge(task) for task in {row.task for row in rows}}
    records: list[tuple[str, str, float, int]] = []
    family: list[tuple[Array, Relation]] = []
    for row in rows:
        judge = judges[row.task]
        assert judge is not None  # the profile has one
        per_seed = [points_against_mle(suite, judge, row, seed) for seed in range(profile.seeds)]
        points = np.stack(per_seed)
        valid = points[:, ~np.isnan(points).any(0)]
        if not valid.size:
            continue
        lead, drawn = bootstrap_difference([valid - 0.5])
        records.append((row.id, AGAINST_MLE, 0.5 + lead, valid.shape[1]))
        family.append((drawn, ">"))
    frame = pd.DataFrame(records, columns=["row", "measure", "value", "n"])
    ends = np.array(adjusted_intervals(family), dtype=float).reshape(-1, 2)
    frame["low"], frame["high"] = (0.5 + ends).clip(0, 1).T
    return frame[MEASURE_COLUMNS]


def points_against_mle(suite: Suite, judge: Judge, row: Row, seed: int = 0) -> Array:
    """Points per prompt of a row's answers against continued MLE's, `[n]`; NaN if invalid."""
    opponent = suite.generations(continued_mle(row).id, None, seed)
    # The opponent's answer takes the recorded one's place; the judge does not know.
    prompts = [
        replace(example, continuation=text)
        for example, text in zip(suite.prompts(row.model, row.task), opponent, strict=True)
    ]
    return judge_responses(judge, prompts, suite.generations(row.id, None, seed), seed).points


def against_mle(measures: pd.DataFrame) -> pd.DataFrame:
    """The lines of `head_to_head` in a frame of measures, each with its `outcome`: above, below or
    undecided."""
    lines = measures[measures["measure"] == AGAINST_MLE].copy()
    lines["outcome"] = np.select(
        [lines["low"] > 0.5, lines["high"] < 0.5], ["above", "below"], "undecided"
    )
    return lines
