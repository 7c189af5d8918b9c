"""What stands behind a win rate: counts, bounds, the judge's leanings, and the row beside MLE."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cpo.evaluation.judging import Verdicts
from cpo_suite.paper import ROWS
from cpo_suite.profile import JudgeSettings
from cpo_suite.report.verdict_tables import VERDICT_COLUMNS, verdicts_frame

IDS = tuple(f"p{number}" for number in range(8))
SIDES = ("A", "B") * 4


class Suite:
    """As much of a suite as the table reads: two rows, eight prompts, both orders for one."""

    def __init__(self) -> None:
        rows = [ROWS["t2/MLE1"], ROWS["t2/ANR"], ROWS["t4/MLE"]]
        self.profile: Any = SimpleNamespace(
            trained_rows=rows, rows=tuple(row.id for row in rows), seeds=1,
            judge=JudgeSettings(kind="oracle"),
        )  # fmt: skip

    def verdicts(self, row_id: str, decoding: None, seed: int) -> Verdicts:
        said = {
            # The model stands on A, B, A, B, ...: wins, losses, a tie, an invalid one.
            "t2/MLE1": ("A", "A", "B", "A", "tie", "A", "B", "invalid"),
            "t2/ANR": ("A", "B", "A", "B", "tie", "A", "B", "B"),
        }[row_id]
        exchanged = ("B", "A", "B", "A", "tie", "A", "B", "B") if row_id == "t2/ANR" else ()
        why = ("",) * 7 + ("too long",) if row_id == "t2/MLE1" else ()
        return Verdicts("judge-1", IDS, SIDES, said, exchanged, "1a2b3c4d", "2026-11-21", 2, why)

    def prompts(self, model: str, task: str) -> list[Any]:
        return [SimpleNamespace(continuation="w" * 10) for _ in IDS]

    def generations(self, row_id: str, decoding: None, seed: int) -> list[str]:
        return ["w" * length for length in (12, 8, 12, 8, 12, 8, 12, 8)]


def test_counts_bounds_and_leanings_by_hand() -> None:
    frame = verdicts_frame(Suite()).set_index("row")  # type: ignore[arg-type]
    assert [*frame.reset_index().columns] == VERDICT_COLUMNS
    assert list(frame.index) == ["t2/MLE1", "t2/ANR"]  # MAUVE's row has no verdicts
    mle, anr = frame.loc["t2/MLE1"], frame.loc["t2/ANR"]
    assert (mle["judge"], mle["date"], mle["prompt"]) == ("judge-1", "2026-11-21", "1a2b3c4d")
    assert [mle[name] for name in ("planned", "valid", "invalid", "ties", "marked")] == [
        8, 7, 1, 1, 2,
    ]  # fmt: skip
    kinds = ["unclear", "cut", "empty", "refused", "too_long"]
    assert [mle[f"invalid_{kind}"] for kind in kinds] == [0, 0, 0, 0, 1]
    assert [anr[f"invalid_{kind}"] for kind in kinds] == [0] * 5
    # Points of MLE: 1 0 0 0 .5 0 0 and one invalid. 1.5 of 7; were that a loss or a win, of 8.
    assert mle["win_rate"] == pytest.approx(1.5 / 7)
    assert (mle["worst"], mle["best"]) == (1.5 / 8, 2.5 / 8)
    assert mle["pick_a"] == pytest.approx(4 / 6)
    # ANR in order: 1 1 1 1 .5 0 0 1; exchanged, on B A B A B A B A: 1 1 1 1 .5 1 1 0.
    assert anr["win_rate"] == pytest.approx((1 + 1 + 1 + 1 + 0.5 + 0.5 + 0.5 + 0.5) / 8)
    assert anr["flip_rate"] == pytest.approx(3 / 8)
    assert np.isnan(mle["flip_rate"])
    # Of the model's longer responses (p0, p2, p4, p6) it won 1, 1, .5, .5, of its shorter ones it
    # lost 0, 0, .5, .5 to the longer recorded one.
    assert anr["longer_wins"] == pytest.approx((3 + 1) / 8)


def test_win_rates_are_corrected_where_that_is_asked_for() -> None:
    suite = Suite()
    accuracy = {"judge": "oracle", "pairs": 999, "accuracy": 0.75}
    accuracy |= {"accuracy_low": 0.75, "accuracy_high": 0.75}
    suite.judge_quality = lambda: [accuracy]  # type: ignore[attr-defined]
    assert verdicts_frame(suite)["corrected"].isna().all()  # type: ignore[arg-type]
    suite.profile.judge = JudgeSettings(kind="oracle", corrected=True)
    frame = verdicts_frame(suite).set_index("row")  # type: ignore[arg-type]
    # ANR wins 0.75 by a judge that is right on 75 %: people would always prefer it. MLE's 1.5 of 7
    # is 0.286 below one half, twice that below by people, who cannot prefer it less than never.
    assert frame["corrected"].to_dict() == pytest.approx({"t2/ANR": 1, "t2/MLE1": 0})
    assert frame.loc["t2/ANR", "corrected_low"] < 1
    suite.judge_quality = lambda: []  # type: ignore[attr-defined]
    assert verdicts_frame(suite)["corrected"].isna().all()  # type: ignore[arg-type]


def test_a_row_stands_beside_continued_mle() -> None:
    frame = verdicts_frame(Suite()).set_index("row")  # type: ignore[arg-type]
    anr = frame.loc["t2/ANR"]
    # On the seven prompts that are valid in both.
    assert anr["over_mle"] == pytest.approx((1 + 1 + 1 + 1 + 0.5 + 0.5 + 0.5 - 1.5) / 7)
    # ANR alone wins p1, p2, p3; p0 both do: a fair coin shows 3 of 3 with 2 * 1/8.
    assert anr["mcnemar_p"] == anr["holm_p"] == pytest.approx(0.25)
    assert np.isnan(frame.loc["t2/MLE1", "over_mle"])


def test_all_models_are_one_family_whatever_their_table() -> None:
    suite = Suite()
    names = ("t2/MLE1", "t2/ANR", "f1a/MLE/greedy", "f1a/ANR/greedy", "x/ANR/K2")
    suite.profile.trained_rows = [ROWS[name] for name in names]
    suite.profile.rows = names
    said = suite.verdicts
    suite.verdicts = lambda row, *rest: said("t2/MLE1" if "MLE" in row else "t2/ANR", *rest)
    frame = verdicts_frame(suite).set_index("row")
    # Three rows have p = 0.25, two of them the same model under the same name of a table: of two
    # models, the smaller p counts twice, and the other no less.
    assert frame["mcnemar_p"].dropna().tolist() == pytest.approx([0.25] * 3)
    assert frame["holm_p"].dropna().to_dict() == pytest.approx({"t2/ANR": 0.5, "x/ANR/K2": 0.5})


def test_seeds_add_their_variance_and_leave_no_exact_test() -> None:
    one, two = Suite(), Suite()
    two.profile.seeds = 2
    said = two.verdicts
    two.verdicts = lambda row, decoding, seed: said(
        "t2/ANR" if seed == 0 else "t2/MLE1", decoding, seed
    )
    single, both = (verdicts_frame(suite).set_index("row").loc["t2/ANR"] for suite in (one, two))
    assert np.isnan(both["mcnemar_p"]) and np.isnan(both["holm_p"])
    assert both["win_rate_high"] - both["win_rate_low"] > (
        single["win_rate_high"] - single["win_rate_low"]
    )


def test_without_a_judge_there_is_no_line() -> None:
    suite = Suite()
    suite.profile.judge = JudgeSettings(kind="none")
    assert verdicts_frame(suite).empty  # type: ignore[arg-type]
