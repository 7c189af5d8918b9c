"""Tables, figures, report: the right numbers in the right cells, and a page that needs nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
pd = pytest.importorskip("pandas")

from PIL import Image  # noqa: E402

from cpo.data import Example  # noqa: E402
from cpo.evaluation.judging import Side, Verdict, Verdicts  # noqa: E402
from cpo.evaluation.statistics import Estimate  # noqa: E402
from cpo_suite.paper import ROWS, rows_of  # noqa: E402
from cpo_suite.profile import Profile, load_profile  # noqa: E402
from cpo_suite.report import figures  # noqa: E402
from cpo_suite.report.claims import Outcome  # noqa: E402

COLUMNS = [
    "row", "model", "alpha", "measure", "judge", "seeds", "paper", "ours", "low", "high", "n",
    "valid", "invalid", "ties",
]  # fmt: skip


class FakeSuite:
    """Every judged row: 6 wins, 2 ties, 1 loss, 1 invalid; with another seed the 6 are losses."""

    def __init__(self, profile: Profile, judged: bool = True) -> None:
        self.profile = profile
        self.judged = judged
        self.asked: list[tuple[str, str | None, int]] = []

    def verdicts(self, row_id: str, decoding: str | None = None, seed: int = 0) -> Verdicts | None:
        self.asked.append((row_id, decoding, seed))
        if not self.judged:
            return None
        win: Verdict = "A" if seed == 0 else "B"
        said: list[Verdict] = [*[win] * 6, "tie", "tie", "B", "invalid"]
        sides: list[Side] = ["A"] * 10
        ids = tuple(str(number) for number in range(10))
        return Verdicts("oracle", ids, tuple(sides), tuple(said))

    def measures(self, row_id: str, seed: int = 0) -> Mapping[str, Estimate]:
        return {
            "mauve": Estimate(0.4 + seed / 10, 0.35, 0.45, 200),
            "tokens": Estimate(30, 28, 33, 10),
        }


@pytest.fixture
def profile() -> Profile:
    return load_profile("tiny").model_copy(
        update={"name": "trial", "rows": ("t1/MLE", "t1/MixNR/0.5", "f1b/MLE", "f1b/BNR")}
    )


@pytest.fixture
def suite(profile: Profile) -> FakeSuite:
    return FakeSuite(profile)


# --- Tables ---------------------------------------------------------------------------------------


def test_table_has_every_row_of_the_paper_in_its_order(suite: FakeSuite) -> None:
    frame = figures.table(suite, "t1")
    assert list(frame.columns) == COLUMNS
    assert frame["row"].tolist() == [row.id for row in rows_of("t1")]
    assert frame["paper"].tolist() == [0.471, 0.086, 0.383, 0.506, 0.476, 0.479, 0.487, 0.485]
    assert set(frame["measure"]) == {"win_rate"}


def test_table_fills_rows_that_were_run_and_no_others(suite: FakeSuite) -> None:
    frame = figures.table(suite, "t1").set_index("row")
    filled = frame[frame["ours"].notna()]
    # t1/DPO and the others are rows of the paper, but not of this profile.
    assert filled.index.tolist() == ["t1/MLE", "t1/MixNR/0.5"]
    assert {row for row, _, _ in suite.asked} == {"t1/MLE", "t1/MixNR/0.5"}
    row = filled.loc["t1/MLE"]
    assert row["ours"] == pytest.approx((6 + 2 * 0.5) / 9)
    assert row["low"] < row["ours"] < row["high"]
    counts = [row[name] for name in ("n", "valid", "invalid", "ties", "seeds")]
    assert counts == [10, 9, 1, 2, 1]
    assert row["judge"] == "oracle"
    empty = frame.loc["t1/DPO"]
    names = ["judge", "seeds", "ours", "low", "high", "n", "valid", "invalid", "ties"]
    assert empty[names].isna().all()
    assert empty["paper"] == 0.383
    assert filled["alpha"].tolist()[1] == 0.5 and math.isnan(filled["alpha"].tolist()[0])


def test_table_averages_seeds_prompt_by_prompt(profile: Profile) -> None:
    suite = FakeSuite(profile.model_copy(update={"seeds": 2}))
    row = figures.table(suite, "t1").set_index("row").loc["t1/MLE"]
    # Six prompts won once and lost once, two ties twice, one lost twice: (6 * .5 + 2 * .5) / 9.
    assert row["ours"] == pytest.approx(4 / 9)
    assert [row[name] for name in ("n", "valid", "invalid", "ties", "seeds")] == [10, 18, 2, 4, 2]


def test_table_without_a_judge_is_empty_but_for_the_paper(profile: Profile) -> None:
    frame = figures.table(FakeSuite(profile, judged=False), "t1")
    assert frame["ours"].isna().all() and frame["judge"].isna().all()
    assert frame["paper"].notna().all()
    assert "No row of this table was judged" in figures.caption(frame, profile)


def test_unknown_table(suite: FakeSuite) -> None:
    with pytest.raises(KeyError, match="there are f1a, f1b, t1, t2, t3, t4, x"):
        figures.table(suite, "t9")


def test_written_table(suite: FakeSuite, profile: Profile, tmp_path: Path) -> None:
    frame = figures.table(suite, "t1")
    figures.write_table(frame, tmp_path, "table1", profile)
    again = pd.read_csv(tmp_path / "table1.csv")
    assert list(again.columns) == COLUMNS
    assert again["ours"].notna().sum() == 2
    lines = (tmp_path / "table1.csv").read_text(encoding="utf-8").splitlines()
    assert lines[2] == "t1/PSS,gpt2,,win_rate,,,0.086,,,,,,,"
    text = (tmp_path / "table1.md").read_text(encoding="utf-8")
    caption, _, header, _, *rows = text.splitlines()
    assert "Profile trial" in caption and "oracle" in caption and "10 prompts" in caption
    cells = [cell.strip() for cell in header.strip("|").split("|")]
    assert cells.index("ours") == cells.index("paper") + 1
    assert len(rows) == 8 and all(row.count("|") == header.count("|") for row in rows)
    assert "0.471 | 0.778" in rows[0]


def test_measures_frame(profile: Profile) -> None:
    suite = FakeSuite(profile.model_copy(update={"seeds": 2}))
    frame = figures.measures_frame(suite, ["t1/MLE", "t1/ANR"])
    assert list(frame.columns) == ["row", "measure", "value", "low", "high", "n"]
    assert len(frame) == 4
    assert frame["value"].tolist()[:2] == pytest.approx([0.45, 30])  # mean over both seeds
    assert frame["n"].tolist()[:2] == [200, 10]
    assert "For MAUVE they come from random halves" in figures.caption(frame, profile)
    assert "MAUVE" not in figures.caption(figures.table(suite, "t1"), profile)


def test_negatives_frame() -> None:
    counts = {
        "asked": 40, "drawn": 55, "equal_to_truth": 9, "duplicates": 8, "masked": 2,
        "first_drawn": 40, "first_equal_to_truth": 6, "first_duplicates": 4,
    }  # fmt: skip
    none = {name: 0 for name in counts}
    report = {
        "kinds": ["truth", "AN", "TN"],
        "by_kind": {"AN": counts | {"oracle_grade": 0.7}, "TN": none},
        "tied_with_truth": 0.01,
    }
    frame = figures.negatives_frame({"MixN": report})
    one, empty, whole = frame.to_dict("records")
    assert (one["kind"], one["drawn"], one["oracle_grade"]) == ("AN", 55, 0.7)
    assert (one["equal_to_truth"], one["duplicates"], one["masked"]) == (0.15, 0.1, 0.05)
    assert math.isnan(empty["equal_to_truth"])  # of none drawn: no rate, and no division by zero
    assert (whole["kind"], whole["tied_with_truth"]) == ("all", 0.01)


# --- Figures --------------------------------------------------------------------------------------


def panels_of_figure_1(suite: FakeSuite) -> Any:
    """Figure 1 from the suite's own tables."""
    return figures.figure_1(figures.table(suite, "f1a"), figures.table(suite, "f1b"))


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
        png, pdf = figures.save(figure, tmp_path / name / "figure1.b", "What is seen.")
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
        1: [Outcome("t1/ANR > t1/MLE", "holds", 0.1, 0.05, 0.2),
            Outcome("t2/ANR > t2/MLE1", "fails", -0.1, -0.15, -0.02)],
        2: [],
        9: [Outcome("overhead t2/MixNR/0", "holds", 0.93, 0.91, 0.96)],
        12: [Outcome("t2/ANR > x/small/ANR", "not run", note="no judge")],
    }  # fmt: skip
    axes = only_axes(figures.claims_figure(outcomes))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [
        "1   t1/ANR > t1/MLE", "t2/ANR > t2/MLE1", "2   no comparison named",
        "9   overhead t2/MixNR/0", "12   t2/ANR > x/small/ANR",
    ]  # fmt: skip
    drawn = [one.lines for one in axes.containers if len(one.lines[0].get_xdata())]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line, _, _ in drawn]
    assert points == [(0.1, 0), (-0.1, 1)]
    ends = [bars[0].get_segments()[0][:, 0].tolist() for _, _, bars in drawn]
    assert ends == [pytest.approx([0.05, 0.2]), pytest.approx([-0.15, -0.02])]
    assert [text.get_text().strip().split(":")[0] for text in axes.texts] == [
        "not run", "holds", "not run",
    ]  # fmt: skip
    assert "0.93 [0.91, 0.96] times" in axes.texts[1].get_text()


