"""Tables of a suite: the paper's numbers beside ours, with intervals; as csv, Markdown and HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from cpo.evaluation.judging import Verdicts
from cpo.evaluation.seeds import over_seeds, win_rate_over_seeds
from cpo.evaluation.statistics import (
    Estimate,
    MetricError,
    length_controlled_win_rate,
    mean_over_seeds,
)
from cpo_suite.paper import Row
from cpo_suite.profile import Profile
from cpo_suite.report.captions import caption
from cpo_suite.report.names import comparison_name, row_name
from cpo_suite.suite import Suite

TABLE_COUNTS = ("seeds", "n", "valid", "invalid", "ties")
COUNTS = (*TABLE_COUNTS, "drawn")
TABLE_COLUMNS = [
    "row", "model", "alpha", "measure", "judge", "seeds", "paper", "ours", "low", "high", "n",
    "valid", "invalid", "ties",
]  # fmt: skip
# Before `ours`, where the judge does not beat the rule "the longer response".
LENGTH_CONTROLLED = ["length_controlled", "length_controlled_low", "length_controlled_high"]
QUALITY_FILE = "judge_quality.json"  # beside the tables: what is known of their judge
FOLDED_ROWS = 60  # a longer table is folded on the screen
MEASURE_COLUMNS = ["row", "measure", "value", "low", "high", "n"]
# What stands in a judge's place, by a table's measure.
SCORED_BY = {
    "mauve": "MAUVE, features of the base model",
    "seq_rep_4": "no judge, the share of repeated 4-grams",
}
LEARNT_COLUMNS = [
    "row", "seed", "moment", "step", "contrast_loss", "accuracy", "change", "low", "high", "learnt",
]  # fmt: skip
NEGATIVES_COLUMNS = [
    "negatives", "kind", "drawn", "equal_to_truth", "duplicates", "masked", "oracle_grade",
    "tied_with_truth",
]  # fmt: skip


# --- From a suite ---------------------------------------------------------------------------------


def table(suite: Suite, name: str) -> pd.DataFrame:
    """A table's rows (`t1` to `t4`, a figure's panel, ours, `x` and `mode`, or those of your own,
    `own`), beside the paper's numbers: win rates, MAUVE for `t4`, repetition for `mode`.

    Every row is there. `ours` and what goes with it are empty where the profile leaves the row out,
    and where there is no judge, or no features for MAUVE. `n` is prompts planned; `valid`,
    `invalid` and `ties` count verdicts over all training seeds, whose points are averaged prompt by
    prompt. Over training seeds, MAUVE and the ends of its interval are averaged. Intervals include
    the seeds' variance.

    `frame.attrs["judge_quality"]` of judged rows is as `Suite.judge_quality`. Where the judge
    does not beat the rule "the longer response", the columns `LENGTH_CONTROLLED` stand before
    `ours`; their interval is over prompts.

    Raises:
        KeyError: no such table.
    """
    profile = suite.profile
    rows = [row for row in profile.every_row.values() if row.table == name]
    if not rows:
        known = ", ".join(sorted({row.table for row in profile.every_row.values()}))
        raise KeyError(f"no table '{name}'; there are {known}")
    records: list[dict[str, Any]] = []
    verdicts: list[Verdicts] = []
    quality = suite.judge_quality()
    columns = list(TABLE_COLUMNS)
    if quality and not quality[0]["beats_longest"]:
        columns[columns.index("ours") : columns.index("ours")] = LENGTH_CONTROLLED
    for row in rows:
        record = {name: getattr(row, name) for name in ("model", "alpha", "measure", "paper")}
        if row.id not in profile.rows:
            pass
        elif row.measure in SCORED_BY:
            measures = [suite.measures(row.id, seed) for seed in range(profile.seeds)]
            found = [scores[row.measure] for scores in measures if row.measure in scores]
            record |= _scored(found, SCORED_BY[row.measure])
        else:
            per_seed = verdicts_of(suite, row.id)
            record |= _win_rate(per_seed)
            if per_seed and LENGTH_CONTROLLED[0] in columns:
                record |= _length_controlled(suite, row, per_seed)
            verdicts += per_seed
        records.append({"row": row.id} | record)
    types = dict.fromkeys(columns, "float64") | dict.fromkeys(TABLE_COUNTS, "Int64")
    types |= dict.fromkeys(("row", "model", "measure", "judge"), "object")
    frame = pd.DataFrame(records, columns=columns).astype(types)
    judged, prompts = {of_row.judged for of_row in verdicts}, {of_row.prompt for of_row in verdicts}
    frame.attrs |= {"judged": sorted(judged), "prompt": sorted(prompts - {""})}  # for the caption
    if verdicts:
        frame.attrs["judge_quality"] = quality
    return frame


def verdicts_of(suite: Suite, row_id: str) -> list[Verdicts]:
    """A row's verdicts on test prompts, by training seed; none without a judge."""
    per_seed = [suite.verdicts(row_id, None, seed) for seed in range(suite.profile.seeds)]
    return [verdicts for verdicts in per_seed if verdicts is not None]


