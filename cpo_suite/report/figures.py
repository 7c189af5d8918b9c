"""Tables, plots and the report: the paper's numbers beside ours, with intervals.

Tables are made from a suite; figures are drawn from tables, so that each figure's data lies beside
it as csv; the report is made from the files in the output folder alone.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import yaml
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cpo.evaluation.intervals import Estimate, mean_over_seeds, win_rate
from cpo.evaluation.judging import Judged, Verdicts
from cpo_suite import calibration
from cpo_suite.paper import DECODINGS, JUDGED_BY, ROWS, continued_mle, rows_of
from cpo_suite.profile import Profile
from cpo_suite.report.claims import CLAIMS, MARGIN, OVERHEAD_MARGIN, Outcome, combined
from cpo_suite.store import Artifact

if TYPE_CHECKING:
    from cpo_suite.suite import Suite

TABLE_COLUMNS = [
    "row", "model", "alpha", "measure", "judge", "seeds", "paper", "ours", "low", "high", "n",
    "valid", "invalid", "ties",
]  # fmt: skip
MEASURE_COLUMNS = ["row", "measure", "value", "low", "high", "n"]
NEGATIVES_COLUMNS = [
    "negatives", "kind", "drawn", "equal_to_truth", "duplicates", "masked", "oracle_grade",
    "tied_with_truth",
]  # fmt: skip

# Who wrote DPO's rejected responses, as captions say it.
WRITERS = {
    "chat": "by a chat model, as in the paper",
    "world": "by the embedded world's own writer of unhelpful answers, in place of a chat model",
    "other_response": "a stand-in, the recorded responses to other prompts",
}

# Okabe and Ito's palette: told apart with any colour vision. Their yellow is too light for lines.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
COLUMN, PAGE = 3.3, 6.8  # widths in inches: one column of the paper, and both
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "axes.prop_cycle": cycler(color=COLOURS),
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
}


class SuiteNumbers(Protocol):
    """What tables need of a suite; `cpo_suite.suite.Suite` is one."""

    @property
    def profile(self) -> Profile: ...
    def verdicts(self, row_id: str, decoding: str | None, seed: int, /) -> Verdicts | None: ...
    def measures(self, row_id: str, seed: int, /) -> Mapping[str, Estimate]: ...


# --- Tables ---------------------------------------------------------------------------------------


def table(suite: SuiteNumbers, name: str) -> pd.DataFrame:
    """What a table reports of its rows (`t1` to `t4`, a figure's panel, ours, `x`, or those of your
    own, `own`), beside the paper's numbers: win rates, and MAUVE for `t4`.

    Every row is there. `ours` and what goes with it are empty where the profile leaves the row out,
    and where there is no judge, or no features for MAUVE. `n` is prompts planned; `valid`,
    `invalid` and `ties` count verdicts over all training seeds, whose points are averaged prompt by
    prompt. Over training seeds, MAUVE and the ends of its interval are averaged.

    Raises:
        KeyError: no such table.
    """
    own = [row for row in suite.profile.own_rows.values() if row.table == name]
    rows = [*rows_of(name), *own]
    if not rows:
        known = ", ".join(sorted({row.table for row in suite.profile.every_row.values()}))
        raise KeyError(f"no table '{name}'; there are {known}")
    records, said = [], set()
    for row in rows:
        record: dict[str, Any] = {
            "row": row.id, "model": row.model, "alpha": row.alpha, "measure": row.measure,
            "paper": row.paper,
        }  # fmt: skip
        seeds = range(suite.profile.seeds)
        if row.id in suite.profile.rows and row.measure == "mauve":
            measures = [suite.measures(row.id, seed) for seed in seeds]
            record |= _scored([one["mauve"] for one in measures if "mauve" in one])
        elif row.id in suite.profile.rows:
            verdicts = [suite.verdicts(row.id, None, seed) for seed in seeds]
            record |= _judged([one for one in verdicts if one is not None])
            said |= {(one.judged, one.prompt) for one in verdicts if one is not None}
        records.append(record)
    counts = ("seeds", "n", "valid", "invalid", "ties")
    types = {name: "Int64" if name in counts else "float64" for name in TABLE_COLUMNS}
    types |= dict.fromkeys(("row", "model", "measure", "judge"), "object")
    frame = pd.DataFrame(records, columns=TABLE_COLUMNS).astype(types)
    frame.attrs["judged"] = sorted({day for day, _ in said})
    frame.attrs["prompt"] = sorted({prompt for _, prompt in said if prompt})
    return frame


def _judged(per_seed: Sequence[Verdicts]) -> dict[str, Any]:
    """The columns that verdicts fill; none without verdicts."""
    if not per_seed:
        return {}
    counts = {
        "judge": per_seed[0].judge,
        "seeds": len(per_seed),
        "n": len(per_seed[0]),
        "valid": sum(one.valid for one in per_seed),
        "invalid": sum(one.invalid for one in per_seed),
        "ties": sum(one.ties for one in per_seed),
    }
    if not counts["valid"]:
        return counts
    rate = win_rate(mean_over_seeds([one.points for one in per_seed]))
    return counts | {"ours": rate.value, "low": rate.low, "high": rate.high}


def _scored(per_seed: Sequence[Estimate]) -> dict[str, Any]:
    """The columns that a measure without a judge fills; none without estimates."""
    if not per_seed:
        return {}
    ours, low, high = (
        math.fsum(getattr(one, end) for one in per_seed) / len(per_seed)
        for end in ("value", "low", "high")
    )
    n = per_seed[0].n
    return {
        "judge": "MAUVE, features of the base model", "seeds": len(per_seed), "ours": ours,
        "low": low, "high": high, "n": n, "valid": n, "invalid": 0, "ties": 0,
    }  # fmt: skip


def measures_frame(suite: SuiteNumbers, row_ids: Iterable[str]) -> pd.DataFrame:
    """The automatic measures of some rows, one line for each row and measure.

    Over training seeds, values and both ends of the intervals are averaged: too wide rather than
    too narrow, since a mean over seeds varies less from prompt to prompt than one of them.
    """
    records = []
    for row_id in row_ids:
        per_seed = [suite.measures(row_id, seed) for seed in range(suite.profile.seeds)]
        for measure, first in per_seed[0].items():
            each = [measures[measure] for measures in per_seed]
            value, low, high = (
                math.fsum(getattr(one, end) for one in each) / len(each)
                for end in ("value", "low", "high")
            )
            records.append((row_id, measure, value, low, high, first.n))
    return pd.DataFrame(records, columns=MEASURE_COLUMNS)


def negatives_frame(reports: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """What became of the candidates, one line for each set of negatives and kind.

    Args:
        reports: of each set of negatives, by name: `by_kind`, for each kind the counts of
            `negatives.DrawReport` and, where there is an oracle, `oracle_grade`, the mean grade of
            its texts; and `tied_with_truth`, the share of negatives that the ranking's embedding
            cannot tell from the truth.

    Returns:
        `equal_to_truth` and `duplicates` as shares of the first draw, which no redrawing has
        coloured, `masked` as the share of columns left empty after the last; `tied_with_truth`
        stands on the line of the kind "all".
    """
    records: list[dict[str, Any]] = []
    for name, report in reports.items():
        for kind, counts in report["by_kind"].items():
            drawn = counts.get("first_drawn", 0)
            record = {
                "negatives": name,
                "kind": kind,
                "drawn": counts.get("drawn"),
                "equal_to_truth": _share(counts.get("first_equal_to_truth"), drawn),
                "duplicates": _share(counts.get("first_duplicates"), drawn),
                "masked": _share(counts.get("masked"), counts.get("asked", 0)),
                "oracle_grade": counts.get("oracle_grade"),
            }
            records.append(record)
        if (tied := report.get("tied_with_truth")) is not None:
            records.append({"negatives": name, "kind": "all", "tied_with_truth": tied})
    return pd.DataFrame(records, columns=NEGATIVES_COLUMNS).astype({"drawn": "Int64"})


def _share(count: float | None, of: float) -> float:
    return count / of if count is not None and of else math.nan


def write_table(frame: pd.DataFrame, folder: Path, stem: str, profile: Profile) -> None:
    """Write `stem.csv` and `stem.md`, which has a caption and the paper's numbers beside ours."""
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / f"{stem}.csv", index=False, float_format="%.6g")
    header, body = _readable(frame)
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in body]
    text = f"{caption(frame, profile)}\n\n" + "\n".join(lines) + "\n"
    (folder / f"{stem}.md").write_text(text, encoding="utf-8")


