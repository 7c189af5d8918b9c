"""Tables: the right numbers in the right cells, for spreadsheets and for people."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from judged_suite import FakeSuite, trial_profile

from cpo_suite.paper import ROWS, rows_of
from cpo_suite.profile import Profile, load_profile
from cpo_suite.report import captions, tables

COLUMNS = [
    "row", "model", "alpha", "measure", "judge", "seeds", "paper", "ours", "low", "high", "n",
    "valid", "invalid", "ties",
]  # fmt: skip


@pytest.fixture
def profile() -> Profile:
    return trial_profile()


@pytest.fixture
def suite(profile: Profile) -> FakeSuite:
    return FakeSuite(profile)


def test_table_has_every_row_of_the_paper_in_its_order(suite: FakeSuite) -> None:
    frame = tables.table(suite, "t1")
    assert list(frame.columns) == COLUMNS
    assert frame["row"].tolist() == [row.id for row in rows_of("t1")]
    assert frame["paper"].tolist() == [0.471, 0.086, 0.383, 0.506, 0.476, 0.479, 0.487, 0.485]
    assert set(frame["measure"]) == {"win_rate"}


def test_table_fills_rows_that_were_run_and_no_others(suite: FakeSuite) -> None:
    frame = tables.table(suite, "t1").set_index("row")
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
    row = tables.table(suite, "t1").set_index("row").loc["t1/MLE"]
    # Six prompts won once and lost once, two ties twice, one lost twice: (6 * .5 + 2 * .5) / 9.
    assert row["ours"] == pytest.approx(4 / 9)
    assert [row[name] for name in ("n", "valid", "invalid", "ties", "seeds")] == [10, 18, 2, 4, 2]


def test_table_without_a_judge_is_empty_but_for_the_paper(profile: Profile) -> None:
    frame = tables.table(FakeSuite(profile, judged=False), "t1")
    assert frame["ours"].isna().all() and frame["judge"].isna().all()
    assert frame["paper"].notna().all()
    assert "No row of this table was judged" in captions.caption(frame, profile)


def test_unknown_table(suite: FakeSuite) -> None:
    with pytest.raises(KeyError, match="there are f1a, f1b, mode, t1, t2, t3, t4, x"):
        tables.table(suite, "t9")


def test_written_table(suite: FakeSuite, profile: Profile, tmp_path: Path) -> None:
    frame = tables.table(suite, "t1")
    tables.write_table(frame, tmp_path, "table1", profile)
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
    assert re.search(r"\| 0\.471 +\| 0\.778 ", rows[0])


def test_measures_frame(profile: Profile) -> None:
    suite = FakeSuite(profile.model_copy(update={"seeds": 2}))
    frame = tables.measures_frame(suite, ["t1/MLE", "t1/ANR"])
    assert list(frame.columns) == ["row", "measure", "value", "low", "high", "n"]
    assert len(frame) == 4
    assert frame["value"].tolist()[:2] == pytest.approx([0.45, 30])  # mean over both seeds
    assert frame["n"].tolist()[:2] == [200, 10]
    assert "For MAUVE they come from random halves" in captions.caption(frame, profile)
    assert "MAUVE" not in captions.caption(tables.table(suite, "t1"), profile)


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
    frame = tables.negatives_frame({"MixN": report})
    one, empty, whole = frame.to_dict("records")
    assert (one["kind"], one["drawn"], one["oracle_grade"]) == ("AN", 55, 0.7)
    assert (one["equal_to_truth"], one["duplicates"], one["masked"]) == (0.15, 0.1, 0.05)
    assert math.isnan(empty["equal_to_truth"])  # of none drawn: no rate, and no division by zero
    assert (whole["kind"], whole["tied_with_truth"]) == ("all", 0.01)


def test_every_row_can_be_shown(tmp_path: Path) -> None:
    profile = load_profile("tiny")
    assert set(profile.rows) <= set(ROWS)
    for name in sorted({row.table for row in ROWS.values()}):
        frame = tables.table(FakeSuite(profile), name)
        tables.write_table(frame, tmp_path, name, profile)
        implemented = [row.id for row in rows_of(name) if row in profile.trained_rows]
        assert frame[frame["ours"].notna()]["row"].tolist() == implemented


class Held:
    """As much of a suite as says what is learnt; t2/AN is not with seed 1."""

    def __init__(self, seeds: int = 2) -> None:
        self.profile = SimpleNamespace(seeds=seeds)

    def held_out(self, row_id: str, seed: int = 0) -> list[dict[str, float]]:
        if row_id == "t2/MLE1":
            return []
        end = 0.02 if (row_id, seed) == ("t2/AN", 1) else -0.3
        return [
            {"step": step, "contrast_loss": 2 + change, "accuracy": step / 100, "change": change,
             "low": change - 0.1 * (step > 0), "high": change + 0.1 * (step > 0)}
            for step, change in ((0, 0.0), (30, end / 2), (60, end))
        ]  # fmt: skip


def test_a_row_is_learnt_if_every_seed_is() -> None:
    frame = tables.learnt_frame(Held(), ["t2/ANR", "t2/AN", "t2/MLE1"])
    assert list(frame) == tables.LEARNT_COLUMNS
    # Three moments of two seeds; without negatives there is no contrast to learn.
    assert frame.groupby("row")["learnt"].agg(["size", "first", "nunique"]).T.to_dict("list") == {
        "t2/AN": [6, False, 1], "t2/ANR": [6, True, 1],
    }  # fmt: skip
    ends = frame[frame["moment"] == "end"]
    assert ends["step"].tolist() == [60] * 4
    assert ends["change"].tolist() == [-0.3, -0.3, -0.3, 0.02]
    assert tables.learnt_frame(Held(1), ["t2/AN"])["learnt"].all()


def test_seeds_widen_the_intervals_of_tables_and_measures(profile: Profile) -> None:
    one, two = (FakeSuite(profile.model_copy(update={"seeds": seeds})) for seeds in (1, 2))
    row, rows = (tables.table(suite, "t1").set_index("row").loc["t1/MLE"] for suite in (one, two))
    # The second seed loses the six prompts that the first wins, so its win rate is 1/9, not 7/9.
    assert row["high"] - row["low"] < 0.7
    assert (rows["low"], rows["high"]) == (0, 1)
    # MAUVE of 0.4 and 0.5 has the variance 0.005 / 2 = 0.0025 over seeds, and over texts below its
    # mean, 0.45, (0.1 / 1.96)^2 = 0.0026. Both make 0.0714^2, with (0.0051 / 0.0025)^2 = 4.16
    # degrees of freedom, whose quantile is 2.73. Above it, seeds alone: 0.05 by 12.7.
    mauve = tables.measures_frame(two, ["t1/MLE"]).set_index("measure").loc["mauve"]
    assert mauve["value"] == pytest.approx(0.45)
    assert mauve["low"] == pytest.approx(0.45 - 2.73 * 0.0714, abs=0.002)
    assert mauve["high"] == pytest.approx(0.45 + 12.7 * 0.05, abs=0.002)
    text = captions.caption(tables.table(two, "t1"), two.profile)
    assert "intervals over prompts and training seeds" in text


@pytest.mark.parametrize("rows", [tables.FOLDED_ROWS, tables.FOLDED_ROWS + 1])
def test_a_long_table_is_folded_under_its_name_and_length(rows: int) -> None:
    frame = pd.DataFrame({"row": ["t1/MLE"] * rows, "n": range(rows)})
    markup = tables.html_table(frame, "What was measured.", "Measures & more")
    folded = f"<details><summary>Measures &amp; more: {rows} rows</summary>"
    assert markup.startswith(folded) == (rows > tables.FOLDED_ROWS)
    assert markup.count("<tr") == rows + 1 and markup.count("<caption>") == 1
    assert markup.count("<details>") == markup.count("</details>")
