"""The result told: five sentences from the numbers of a run, for README and report.

Is the contrast learnt; what is learnt; do answers improve, and by how much of the paper's effect;
under which decoding; and is ranking the reason. `python -m cpo_suite.report.told tiny` prints them
from `figures/tiny/`. What was not run, or decides nothing, is said to be so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cpo_suite.artifacts.judge_quality import BASELINES
from cpo_suite.profile import ROOT
from cpo_suite.report.claims import CLAIM_COLUMNS
from cpo_suite.report.findings import joined
from cpo_suite.report.head_to_head import against_mle
from cpo_suite.report.names import comparison_name, row_name
from cpo_suite.report.paired_measures import AGAINST_COLUMNS
from cpo_suite.report.tables import LEARNT_COLUMNS, MEASURE_COLUMNS, QUALITY_FILE

RANKED, UNRANKED, CONTROL = "t2/ANR", "t2/AN", "x/ANR-oracle"  # control: ranked by the oracle
# What a verdict says of a gain.
GAIN = {
    "holds": "is shown",
    "fails": "is a loss",
    "undecided": "is undecided",
    "uninformative": "cannot be told, since every row nearly always loses or wins,",
    "not run": "was not measured",
}


def told(
    claims: pd.DataFrame, learnt: pd.DataFrame, measures: pd.DataFrame,
    paired: pd.DataFrame | None = None, mode: pd.DataFrame | None = None,
    judge: Sequence[Mapping[str, Any]] = (),
) -> list[str]:  # fmt: skip
    """Five sentences: is the loss learnt, what is, do answers improve, under which decoding, why.

    Args:
        claims: as `claims.claims_frame`.
        learnt: as `tables.learnt_frame`.
        measures: as `measures.csv`, with the lines of `head_to_head`.
        paired: as `paired_measures.measures_against_mle`.
        mode: as `claims.comparisons_frame` of `paper.MODE_COMPARISONS`.
        judge: as `judge_quality.json`, the judge's record first; empty if nobody has measured it.

    Intervals of effects and of win rates are those of the frames, adjusted for their number.
    """
    by_row = learnt[learnt["moment"] == "end"].groupby("row", sort=False)
    means = {"learnt": "first", "accuracy": "mean", "change": "mean", "seed": "count"}
    ends = by_row.agg(means).rename(columns={"seed": "seeds"})
    models = against_mle(measures).set_index("row")
    beats_mle, by_decoding, ranking = (claims[claims["claim"] == number] for number in (1, 3, 4))
    improved = "holds" in {*beats_mle["verdict"], *by_decoding["verdict"]}
    return [
        _is_learnt(ends),
        _what_is_learnt(ends),
        _improvement(beats_mle, models) + _believed(judge) + _overlap(paired) + ".",
        _decoding(by_decoding) + _at_the_mode(mode) + ".",
        _reason(ranking, models, improved),
    ]


def told_of(folder: Path) -> list[str]:
    """The five sentences on a folder of a run's tables; a table that is not there was not made."""
    frames = {
        "claims": CLAIM_COLUMNS, "learnt": LEARNT_COLUMNS, "measures": MEASURE_COLUMNS,
        "paired": AGAINST_COLUMNS, "mode": CLAIM_COLUMNS[1:],
    }  # fmt: skip
    files = {"paired": "measures_against_mle", "mode": "mode_verdicts"}
    read = {}
    for name, columns in frames.items():
        path = folder / f"{files.get(name, name)}.csv"
        read[name] = (pd.read_csv(path) if path.is_file() else pd.DataFrame()).reindex(
            columns=columns
        )
    quality = folder / QUALITY_FILE
    judge = json.loads(quality.read_text(encoding="utf-8")) if quality.is_file() else ()
    return told(**read, judge=judge)


# --- The sentences --------------------------------------------------------------------------------


