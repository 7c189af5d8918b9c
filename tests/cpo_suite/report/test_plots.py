"""Figures: what the tables hold is drawn, in files that print anywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from judged_suite import FakeSuite, trial_profile
from PIL import Image

from cpo_suite.profile import Profile
from cpo_suite.report import plots, tables
from cpo_suite.report.claims import Outcome

matplotlib.use("agg")


@pytest.fixture
def profile() -> Profile:
    return trial_profile()


@pytest.fixture
def suite(profile: Profile) -> FakeSuite:
    return FakeSuite(profile)


def panels_of_figure_1(suite: FakeSuite) -> Any:
    """Figure 1 from the suite's own tables."""
    return plots.figure_1(tables.table(suite, "f1a"), tables.table(suite, "f1b"))


def only_axes(figure: Any) -> Any:
    """The one panel of a figure."""
    (axes,) = figure.axes
    return axes


def fonts_of(pdf: Path) -> set[str]:
    """The names of a document's fonts, each of them embedded as TrueType: a printer needs no other.

    Type 3, which matplotlib writes by default, is refused by publishers, for it cannot be edited.
    """
    source = pdf.read_bytes()
    kinds = set(re.findall(rb"/Type /Font\s+/Subtype /(\w+)", source))
    assert kinds and kinds <= {b"Type0", b"CIDFontType2", b"TrueType"}, kinds
    descriptors = re.findall(rb"<< /Type /FontDescriptor[^>]*>>", source)
    assert len(descriptors) == len(set(re.findall(rb"/FontDescriptor \d+ 0 R", source))) > 0
    assert all(b"/FontFile2 " in one for one in descriptors)
    return {name.decode() for one in descriptors for name in re.findall(rb"/FontName /(\S+)", one)}


def test_save_writes_both_files_the_same_every_time(suite: FakeSuite, tmp_path: Path) -> None:
    for name in ("one", "two"):
        figure = panels_of_figure_1(suite)
        png, pdf = plots.save(figure, tmp_path / name / "figure1.b", "What is seen.")
        assert (png.name, pdf.name) == ("figure1.b.png", "figure1.b.pdf")
        assert fonts_of(pdf)
    with Image.open(tmp_path / "one" / "figure1.b.png") as image:
        assert image.info["Description"] == "What is seen."
        assert image.width == pytest.approx(6.8 * 200, abs=2)
    for ending in ("png", "pdf"):
        first, second = (tmp_path / name / f"figure1.b.{ending}" for name in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


def test_figure_1_draws_what_is_in_the_frames(profile: Profile) -> None:
    rows = ("f1a/MLE/greedy", "f1a/ANR/greedy", "f1a/ANR/beam", "f1b/MLE", "f1b/BNR")
    suite = FakeSuite(profile.model_copy(update={"rows": rows}))
    left, right = panels_of_figure_1(suite).axes
    bars = {
        axes: [patch for patch in axes.patches if patch.get_width() == pytest.approx(width)]
        for axes, width in ((left, 0.38), (right, 0.65))
    }
    # MLE left of greedy's place 0, ANR right of it and of beam's place 3; 7 of 9 points each.
    assert [bar.get_center()[0] for bar in bars[left]] == pytest.approx([-0.2, 0.2, 3.2])
    assert [bar.get_height() for axes in bars for bar in bars[axes]] == pytest.approx([7 / 9] * 4)
    shown = [label.get_text() for label in left.get_xticklabels()]
    assert shown == ["greedy", "top-p", "top-k", "beam"]
    assert left.get_legend_handles_labels()[1] == ["MLE continued", "CPO, ANR"]
    # Colour alone does not tell them apart.
    assert bars[left][0].get_hatch() and not bars[left][1].get_hatch()
    assert [label.get_text() for label in right.get_xticklabels()] == ["BNR"]
    assert "MLE continued" in right.get_legend_handles_labels()[1]


def test_a_panel_of_figure_1_without_judged_rows_says_so(suite: FakeSuite) -> None:
    left, right = panels_of_figure_1(suite).axes  # the profile has rows of panel (b) alone
    assert [text.get_text() for text in left.texts] == ["no row was judged in this run"]
    assert not right.texts


def test_claims_figure_has_a_line_for_every_comparison() -> None:
    outcomes = {
        1: [Outcome("t1/ANR > t1/MLE", "holds", 0.1, 0.05, 0.2, "", 0.035),
            Outcome("t2/ANR > t2/MLE1", "fails", -0.1, -0.15, -0.02, "", 0.138)],
        2: [],
        9: [Outcome("overhead t2/MixNR/0", "holds", 0.93, 0.91, 0.96)],
        12: [Outcome("t2/ANR > x/small/ANR", "not run", note="no judge", paper_effect=0.2)],
        13: [Outcome("t3/BNR > t3/MLE", "uninformative", 0.01, 0.005, 0.02)],
    }  # fmt: skip
    axes = only_axes(plots.claims_figure(outcomes))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [
        "1   GPT-2: AN ranked > MLE", "Llama: AN ranked > MLE1", "2   no comparison named",
        "9   Llama: overhead of MixN ranked", "12   Llama AN ranked > small Llama AN ranked",
        "13   Llama, articles: BN ranked > MLE",
    ]  # fmt: skip
    drawn = [one.lines for one in axes.containers if len(one.lines[0].get_xdata())]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line, _, _ in drawn]
    assert points == [(0.1, 0), (-0.1, 1), (0.01, 5)]
    ends = [bars[0].get_segments()[0][:, 0].tolist() for _, _, bars in drawn]
    assert ends == [pytest.approx(one) for one in ([0.05, 0.2], [-0.15, -0.02], [0.005, 0.02])]
    (paper,) = (one for one in axes.collections if one.get_label() == "paper")
    assert paper.get_offsets().tolist() == [[0.035, 0], [0.138, 1]]
    assert [text.get_text().strip().split(":")[0] for text in axes.texts] == [
        "not run", "holds", "not run",
    ]  # fmt: skip
    assert "0.93 [0.91, 0.96] times" in axes.texts[1].get_text()


