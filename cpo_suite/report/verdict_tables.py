"""Behind each win rate: judge, date, prompt template, number of verdicts, biases.

One line for each judged row of a profile: the counts and bounds that a win rate alone hides, the
judge's position and length bias, and the row beside MLE continued for as many steps. And what the
store of verdicts holds and cost, for `python -m cpo_suite verdicts`.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from cpo.evaluation import seeds, statistics
from cpo.evaluation.agreement import corrected_win_rate
from cpo.evaluation.judge_prompts import INVALID_KINDS, read_verdict
from cpo.evaluation.judging import Verdicts
from cpo.evaluation.replies import Reply
from cpo.evaluation.reply_store import STORE, VERDICTS, Question, ReplyStore, ReplyStoreError
from cpo.evaluation.statistics import Array, Estimate, MetricError, mean_over_seeds
from cpo_suite.paper import Row, continued_mle, distinct_models
from cpo_suite.report.tables import length_arguments, verdicts_of
from cpo_suite.store import artifacts_folder
from cpo_suite.suite import Suite

VERDICT_COUNTS = ("valid", "invalid", "ties", "marked")
WHY_INVALID = {kind: f"invalid_{kind.replace(' ', '_')}" for kind in INVALID_KINDS}
ESTIMATES = (
    "win_rate",
    "pick_a",
    "longer_wins",
    "length_controlled",
    "flip_rate",
    "over_mle",
    "corrected",
)
VERDICT_COLUMNS = [
    "row", "judge", "date", "prompt", "seeds", "planned", *VERDICT_COUNTS, *WHY_INVALID.values(),
    "worst", "best", *(f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")),
    "mcnemar_p", "holm_p",
]  # fmt: skip
NEEDED = ["key", "verdict", "why", "server", "model", "input_tokens", "output_tokens", "usd"]

# --- Rows -----------------------------------------------------------------------------------------


def verdicts_frame(suite: Suite) -> pd.DataFrame:
    """Of every judged row, over all training seeds:

    `judge`, `date` (UTC, the last), `prompt` (hash of the judge's template); prompts `planned`,
    verdicts `valid`, `invalid` and `ties`; `marked`, responses that hold a part of the template;
    `invalid_unclear` to `invalid_too_long`, why verdicts are invalid, those of both orders counted;
    `worst` and `best`, the win rate were every invalid verdict a loss or a win. `pick_a`: how often
    the judge says A; `longer_wins`: how often the longer response wins; `length_controlled`: the
    win rate that a fit predicts at equal lengths; `flip_rate`: with both orders, how often the
    winner changes with the order. `corrected`: if `judge.corrected` asks for it and the judge's
    agreement with people was measured, the win rate corrected for its errors. `over_mle` is the
    paired difference to continued MLE; with one training seed, `mcnemar_p` is exact McNemar's and
    `holm_p` the same after Holm, over all distinct models, whose first rows have it. Intervals are
    95 %; those of `win_rate`, `over_mle` and `corrected` are over training seeds, too. An estimate
    that the verdicts do not allow, as with responses of one length, is empty.
    """
    records = [
        _record(suite, row)
        for row in suite.profile.trained_rows
        if row.measure == "win_rate" and suite.profile.judge.kind != "none"
    ]
    frame = pd.DataFrame(records, columns=VERDICT_COLUMNS)
    distinct = frame["row"].isin([row.id for row in distinct_models(suite.profile.trained_rows)])
    tested = frame.loc[distinct, "mcnemar_p"].dropna()
    if len(tested):
        frame.loc[tested.index, "holm_p"] = statistics.holm(tested.tolist())
    return frame


def _record(suite: Suite, row: Row) -> dict[str, Any]:
    per_seed = verdicts_of(suite, row.id)
    first = per_seed[0]
    record: dict[str, Any] = {
        "row": row.id,
        "judge": first.judge,
        "date": max(verdicts.judged for verdicts in per_seed),
        "prompt": first.prompt or None,
        "seeds": len(per_seed),
        "planned": len(first),
    }
    for name in VERDICT_COUNTS:
        record[name] = sum(getattr(verdicts, name) for verdicts in per_seed)
    for kind, name in WHY_INVALID.items():
        record[name] = sum(verdicts.invalid_kinds[kind] for verdicts in per_seed)
    for name, end in (("worst", 0.0), ("best", 1.0)):
        record[name] = np.mean(
            [np.nan_to_num(of_seed.points, nan=end).mean() for of_seed in per_seed]
        )

    by_seed = [verdicts.points for verdicts in per_seed]
    points = mean_over_seeds(by_seed)
    shown = [text for judged in per_seed for text in (*judged.verdicts, *judged.exchanged)]
    lengths = length_arguments(suite, row)
    estimators: dict[str, tuple[Any, ...]] = {  # each with its arguments
        "win_rate": (seeds.win_rate_over_seeds, by_seed),
        "pick_a": (statistics.pick_a, shown, first.ids * (len(shown) // len(first))),
        "longer_wins": (statistics.longer_wins, points, *lengths),
        "length_controlled": (statistics.length_controlled_win_rate, points, *lengths),
    }
    if suite.profile.judge.corrected and (quality := suite.judge_quality()):
        estimators["corrected"] = (_corrected, by_seed, quality[0])
    if first.exchanged:
        estimators["flip_rate"] = (statistics.flip_rate, *first.by_order)
    mle = continued_mle(row).id
    if mle != row.id and mle in suite.profile.rows:
        of_mle = [verdicts.points for verdicts in verdicts_of(suite, mle)]
        estimators["over_mle"] = (seeds.difference_over_seeds, by_seed, of_mle)
        if len(by_seed) == 1:
            record["mcnemar_p"] = statistics.mcnemar(points, of_mle[0])
    for name, (estimator, *arguments) in estimators.items():
        with suppress(MetricError):
            estimate = estimator(*arguments)
            record |= {name: estimate.value, f"{name}_low": estimate.low}
            record[f"{name}_high"] = estimate.high
    return record


def _corrected(by_seed: Sequence[Array], judge: Mapping[str, Any]) -> Estimate:
    """The win rate over seeds, corrected with the judge's measured accuracy."""
    if "accuracy" not in judge:
        raise MetricError(f"the accuracy of {judge['judge']} is not known")
    value, low, high = (judge[f"accuracy{end}"] for end in ("", "_low", "_high"))
    accuracy = Estimate(value, low, high, judge["pairs"])
    return corrected_win_rate(seeds.win_rate_over_seeds(by_seed), accuracy)


# --- The store ------------------------------------------------------------------------------------


def print_verdicts(model: str | None, export: str | None, forget: str | None) -> int:
    """Print one line for each judge, and write every verdict to `export` if given.

    Args:
        model: the judging model whose verdicts are meant; None for all.
        forget: a kind of invalid verdicts, one of `INVALID_KINDS`, which are removed first, so that
            the next run asks for them again.

    Returns:
        The exit code: 0, or 2 where there is no store or a file cannot be written.
    """
    path = artifacts_folder() / STORE
    if not path.is_file() and not path.with_name(VERDICTS).is_file():
        reason = "no verdict has been paid for yet. A profile whose judge is `openai` makes it."
        print(f"{path} does not exist: {reason}", file=sys.stderr)
        return 2
    try:
        with ReplyStore(path) as store:
            lines = [
                _verdict(question, reply)
                for question, reply in store.rows("verdict")
                if model in (None, question.asked["model"])
            ]
            verdicts = pd.DataFrame(lines, columns=list(lines[0]) if lines else NEEDED)
            if forget:
                forgotten = verdicts["why"] == forget
                store.forget(verdicts["key"][forgotten])
                _remove_artifacts(forget, model)
                count = forgotten.sum()
                print(f"{count:,} verdicts ({forget}) are forgotten: the next run asks again")
                verdicts = verdicts[~forgotten]
        if export:
            verdicts.to_csv(export, index=False)
    except (OSError, ReplyStoreError) as error:
        print(error, file=sys.stderr)
        return 2
    judges = [
        _summary(str(name), str(server), rows)
        for (name, server), rows in verdicts.groupby(["model", "server"])
    ]
    print(tabulate(judges, headers="keys", tablefmt="plain", disable_numparse=True))
    print(f"{len(verdicts):,} verdicts, {verdicts['usd'].sum():.4f} USD, in {path}")
    if export:
        print(f"written to {export}")
    return 0


def _remove_artifacts(why: str, model: str | None) -> None:
    """Those of finished runs that hold such a verdict: from them it would be read again."""
    for path in (artifacts_folder() / "verdicts").glob("*/verdicts.jsonl"):
        verdicts = Verdicts.from_jsonl(path)
        if why in verdicts.why and (model is None or verdicts.judge.startswith(f"{model} at ")):
            shutil.rmtree(path.parent)


def _verdict(question: Question, reply: Reply) -> dict[str, Any]:
    """A verdict with all that was asked and replied, as a line of the export."""
    verdict, why = read_verdict(reply)
    line = {"key": question.key, "item": question.item, "verdict": verdict, "why": why}
    line |= {"text": reply.text, "reply_model": reply.model}
    return {**line, **asdict(reply), **question.asked}


def _summary(model: str, server: str, verdicts: pd.DataFrame) -> dict[str, str]:
    """A judge's line of the printed table."""
    outcomes, why = Counter(verdicts["verdict"]), Counter(verdicts["why"])
    counts = {"verdicts": len(verdicts)}
    counts |= {outcome: outcomes[outcome] for outcome in ("A", "B", "tie", "invalid")}
    counts["tokens"] = int(verdicts[["input_tokens", "output_tokens"]].to_numpy().sum())
    asked = verdicts["asked_at"].str[:10]
    return {
        "model": model,
        "server": server,
        **{name: f"{count:,}" for name, count in counts.items()},
        "USD": f"{verdicts['usd'].sum():.4f}",
        "asked": f"{asked.min()} to {asked.max()}",
        "why invalid": ", ".join(f"{why[kind]:,} {kind}" for kind in INVALID_KINDS if why[kind]),
    }