def _win_rate(per_seed: Sequence[Verdicts]) -> dict[str, Any]:
    """The columns that verdicts fill; none without verdicts."""
    if not per_seed:
        return {}
    columns = {"judge": per_seed[0].judge, "seeds": len(per_seed), "n": len(per_seed[0])}
    for name in ("valid", "invalid", "ties"):
        columns[name] = sum(getattr(verdicts, name) for verdicts in per_seed)
    if columns["valid"]:
        rate = win_rate_over_seeds([verdicts.points for verdicts in per_seed])
        columns |= {"ours": rate.value, "low": rate.low, "high": rate.high}
    return columns


def length_arguments(suite: Suite, row: Row) -> tuple[Any, list[int]]:
    """Characters of a row's responses, `[n]`, the mean over seeds, and of the recorded ones."""
    texts = [suite.generations(row.id, None, seed) for seed in range(suite.profile.seeds)]
    lengths = np.mean([[len(text) for text in of_seed] for of_seed in texts], axis=0)
    return lengths, [len(example.continuation) for example in suite.prompts(row.model, row.task)]


def _length_controlled(suite: Suite, row: Row, per_seed: Sequence[Verdicts]) -> dict[str, float]:
    """The columns `LENGTH_CONTROLLED`; none where no fit is determined."""
    points = mean_over_seeds([verdicts.points for verdicts in per_seed])
    try:
        rate = length_controlled_win_rate(points, *length_arguments(suite, row))
    except MetricError:
        return {}
    return dict(zip(LENGTH_CONTROLLED, (rate.value, rate.low, rate.high), strict=True))


def _scored(per_seed: Sequence[Estimate], by: str) -> dict[str, Any]:
    """The columns that a measure without a judge fills; none without estimates."""
    if not per_seed:
        return {}
    mean = _mean(per_seed)
    counts = {"seeds": len(per_seed), "n": mean.n, "valid": mean.n, "invalid": 0, "ties": 0}
    estimate = {"ours": mean.value, "low": mean.low, "high": mean.high}
    return {"judge": by} | counts | estimate


def _mean(per_seed: Sequence[Estimate]) -> Estimate:
    """Values and both ends of the intervals averaged over training seeds, whose variance is added:
    too wide rather than too narrow, since a mean over seeds varies less from prompt to prompt than
    one of them."""
    value, low, high = (
        fmean(getattr(score, part) for score in per_seed) for part in ("value", "low", "high")
    )
    mean = Estimate(value, low, high, per_seed[0].n)
    return over_seeds(mean, [score.value for score in per_seed])


def measures_frame(
    suite: Suite, row_ids: Iterable[str], samplings: Sequence[str] = ()
) -> pd.DataFrame:
    """The automatic measures of some rows, averaged over training seeds: one line for each row and
    measure that every seed has.

    With `samplings`, such as `Profile.samplings`, those of sampled responses: averaged over these
    seeds as well, and named `sampled_...`.
    """
    seeds = range(suite.profile.seeds)
    runs: list[Any] = [*product(seeds, samplings)] or [(seed,) for seed in seeds]
    records: list[dict[str, Any]] = []
    for row_id in row_ids:
        per_run = [suite.measures(row_id, *run) for run in runs]
        for measure in per_run[0]:
            # The loss of the recorded responses is that of greedy decoding: nothing is decoded.
            if all(measure in one for one in per_run) and not (
                samplings and measure == "held_out_loss"
            ):
                name = f"sampled_{measure}" if samplings else measure
                mean = _mean([measures[measure] for measures in per_run])
                records.append({"row": row_id, "measure": name} | vars(mean))
    return pd.DataFrame(records, columns=MEASURE_COLUMNS)


def learnt_frame(suite: Suite, row_ids: Iterable[str]) -> pd.DataFrame:
    """The contrast on held-out prompts at the start, middle and end of each row's training.

    One line for each row, training seed and moment: the held-out `contrast_loss` and `accuracy`,
    and the loss minus its value at the reference, `change`, with its 95 % interval over prompts.
    `learnt`, the same on every line of a row: at the end, every seed's interval lies below 0. Rows
    without negatives have no line.
    """
    records = []
    for row_id in row_ids:
        per_seed = [suite.held_out(row_id, seed) for seed in range(suite.profile.seeds)]
        learnt = all(moments and moments[-1]["high"] < 0 for moments in per_seed)
        for seed, moments in enumerate(per_seed):
            # One step alone has no middle.
            names = ("start", *["middle"] * (len(moments) - 2), "end")
            for moment, values in zip(names, moments, strict=False):
                line = {"row": row_id, "seed": seed, "moment": moment, "learnt": learnt}
                records.append(line | values)
    return pd.DataFrame(records, columns=LEARNT_COLUMNS)