def _is_learnt(ends: pd.DataFrame) -> str:
    """Of how many rows the contrast loss fell on held-out prompts."""
    if ends.empty:
        return "Whether the contrast is learnt was not measured in this run."
    learnt, seeds = ends["learnt"].astype(bool), int(ends["seeds"].max())
    text = f"The contrast is learnt by {learnt.sum() or 'none'} of {len(ends)} contrastive rows"
    if learnt.any():
        each = f" with each of {seeds} seeds" if seeds > 1 else ""
        text += f": on held-out prompts their loss ends below its start{each}"
    failed = [f"{_row(row)} ({change:+.2f})" for row, change in ends["change"][~learnt].items()]
    return f"{text}{f'; that is not shown for {joined(failed)}' if failed else ''}."


def _what_is_learnt(ends: pd.DataFrame) -> str:
    """The share of held-out prompts on which the response gained more than every negative."""
    if ends.empty:
        return "What is learnt was not measured either."
    accuracy = ends["accuracy"][ends["learnt"].astype(bool)]
    gained = "the recorded response gained more probability than every negative"
    if accuracy.empty:
        most = ends["accuracy"].max()
        return (
            f"Nothing is learnt that held-out prompts show: {gained} on {_percent(most)} at most."
        )
    shares = f"on {_percent(accuracy.max())} of held-out prompts for {_row(accuracy.idxmax())}"
    if accuracy.nunique() > 1:
        least = f"{_percent(accuracy.min())} for {_row(accuracy.idxmin())}"
        shares += f", the most, and on {least}, the least"
    return f"What is learnt is to tell the response from its negatives: {gained} {shares}."


def _improvement(compared: pd.DataFrame, models: pd.DataFrame) -> str:
    """Claim 1: the differences to continued MLE beside the paper's, and head to head."""
    run = compared[compared["verdict"] != "not run"]
    better, worse = (int((run["verdict"] == verdict).sum()) for verdict in ("holds", "fails"))
    if run.empty:
        text = "Whether answers improve on those of continued MLE was not measured in this run"
    else:
        of = f"of {len(run)} comparison{'s' if len(run) > 1 else ''}"
        text = f"None {of} shows answers better than those of continued MLE"
        if better:
            text = f"Answers are better than those of continued MLE in {better} {of}"
        if worse:
            text = f"Answers are worse than those of continued MLE in {worse} {of}"
            text += f" and better in {better}" if better else ""
        text += f": {'; '.join(_compared(line) for line in _lines(run))}"
    if models.empty:
        return f"{text}; no judge compared the two head to head"
    outcomes = models["outcome"].value_counts()
    above, below, open_ = (outcomes.get(one, 0) for one in ("above", "below", "undecided"))
    return (
        f"{text}; head to head, {above} of {len(models)} models beat it, {below} lose to it and "
        f"{open_} are undecided"
    )


def _believed(records: Sequence[Mapping[str, Any]]) -> str:
    """Of a judge that people do not confirm: that it is none, with the agreement that shows it."""
    if not records or records[0]["beats_longest"]:
        return ""
    judge, *baselines = records
    agreement = {baseline["judge"]: baseline["agreement"] for baseline in baselines}
    beside = [f"{name} on {agreement[name]:.3f}" for name in BASELINES if name in agreement]
    others = f", {joined(beside)}" if beside else ""
    return (
        f" (verdicts of a judge that agrees with people on {judge['agreement']:.3f} of "
        f"{judge['pairs']:,} pairs{others}, so they decide nothing)"
    )


def _overlap(paired: pd.DataFrame | None) -> str:
    """Of how many models the responses overlap more with the recorded ones, by ROUGE-L."""
    lines = pd.DataFrame() if paired is None else paired[paired["measure"] == "rouge_l"]
    if lines.empty:
        return ""
    above, below = int((lines["low"] > 0).sum()), int((lines["high"] < 0).sum())
    return (
        f"; by ROUGE-L, {above} of {len(lines)} models are above it, {below} below and "
        f"{len(lines) - above - below} undecided"
    )