def test_alpha_figure_has_the_mle_end_and_the_papers_marks(suite: FakeSuite) -> None:
    axes = only_axes(figures.alpha_figure(figures.table(suite, "t1")))
    (ours,) = axes.containers
    assert list(ours.lines[0].get_xdata()) == [0.5, 1.0]
    (paper,) = (one for one in axes.collections if one.get_label() == "paper")
    # t1/MixNR at 0, 0.5, 0.7, 0.9, and MLE.
    offsets = [tuple(point) for point in paper.get_offsets().tolist()]
    assert offsets == [(0, 0.476), (0.5, 0.479), (0.7, 0.487), (0.9, 0.485), (1, 0.471)]


def test_alpha_figure_of_several_tables_is_no_wider_than_a_page(profile: Profile) -> None:
    rows = ("t1/MLE", "t1/MixNR/0.5", "t2/MLE2", "t2/MixNR/0.5", "t3/MLE", "t3/BNR/0.5")
    suite = FakeSuite(profile.model_copy(update={"rows": rows}))
    every = pd.concat([figures.table(suite, name) for name in ("t1", "t2", "t3")])
    figure = figures.alpha_figure(every)
    assert figure.get_figwidth() == figures.PAGE  # wider, and print would shrink its text
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["table 1, gpt2", "table 2, llama", "table 3, llama"]
    (legend,) = figure.legends  # one for all panels
    assert {text.get_text() for text in legend.get_texts()} == {"ours", "paper", "MLE continued"}


