"""Judging: who wins, in which order the judge sees the two, and what is no verdict."""

from __future__ import annotations

import json
import math
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpo.data import Example
from cpo.evaluation import judging
from cpo.evaluation.judging import JudgeError, Verdicts
from cpo_suite.world import build_world, oracle_score
from cpo_suite.world import registered as registered_world


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Held-out pairs of the world; some of their recorded responses are ideal, some are not."""
    pairs = [pair for pair in build_world(seed=0).pairs if pair.split == "test"][:200]
    return [
        Example(pair.id, pair.instruction, pair.response, pair.category, pair) for pair in pairs
    ]


def plain(name: str, recorded: str = "recorded") -> Example:
    return Example(name, "prompt", recorded, "", {"response": recorded})


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, judging.Rule]:
    """The registry, put back after the test."""
    rules = copy(judging.RULES)
    monkeypatch.setattr(judging, "RULES", rules)
    return rules


# --- Points and order -----------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["A", "B"])
def test_points(side: judging.Side) -> None:
    other: judging.Side = "B" if side == "A" else "A"
    assert judging.points(side, side) == 1
    assert judging.points(other, side) == 0
    assert judging.points("tie", side) == 0.5
    assert math.isnan(judging.points("invalid", side))  # on either side: flipping makes no verdict


def test_order_is_fair_and_fixed() -> None:
    ids = [f"item-{number}" for number in range(4000)]
    sides = [judging.model_side(item) for item in ids]
    # 4,000 fair coins: standard deviation 31.6, so 4.4 of them.
    assert abs(sides.count("A") - 2000) < 140
    assert sides == [judging.model_side(item) for item in ids]
    other = [judging.model_side(item, seed=1) for item in ids]
    same = sum(a == b for a, b in zip(sides, other, strict=True))
    assert abs(same - 2000) < 140


def test_the_judge_sees_the_model_on_the_side_that_is_noted(
    registered: dict[str, judging.Rule],
) -> None:
    seen = []

    def watch(example: Any, response_a: str, response_b: str) -> judging.Verdict:
        seen.append((response_a, response_b))
        return "A"

    registered["watch"] = watch
    examples = [plain(str(number)) for number in range(50)]
    verdicts = judging.judge_responses("watch", examples, ["model"] * 50)
    for (a, b), side in zip(seen, verdicts.model_sides, strict=True):
        assert (a, b) == (("model", "recorded") if side == "A" else ("recorded", "model"))
    # A judge who always says A: the model wins exactly where it stands there.
    assert verdicts.points.tolist() == [float(side == "A") for side in verdicts.model_sides]
    assert 0 < verdicts.points.mean() < 1


# --- Judges ---------------------------------------------------------------------------------------


def test_oracle_prefers_the_higher_grade(examples: list[Example]) -> None:
    ideal = [example.source.ideal for example in examples]
    verdicts = judging.judge_responses("oracle", examples, ideal)
    for example, won in zip(examples, verdicts.points, strict=True):
        gap = 1 - oracle_score(example.source, example.continuation)  # an ideal answer grades 1
        assert won == (1 if gap > 0.02 else 0.5)
    assert {0.5, 1.0} == set(verdicts.points)
    nonsense = judging.judge_responses("oracle", examples, ["blah"] * len(examples))
    assert nonsense.points.mean() < 0.02


def test_the_recorded_response_ties_with_itself(examples: list[Example]) -> None:
    recorded = [example.continuation for example in examples]
    verdicts = judging.judge_responses("oracle", examples, recorded)
    assert set(verdicts.points) == {0.5}
    assert verdicts.ties == verdicts.valid == len(examples)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [(0.5, 0.52, "tie"), (0.82, 0.8, "tie"), (0.5, 0.5201, "B"), (0.83, 0.8, "A")],
)
def test_oracle_ties_within_its_margin(
    examples: list[Example], monkeypatch: pytest.MonkeyPatch, a: float, b: float, verdict: str
) -> None:
    grades = {"first": a, "second": b}
    monkeypatch.setattr(registered_world, "oracle_score", lambda source, text, prefix: grades[text])
    assert registered_world.oracle(examples[0], "first", "second") == verdict


def test_oracle_grades_the_continuation_of_the_prefix_that_was_given(
    examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    # An article's prefix is cut by tokens, elsewhere than the world would cut it by words.
    seen: list[str] = []

    def grade(source: object, text: str, prefix: str) -> float:
        seen.append(prefix)
        return 0.5

    monkeypatch.setattr(registered_world, "oracle_score", grade)
    assert registered_world.oracle(examples[0], "first", "second") == "tie"
    assert seen == [examples[0].prefix] * 2


def test_oracle_refuses_real_data() -> None:
    with pytest.raises(JudgeError, match="embedded world alone, and d-1 is not"):
        registered_world.oracle(plain("d-1"), "a", "b")


def test_longest() -> None:
    examples = [plain(str(number), "four") for number in range(3)]
    verdicts = judging.judge_responses("longest", examples, ["longer", "abc", "same"])
    assert verdicts.points.tolist() == [1, 0, 0.5]


def test_random_comes_out_even_on_both_sides() -> None:
    examples = [plain(f"p{number}") for number in range(4000)]
    verdicts = judging.judge_responses("random", examples, ["anything"] * 4000)
    # Standard deviation of the mean of 4,000 fair coins: 0.0079.
    assert abs(verdicts.points.mean() - 0.5) < 0.035
    on_a = np.array([side == "A" for side in verdicts.model_sides])
    assert abs(verdicts.points[on_a].mean() - verdicts.points[~on_a].mean()) < 0.07


def test_registry(registered: dict[str, judging.Rule]) -> None:
    @judging.register_judge("shortest")
    def shortest(example: Any, response_a: str, response_b: str) -> judging.Verdict:
        return "A" if len(response_a) < len(response_b) else "B"

    assert judging.judge_named("shortest") == judging.RuleJudge("shortest", shortest)
    with pytest.raises(JudgeError, match="already"):
        judging.register_judge("oracle")(shortest)
    with pytest.raises(JudgeError, match="unknown judge 'oracel'. Did you mean 'oracle'?"):
        judging.judge_named("oracel")


# --- Verdicts -------------------------------------------------------------------------------------

FOUR = Verdicts("oracle", ("w", "x", "y", "z"), ("A", "B", "B", "A"), ("A", "A", "tie", "invalid"))


def test_counts_and_points() -> None:
    assert (len(FOUR), FOUR.valid, FOUR.invalid, FOUR.ties) == (4, 3, 1, 1)
    np.testing.assert_array_equal(FOUR.points, [1, 0, 0.5, np.nan])


def test_flipping_everything_turns_points_round_and_leaves_invalid_invalid() -> None:
    flipped = replace(
        FOUR, model_sides=tuple("B" if side == "A" else "A" for side in FOUR.model_sides)
    )
    np.testing.assert_array_equal(flipped.points, [0, 1, 0.5, np.nan])
    assert flipped.invalid == 1


def test_jsonl_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    FOUR.to_jsonl(path)
    assert "NaN" not in path.read_text(encoding="utf-8")
    assert Verdicts.from_jsonl(path) == FOUR
    FOUR.to_jsonl(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


def test_why_verdicts_are_invalid_is_kept_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    both = replace(
        FOUR,
        exchanged=("invalid", "A", "invalid", "A"),
        why=("", "", "", "cut", "refused", "", "cut", ""),
    )
    both.to_jsonl(path)
    assert Verdicts.from_jsonl(path) == both
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["why"] for line in lines[1:]] == [
        ["", "refused"],
        ["", ""],
        ["", "cut"],
        ["cut", ""],
    ]
    assert both.invalid_kinds == {"cut": 2, "refused": 1}
    assert FOUR.invalid_kinds == {"unclear": 1}  # a judge that does not say
    with pytest.raises(JudgeError, match="must have the same length"):
        replace(FOUR, why=("", "cut"))


def test_a_file_without_a_judge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    for text in ("", '{"id": "x"}\n'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(JudgeError, match="does not name a judge"):
            Verdicts.from_jsonl(path)


def test_both_orders_by_hand() -> None:
    both = replace(FOUR, exchanged=("B", "A", "invalid", "A"))
    # In order: win, loss, tie, invalid. Exchanged, on B, A, A, B: win, win, invalid, loss.
    np.testing.assert_array_equal(both.by_order[1], [1, 1, np.nan, 0])
    np.testing.assert_array_equal(both.points, [1, 0.5, 0.5, 0])
    assert (both.valid, both.invalid, both.ties) == (4, 0, 2)


def test_a_judge_is_shown_each_pair_in_both_orders(registered: dict[str, judging.Rule]) -> None:
    seen = []

    def watch(example: Any, response_a: str, response_b: str) -> judging.Verdict:
        seen.append((example.id, response_a, response_b))
        return "A" if response_a == "model" else "B"

    registered["watch"] = watch
    verdicts = judging.judge_responses("watch", [plain("x"), plain("y")], ["model"] * 2, orders=2)
    assert verdicts.points.tolist() == [1, 1]
    assert sorted(seen) == [
        ("x", "model", "recorded"), ("x", "recorded", "model"),
        ("y", "model", "recorded"), ("y", "recorded", "model"),
    ]  # fmt: skip
    with pytest.raises(JudgeError, match="1 or 2, not 3"):
        judging.judge_responses("watch", [plain("x")], ["model"], orders=3)


def test_what_is_no_verdict_is_refused(registered: dict[str, judging.Rule]) -> None:
    registered["broken"] = lambda example, a, b: "maybe"  # type: ignore[assignment]
    with pytest.raises(JudgeError, match="'maybe' for one"):
        judging.judge_responses("broken", [plain("one")], ["text"])


def test_lists_that_are_not_aligned_are_refused() -> None:
    with pytest.raises(JudgeError, match="2 responses to 1 prompts"):
        judging.judge_responses("longest", [plain("one")], ["a", "b"])