def negatives_frame(reports: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Counts of drawn and masked candidates, by set of negatives and kind.

    Args:
        reports: of each set of negatives, by name: `by_kind`, for each kind the counts of
            `negatives.DrawReport` and, where there is an oracle, `oracle_grade`, the mean grade of
            its texts; and `tied_with_truth`, the share of negatives that the ranking's embedding
            cannot tell from the truth.

    Returns:
        `equal_to_truth` and `duplicates` as shares of the first draw, before any
        redrawing, `masked` as the share of columns left empty after the last; `tied_with_truth`
        stands on the line of the kind "all".
    """

    records: list[dict[str, Any]] = []
    for name, report in reports.items():
        for kind, counts in report["by_kind"].items():
            records.append({"negatives": name, "kind": kind} | counts)
        if (tied := report.get("tied_with_truth")) is not None:
            records.append({"negatives": name, "kind": "all", "tied_with_truth": tied})
    counted = ["asked", "first_drawn", "first_equal_to_truth", "first_duplicates"]
    frame = pd.DataFrame(records, columns=NEGATIVES_COLUMNS + counted)
    frame["equal_to_truth"] = frame["first_equal_to_truth"] / frame["first_drawn"]
    frame["duplicates"] = frame["first_duplicates"] / frame["first_drawn"]
    frame["masked"] /= frame["asked"]
    return frame[NEGATIVES_COLUMNS].astype({"drawn": "Int64"})


# --- For readers ----------------------------------------------------------------------------------


def write_table(frame: pd.DataFrame, folder: Path, stem: str, profile: Profile) -> None:
    """Write `stem.csv`, and `stem.md` with a caption and the paper's numbers beside ours.

    What is known of the judge goes into `QUALITY_FILE`, for `read_table`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if quality := frame.attrs.get("judge_quality"):
        text = json.dumps(quality, indent=1)
        (folder / QUALITY_FILE).write_text(text, encoding="utf-8")
    elif "judge_quality" in frame.attrs:  # what is there would be of another judge
        (folder / QUALITY_FILE).unlink(missing_ok=True)
    frame.to_csv(folder / f"{stem}.csv", index=False, float_format="%.6g")
    shown = readable(frame).replace(r"\|", "&#124;", regex=True)
    markdown = shown.to_markdown(index=False, disable_numparse=True)
    text = f"{caption(frame, profile)}\n\n{markdown}\n"
    (folder / f"{stem}.md").write_text(text, encoding="utf-8")


def read_table(path: Path) -> pd.DataFrame:
    """A table as it was written: counts stay whole numbers where some of them are empty, and what
    was known of the judge is there for the caption."""
    frame = pd.read_csv(path)
    frame = frame.astype({name: "Int64" for name in COUNTS if name in frame})
    quality = path.with_name(QUALITY_FILE)
    if quality.is_file():
        frame.attrs["judge_quality"] = json.loads(quality.read_text(encoding="utf-8"))
    return frame


def html_table(frame: pd.DataFrame, text: str, name: str) -> str:
    """A table for the screen (HTML), under the caption `text`.

    The first column is each line's header; `name` is for screen readers. A table wider than the
    screen scrolls without moving the page, also with the keyboard. One of more than `FOLDED_ROWS`
    rows is folded.
    """
    shown = readable(frame)
    header = shown.columns[0]
    shown = shown.set_index(header).rename_axis(index=None, columns=header)
    about = f"<caption>{html.escape(text)}</caption><thead>"
    with pd.option_context("display.max_colwidth", None):
        body = shown.to_html(border=0, justify="left").replace("<thead>", about, 1)
    label = html.escape(name)
    table = f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{body}</div>'
    if len(shown) <= FOLDED_ROWS:
        return table
    return f"<details><summary>{label}: {len(shown)} rows</summary>{table}</details>"


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as text: rows by name, intervals in one column, empty columns left out."""
    frame = frame.copy()
    for column, name_of in (("row", row_name), ("comparison", comparison_name)):
        if column in frame:
            frame[column] = frame[column].map(name_of, na_action="ignore")
    if "alpha" in frame:
        frame["alpha"] = frame["alpha"].map("{:g}".format, na_action="ignore").astype(object)
    if LENGTH_CONTROLLED[0] in frame:
        ends = zip(*(frame.pop(name) for name in LENGTH_CONTROLLED), strict=True)
        estimates = [
            str(Estimate(value, low, high, 0)) if pd.notna(value) else ""
            for value, low, high in ends
        ]
        frame.insert(list(frame).index("ours"), "at equal length", estimates)
    if {"low", "high"} <= set(frame):
        interval = [
            f"[{_number(low)}, {_number(high)}]" if pd.notna(low) else ""
            for low, high in zip(frame.pop("low"), frame.pop("high"), strict=True)
        ]
        value = next(
            (name for name in ("ours", "value", "effect") if name in frame), frame.columns[-1]
        )
        frame.insert(list(frame).index(value) + 1, "95 % interval", interval)
    # Empty columns are dropped, except `paper` and `ours`.
    kept = [name for name in frame if name in ("paper", "ours") or frame[name].notna().any()]
    if "measure" in kept and "paper" in kept:
        kept.remove("measure")  # it is in the caption
    shown = {str(name).replace("_", " "): frame[name].map(_text) for name in kept}
    return pd.DataFrame(shown, dtype=object)


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    if not isinstance(value, float) and float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