def caption(frame: pd.DataFrame, profile: Profile) -> str:
    """One line under which a table can be read alone: profile, judge, prompts, seeds, intervals."""
    parts = [f"Profile {profile.name}."]
    if "paper" in frame:
        filled = frame[frame["n"].notna()]
        if filled.empty:
            parts.append("No row of this table was judged in this run.")
        else:
            judges = ", ".join(sorted(filled["judge"].unique()))
            prompts = ", ".join(f"{n:,}" for n in sorted(filled["n"].unique()))
            seeds = int(filled["seeds"].max())
            trained = f"{seeds} training seed{'s' if seeds > 1 else ''}"
            if set(filled["measure"]) == {"mauve"}:
                parts.append(f"{judges}; {prompts} articles; {trained}.")
            else:
                parts.append(
                    f"Win rate against the recorded response, judge: {judges}; {prompts} prompts; "
                    f"{trained}; ties count one half."
                )
            parts += _asked(frame)
        if frame["row"].str.endswith("/DPO").any():
            parts.append(f"DPO's rejected responses: {WRITERS[profile.unhelpful.writer]}.")
        parts.append(
            f"The paper's numbers are for its own models and data, judged by {JUDGED_BY}: compare "
            "order and differences, not levels."
        )
    if "verdict" in frame:
        parts.append("Brackets are the intervals of the comparisons, 95 % after Holm's adjustment.")
    elif {"low", "high"} <= set(frame):
        parts.append("Brackets are 95 % intervals over prompts.")
        if "measure" in frame and (frame["measure"].str.lower() == "mauve").any():
            parts.append("For MAUVE they come from random halves of the texts.")
    return " ".join(parts)


