"""What stands behind a win rate: who judged, when, asked what, how many verdicts, how biased.

One line for each judged row of a profile: the counts and bounds that a win rate alone hides, the
judge's position and length bias, and the row beside MLE continued for as many steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from cpo.evaluation import statistics
from cpo.evaluation.judge_prompts import INVALID_KINDS
from cpo.evaluation.judging import Verdicts
from cpo.evaluation.statistics import Estimate, MetricError, mean_over_seeds
from cpo_suite.paper import Row, continued_mle
from cpo_suite.suite import Suite

COUNTS = ("valid", "invalid", "ties", "marked")
WHY_INVALID = {kind: f"invalid_{kind.replace(' ', '_')}" for kind in INVALID_KINDS}
ESTIMATES = ("win_rate", "pick_a", "longer_wins", "length_controlled", "flip_rate", "over_mle")
COLUMNS = [
    "row", "judge", "date", "prompt", "seeds", "planned", *COUNTS, *WHY_INVALID.values(),
    "worst", "best", *(f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")),
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
        frame.loc[tested.index, "holm_p"] = statistics.holm(tested.tolist())
    return frame


def _record(suite: Suite, row: Row) -> dict[str, Any]:
    per_seed = _verdicts(suite, row.id)
    first = per_seed[0]
    # With every invalid verdict a loss, and a win.
    bounds = [[np.nan_to_num(of.points, nan=end).mean() for end in (0.0, 1.0)] for of in per_seed]
    worst, best = np.mean(bounds, axis=0)
    record: dict[str, Any] = {
        "row": row.id,
        "judge": first.judge,
        "date": max(of_seed.judged for of_seed in per_seed),
        "prompt": first.prompt or None,
        "seeds": len(per_seed),
        "planned": len(first),
        "worst": worst,
        "best": best,
    }
    for name in COUNTS:
        record[name] = sum(getattr(of_seed, name) for of_seed in per_seed)
    for kind, name in WHY_INVALID.items():
        record[name] = sum(of_seed.invalid_kinds[kind] for of_seed in per_seed)

    points = mean_over_seeds([of_seed.points for of_seed in per_seed])
    shown = [verdict for of_seed in per_seed for verdict in (*of_seed.verdicts, *of_seed.exchanged)]
    prompts = first.ids * (len(shown) // len(first))
    seeds = range(suite.profile.seeds)
    texts = [suite.generations(row.id, None, seed) for seed in seeds]
    lengths = np.mean([[len(text) for text in of_seed] for of_seed in texts], axis=0)
    recorded = [len(example.continuation) for example in suite.prompts(row.model, row.task)]
    estimates: dict[str, Callable[[], Estimate]] = {
        "win_rate": partial(statistics.win_rate, points),
        "pick_a": partial(statistics.pick_a, shown, prompts),
        "longer_wins": partial(statistics.longer_wins, points, lengths, recorded),
        "length_controlled": partial(
            statistics.length_controlled_win_rate, points, lengths, recorded
        ),
    }
    if first.exchanged:
        estimates["flip_rate"] = partial(statistics.flip_rate, *first.by_order)
    mle = continued_mle(row).id
    if mle != row.id and mle in suite.profile.rows:
        of_mle = mean_over_seeds([of_seed.points for of_seed in _verdicts(suite, mle)])
        estimates["over_mle"] = partial(statistics.paired_difference, points, of_mle)
        record["mcnemar_p"] = statistics.mcnemar(points, of_mle)
    for name, estimate in estimates.items():
        try:
            result = estimate()
        except MetricError:  # the verdicts do not allow it, as with responses of one length
            result = Estimate(math.nan, math.nan, math.nan, 0)
        record |= {name: result.value, f"{name}_low": result.low, f"{name}_high": result.high}
    return record


def _verdicts(suite: Suite, row_id: str) -> list[Verdicts]:
    per_seed = [suite.verdicts(row_id, None, seed) for seed in range(suite.profile.seeds)]
    return [verdicts for verdicts in per_seed if verdicts is not None]
