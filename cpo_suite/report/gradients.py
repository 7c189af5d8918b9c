"""Gradients at the reference: the prediction beside the measurement, as table, figure and words."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cpo_suite.artifacts import MeasuredGradients
from cpo_suite.artifacts.gradients import UNTRUNCATED
from cpo_suite.report import plots

COLUMNS = ["kind", "measure", "predicted", "value", "low", "high"]
KINDS = (UNTRUNCATED, "AN", "ANR", "MN", "TN", "BN")  # the order of table and figure
LABELS = {  # of the two panels
    "cosine": "cosine to MLE's gradient",
    "negative": "length of the negative part, MLE's gradient = 1",
}


def gradients_frame(measured: MeasuredGradients | None) -> pd.DataFrame:
    """One line for each kind of negative and measure, and for MLE; empty without measurements.

    `predicted` is a number, or `> x` and `< x` where the derivation only tells on which side of x
    the value lies; empty where it tells nothing. The intervals are 95 %.
    """
    if measured is None:
        return pd.DataFrame(columns=COLUMNS)
    kinds = [kind for kind in ("MLE", *KINDS) if kind in measured.measures]
    kinds += [kind for kind in measured.measures if kind not in kinds]
    return pd.DataFrame(
        [
            (
                kind,
                measure,
                _predicted(kind, measured.truth_weights).get(measure, ""),
                estimate.value,
                estimate.low,
                estimate.high,
            )
            for kind in kinds
            for measure, estimate in measured.measures[kind].items()
        ],
        columns=COLUMNS,
    )


def _predicted(kind: str, truth_weights: dict[str, float]) -> dict[str, str]:
    if kind == "MLE":
        return {}
    if kind == UNTRUNCATED:  # scores of own samples have mean 0: MLE with the weight of y_1
        return {"cosine": "1", "length": f"{truth_weights[kind]:.3f}", "negative": "0"}
    # Top-k draws from another distribution than the policy's, by how much is not predicted.
    return {"negative": "> 0"} | ({} if kind == "AN" else {"cosine": "< 1"})


def gradients_figure(frame: pd.DataFrame) -> Figure:
    """Cosine and negative part by kind, with intervals and predictions.

    A diamond is a predicted value, a cross a value that the derivation rules out.
    """
    kinds = [kind for kind in dict.fromkeys(frame["kind"]) if kind != "MLE"]
    with plots.style():
        figure, panels = plt.subplots(
            1, 2, figsize=(plots.PAGE, 0.9 + 0.22 * max(4, len(kinds))), sharey=True
        )
        for axes, measure in zip(panels, ("cosine", "negative"), strict=True):
            rows = frame[(frame["measure"] == measure) & frame["kind"].isin(kinds)]
            places = rows["kind"].map(kinds.index)
            if len(rows):
                spread = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
                look = plots.WHISKERS | {"fmt": "o", "markersize": 3.5, "label": "measured"}
                axes.errorbar(rows["value"], places, xerr=spread, **look)
                _predictions(axes, rows, places)
            else:
                axes.text(0.5, 0.5, "no row with these negatives", transform=axes.transAxes)
            axes.set_xlabel(LABELS[measure])
            axes.grid(axis="y", visible=False)
        if kinds:
            panels[0].set_yticks(range(len(kinds)), kinds)
            panels[0].set_ylim(len(kinds) - 0.5, -0.5)
            panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    return figure


def _predictions(axes: Axes, rows: pd.DataFrame, places: pd.Series) -> None:
    one_sided = rows["predicted"].str.match(r"[<>]")
    hollow = {"marker": "D", "facecolors": "none", "edgecolors": plots.BLACK}
    cross = {"marker": "x", "color": plots.VERMILION}
    looks: tuple[tuple[str, pd.Series, Any], ...] = (
        ("predicted", (rows["predicted"] != "") & ~one_sided, hollow),
        ("ruled out", one_sided, cross),
    )
    for label, drawn, look in looks:
        values = rows["predicted"][drawn].str.lstrip("<> ").astype(float)
        axes.scatter(values, places[drawn], s=24, zorder=4, label=label, **look)


MOSTLY = 0.5  # a gradient is told to be common to all prompts above this share
OUTCOMES = ("as predicted", "contradicted", "undecided")


def outcome(row: Any) -> str:
    """What became of a prediction: `as predicted`, `undecided` or `contradicted`; empty without
    one. `row` is a line of `gradients_frame`.

    A predicted value has to lie in the interval; of a side, the whole interval on it is as
    predicted, the whole interval beyond it contradicts.
    """
    if not row.predicted or pd.isna(row.low):
        return "" if not row.predicted else "undecided"
    value = float(row.predicted.lstrip("<> "))
    if row.predicted[0] not in "<>":
        return "as predicted" if row.low <= value <= row.high else "contradicted"
    right, wrong = row.low > value, row.high < value
    if row.predicted[0] == "<":
        right, wrong = wrong, right
    return "as predicted" if right else "contradicted" if wrong else "undecided"


def findings(frame: pd.DataFrame) -> list[str]:
    """What the numbers say, in sentences; none without measurements."""
    if frame.empty:
        return []
    lines: Any = list(frame.itertuples())
    outcomes = {name: [one for one in lines if outcome(one) == name] for name in OUTCOMES}
    said = [
        "Of the predictions "
        + ", ".join(
            f"{len(of_name)} {words}"
            for words, of_name in zip(
                ("came out", "contradicted", "undecided"), outcomes.values(), strict=True
            )
        )
        + "."
    ]
    said += [
        f"Contradicted: {line.kind} {line.measure} {_numbers(line)} ({line.predicted})."
        for line in outcomes["contradicted"]
    ]
    by_line = {(line.kind, line.measure): line for line in lines}
    longest = max(
        (line for line in lines if line.measure == "negative"), key=lambda line: line.value
    )
    said.append(
        f"The longest negative part is that of {longest.kind}: {longest.value:.1f} times MLE's "
        "gradient on the same prompts."
    )
    mle = by_line["MLE", "common"]
    if mle.low <= 0:
        said.append(
            "MLE's own gradient has no part in common with other prompts that can be told from 0, "
            "as expected of a model that has converged on its training prompts."
        )
    common = [line for line in lines if line.measure == "common" and line.kind != "MLE"]
    shared = [line for line in common if line.low > MOSTLY]
    if shared:
        shares = ", ".join(f"{line.value:.2f} for {line.kind}" for line in shared)
        said.append(
            f"The share common to other prompts is {shares}, and {mle.value:.2f} for MLE: "
            "above a half, the push is much the same whatever the prompt."
        )
    ranked, share = by_line.get(("ANR", "cosine")), by_line.get(("ANR", "common"))
    if ranked and share and outcome(ranked) == "as predicted" and share.low > mle.high:
        said.append(
            "With ranking the gradient of AN is only partly along MLE's, and other prompts share "
            "more of it: the ranks teach something general."
        )
    return said


def _numbers(line: Any) -> str:
    return f"{line.value:.3f} [{line.low:.3f}, {line.high:.3f}]"
