"""Agreement with people: by hand on few pairs, planted on many; and the correction for errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from test_labelled import real_pairs

from cpo.data import Example
from cpo.evaluation import statistics
from cpo.evaluation.agreement import (
    agreement_of,
    corrected_win_rate,
    human_quality,
    judge_quality,
    mean_kappa,
)
from cpo.evaluation.judging import RuleJudge, Verdict, Verdicts, judge_responses
from cpo.evaluation.labelled import LabelledPairs
from cpo.evaluation.statistics import Estimate, MetricError, win_rate

NAN = math.nan


def labelled(
    labels: Sequence[Sequence[float]] | np.ndarray,
    lengths: Sequence[tuple[int, int]] | None = None,
    prompts: Sequence[str] | None = None,
) -> LabelledPairs:
    """Pairs whose responses have these lengths, by default 2 and 1: "the longer" says A."""
    count = len(labels[0])
    sizes = lengths or [(2, 1)] * count
    names = prompts or [f"prompt {number}" for number in range(count)]
    examples = tuple(
        Example(str(number), name, "b" * of_b, "", {"instruction": name})
        for number, (name, (_, of_b)) in enumerate(zip(names, sizes, strict=True))
    )
    return LabelledPairs("few", examples, tuple("a" * of_a for of_a, _ in sizes), np.array(labels))


def said(verdicts: Sequence[Verdict], exchanged: Sequence[Verdict] = ()) -> Verdicts:
    """Verdicts of a judge who sees response A as A, and as B in the other order."""
    ids = tuple(str(number) for number in range(len(verdicts)))
    return Verdicts("judge-1", ids, ("A",) * len(ids), tuple(verdicts), tuple(exchanged))


# --- By hand --------------------------------------------------------------------------------------


def test_agreement_is_averaged_over_people_and_orders() -> None:
    # Two people on four pairs: A A, A B, tie B, B B.
    pairs = labelled([[1, 1, 0.5, 0], [1, 0, 0, 0]])
    # In order: A, A, tie, B. Exchanged, where B is the pair's A: A, A, nothing valid, A.
    quality = judge_quality(said(["A", "A", "tie", "B"], ["B", "B", "invalid", "B"]), pairs)
    # Of 4, 4, 2 and 4 comparisons agree: all, one person in either order, one person, one order.
    assert quality.agreement.value == pytest.approx((1 + 0.5 + 0.5 + 0.5) / 4)
    assert (quality.pairs, quality.orders, quality.invalid) == (4, 2, 1)
    # The longer response, A: 1, 1/2, 0 and 0 of the labels. So the lead is 0, 0, 1/2 and 1/2.
    assert quality.over_longest.value == pytest.approx(1 / 4)
    # Both people agree on pairs 0 and 3, the judge with them in both orders and in one.
    assert quality.accuracy is not None and quality.pick_a is not None
    assert (quality.accuracy.value, quality.accuracy.n) == (0.75, 2)
    assert quality.pick_a.value == 2 / 6  # A, A, B, B, B, B
    assert quality.flip_rate is not None
    assert (quality.flip_rate.value, quality.flip_rate.n) == (pytest.approx(1 / 3), 3)


def test_a_tie_is_half_right_about_the_better_response() -> None:
    pairs = labelled([[1, 0, 0, 1]] * 3)
    quality = judge_quality(said(["A", "A", "tie", "invalid"]), pairs)
    assert quality.accuracy is not None
    assert quality.accuracy.value == pytest.approx((1 + 0 + 0.5) / 3)
    assert quality.flip_rate is None  # one order only


def test_kappa_by_hand() -> None:
    # 20 + 15 of 50 agree, 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5: (0.7 - 0.5) / 0.5 = 0.4.
    first = [1.0] * 25 + [0.0] * 25 + [NAN]
    second = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15 + [1.0]
    estimate = mean_kappa([first], [second], range(51))
    assert (estimate.value, estimate.n) == (pytest.approx(0.4), 50)
    # With a comparison of perfect agreement, kappa 1: (0.4 + 1) / 2.
    both = mean_kappa([first, first], [second, first], range(51))
    assert both.value == pytest.approx(0.7)


def test_kappa_and_its_interval_are_those_of_two_judges() -> None:
    draw = np.random.default_rng(0)
    first = draw.choice([1.0, 0.5, 0.0], size=400, p=[0.45, 0.15, 0.4])
    second = np.where(draw.random(400) < 0.7, first, draw.permutation(first))
    ours = mean_kappa([first], [second], range(400))
    names = {1.0: "A", 0.5: "tie", 0.0: "B"}
    theirs = statistics.kappa([names[x] for x in first], [names[x] for x in second])
    assert ours.value == pytest.approx(theirs.value)
    ends = (theirs.low, theirs.high)
    assert (ours.low, ours.high) == pytest.approx(ends, abs=0.01)  # asymptotic against drawn


def test_pairs_of_one_prompt_are_drawn_together() -> None:
    # 40 pairs that are ten pairs four times: worth ten.
    one = [1.0] * 7 + [0.0] * 3
    other = [1.0] * 5 + [0.0] * 5
    apart = mean_kappa([one * 4], [other * 4], range(40))
    together = mean_kappa([one * 4], [other * 4], list(range(10)) * 4)
    assert together.value == pytest.approx(apart.value)
    assert together.high - together.low > 1.6 * (apart.high - apart.low)


def test_what_cannot_be_measured() -> None:
    with pytest.raises(MetricError, match="kappa is undefined on 2 pairs: both sides give one"):
        mean_kappa([[1, 1]], [[1, 1]], range(2))
    with pytest.raises(MetricError, match="none of the 2 verdicts of judge-1 is valid: nothing"):
        judge_quality(said(["invalid", "invalid"]), labelled([[1, 0]]))
    np.testing.assert_array_equal(agreement_of([[NAN, 1], [NAN, 0]], [[1, 1], [1, 1]]), [NAN, 0.5])


def test_one_person_against_the_others() -> None:
    # A A A, A A B, B tie B: persons 0 and 1 agree on two of three, 0 and 2 on two, 1 and 2 on one.
    quality = human_quality(labelled([[1, 1, 0], [1, 1, 0.5], [1, 0, 0]]))
    assert quality is not None
    assert quality.agreement.value == pytest.approx((2 + 2 + 1) / 9)
    assert human_quality(labelled([[1, 0]])) is None


# --- Planted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", [0.5, 0.65, 0.9])
def test_a_planted_agreement_is_recovered(planted: float) -> None:
    # Labels are fair coins, as are the errors of the judge: kappa is 2 p - 1.
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, (1, 2000)).astype(float)
    texts = [(2, 1) if coin else (1, 2) for coin in draw.integers(0, 2, 2000)]
    pairs = labelled(labels, texts)
    right = dict(zip((example.id for example in pairs.examples), labels[0], strict=True))

    def rule(example: Example, response_a: str, response_b: str) -> Verdict:
        better_is_a = (right[example.id] == 1) == response_a.startswith("a")
        return "A" if better_is_a == (draw.random() < planted) else "B"

    judge = RuleJudge("planted", rule)
    quality = judge_quality(
        judge_responses(judge, pairs.examples, pairs.responses, orders=2), pairs
    )
    assert quality.agreement.low <= planted <= quality.agreement.high
    assert quality.kappa.low <= 2 * planted - 1 <= quality.kappa.high
    assert quality.agreement.high - quality.agreement.low < 0.035
    assert quality.accuracy is not None
    assert quality.accuracy.value == pytest.approx(quality.agreement.value)
    assert quality.flip_rate is not None
    flips = 2 * planted * (1 - planted)  # right in one order and wrong in the other
    assert quality.flip_rate.low <= flips <= quality.flip_rate.high
    assert quality.beats_longest == (planted > 0.5)


def test_intervals_hold_the_planted_agreement_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(60):
        labels = draw.integers(0, 2, (1, 200)).astype(float)
        verdicts: list[Verdict] = [
            "A" if right else "B" for right in (labels[0] == 1) == (draw.random(200) < 0.7)
        ]
        quality = judge_quality(said(verdicts), labelled(labels))
        for row, (found, truth) in enumerate(((quality.agreement, 0.7), (quality.kappa, 0.4))):
            held[row] += found.low <= truth <= found.high
    assert (held >= 52).all()  # of 60 intervals of 95 %: 57, with a standard error of 1.7


def test_the_baselines_on_pandalm() -> None:
    pairs = real_pairs()

    def of(rule: str) -> tuple[float, float, bool]:
        found = judge_quality(
            judge_responses(rule, pairs.examples, pairs.responses, orders=2), pairs
        )
        return round(found.agreement.value, 3), round(found.kappa.value, 2), found.beats_longest

    assert of("longest") == (0.601, 0.29, False)
    # A letter for each pair, in both orders: half of the labels that are no tie.
    assert of("random")[0] == round((pairs.labels != 0.5).mean() / 2, 3) == 0.446
    people = human_quality(pairs)
    # The mean of the three pairwise kappas, 0.85, 0.88 and 0.86.
    assert people is not None and round(people.kappa.value, 2) == 0.86
    gpt = judge_quality(pairs.recorded_verdicts("gpt-3.5"), pairs)
    assert (gpt.invalid, gpt.agreement.n, gpt.beats_longest) == (25, 974, True)
    assert round(gpt.agreement.value, 3) == 0.706


# --- Corrected for errors -------------------------------------------------------------------------


def exactly(value: float) -> Estimate:
    return Estimate(value, value, value, 1000)


def test_the_correction_is_rogan_and_gladens() -> None:
    # Sensitivity and specificity 0.75: (0.6 + 0.75 - 1) / (0.75 + 0.75 - 1) = 0.35 / 0.5.
    found = corrected_win_rate(Estimate(0.6, 0.56, 0.64, 500), exactly(0.75))
    # A known accuracy stretches the interval by 1 / (2 * 0.75 - 1) = 2.
    assert (found.value, found.low, found.high) == pytest.approx((0.7, 0.62, 0.78))
    assert found.n == 500


def test_the_calibrations_own_error_widens_the_interval() -> None:
    # Fieller with lead 0.1, scale 0.5 and half-widths 0.04 and 2 * 0.05:
    # (0.1 * 0.5 -+ sqrt(0.04^2 * (0.5^2 - 0.1^2) + 0.1^2 * 0.1^2)) / (0.5^2 - 0.1^2)
    # = (0.05 -+ sqrt(0.000384 + 0.0001)) / 0.24 = (0.05 -+ 0.022) / 0.24.
    found = corrected_win_rate(Estimate(0.6, 0.56, 0.64, 500), Estimate(0.75, 0.7, 0.8, 300))
    assert found.value == pytest.approx(0.7)
    assert (found.low, found.high) == pytest.approx((0.5 + 0.028 / 0.24, 0.5 + 0.072 / 0.24))


def test_a_rate_of_one_half_stays_and_none_leaves_its_bounds() -> None:
    assert corrected_win_rate(exactly(0.5), exactly(0.6)).value == 0.5
    # 0.5 + 0.4 / 0.2 is beyond every rate: the judge erred less here than on its own pairs.
    found = corrected_win_rate(exactly(0.9), exactly(0.6))
    assert (found.value, found.low, found.high) == (1, 1, 1)


@pytest.mark.parametrize("accuracy", [(0.55, 0.49, 0.61), (0.5, 0.5, 0.5), (0.3, 0.25, 0.35)])
def test_a_judge_that_may_be_a_coin_corrects_nothing(accuracy: tuple[float, float, float]) -> None:
    with pytest.raises(MetricError, match="is not above one half. Take another judge"):
        corrected_win_rate(exactly(0.6), Estimate(*accuracy, 100))


def test_corrected_intervals_hold_the_planted_win_rate() -> None:
    # People prefer the model on 60 % of the prompts; the judge says what they say on 75 %, so that
    # its own win rate is 0.6 * 0.75 + 0.4 * 0.25 = 0.55.
    draw = np.random.default_rng(0)
    held = held_plainly = 0
    for _ in range(400):
        better = draw.random(800) < 0.6
        points = (better == (draw.random(800) < 0.75)).astype(float)
        accuracy = win_rate((draw.random(300) < 0.75).astype(float))
        found, plain = corrected_win_rate(win_rate(points), accuracy), win_rate(points)
        held += found.low <= 0.6 <= found.high
        held_plainly += plain.low <= 0.6 <= plain.high
    assert 0.92 <= held / 400 <= 0.98
    assert held_plainly / 400 < 0.3