def _asked(frame: pd.DataFrame) -> list[str]:
    """When a table's verdicts were given, and to which question, by the hash of its template."""
    days, prompts = frame.attrs.get("judged"), frame.attrs.get("prompt")
    if not days:
        return []
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return [f"Judged {when}" + (f", prompt {', '.join(prompts)}." if prompts else ".")]


def _readable(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and cells for people: intervals in one cell, empty columns left out."""
    frame = frame.copy()
    if "alpha" in frame:
        frame["alpha"] = [f"{alpha:g}" if pd.notna(alpha) else None for alpha in frame["alpha"]]
    if {"low", "high"} <= set(frame):
        frame["95 % interval"] = [
            f"[{_number(low)}, {_number(high)}]" if pd.notna(low) else ""
            for low, high in zip(frame.pop("low"), frame.pop("high"), strict=True)
        ]
        value = "ours" if "ours" in frame else "value" if "value" in frame else "effect"
        columns = [name for name in frame if name != "95 % interval"]
        if value in columns:
            columns.insert(columns.index(value) + 1, "95 % interval")
            frame = frame[columns]
    # A column without any content says nothing; paper and ours are told apart by being empty.
    kept = [name for name in frame if name in ("paper", "ours") or frame[name].notna().any()]
    if "measure" in kept and "paper" in kept:
        kept.remove("measure")  # the caption says it
    rows = [
        ["" if pd.isna(cell) else cell if isinstance(cell, str) else _number(cell) for cell in row]
        for row in frame[kept].itertuples(index=False)
    ]
    return [str(name).replace("_", " ") for name in kept], rows


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    number = float(value)
    if number.is_integer() and not isinstance(value, float):
        return f"{int(number):,}"
    return f"{number:.3f}" if abs(number) < 100 else f"{number:,.0f}"


def announce(suite: Suite, wanted: Iterable[str | Artifact]) -> str:
    """One sentence to print before building things: what is still to be built, and how long it
    takes.

    Args:
        wanted: rows by id, each with its model, negatives and generations over all seeds, or single
            artifacts; what they are built from counts too.

    The minutes are the plan's estimate, by the speeds of this machine where they are measured
    (`calibration`), else by those that the profile states for the hardware that it names.

    Raises:
        KeyError: no such row.
    """
    roots: list[Artifact] = []
    for item in wanted:
        if isinstance(item, Artifact):
            roots.append(item)
        else:
            seeds = range(suite.profile.seeds)
            roots += [suite.generations_artifact(item, None, seed) for seed in seeds]
    lacking = [item for item in suite.plan(*roots) if not item.made] if roots else []
    if not lacking:
        return "Everything this notebook needs is made already: it takes seconds."
    minutes = sum(item.seconds for item in lacking) / 60
    plural = "s are" if len(lacking) > 1 else " is"
    profile = suite.profile
    measured = all(calibration.measurable(profile, model) for model in profile.models.values())
    where = "this machine" if measured else profile.hardware
    return (
        f"{len(lacking)} artifact{plural} still to be made, about {minutes:.0f} minutes on "
        f"{where}; what is made once is found again."
    )


def claims_frame(outcomes: Mapping[int, Sequence[Outcome]]) -> pd.DataFrame:
    """One line for each of the paper's claims, with the comparison that decided it.

    That is, of the comparisons with the claim's verdict, the one with the smallest effect; the note
    holds all of them.
    """
    records = []
    for number, found in outcomes.items():
        verdict = combined(found)
        deciding = [one for one in found if one.verdict == verdict] or found
        chosen = min(deciding, key=lambda one: one.effect, default=Outcome("", verdict))
        each = [
            f"{one.comparison}: {one.verdict}"
            + (f" {one.effect:+.3f}" if math.isfinite(one.effect) else "")
            + (f" [{one.low:+.3f}, {one.high:+.3f}]" if math.isfinite(one.low) else "")
            + (f" ({one.note})" if one.note else "")
            for one in found
        ]
        note = "; ".join(each) or "the profile names no comparison"
        records.append(
            (
                number,
                verdict,
                chosen.comparison,
                chosen.effect,
                chosen.low,
                chosen.high,
                f"{CLAIMS[number]}. {note}",
            )
        )
    columns = ["claim", "verdict", "comparison", "effect", "low", "high", "note"]
    return pd.DataFrame(records, columns=columns)


# --- Figures --------------------------------------------------------------------------------------


def style() -> AbstractContextManager[None]:
    """The one style of all figures, as a context: `with figures.style(): ...`."""
    return mpl.rc_context(STYLE)  # type: ignore[arg-type]


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


def figure_1(decoding: pd.DataFrame, negatives: pd.DataFrame) -> Figure:
    """Figure 1: win rate by way of decoding (a) and by kind of negative (b), with intervals.

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
    looks: dict[str, dict[str, Any]] = {
        "MLE": {"color": "white", "edgecolor": VERMILION, "hatch": "////", "linewidth": 1.0},
        "ANR": {"color": SKY},
    }
    for offset, (name, look) in zip((-0.2, 0.2), looks.items(), strict=True):
        rows = judged[judged["row"].str.startswith(f"f1a/{name}/")]
        if rows.empty:
            continue
        places = [DECODINGS.index(row.split("/")[2]) + offset for row in rows["row"]]
        label = {"MLE": "MLE continued", "ANR": "CPO, ANR"}[name]
        axes.bar(places, rows["ours"], width=0.38, label=label, **look)
        _whiskers(axes, places, rows, "ours", fmt="none", color=BLACK)
        _paper_marks(axes, places, rows)
    axes.set_xticks(range(len(DECODINGS)), [name.replace("_", "-") for name in DECODINGS])
    axes.set_xlim(-0.6, len(DECODINGS) - 0.4)


def _negatives_panel(axes: Axes, judged: pd.DataFrame) -> None:
    mle = judged[judged["row"] == "f1b/MLE"]
    bars = judged[judged["row"] != "f1b/MLE"]
    labels = [row.split("/")[1] for row in bars["row"]]
    if labels:
        axes.bar(labels, bars["ours"], color=SKY, width=0.65)
        _whiskers(axes, labels, bars, "ours", fmt="none", color=BLACK)
        _paper_marks(axes, labels, bars)
    _level(axes, mle, "ours", "MLE continued")


def claims_figure(outcomes: Mapping[int, Sequence[Outcome]]) -> Figure:
    """The comparisons behind the claims' verdicts: effects with their adjusted intervals.

    One line for each comparison, a block for each claim; to the right of 0 speaks for the claim,
    for `~` closeness to 0. What is no difference (not run, or a ratio of times) is said in words.
    """
    lines = [
        (number, one)
        for number, found in outcomes.items()
        for one in (found or [Outcome("no comparison named", "not run")])
    ]
    looks: dict[str, dict[str, Any]] = {
        "holds": {"color": BLUE, "fmt": "o"},
        "fails": {"color": VERMILION, "fmt": "s"},
        "undecided": {"color": "#777777", "fmt": "o", "markerfacecolor": "white"},
    }
    with style():
        height = 0.8 + 0.17 * len(lines)
        figure, axes = plt.subplots(figsize=(PAGE, height))
        for place, (number, one) in enumerate(lines):
            if list(outcomes).index(number) % 2 == 0:
                axes.axhspan(place - 0.5, place + 0.5, color="#f2f2f2", lw=0)
            is_ratio = one.comparison.startswith("overhead ")
            if math.isfinite(one.low) and not is_ratio:
                spread = [[one.effect - one.low], [one.high - one.effect]]
                look = looks[one.verdict] | {"markersize": 3.5, "capsize": 2, "elinewidth": 0.9}
                axes.errorbar([one.effect], [place], xerr=spread, **look)
                continue
            words: str = one.verdict
            if is_ratio and math.isfinite(one.effect):
                words += (
                    f": {one.effect:.2f} [{one.low:.2f}, {one.high:.2f}] times the seconds that "
                    "its tokens explain"
                )
            look = {"va": "center", "fontsize": 6.5, "color": "#333333"}
            axes.text(0.02, place, words, transform=axes.get_yaxis_transform(), **look)
        axes.axvline(0, color=BLACK, lw=0.8)
        for margin in (-MARGIN, MARGIN):
            axes.axvline(margin, color="#999999", lw=0.6, ls=":")
        for verdict, look in looks.items():  # in the legend even where no comparison has it
            axes.errorbar([], [], xerr=[], label=verdict, markersize=3.5, **look)
        numbers = [number for number, _ in lines]
        labels = [
            f"{number}   {one.comparison}" if numbers.index(number) == place else one.comparison
            for place, (number, one) in enumerate(lines)
        ]
        axes.set_yticks(range(len(lines)), labels, fontsize=6.5)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("left side - right side; dotted: the margin of >= and ~")
        _legend(axes)
    return figure


def alpha_figure(frame: pd.DataFrame, measure: str = "win_rate", label: str = "") -> Figure:
    """A measure over alpha in `alpha * theta_MLE + (1 - alpha) * theta_CPO` (section 4).

    `frame` has the columns of `table` or of `measures_frame`; its rows with an alpha are drawn, a
    panel for each of the paper's tables, with continued MLE at alpha = 1 and as a line across, and
    the paper's values where it has them.
    """
    value = "ours" if "ours" in frame else "value"
    chosen = frame[(frame["measure"] == measure) & frame["row"].isin(list(ROWS))]
    alphas = chosen["row"].map(lambda row: ROWS[row].alpha).astype(float)
    line = chosen.assign(alpha=alphas).dropna(subset=["alpha"]).sort_values("alpha")
    tables = sorted({ROWS[row].table for row in line["row"]})
    several = len(tables) > 1
    with style():
        # Printed over both columns at most: a wider figure would be shrunk, and its text with it.
        size = (PAGE if several else COLUMN, 2.3)
        figure, grid = plt.subplots(1, max(1, len(tables)), figsize=size, squeeze=False)
        for axes, name in zip(grid.flat, tables or [""], strict=True):
            own = line[line["row"].map(lambda row: ROWS[row].table) == name]
            ends = {continued_mle(ROWS[row]).id for row in own["row"]}
            mle = chosen[chosen["row"].isin(ends)].assign(alpha=1.0)
            _alpha_panel(axes, own, mle, value)
            if several:
                model = ROWS[own["row"].iloc[0]].model
                axes.set_title(f"table {name[1:]}, {model}", loc="left")
            else:
                _legend(axes)
        grid[0, 0].set_ylabel(label or measure.replace("_", " "))
        figure.supxlabel("alpha (0: CPO, 1: continued MLE)", fontsize=STYLE["axes.labelsize"])
        if several:
            named: dict[str, Any] = {}
            for axes in grid.flat:
                handles, labels = axes.get_legend_handles_labels()
                named.update(zip(labels, handles, strict=True))
            figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=3)
    return figure


