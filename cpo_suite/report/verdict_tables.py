"""What stands behind a win rate: who judged, when, asked what, how many verdicts, how biased.

One line for each judged row of a profile: the counts and bounds that a win rate alone hides, the
judge's pull towards a side and towards length, and the row beside MLE continued for as many steps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cpo.evaluation import comparing
from cpo.evaluation.intervals import (
    Estimate,
    MetricError,
    mean_over_seeds,
    paired_difference,
    win_rate,
)
from cpo.evaluation.judge_prompts import INVALID_KINDS
from cpo.evaluation.judging import Verdicts
from cpo_suite.paper import Row, continued_mle
from cpo_suite.suite import Suite

Array = npt.NDArray[np.float64]

ESTIMATES = ("win_rate", "pick_a", "longer_wins", "length_controlled", "flip_rate", "over_mle")
COLUMNS = [
    "row", "judge", "date", "prompt", "seeds", "planned", "valid", "invalid", "ties", "marked",
    *(f"invalid_{kind.replace(' ', '_')}" for kind in INVALID_KINDS), "worst", "best",
    *(f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")),
    "mcnemar_p", "holm_p",
]  # fmt: skip


def verdicts_frame(suite: Suite) -> pd.DataFrame:
    """Of every judged row, over all training seeds:

    `judge`, `date` (UTC, the last), `prompt` (hash of the judge's template); prompts `planned`,
    verdicts `valid`, `invalid` and `ties`; `marked`, responses that hold a part of the template;
    `invalid_unclear` to `invalid_too_long`, why verdicts are invalid, those of both orders counted;
    `worst` and `best`, the win rate were every invalid verdict a loss or a win. `pick_a`: how often
    the judge says A; `longer_wins`: how often the longer response wins; `length_controlled`: the
    win rate that a fit predicts at equal lengths; `flip_rate`: with both orders, how often the
    winner changes with the order. `over_mle` is the paired difference to continued MLE, with exact
    McNemar's p and the same after Holm over the rows of the table. Intervals are 95 %.
    """
    records = [
        _record(suite, row)
        for row in suite.profile.trained_rows
        if row.measure == "win_rate" and suite.profile.judge.kind != "none"
    ]
    frame = pd.DataFrame(records, columns=COLUMNS)
    for _, rows in frame.groupby(frame["row"].map(lambda row: row.split("/")[0])):
        tested = rows["mcnemar_p"].dropna()
        frame.loc[tested.index, "holm_p"] = comparing.holm(tested.tolist())
    return frame


def _record(suite: Suite, row: Row) -> dict[str, Any]:
    row_id = row.id
    per_seed = _verdicts(suite, row_id)
    first = per_seed[0]
    points = mean_over_seeds([one.points for one in per_seed])
    worst, best = np.mean([comparing.bounds(one.points) for one in per_seed], axis=0)
    recorded = [len(one.continuation) for one in suite.prompts(row.model, row.task)]
    lengths = np.mean(
        [
            [len(text) for text in suite.generations(row_id, None, seed)]
            for seed in range(suite.profile.seeds)
        ],
        axis=0,
    )
    shown = [verdict for one in per_seed for verdict in (*one.verdicts, *one.exchanged)]
    prompts = first.ids * (len(shown) // len(first))
    record: dict[str, Any] = {
        "row": row_id,
        "judge": first.judge,
        "date": max(one.judged for one in per_seed),
        "prompt": first.prompt or None,
        "seeds": len(per_seed),
        "planned": len(first),
        "valid": sum(one.valid for one in per_seed),
        "invalid": sum(one.invalid for one in per_seed),
        "ties": sum(one.ties for one in per_seed),
        "marked": sum(one.marked for one in per_seed),
        **{
            f"invalid_{kind.replace(' ', '_')}": sum(one.invalid_kinds[kind] for one in per_seed)
            for kind in INVALID_KINDS
        },
        "worst": worst,
        "best": best,
    }
    made = {
        "win_rate": lambda: win_rate(points),
        "pick_a": lambda: comparing.pick_a(shown, prompts),
        "longer_wins": lambda: comparing.longer_wins(points, lengths, recorded),
        "length_controlled": lambda: comparing.length_controlled_win_rate(
            points, lengths, recorded
        ),
    }
    if first.exchanged:
        made["flip_rate"] = lambda: comparing.flip_rate(*first.by_order)
    mle = continued_mle(row).id
    if mle != row_id and mle in suite.profile.rows:
        theirs = mean_over_seeds([one.points for one in _verdicts(suite, mle)])
        made["over_mle"] = lambda: paired_difference(points, theirs)
        record["mcnemar_p"] = comparing.mcnemar(points, theirs).p
    for name, make in made.items():
        estimate = _or_nan(make)
        record |= {
            name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high
        }  # fmt: skip
    return record


def _verdicts(suite: Suite, row_id: str) -> list[Verdicts]:
    found = [suite.verdicts(row_id, None, seed) for seed in range(suite.profile.seeds)]
    return [one for one in found if one is not None]


def _or_nan(make: Any) -> Estimate:
    """An estimate, or none where the verdicts do not allow it, as with responses of one length."""
    try:
        return make()
    except MetricError:
        return Estimate(math.nan, math.nan, math.nan, 0)
