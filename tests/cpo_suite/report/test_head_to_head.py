"""Head to head: every distinct model once, its answers against continued MLE's, in one family."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from cpo.data import Example
from cpo.evaluation.judging import judge_named
from cpo_suite.paper import ROWS, distinct_models
from cpo_suite.profile import JudgeSettings
from cpo_suite.report.head_to_head import against_mle, head_to_head
from cpo_suite.report.tables import MEASURE_COLUMNS

PROMPTS = [Example(f"p{number}", "?", "recorded", "", None) for number in range(400)]
# Letters of each row's answers, as a judge by length sees them: `wins` of 400 are longer than
# continued MLE's 5, and of the rest one in two is shorter, one a tie.
WINS = {"t2/ANR": 260, "t2/AN": 100, "t2/DPO": 132, "t3/BNR/0": 140, "x/ANR/K2": 150}


class Suite:
    """As much of a suite as goes head to head: a judge that prefers the longer answer."""

    def __init__(self, seeds: int = 1, **judge: Any) -> None:
        names = [
            "t2/MLE1", "t2/DPO", "t2/ANR", "t2/AN", "t2/MLE2", "t3/MLE", "t3/BNR/0", "t4/MLE",
            "t4/BNR/0", "f1a/MLE/greedy", "f1a/ANR/greedy", "f1a/ANR/top_k", "x/ANR/K2",
            "x/small/ANR",
        ]  # fmt: skip
        self.profile: Any = SimpleNamespace(
            trained_rows=[ROWS[name] for name in names], rows=tuple(names), seeds=seeds,
            judge=JudgeSettings(**({"kind": "longest"} | judge)),
        )  # fmt: skip

    def judge(self, task: str) -> Any:
        return judge_named("longest")

    def prompts(self, model: str, task: str) -> list[Example]:
        return PROMPTS

    def generations(self, row_id: str, decoding: None, seed: int) -> list[str]:
        if "MLE" in row_id:
            return ["w" * 5] * 400
        wins = WINS[row_id] + 40 * seed
        return ["w" * (7 if number < wins else 3 + 2 * (number % 2)) for number in range(400)]


def test_models_are_distinct_by_what_is_trained() -> None:
    names = [row.id for row in distinct_models(ROWS.values())]
    # Decodings share the models of table 2, and table 4 those of table 3 but two ensembles.
    assert not [name for name in names if name.startswith("f1a")]
    assert [name for name in names if name.startswith("t4")] == ["t4/BNR/0.1", "t4/BNR/0.3"]
    assert {"t2/ANR", "t3/BNR/0", "t3/BNR/0.9", "f1b/ANR", "x/ANR/K5"} <= set(names)
    assert names[:2] == ["t1/MLE", "t1/PSS"]  # in order


def test_every_model_once_with_intervals_of_one_family() -> None:
    frame = head_to_head(Suite())
    assert list(frame) == MEASURE_COLUMNS
    # Of x/small/ANR the profile has no continued MLE; MLE itself has no opponent.
    assert frame["row"].tolist() == ["t2/DPO", "t2/ANR", "t2/AN", "t3/BNR/0", "x/ANR/K2"]
    assert set(frame["measure"]) == {"win_rate_vs_mle"} and set(frame["n"]) == {400}
    lines = frame.set_index("row")
    # 260 wins, and of the other 140 one half ties: (260 + 70 / 2) / 400.
    assert lines.loc["t2/ANR", "value"] == pytest.approx(0.7375)
    # 132 wins, 134 ties, 134 losses: 0.4975. Points have the variance (132 + 134 / 4) / 400 -
    # 0.4975^2 = 0.1663, a standard error of 0.0204. Holm: ANR and AN are decided, so the other
    # three have the level of the first that is not, 0.05 / 3, and its quantile 2.394.
    dpo = lines.loc["t2/DPO"]
    assert dpo["high"] - dpo["value"] == pytest.approx(2.394 * 0.0204, abs=0.003)
    outcomes = against_mle(frame).set_index("row")["outcome"]
    assert outcomes.tolist() == ["undecided", "above", "below", "undecided", "undecided"]


def test_seeds_widen_the_intervals() -> None:
    one = head_to_head(Suite()).set_index("row")
    two = head_to_head(Suite(seeds=2)).set_index("row")
    # Of the 40 prompts that the second seed wins beside the first's, half were ties and half
    # losses: 0.75 of 40 points in 400 more, and half of that in the mean.
    assert (two["value"] - one["value"]).tolist() == pytest.approx([0.0375] * 5)
    wider = (two["high"] - two["low"]) / (one["high"] - one["low"])
    assert (wider > 2).all()


def test_nobody_is_paid_to_judge_head_to_head() -> None:
    server = {"model": "m", "base_url": "http://127.0.0.1:1", "api_key_variable": "KEY"}
    for judge in ({"kind": "none"}, {"kind": "openai", "server": server}):
        frame = head_to_head(Suite(**judge))
        assert frame.empty and list(frame) == MEASURE_COLUMNS
        assert against_mle(frame).empty


def test_other_measures_are_left_alone() -> None:
    lines = [("a", "tokens", 30, 28, 33, 10), ("a", "win_rate_vs_mle", 0.4, 0.3, 0.49, 10)]
    frame = against_mle(pd.DataFrame(lines, columns=MEASURE_COLUMNS))
    assert frame[["value", "outcome"]].to_numpy().tolist() == [[0.4, "below"]]
