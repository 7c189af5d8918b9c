"""The figures, in one style, each drawn from a table or from training histories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cpo_suite.paper import DECODINGS, ROWS, continued_mle
from cpo_suite.report.claims import MARGIN, Outcome

# Okabe and Ito's palette: told apart with any colour vision. Their yellow is too light for lines.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
COLUMN, PAGE = 3.3, 6.8  # widths in inches: one column of the paper, and both
STYLE: list[Any] = [
    Path(__file__).with_name("paper.mplstyle"),
    {"axes.prop_cycle": cycler(color=COLOURS)},
]


def style() -> AbstractContextManager[None]:
    """The one style of all figures, as a context: `with plots.style(): ...`."""
    return plt.style.context(STYLE)


def save(figure: Figure, path_stem: Path | str, description: str) -> list[Path]:
    """Write `path_stem.png` (200 dpi) and `path_stem.pdf` (fonts embedded), and close the figure.

    `description` says what is to be seen: it stands in the files, and the report shows it and gives
    it as the image's alternative text. Neither file holds a date: same figure, same file.
    """
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = (stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "pdf"))
    with style():
        figure.savefig(png, dpi=200, metadata={"Description": description, "Software": None})
        figure.savefig(pdf, metadata={"Subject": description, "CreationDate": None})
    plt.close(figure)
    return [png, pdf]


# --- Win rates ------------------------------------------------------------------------------------


def figure_1(decoding: pd.DataFrame, negatives: pd.DataFrame) -> Figure:
    """Figure 1: win rate by decoding method (a) and by kind of negative (b), with statistics.

    The frames are `table(suite, "f1a")` and `table(suite, "f1b")`. Both panels have one scale; in
    (b) continued MLE is the line, its interval the band around it.
    """
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.5), sharey=True)
        _decoding_panel(left, decoding[decoding["ours"].notna()])
        _negatives_panel(right, negatives[negatives["ours"].notna()])
        left.set_ylabel("win rate")
        for axes, label in ((left, "(a) decoding"), (right, "(b) negatives, ranked")):
            axes.set_xlabel(label)
            axes.grid(axis="x", visible=False)
            _legend(axes)
            if not axes.containers:
                _say(axes, "no row was judged in this run")
    return figure


def _decoding_panel(axes: Axes, judged: pd.DataFrame) -> None:
    # Hatched as well as coloured: told apart in grey print, too.
    mle = {"color": "white", "edgecolor": VERMILION, "hatch": "////", "linewidth": 1.0}
    looks = (("MLE", "MLE continued", -0.2, mle), ("ANR", "CPO, ANR", 0.2, {"color": SKY}))
    for name, label, offset, look in looks:
        rows = judged[judged["row"].str.startswith(f"f1a/{name}/")]
        if len(rows):
            positions = [DECODINGS.index(row.split("/")[2]) + offset for row in rows["row"]]
            _bars(axes, positions, rows, width=0.38, label=label, **look)
    axes.set_xticks(range(len(DECODINGS)), [name.replace("_", "-") for name in DECODINGS])
    axes.set_xlim(-0.6, len(DECODINGS) - 0.4)


def _negatives_panel(axes: Axes, judged: pd.DataFrame) -> None:
    is_mle = judged["row"] == "f1b/MLE"
    if len(rows := judged[~is_mle]):
        kinds = [row.split("/")[1] for row in rows["row"]]
        _bars(axes, kinds, rows, width=0.65, color=SKY)
    _level(axes, judged[is_mle], "ours", "MLE continued")


def alpha_figure(frame: pd.DataFrame, measure: str = "win_rate", label: str = "") -> Figure:
    """A measure over alpha in `alpha * theta_MLE + (1 - alpha) * theta_CPO` (section 4).

    `frame` has the columns of `table` or of `measures_frame`; its rows with an alpha are drawn, a
    panel for each of the paper's tables, with continued MLE at alpha = 1 and as a line across, and
    the paper's values where it has them.
    """
    value = "ours" if "ours" in frame else "value"
    chosen = frame[(frame["measure"] == measure) & frame["row"].isin(list(ROWS))]
    alphas = chosen["row"].map(lambda row: ROWS[row].alpha).astype(float)
    lines = chosen.assign(alpha=alphas).dropna(subset=["alpha"]).sort_values("alpha")
    tables = sorted({ROWS[row].table for row in lines["row"]})
    with style():
        # Printed over both columns at most: a wider figure would be shrunk, and its text with it.
        size = (PAGE if len(tables) > 1 else COLUMN, 2.3)
        figure, grid = plt.subplots(1, max(1, len(tables)), figsize=size, squeeze=False)
        for axes, name in zip(grid.flat, tables or [""], strict=True):
            line = lines[lines["row"].map(lambda row: ROWS[row].table) == name]
            ends = {continued_mle(ROWS[row]).id for row in line["row"]}
            mle = chosen[chosen["row"].isin(ends)].assign(alpha=1.0)
            _alpha_panel(axes, line, mle, value)
            if len(tables) > 1:
                axes.set_title(f"table {name[1:]}, {ROWS[line['row'].iloc[0]].model}", loc="left")
        grid[0, 0].set_ylabel(label or measure.replace("_", " "))
        figure.supxlabel("alpha (0: CPO, 1: continued MLE)", fontsize=8)
        _common_legend(figure, "outside upper center", 3)
    return figure


def _alpha_panel(axes: Axes, line: pd.DataFrame, mle: pd.DataFrame, value: str) -> None:
    whole = pd.concat([line, mle])
    ours = whole.dropna(subset=[value])
    if len(ours):
        look = {"fmt": "o-", "color": BLUE, "label": "ours", "markersize": 3}
        _whiskers(axes, ours["alpha"], ours, value, **look)
    else:
        _say(axes, "no row was run")
    _level(axes, mle.dropna(subset=[value]), value, "MLE continued")
    if "paper" in whole:
        _paper_marks(axes, whole["alpha"], whole)
    axes.set_xlim(-0.05, 1.05)


# --- Claims ---------------------------------------------------------------------------------------


def claims_figure(outcomes: Mapping[int, Sequence[Outcome]]) -> Figure:
    """The comparisons behind the claims' verdicts: effects with their adjusted statistics.

    One line for each comparison, a block for each claim; to the right of 0 speaks for the claim,
    for `~` closeness to 0. What is no difference (not run, or a ratio of times) is said in words.
    """
    looks: dict[str, dict[str, Any]] = {
        "holds": {"color": BLUE, "fmt": "o"},
        "fails": {"color": VERMILION, "fmt": "s"},
        "undecided": {"color": "#777777", "fmt": "o", "markerfacecolor": "white"},
    }
    frame = pd.DataFrame([
        {"claim": number} | asdict(outcome)
        for number, compared in outcomes.items()
        for outcome in compared or [Outcome("no comparison named", "not run")]
    ])  # fmt: skip
    is_ratio = frame["comparison"].str.startswith("overhead ")
    drawn = frame["low"].notna() & ~is_ratio
    begins = ~frame["claim"].duplicated()
    with style():
        figure, axes = plt.subplots(figsize=(PAGE, 0.8 + 0.17 * len(frame)))
        for verdict, look in looks.items():  # in the legend even where no comparison has it
            rows = frame[drawn & (frame["verdict"] == verdict)]
            spread = [rows["effect"] - rows["low"], rows["high"] - rows["effect"]]
            look |= {"label": verdict, "markersize": 3.5, "capsize": 2, "elinewidth": 0.9}
            axes.errorbar(rows["effect"], rows.index, xerr=spread, **look)
        place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
        not_drawn: Any = frame[~drawn].itertuples()
        for row in not_drawn:
            words = row.verdict
            if is_ratio[row.Index] and math.isfinite(row.effect):
                interval = f"{row.effect:.2f} [{row.low:.2f}, {row.high:.2f}]"
                words += f": {interval} times the seconds that its tokens explain"
            axes.text(0.02, row.Index, words, fontsize=6.5, color="#333333", **place)
        for y in frame.index[begins.cumsum() % 2 == 1]:  # every other claim on grey
            axes.axhspan(y - 0.5, y + 0.5, color="#f2f2f2", lw=0)
        axes.axvline(0, color=BLACK, lw=0.8)
        for margin in (-MARGIN, MARGIN):
            axes.axvline(margin, color="#999999", lw=0.6, ls=":")
        numbers = frame["claim"].map("{}   ".format).where(begins, "")
        labels = (numbers + frame["comparison"]).tolist()
        axes.set_yticks(range(len(frame)), labels, fontsize=6.5)
        axes.set_ylim(len(frame) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("left side - right side; dotted: the margin of >= and ~")
        _legend(axes)
    return figure


# --- Training -------------------------------------------------------------------------------------

# Panels: a history's column, whether of contrastive trainings or of MLE, and a title.
PANELS = (
    ("loss", False, "MLE loss per token (nats)"),
    ("loss", True, "CPO loss per example"),
    ("margin", True, "margin: reward of y₁ − negatives"),
    ("accuracy", True, "share with y₁ above every negative"),
    ("logps_chosen", True, "log-probability of y₁"),
    ("logps_rejected", True, "log-probability of negatives"),
)


def training_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Loss, margin, accuracy and log-probabilities by step, for each named history.

    A history is the training's: per step `step` and `loss`, and for CPO `margin`, `accuracy`,
    `logps_chosen`, `logps_rejected`; what has no loss is no step. MLE losses (per token) and CPO
    losses (per example) have panels of their own. Thin lines are steps, thick ones a running mean
    over a twentieth of them.
    """
    frames = {
        name: pd.DataFrame([line for line in history if "loss" in line])
        for name, history in histories.items()
    }
    drawn = [
        (column, title, group)
        for column, contrastive, title in PANELS
        if (group := [name for name, frame in frames.items()
                      if column in frame and ("margin" in frame) == contrastive])
    ]  # fmt: skip
    columns = min(2, max(1, len(drawn)))
    rows = max(1, math.ceil(len(drawn) / columns))
    with style():
        # Not of pyplot, which would show it a second time at the end of a notebook's cell.
        figure = Figure(figsize=(COLUMN * columns, 1.7 * rows + 0.4))
        cells = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in cells[len(drawn) :]:
            axes.set_visible(False)
        for axes, (column, title, group) in zip(cells, drawn, strict=False):
            for name in group:
                index = list(frames).index(name)
                colour = COLOURS[index % len(COLOURS)]
                dashes = ("-", "--", ":")[index // len(COLOURS) % 3]
                step, values = frames[name]["step"], frames[name][column]
                mean = values.rolling(max(1, len(values) // 20), min_periods=1).mean()
                axes.plot(step, values, color=colour, alpha=0.25, lw=0.6)
                axes.plot(step, mean, dashes, color=colour, label=name)
            axes.set_title(title, loc="left")
            axes.set_xlabel("step")
        _common_legend(figure, "outside lower center", 4)
    return figure


# --- Parts of figures -----------------------------------------------------------------------------


def _bars(axes: Axes, x: Any, rows: pd.DataFrame, **look: Any) -> None:
    """Win rates as bars, with intervals and the paper's values."""
    axes.bar(x, rows["ours"], **look)
    _whiskers(axes, x, rows, "ours", fmt="none", color=BLACK)
    _paper_marks(axes, x, rows)


def _whiskers(axes: Axes, x: Any, rows: pd.DataFrame, value: str, **look: Any) -> None:
    """Points or bars' ends with their statistics."""
    spread = [rows[value] - rows["low"], rows["high"] - rows[value]]
    axes.errorbar(x, rows[value], yerr=spread, capsize=2, elinewidth=0.9, **look)


def _level(axes: Axes, rows: pd.DataFrame, value: str, label: str) -> None:
    """A horizontal line with its interval as a band."""
    for row in rows.to_dict("records"):
        axes.axhline(row[value], color=VERMILION, lw=1, ls="--", label=label)
        axes.axhspan(row["low"], row["high"], color=VERMILION, alpha=0.12, lw=0)


def _paper_marks(axes: Axes, x: Any, rows: pd.DataFrame) -> None:
    """The paper's values: open diamonds, never joined to ours."""
    printed = rows["paper"].notna().to_numpy()
    if printed.any():
        at = [place for place, is_printed in zip(x, printed, strict=True) if is_printed]
        look = {"facecolors": "none", "edgecolors": BLACK, "linewidths": 1.0, "zorder": 4}
        values = rows["paper"][printed].tolist()
        axes.scatter(at, values, marker="D", s=22, label="paper", **look)  # type: ignore[arg-type]


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)


def _common_legend(figure: Figure, place: Any, columns: int) -> None:
    """One legend for all panels."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(list(named.values()), list(named), loc=place, ncols=columns)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#555555")