def test_alpha_figure_of_a_measure(suite: FakeSuite) -> None:
    ids = ["reference/llama", "t2/MLE2", "t2/MixNR/0", "t2/MixNR/0.5"]
    frame = figures.measures_frame(suite, ids)
    axes = only_axes(figures.alpha_figure(frame, "mauve", "MAUVE"))
    assert list(axes.containers[0].lines[0].get_xdata()) == [0, 0.5, 1]
    assert axes.get_ylabel() == "MAUVE"


def test_figures_of_nothing_say_so(profile: Profile) -> None:
    nothing = FakeSuite(profile, judged=False)
    for figure in (panels_of_figure_1(nothing), figures.alpha_figure(figures.table(nothing, "t2"))):
        for axes in figure.axes:
            assert any(text.get_text().startswith("no row") for text in axes.texts)


def test_training_curves(tmp_path: Path) -> None:
    steps = range(1, 41)
    mle = [{"step": step, "loss": 3 / step} for step in steps]
    names = ("loss", "margin", "accuracy", "logps_chosen", "logps_rejected")
    cpo = [{"step": step} | {name: float(step) for name in names} for step in steps]
    figure = figures.training_curves({"MLE": mle, "ANR": cpo, "MixNR": cpo})
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert len(titles) == 6 and titles[0].startswith("MLE loss")
    assert len(figure.axes[0].get_lines()) == 2  # MLE alone: its steps and their running mean
    assert len(figure.axes[1].get_lines()) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MLE", "ANR", "MixNR"]
    thin = figure.axes[0].get_lines()[0]
    assert np.asarray(thin.get_ydata()).tolist() == [row["loss"] for row in mle]
    figures.save(figure, tmp_path / "curves", "Curves.")
    only_mle = figures.training_curves({"MLE": mle})
    assert len(only_mle.axes) == 1
    figures.save(only_mle, tmp_path / "mle", "Curves.")