def _alpha_panel(axes: Axes, line: pd.DataFrame, mle: pd.DataFrame, value: str) -> None:
    whole = pd.concat([line, mle])
    ours = whole.dropna(subset=[value])
    if not ours.empty:
        look = {"fmt": "o-", "color": BLUE, "label": "ours", "markersize": 3}
        _whiskers(axes, ours["alpha"], ours, value, **look)
    _level(axes, mle.dropna(subset=[value]), value, "MLE continued")
    if "paper" in whole:
        _paper_marks(axes, whole["alpha"], whole)
    axes.set_xlim(-0.05, 1.05)
    if ours.empty:
        _say(axes, "no row was run")


def training_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Loss, margin, accuracy and log-probabilities by step, for each named history.

    A history is the training's: per step `step` and `loss`, and for CPO `margin`, `accuracy`,
    `logps_chosen`, `logps_rejected`. MLE losses (per token) and CPO losses (per example) have
    panels of their own. Thin lines are steps, thick ones a running mean over a twentieth of them.
    """
    frames = {name: pd.DataFrame(list(history)) for name, history in histories.items()}
    contrastive = {name: frame for name, frame in frames.items() if "margin" in frame}
    plain = {name: frame for name, frame in frames.items() if "margin" not in frame}
    panels = [
        (plain, "loss", "MLE loss per token (nats)"),
        (contrastive, "loss", "CPO loss per example"),
        (contrastive, "margin", "margin: reward of y₁ − negatives"),
        (contrastive, "accuracy", "share with y₁ above every negative"),
        (contrastive, "logps_chosen", "log-probability of y₁"),
        (contrastive, "logps_rejected", "log-probability of negatives"),
    ]
    panels = [panel for panel in panels if panel[0]]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(frames)}
    dashes = {
        name: ("-", "--", ":")[index // len(COLOURS) % 3] for index, name in enumerate(frames)
    }
    with style():
        columns = min(2, max(1, len(panels)))
        height = max(1, math.ceil(len(panels) / columns))
        # Not of pyplot, which would show it a second time at the end of a notebook's cell.
        figure = Figure(figsize=(COLUMN * columns, 1.7 * height + 0.4))
        cells = list(figure.subplots(height, columns, squeeze=False).flat)
        for axes in cells[len(panels) :]:
            axes.set_visible(False)
        for axes, (group, column, title) in zip(cells, panels, strict=False):
            for name, frame in group.items():
                window = max(1, len(frame) // 20)
                mean = frame[column].rolling(window, min_periods=1).mean()
                axes.plot(frame["step"], frame[column], color=colours[name], alpha=0.25, lw=0.6)
                axes.plot(frame["step"], mean, dashes[name], color=colours[name], label=name)
            axes.set_title(title, loc="left")
            axes.set_xlabel("step")
        lines = {str(line.get_label()): line for axes in cells for line in axes.get_lines()}
        named = {label: line for label, line in lines.items() if label in frames}
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4)
    return figure


def _whiskers(axes: Axes, x: Any, rows: pd.DataFrame, value: str, **look: Any) -> None:
    """Points or bars' ends with their intervals."""
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
        where = [at for at, there in zip(x, printed, strict=True) if there]
        look = {"facecolors": "none", "edgecolors": BLACK, "linewidths": 1.0, "zorder": 4}
        values = rows["paper"][printed].tolist()
        axes.scatter(where, values, marker="D", s=22, label="paper", **look)  # type: ignore[arg-type]


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#555555")


