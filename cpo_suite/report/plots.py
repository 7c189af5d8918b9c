"""The figures, in one style, each drawn from a table or from training histories."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cpo_suite.paper import DECODINGS, ROWS, continued_mle
from cpo_suite.report.claims import MARGIN, Outcome
from cpo_suite.report.head_to_head import against_mle
from cpo_suite.report.names import MODELS, comparison_name, row_name

# Okabe and Ito's palette: told apart with any colour vision. Their yellow is too light for lines.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
LONG_NAME = 60  # characters
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
    # Hatched as well as coloured: told apart in grey print, too.
    hatched = {"color": "white", "edgecolor": VERMILION, "hatch": "////", "linewidth": 1.0}
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.5), sharey=True)
        judged = decoding[decoding["ours"].notna()]
        rows = judged[judged["row"].str.startswith("f1a/MLE/")]
        _bars(left, _methods(rows) - 0.2, rows, width=0.38, label="MLE continued", **hatched)
        rows = judged[judged["row"].str.startswith("f1a/ANR/")]
        _bars(left, _methods(rows) + 0.2, rows, width=0.38, label="CPO, ANR", color=SKY)
        left.set_xticks(range(len(DECODINGS)), [name.replace("_", "-") for name in DECODINGS])
        left.set_xlim(-0.6, len(DECODINGS) - 0.4)
        left.set_ylabel("win rate")
        judged = negatives[negatives["ours"].notna()]
        rows = judged[judged["row"] != "f1b/MLE"]
        _bars(right, rows["row"].str.split("/").str[1], rows, width=0.65, color=SKY)
        _level(right, judged[judged["row"] == "f1b/MLE"], "ours", "MLE continued")
        for axes, label in ((left, "(a) decoding"), (right, "(b) negatives, ranked")):
            axes.set_xlabel(label)
            axes.grid(axis="x", visible=False)
            _legend(axes)
            if not axes.containers:
                _say(axes, "no row was judged in this run")
    return figure


def _methods(rows: pd.DataFrame) -> pd.Series:
    """The position of each row's decoding method, from 0."""
    return rows["row"].str.split("/").str[2].map(DECODINGS.index)


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
    tables = dict(list(lines.groupby(lines["row"].str.split("/").str[0]))) or {"": lines}
    with style():
        # Printed over both columns at most: a wider figure would be shrunk, and its text with it.
        size = (PAGE if len(tables) > 1 else COLUMN, 2.3)
        figure, grid = plt.subplots(1, len(tables), figsize=size, squeeze=False)
        for axes, (name, line) in zip(grid.flat, tables.items(), strict=True):
            ends = {continued_mle(ROWS[row]).id for row in line["row"]}
            mle = chosen[chosen["row"].isin(ends)].assign(alpha=1.0)
            _alpha_panel(axes, line, mle, value)
            if len(tables) > 1:
                model = MODELS[ROWS[line["row"].iloc[0]].model]
                axes.set_title(f"table {name[1:]}, {model}", loc="left")
        grid[0, 0].set_ylabel(label or measure.replace("_", " "))
        figure.supxlabel("alpha (0: CPO, 1: continued MLE)", fontsize=8)
        _common_legend(figure, "outside upper center", 3)
    return figure


def _alpha_panel(axes: Axes, line: pd.DataFrame, mle: pd.DataFrame, value: str) -> None:
    whole = pd.concat([line, mle])
    ours = whole.dropna(subset=[value])
    if len(ours):
        look = WHISKERS | {"fmt": "o-", "color": BLUE, "label": "ours", "markersize": 3}
        axes.errorbar(ours["alpha"], ours[value], _spread(ours, value), **look)
    else:
        _say(axes, "no row was run")
    _level(axes, mle.dropna(subset=[value]), value, "MLE continued")
    if "paper" in whole:
        _paper_marks(axes, whole["alpha"], whole["paper"])
    axes.set_xlim(-0.05, 1.05)