# --- Pages ----------------------------------------------------------------------------------------

NASTY = "<script>alert('&')</script> </pre></main> \"quoted\" | pipe"
# Elements without an end tag, by the HTML standard.
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and collects headings, images and whatever would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.headings: list[int] = []
        self.images: list[dict[str, str | None]] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []  # within the page
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(dict(attrs))
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name == "href" and (value or "").startswith("#"):
                self.links.append(str(value)[1:])
            elif name in ("src", "href", "srcset", "data") and not str(value).startswith("data:"):
                self.fetched.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def examples() -> list[Example]:
    return [
        Example(f"item-{number}", f"prompt {number} {NASTY}", f"truth {number}", "", None)
        for number in range(50)
    ]


def test_samples_page(examples: list[Example]) -> None:
    texts = {"MLE": [f"mle {n} {NASTY}" for n in range(50)], "MixNR <0.5>": [""] * 50}
    source = figures.samples_page(examples, texts, "Prompts: someone, CC BY-SA 3.0.", count=5)
    page = Page(source)
    assert page.tags.isdisjoint({"script", "iframe", "link"}) and not page.fetched
    assert page.headings == [1] + 5 * [2, 3, 3, 3]
    for number in (0, 10, 20, 30, 40):  # evenly spaced over 50
        assert f"prompt {number} {NASTY}" in page.text and f"mle {number} {NASTY}" in page.text
    assert "prompt 1 " not in page.text
    assert "CC BY-SA 3.0" in page.text and "MixNR <0.5>" in page.text
    assert page.text.count("(empty)") == 5
    assert Page(figures.samples_page(examples[:2], {}, "Own.")).headings == [1, 2, 3, 2, 3]
    # In a notebook they stand below a heading of their own.
    part = figures.samples(examples, texts, "Own.", count=2, level=3)
    assert Page(part).headings == 2 * [3, 4, 4, 4]
    with pytest.raises(ValueError, match="MLE: 3 responses to 50 prompts"):
        figures.samples_page(examples, {"MLE": ["a"] * 3}, "Own.")


def test_report_is_one_self_contained_page(
    suite: FakeSuite, profile: Profile, examples: list[Example], tmp_path: Path
) -> None:
    frame = figures.table(suite, "t1")
    figures.write_table(frame, tmp_path, "table1", profile)
    figures.write_table(figures.measures_frame(suite, ["t1/MLE"]), tmp_path, "measures", profile)
    figures.save(figures.alpha_figure(frame), tmp_path / "figure_alpha", f"Win rate. {NASTY}")
    outcomes = {1: [Outcome("t1/ANR > t1/MLE", "fails", -0.123, -0.2, -0.1)]}
    figures.claims_frame(outcomes).to_csv(tmp_path / "claims.csv", index=False)
    figures.save(figures.claims_figure(outcomes), tmp_path / "claims", "All comparisons.")
    samples = figures.samples_page(examples, {"MLE": ["text"] * 50}, "Own.", count=2)
    (tmp_path / "samples.html").write_text(samples, encoding="utf-8")
    run = {"seconds": 12.5, "note": NASTY, "packages": {"torch": "2.13.0"}}
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")

    path = figures.report(tmp_path, profile, [f"Run on a laptop. {NASTY}"])
    assert path == tmp_path / "report.html"
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert page.tags.isdisjoint({"script", "iframe", "link"}) and not page.fetched
    assert not re.search(r"url\(|@import", source)
    assert [image["alt"] for image in page.images] == ["All comparisons.", f"Win rate. {NASTY}"]
    steps = zip(page.headings, page.headings[1:], strict=False)
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in steps)
    assert page.links == [name for name in page.ids if name in page.links]  # all lead somewhere
    order = [
        "after Holm's", "CPO beats MLE continued for the same steps", "fails", "-0.123", "Table 1",
        "Run on a laptop", "All comparisons.", "Win rate.", "Automatic measures", "truth 25",
        "torch: 2.13.0", "Settings",
    ]  # fmt: skip
    start = page.text.index(order[0])  # after the contents, which name all sections
    places = [page.text.index(what, start) for what in order]
    assert places == sorted(places)
    assert page.text.count(NASTY) >= 3  # note, caption, samples, run
    assert "0.778" in page.text and "0.471" in page.text and "<td class=ours>0.778" in source