def _decoding(compared: pd.DataFrame) -> str:
    """Claim 3: the gain over continued MLE, by the verdict under each decoding method."""
    if compared.empty or set(compared["verdict"]) == {"not run"}:
        return "The gain over continued MLE was not measured under several decoding methods"
    parts = []
    for verdict, words in GAIN.items():
        lines = _lines(compared[compared["verdict"] == verdict])
        methods = [f"{_method(line)} {_effect(line)}".rstrip() for line in lines]
        if methods:
            parts.append(f"{words} under {joined(methods)}")
    return f"The gain over continued MLE {'; it '.join(parts)}"


def _at_the_mode(compared: pd.DataFrame | None) -> str:
    """Whether negatives drawn by the decoder used at test lessen repetition under it."""
    run = pd.DataFrame() if compared is None else compared[compared["verdict"] != "not run"]
    if run.empty:
        return ""
    words = {"holds": "less", "fails": "more", "undecided": "neither more nor less for sure"}
    parts = [
        f"{words[line.verdict]} under {_method(line)} ({_effect(line)})" for line in _lines(run)
    ]
    text = "after negatives drawn by the decoder itself, articles repeat themselves"
    return f"; {text} {joined(parts)}"


def _reason(compared: pd.DataFrame, models: pd.DataFrame, improved: bool) -> str:
    """Claim 4: ranked against unranked autoregressive negatives, and the control's win rate."""
    named = {line.comparison: line for line in _lines(compared)}
    line = named.get(f"{RANKED} > {UNRANKED}")
    subject = "the reason" if improved else "a help"
    if line is None or line.verdict == "not run":
        text = f"Whether ranking is {subject} was not measured"
    else:
        text = {
            "holds": f"Ranking is {subject}",
            "fails": f"Ranking is not {subject}, it does harm",
        }.get(line.verdict, f"Whether ranking is {subject} {GAIN[line.verdict]}".rstrip(","))
        text += f": {_compared(line)}"
    if {RANKED, CONTROL} <= set(models.index):
        control, ranked = (_rate(models.loc[row]) for row in (CONTROL, RANKED))
        text += f"; head to head against continued MLE, the row wins {ranked}, "
        text += f"with a perfect ranking, the control, {control}"
    return f"{text}."


# --- Parts of sentences ---------------------------------------------------------------------------


def _lines(frame: pd.DataFrame) -> list[Any]:
    return list(frame.itertuples(index=False))


def _row(row_id: Any) -> str:
    return row_name(str(row_id))


def _compared(line: Any) -> str:
    return f"{comparison_name(line.comparison)} {_effect(line)}"


def _effect(line: Any) -> str:
    """An effect with its interval, and its share of the paper's where it could have been one."""
    if pd.isna(line.effect):
        return ""
    text = f"{line.effect:+.3f} [{line.low:+.3f}, {line.high:+.3f}]"
    if pd.isna(line.paper_effect) or line.verdict == "uninformative":
        return text
    share = line.effect / line.paper_effect
    text += f", {_percent(share)} of the paper's" if share > 0 else ", against the paper's"
    excluded = ", outside the interval" if str(line.excludes_paper) == "True" else ""
    return f"{text} {line.paper_effect:+.3f}{excluded}"


def _method(line: Any) -> str:
    """The decoding method of a comparison such as `f1a/ANR/top_k > f1a/MLE/top_k`."""
    return str(line.comparison).split()[0].split("/")[-1].replace("_", "-")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _rate(model: Any) -> str:
    return f"{model['value']:.3f} [{model['low']:.3f}, {model['high']:.3f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the sentences on `figures/PROFILE`, or on any folder of tables."""
    parser = argparse.ArgumentParser(prog="python -m cpo_suite.report.told", description=__doc__)
    parser.add_argument("run", help="a profile with committed figures, such as tiny, or a folder")
    run = parser.parse_args(arguments).run
    committed = ROOT / "figures" / run
    print("\n".join(told_of(committed if committed.is_dir() else Path(run))))


if __name__ == "__main__":
    main()