# --- Samples --------------------------------------------------------------------------------------


def samples_page(
    examples: Sequence[Judged], texts: Mapping[str, Sequence[str]], attribution: str,
    count: int = 20,
) -> str:  # fmt: skip
    """`samples` as a page of its own (HTML, self-contained)."""
    return _page("Samples, side by side", samples(examples, texts, attribution, count))


def samples(
    examples: Sequence[Judged], texts: Mapping[str, Sequence[str]], attribution: str,
    count: int = 20, level: int = 2,
) -> str:  # fmt: skip
    """Prompts (HTML), each with its recorded response and every model's.

    Args:
        examples: prompts; those shown are spread evenly over them, not chosen.
        texts: for each name of a model its responses, aligned with `examples`.
        attribution: whose the prompts and recorded responses are, and under what licence.
        count: of prompts shown, at most.
        level: of a prompt's heading; a response's is one lower.

    Raises:
        ValueError: a list of responses that is not aligned.
    """
    for name, responses in texts.items():
        if len(responses) != len(examples):
            raise ValueError(f"{name}: {len(responses)} responses to {len(examples)} prompts")
    shown = min(count, len(examples))
    indices = [index * len(examples) // shown for index in range(shown)]
    prompt, response = f"h{level}", f"h{level + 1}"
    parts = [
        f"<p>{shown} of {len(examples):,} held-out prompts, evenly spaced, none chosen. "
        f"{_escape(attribution)}</p>"
    ]
    for index in indices:
        example = examples[index]
        columns = {"recorded": example.continuation}
        columns |= {name: responses[index] for name, responses in texts.items()}
        cells = "".join(
            f"<div><{response}>{_escape(name)}</{response}>"
            f"<pre>{_escape(text) or '<i>(empty)</i>'}</pre></div>"
            for name, text in columns.items()
        )
        parts.append(
            f"<{prompt}>{_escape(example.id)}</{prompt}>"
            f"<pre class='prompt'>{_escape(example.prefix)}</pre><div class='side'>{cells}</div>"
        )
    return "\n".join(parts)


# --- Report ---------------------------------------------------------------------------------------

_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 Georgia, 'Times New Roman', serif; color: #1a1a1a; background: #fff;
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1, h2, h3, h4, th, nav { font-family: Helvetica, Arial, sans-serif; line-height: 1.25; }
h1 { font-size: 1.8rem; }
h2 { font-size: 1.3rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; break-after: avoid; }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; break-after: avoid; }
h4 { font-size: .85rem; margin: .2rem 0; color: #444; }
p { max-width: 50rem; }
a { color: #005a8c; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0;
  font-size: .9rem; }
.scroll { overflow-x: auto; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr));
  column-gap: 2.5rem; }