def head_to_head(measures: pd.DataFrame) -> Figure:
    """Each distinct model against continued MLE, head to head, with adjusted intervals.

    `measures` has the columns of `measures_frame`; its lines of `head_to_head` are drawn, filled
    where the interval leaves one half.
    """
    lines = against_mle(measures).reset_index(drop=True)
    looks: dict[str, dict[str, Any]] = {
        "above": {"color": BLUE, "fmt": "o"},
        "below": {"color": VERMILION, "fmt": "s"},
        "undecided": UNDECIDED,
    }
    with style():
        figure, axes = plt.subplots(figsize=(PAGE, 0.7 + 0.17 * max(3, len(lines))))
        for outcome, look in looks.items():
            rows = lines[lines["outcome"] == outcome]
            look = WHISKERS | look | {"label": outcome, "markersize": 3.5}
            axes.errorbar(rows["value"], rows.index, xerr=_spread(rows, "value"), **look)
        axes.axvline(0.5, color=BLACK, lw=0.8)
        axes.set_yticks(lines.index, lines["row"].map(row_name), fontsize=6.5)
        axes.set(ylim=(max(1, len(lines)) - 0.5, -0.5))
        axes.set_xlabel("win rate against continued MLE, head to head")
        if lines.empty:
            _say(axes, "nobody judged head to head in this run")
        _legend(axes)
    return figure


# --- Claims ---------------------------------------------------------------------------------------