def test_head_to_head_has_a_line_for_every_model() -> None:
    lines = [("t1/ANR", 0.55, 0.52, 0.58), ("t2/AN", 0.45, 0.4, 0.49), ("t2/ANR", 0.51, 0.48, 0.54)]
    measures = pd.DataFrame(
        [(row, "win_rate_vs_mle", *numbers, 500) for row, *numbers in lines]
        + [("t1/ANR", "tokens", 30, 28, 33, 500)],
        columns=tables.MEASURE_COLUMNS,
    )
    axes = only_axes(plots.head_to_head(measures))
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "GPT-2, AN ranked", "Llama, AN unranked", "Llama, AN ranked",
    ]  # fmt: skip
    assert axes.get_legend_handles_labels()[1] == ["above", "below", "undecided"]
    points = [one.lines[0].get_xdata().tolist() for one in axes.containers]
    assert points == [[0.55], [0.45], [0.51]]
    nothing = only_axes(plots.head_to_head(measures[measures["measure"] == "tokens"]))
    assert [text.get_text() for text in nothing.texts] == ["nobody judged head to head in this run"]


def test_alpha_figure_has_the_mle_end_and_the_papers_marks(suite: FakeSuite) -> None:
    axes = only_axes(plots.alpha_figure(tables.table(suite, "t1")))
    (ours,) = axes.containers
    assert list(ours.lines[0].get_xdata()) == [0.5, 1.0]
    (paper,) = (one for one in axes.collections if one.get_label() == "paper")
    # t1/MixNR at 0, 0.5, 0.7, 0.9, and MLE.
    offsets = [tuple(point) for point in paper.get_offsets().tolist()]
    assert offsets == [(0, 0.476), (0.5, 0.479), (0.7, 0.487), (0.9, 0.485), (1, 0.471)]


def test_alpha_figure_of_several_tables_is_no_wider_than_a_page(profile: Profile) -> None:
    rows = ("t1/MLE", "t1/MixNR/0.5", "t2/MLE2", "t2/MixNR/0.5", "t3/MLE", "t3/BNR/0.5")
    suite = FakeSuite(profile.model_copy(update={"rows": rows}))
    every = pd.concat([tables.table(suite, name) for name in ("t1", "t2", "t3")])
    figure = plots.alpha_figure(every)
    assert figure.get_figwidth() == plots.PAGE  # wider, and print would shrink its text
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["table 1, GPT-2", "table 2, Llama", "table 3, Llama"]
    (legend,) = figure.legends  # one for all panels
    assert {text.get_text() for text in legend.get_texts()} == {"ours", "paper", "MLE continued"}


def test_alpha_figure_of_a_measure(suite: FakeSuite) -> None:
    ids = ["reference/llama", "t2/MLE2", "t2/MixNR/0", "t2/MixNR/0.5"]
    frame = tables.measures_frame(suite, ids)
    axes = only_axes(plots.alpha_figure(frame, "mauve", "MAUVE"))
    assert list(axes.containers[0].lines[0].get_xdata()) == [0, 0.5, 1]
    assert axes.get_ylabel() == "MAUVE"


def test_figures_of_nothing_say_so(profile: Profile) -> None:
    nothing = FakeSuite(profile, judged=False)
    for figure in (panels_of_figure_1(nothing), plots.alpha_figure(tables.table(nothing, "t2"))):
        for axes in figure.axes:
            assert any(text.get_text().startswith("no row") for text in axes.texts)


def test_training_curves(tmp_path: Path) -> None:
    steps = range(1, 41)
    mle = [{"step": step, "loss": 3 / step} for step in steps]
    names = ("loss", "contrastive_loss", "margin", "accuracy", "reward_chosen")
    cpo = [
        {"step": step, "loss_at_reference": 2.5} | {name: float(step) for name in names}
        for step in steps
    ]
    figure = plots.training_curves({"MLE": mle, "ANR": cpo, "MixNR": cpo})
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert len(titles) == 5 and titles[0].startswith("MLE loss")
    assert len(figure.axes[0].get_lines()) == 2  # MLE alone: its steps and their running mean
    assert len(figure.axes[1].get_lines()) == 5  # those of two, and the level of the reference
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MLE", "ANR", "MixNR"]
    thin, change = (axes.get_lines()[0] for axes in figure.axes[:2])
    assert np.asarray(thin.get_ydata()).tolist() == [row["loss"] for row in mle]
    # A loss of 1, 2, ... where the reference has 2.5.
    assert np.asarray(change.get_ydata()).tolist() == [step - 2.5 for step in steps]
    plots.save(figure, tmp_path / "curves", "Curves.")
    only_mle = plots.training_curves({"MLE": mle})
    assert len(only_mle.axes) == 1
    plots.save(only_mle, tmp_path / "mle", "Curves.")