.tables > div { min-width: 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid #e3e3e3; }
th:first-child, .says, .verdict, .comparison, .note { text-align: left; }
tbody th { font: inherit; }
td.interval { white-space: nowrap; }
td.ours, td.verdict { font-weight: bold; }
td.verdict { white-space: nowrap; }
td.says { min-width: 11rem; }
td.comparison { min-width: 11rem; }
td.note { min-width: min(22rem, 75vw); }
caption { text-align: left; caption-side: bottom; color: #444; padding-top: .4rem; }
caption span { display: block; max-width: min(50rem, 100vw - 2.5rem); }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: .9rem; max-width: 48rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; background: #f6f6f6;
  padding: .5rem; margin: .2rem 0; }
pre.prompt { border-left: 3px solid #0072B2; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(14rem, 100%), 1fr));
  gap: .6rem; }
@media print {
  @page { margin: 1.3cm; }
  body { max-width: none; margin: 0; padding: 0; font-size: 10pt; }
  h1 { font-size: 15pt; margin: 0; } h2 { margin-top: 1rem; } h3 { margin-top: .6rem; }
  nav { display: none; }
  .scroll { overflow: visible; }
  .tables { grid-template-columns: 1fr 1fr; column-gap: 1rem; }
  table { font-size: 7.5pt; } th, td { padding: .05rem .3rem; }
  caption { font-size: 6.5pt; } .tables caption { line-height: 1.3; }
  td.says, td.comparison, td.note { min-width: 0; }
  figure, tr, .tables > div { break-inside: avoid; }
}
"""
# Columns with a style of their own.
_STYLED = {
    "ours": "ours", "95 % interval": "interval", "the paper says": "says", "verdict": "verdict",
    "comparison": "comparison", "note": "note",
}  # fmt: skip
_SECTIONS = {
    "reference": "The references, before any contrast",
    "measures": "Automatic measures",
    "negatives": "The negatives",
    "extras": "Beyond the paper",
}


def report(folder: Path, profile: Profile, notes: Sequence[str] = ()) -> Path:
    """Write `report.html`: one self-contained page of what lies in `folder`, and nothing else.

    It begins with what is to be known first: the claims with their verdicts, and the tables, ours
    beside the paper's. Then notes on the run (`notes` are paragraphs of text), every comparison
    behind the claims, figures, measures, negatives, samples (`samples.html`), and provenance
    (`run.json`). What is missing is left out, but for tables, whose absence is said. Images are
    inside the page; it asks for nothing from anywhere.
    """
    sections: dict[str, str] = {}
    claims = folder / "claims.csv"
    if claims.is_file():
        sections["The paper's claims"] = _claims_section(_read(claims), profile)
    tables = [_table_section(path, profile) for path in sorted(folder.glob("table*.csv"))]
    sections["Tables: ours beside the paper's"] = (
        f"<div class='tables'>{''.join(tables)}</div>" if tables
        else "<p>This run made no table.</p>"
    )  # fmt: skip
    if notes:
        sections["Notes on this run"] = "".join(f"<p>{_escape(note)}</p>" for note in notes)
    figures = {path.stem: _figure_section(path) for path in sorted(folder.glob("*.png"))}
    if claims.is_file():
        every = _read(claims)[["claim", "note"]]
        sections["Every comparison behind the claims"] = figures.pop("claims", "") + _html_table(
            every, "What each claim was judged on, with intervals adjusted for all of them."
        )
    if figures:
        sections["Figures"] = "\n".join(figures.values())
    for stem, title in _SECTIONS.items():
        if (path := folder / f"{stem}.csv").is_file():
            frame = _read(path)
            sections[title] = _html_table(frame, caption(frame, profile), title)
    if (path := folder / "samples.html").is_file():
        body = re.search(r"<h1>.*?</h1>(.*)</main>", path.read_text(encoding="utf-8"), re.DOTALL)
        # One level down: the page's title becomes a section of the report.
        samples = body.group(1) if body else ""
        lowered = re.sub(r"<(/?)h([1-5])>", lambda tag: _lowered(*tag.groups()), samples)
        sections["Samples, side by side"] = lowered
    sections["Provenance"] = _provenance(folder / "run.json", profile)

    names = {title: re.sub(r"\W+", "-", title.lower()) for title in sections}
    links = "".join(f"<li><a href='#{name}'>{title}</a></li>" for title, name in names.items())
    parts = [
        f"<p>{_escape(_sentence(profile))}</p>",
        f"<nav aria-label='Contents'><ul>{links}</ul></nav>",
        *(f"<h2 id='{names[title]}'>{title}</h2>\n{body}" for title, body in sections.items()),
    ]
    path = folder / "report.html"
    title = f"Contrastive Preference Optimization: profile {profile.name}"
    path.write_text(_page(title, "\n".join(parts)), encoding="utf-8")
    return path


def _sentence(profile: Profile) -> str:
    models = ", ".join(f"{name} (in the paper's place of {model.paper_name})"
                       for name, model in profile.models.items())  # fmt: skip
    return (
        f"Profile {profile.name}: {profile.description}. Meant for {profile.hardware}. "
        f"Models: {models}. Prompts and responses: {profile.instructions.source}. "
        f"Judge: {profile.judge.label}. Training seeds: {profile.seeds}. "
        f"{len(profile.trained_rows)} of the paper's {len(ROWS)} rows."
    )


def _claims_section(frame: pd.DataFrame, profile: Profile) -> str:
    """The verdicts, each with what the paper says and the comparison that decided it."""
    frame.insert(1, "the paper says", [CLAIMS.get(number, "") for number in frame["claim"]])
    text = (
        f"{caption(frame, profile)} Of several comparisons with the claim's verdict, the one with "
        "the smallest effect is shown; all of them stand further down."
    )
    if frame["comparison"].astype(str).str.startswith("overhead ").any():
        text += (
            " The effect of an overhead is a ratio: seconds over tokens, both against MLE; it "
            f"holds up to {OVERHEAD_MARGIN}."
        )
    return _html_table(frame.drop(columns="note"), text, "The paper's claims")


def _table_section(path: Path, profile: Profile) -> str:
    """One of the paper's tables, narrow enough to stand beside another.

    What its heading or its caption says once is not said again in each row; the csv has it all.
    """
    title = re.sub(r"(?<=[a-z])(?=\d)", " ", path.stem).capitalize()
    frame = _read(path)
    said = ["judge", "seeds", "valid"]
    said += [name for name in ("model", "n") if name in frame and frame[name].nunique() == 1]
    if "invalid" in frame and not frame["invalid"].any():
        said.append("invalid")
    if "model" in said:
        title += f": {frame['model'].iloc[0]}"
    shown = frame.drop(columns=said, errors="ignore")
    table = _html_table(shown, caption(frame, profile), title)
    return f"<div><h3>{_escape(title)}</h3>{table}</div>"


def _read(path: Path) -> pd.DataFrame:
    """A table as it was written: counts stay whole numbers where some of them are empty."""
    frame = pd.read_csv(path)
    counts = ("n", "valid", "invalid", "ties", "seeds", "drawn")
    return frame.astype({name: "Int64" for name in counts if name in frame})


def _html_table(frame: pd.DataFrame, text: str, name: str = "Table") -> str:
    return _markup(*_readable(frame), text, name)


def _markup(
    header: Sequence[str], body: Iterable[Sequence[str]], about: str, name: str = "Table"
) -> str:
    """A table under its caption; where it is wider than the screen, it alone scrolls."""
    looks = {column: f" class={_STYLED[column]}" if column in _STYLED else "" for column in header}
    head = "".join(f"<th scope='col'{looks[one]}>{_escape(one)}</th>" for one in header)
    lines = "".join(
        f"<tr><th scope='row'>{_escape(first)}</th>" + "".join(
            f"<td{looks[column]}>{_escape(cell)}</td>"
            for column, cell in zip(header[1:], rest, strict=True)
        ) + "</tr>\n"
        for first, *rest in body
    )  # fmt: skip
    return (
        f"<div class='scroll' role='region' tabindex='0' aria-label='{_escape(name)}'>"
        f"<table><caption><span>{_escape(about)}</span></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table></div>"
    )


def _figure_section(path: Path) -> str:
    with Image.open(path) as image:
        description = str(image.info.get("Description", path.stem))
    data = base64.b64encode(path.read_bytes()).decode()
    text = _escape(description)
    return (
        f"<figure><img src='data:image/png;base64,{data}' alt='{text}'>"
        f"<figcaption>{_escape(path.stem)}. {text}</figcaption></figure>"
    )


def _provenance(run: Path, profile: Profile) -> str:
    settings = json.loads(profile.model_dump_json())
    parts = []
    if run.is_file():
        record = json.loads(run.read_text(encoding="utf-8"))
        # The record's own settings name no folder of this machine.
        settings = record.pop("settings", settings)
        artifacts = record.pop("artifacts", [])
        parts.append(f"<p>{_escape(_origin(record, artifacts))}</p>")
        parts.append(f"<h3>Run</h3><pre>{_escape(_yaml(record))}</pre>")
        if artifacts:
            lines = [[_shown(one.get(name)) for name in _OF_ARTIFACTS] for one in artifacts]
            about = "Seconds are an artifact's own; content is the hash of its files' checksums."
            parts.append("<h3>Artifacts</h3>")
            parts.append(_markup(list(_OF_ARTIFACTS.values()), lines, about, "Artifacts"))
    parts.append(f"<h3>Settings</h3><pre>{_escape(_yaml(settings))}</pre>")
    return "\n".join(parts)


# Columns of the table of artifacts, and what they are called in `run.json`.
_OF_ARTIFACTS = {
    "name": "artifact", "recipe": "recipe", "seed": "seed", "seconds": "seconds", "gpus": "GPUs",
    "gpu_hours": "GPU-hours", "made": "made", "sha256": "content",
}  # fmt: skip


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else str(value)
    return text[:12] if len(text) == 64 else text  # of a hash, its beginning


def _origin(record: dict[str, Any], artifacts: Sequence[dict[str, Any]]) -> str:
    """In a few words: by which code, with which packages and seeds, and at what expense."""
    git, lock = record.get("git"), record.get("requirements_lock_sha256")
    said = []
    if git:
        state = "" if git["clean"] else ", with changes that are not in it"
        said.append(f"Code: revision {git['revision']}{state}.")
    if lock:
        said.append(f"Packages: requirements.lock {lock[:12]}.")
    if record.get("seeds"):
        said.append(f"Training seeds: {', '.join(map(str, record['seeds']))}.")
    if artifacts:
        hours = sum(one.get("seconds") or 0.0 for one in artifacts) / 3600
        said.append(
            f"{len(artifacts)} artifacts, made in {hours:.2f} hours of work, each counted once; "
            f"{record.get('gpu_hours') or 0:g} GPU-hours."
        )
    return " ".join(said)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=100)


def _page(title: str, body: str) -> str:
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{_escape(title)}</title><style>{_CSS}</style></head>\n"
        f"<body><main>\n<h1>{_escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def _lowered(slash: str, level: str) -> str:
    return f"<{slash}h{int(level) + 1}>"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