def claims_figure(outcomes: Mapping[int, Sequence[Outcome]]) -> Figure:
    """The comparisons behind the claims' verdicts: effects with their adjusted statistics.

    One line for each comparison, a block for each claim; to the right of 0 speaks for the claim,
    for `~` closeness to 0. Diamonds are the paper's effects. What is no difference (not run, or a
    ratio of times) is stated in words.
    """
    looks: dict[str, dict[str, Any]] = {
        "holds": {"color": BLUE, "fmt": "o"},
        "fails": {"color": VERMILION, "fmt": "s"},
        "undecided": UNDECIDED,
        "uninformative": {"color": "#777777", "fmt": "x"},
    }
    frame = pd.DataFrame([
        {"claim": number} | vars(outcome)
        for number, compared in outcomes.items()
        for outcome in compared or [Outcome("no comparison named", "not run")]
    ])  # fmt: skip
    is_ratio = frame["comparison"].str.startswith("overhead ")
    drawn = frame["low"].notna() & ~is_ratio
    begins = ~frame["claim"].duplicated()
    with style():
        # High enough for a name on two lines.
        figure, axes = plt.subplots(figsize=(PAGE, 0.8 + 0.2 * len(frame)))
        for verdict, look in looks.items():  # in the legend even where no comparison has it
            rows = frame[drawn & (frame["verdict"] == verdict)]
            look = WHISKERS | look | {"label": verdict, "markersize": 3.5}
            axes.errorbar(rows["effect"], rows.index, xerr=_spread(rows, "effect"), **look)
        _paper_marks(
            axes, frame["paper_effect"].astype(float).where(drawn), frame.index.to_series()
        )
        text: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 6.5}
        not_drawn: Any = frame[~drawn].itertuples()
        for outcome in not_drawn:
            axes.text(0.02, outcome.Index, _in_words(outcome), color="#333333", **text)
        for y in frame.index[begins.cumsum() % 2 == 1]:  # every other claim on grey
            axes.axhspan(y - 0.5, y + 0.5, color="#f2f2f2", lw=0)
        axes.axvline(0, color=BLACK, lw=0.8)
        for margin in (-MARGIN, MARGIN):
            axes.axvline(margin, color="#999999", lw=0.6, ls=":")
        numbers = frame["claim"].map("{}   ".format).where(begins, "")
        named = frame["comparison"].map(comparison_name).map(_folded)
        axes.set_yticks(frame.index, numbers + named, fontsize=6, linespacing=0.9)
        axes.set(ylim=(len(frame) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("left side - right side; dotted: the margin of >= and ~")
        _legend(axes)
    return figure


def _folded(name: str) -> str:
    """A long comparison on two lines, so that it leaves the axes their room."""
    return name.replace(" > ", "\n> ") if len(name) > LONG_NAME else name


def _in_words(outcome: Any) -> str:
    """The label where there is no difference: not run, or a ratio of times with its interval."""
    if math.isnan(outcome.effect):
        return str(outcome.verdict)
    numbers = f"{outcome.effect:.2f} [{outcome.low:.2f}, {outcome.high:.2f}]"
    return f"{outcome.verdict}: {numbers} times the seconds that its tokens explain"


# --- Training -------------------------------------------------------------------------------------

# Panels: a history's column, whether of contrastive trainings or of MLE, and a title.
CURVE_PANELS = (
    ("loss", False, "MLE loss per token (nats)"),
    ("change", True, "CPO loss, less that of the reference"),
    ("margin", True, "margin: reward of y₁ − negatives"),
    ("accuracy", True, "share with y₁ above every negative"),
    ("reward_chosen", True, "reward of y₁: β × its log-ratio"),
)


def training_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Loss, margin, accuracy and the ground truth's reward by step, for each named history.

    A history is the training's: per step `step` and `loss`, and for CPO `contrastive_loss`,
    `loss_at_reference`, `margin`, `accuracy`, `reward_chosen`; what has no loss is no step. MLE
    losses (per token) and CPO losses (per example) have panels of their own. From a CPO loss its
    value at policy = reference is taken, ln K or ln K! on unmasked rows, so that curves start at 0,
    whatever their K, and again where the reference moves. Thin lines are steps, thick ones a
    running mean over a twentieth of them.
    """
    frames = {name: _steps(history) for name, history in histories.items()}
    looks = itertools.cycle((dashes, colour) for dashes in ("-", "--", ":") for colour in COLOURS)
    look_of = dict(zip(frames, looks, strict=False))
    panels = {
        (column, title): group
        for column, contrastive, title in CURVE_PANELS
        if (group := {name: frame for name, frame in frames.items()
                      if column in frame and ("margin" in frame) == contrastive})
    }  # fmt: skip
    columns = min(2, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    with style():
        # Of pyplot, so that a notebook can show it, and closed, so that it does not do so twice.
        figure = plt.figure(figsize=(COLUMN * columns, 1.7 * rows + 0.4))
        plt.close(figure)
        cells = figure.subplots(rows, columns, squeeze=False).flat
        for axes, panel in itertools.zip_longest(cells, panels):
            axes.set_visible(panel is not None)
            column, title = panel or ("", "")
            for name, frame in panels.get(panel, {}).items():
                dashes, colour = look_of[name]
                step, values = frame["step"], frame[column]
                mean = values.rolling(max(1, len(values) // 20), min_periods=1).mean()
                axes.plot(step, values, color=colour, alpha=0.25, lw=0.6)
                axes.plot(step, mean, dashes, color=colour, label=row_name(name))
            if column in ("change", "margin", "reward_chosen"):
                axes.axhline(0, color="#555555", lw=0.8)
            axes.set_title(title, loc="left")
            axes.set_xlabel("step")
        _common_legend(figure, "outside lower center", 4)
    return figure


def _steps(history: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """A history's steps, with `change`, how far the contrastive loss has come from its start."""
    steps = pd.DataFrame([line for line in history if "loss" in line])
    if "contrastive_loss" not in steps:
        return steps
    return steps.assign(change=steps["contrastive_loss"] - steps["loss_at_reference"])


# --- Parts of figures -----------------------------------------------------------------------------


WHISKERS: dict[str, Any] = {"capsize": 2, "elinewidth": 0.9}
UNDECIDED: dict[str, Any] = {"color": "#777777", "fmt": "o", "markerfacecolor": "white"}


def _spread(rows: pd.DataFrame, value: str) -> list[pd.Series]:
    """The distances from a value to the ends of its interval."""
    return [rows[value] - rows["low"], rows["high"] - rows[value]]


def _bars(axes: Axes, x: pd.Series, rows: pd.DataFrame, **look: Any) -> None:
    """Win rates as bars, with intervals and the paper's values."""
    if len(rows):
        axes.bar(x, rows["ours"], **look)
        spread = _spread(rows, "ours")
        axes.errorbar(x, rows["ours"], spread, fmt="none", color=BLACK, **WHISKERS)
        _paper_marks(axes, x, rows["paper"])


def _level(axes: Axes, rows: pd.DataFrame, value: str, label: str) -> None:
    """A horizontal line with its interval as a band."""
    for row in rows.to_dict("records"):
        axes.axhline(row[value], color=VERMILION, lw=1, ls="--", label=label)
        axes.axhspan(row["low"], row["high"], color=VERMILION, alpha=0.12, lw=0)


def _paper_marks(axes: Axes, x: pd.Series, y: pd.Series) -> None:
    """The paper's values, where it prints one: open diamonds, never joined to ours."""
    printed = x.notna() & y.notna()
    if printed.any():
        look: Any = {"facecolors": "none", "edgecolors": BLACK, "linewidths": 1.0, "zorder": 4}
        axes.scatter(x[printed], y[printed], marker="D", s=22, label="paper", **look)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=5, borderaxespad=0.2, columnspacing=1.2
        )


def _common_legend(figure: Figure, place: Any, columns: int) -> None:
    """One legend for all panels."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        named |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(list(named.values()), list(named), loc=place, ncols=columns)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#555555")