def test_report_tells_where_its_numbers_come_from(profile: Profile, tmp_path: Path) -> None:
    made = {"stage": "model", "made": "2026-01-01T00:00:00Z", "machine": "one"}
    first = {"name": "model t1/ANR", "recipe": "aa11", "seed": 0, "sha256": "ab" * 32} | made
    second = {"name": f"model {NASTY}", "recipe": "bb22", "seed": 1, "sha256": None} | made
    run = {
        "git": {"revision": "c0ffee", "clean": False}, "requirements_lock_sha256": "12" * 32,
        "seeds": [0, 1], "gpu_hours": 4.5, "settings": {},
        "artifacts": [
            first | {"seconds": 1800.0, "gpus": 8, "gpu_hours": 4.0},
            second | {"seconds": 1800.0, "gpus": 1, "gpu_hours": 0.5},
        ],
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    text = Page(figures.report(tmp_path, profile).read_text(encoding="utf-8")).text
    assert "revision c0ffee, with changes that are not in it" in text
    assert "requirements.lock 121212121212." in text and "Training seeds: 0, 1." in text
    assert "2 artifacts, made in 1.00 hours of work, each counted once; 4.5 GPU-hours." in text
    for cell in ("model t1/ANR", "aa11", "abababababab", f"model {NASTY}", "bb22"):
        assert cell in text
    assert "ab" * 7 not in text
    run["git"]["clean"] = True
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    text = Page(figures.report(tmp_path, profile).read_text(encoding="utf-8")).text
    assert "revision c0ffee." in text


def test_report_shows_the_settings_of_the_record_rather_than_this_machines(
    profile: Profile, tmp_path: Path
) -> None:
    run = {"profile": "tiny", "settings": {"instructions": {"path": "${CPO_DATA}"}}}
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    instructions = profile.instructions.model_copy(update={"path": "/home/somebody/data"})
    local = profile.model_copy(update={"instructions": instructions})
    source = figures.report(tmp_path, local).read_text(encoding="utf-8")
    assert "${CPO_DATA}" in source and "/home/somebody" not in source


def test_report_of_an_empty_folder_says_so(profile: Profile, tmp_path: Path) -> None:
    page = Page(figures.report(tmp_path, profile).read_text(encoding="utf-8"))
    assert "no table" in page.text
    assert "Figures" not in page.text


def test_report_tables_can_be_read_by_ear_and_on_a_phone(
    suite: FakeSuite, profile: Profile, tmp_path: Path
) -> None:
    figures.write_table(figures.table(suite, "t1"), tmp_path, "table1", profile)
    source = figures.report(tmp_path, profile).read_text(encoding="utf-8")
    assert "<html lang='en'>" in source and "width=device-width" in source
    # Wide tables scroll by themselves, with the keyboard too; each has a name and a caption.
    assert source.count("<table>") == 1
    assert "<div class='scroll' role='region' tabindex='0' aria-label='Table 1: gpt2'>" in source
    (head,) = re.findall(r"<thead>(.*)</thead>", source)
    # What all rows share is said in heading and caption: model, judge, prompts, seeds.
    assert re.findall(r"<th scope='col'.*?>(.*?)</th>", head) == [
        "row", "alpha", "paper", "ours", "95 % interval", "invalid", "ties",
    ]  # fmt: skip
    # Every row has a header, in the paper's order.
    rows = re.findall(r"<tr><th scope='row'>(.*?)</th>", source)
    assert rows == [row.id for row in rows_of("t1")]
    assert "judge: oracle; 10 prompts; 1 training seed" in source


def test_every_row_can_be_shown(tmp_path: Path) -> None:
    profile = load_profile("tiny")
    assert set(profile.rows) <= set(ROWS)
    for name in sorted({row.table for row in ROWS.values()}):
        frame = figures.table(FakeSuite(profile), name)
        figures.write_table(frame, tmp_path, name, profile)
        implemented = [row.id for row in rows_of(name) if row in profile.trained_rows]
        assert frame[frame["ours"].notna()]["row"].tolist() == implemented
