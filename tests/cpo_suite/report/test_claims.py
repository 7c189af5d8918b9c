"""Verdicts on the paper's claims: the rule, its arithmetic, and how comparisons are read."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo.evaluation.statistics import Estimate, holm_levels
from cpo_suite.paper import ROWS, Comparison
from cpo_suite.profile import ProfileError, load_profile
from cpo_suite.report import claims
from cpo_suite.report.claims import (
    Outcome,
    bootstrap_difference,
    claims_frame,
    combined,
    decide,
    p_value,
)


def test_comparisons_are_read():
    one = Comparison.parse("t1/MixNR/0.9 - t1/MixNR/0 > t2/MixNR/0.9 - t2/MixNR/0")
    assert one.relation == ">"
    assert one.weights == {
        "t1/MixNR/0.9": 1,
        "t1/MixNR/0": -1,
        "t2/MixNR/0.9": -1,
        "t2/MixNR/0": 1,
    }
    plus_in_a_name = Comparison.parse("x/MixNR+MLE/0.5 ~ t2/MixNR/0.5")
    assert plus_in_a_name.weights == {"x/MixNR+MLE/0.5": 1, "t2/MixNR/0.5": -1}
    chosen = Comparison.parse("best(t3/BNR) >= ends(t3/BNR)")
    assert chosen.rows == ["t3/BNR/0.5", "t3/BNR/0.7", "t3/BNR/0.9", "t3/BNR/0", "t3/MLE"]
    assert Comparison.parse("overhead t2/ANR").rows == ["t2/ANR"]
    with pytest.raises(ValueError, match="is not a comparison"):
        Comparison.parse("t2/ANR beats t2/MLE1")
    with pytest.raises(ValueError, match="there are no ensembles 't9/XX/alpha'"):
        Comparison.parse("best(t9/XX) > t2/ANR")
    with pytest.raises(ValueError, match="unknown row 't2/AR'. Did you mean 't2/ANR'"):
        Comparison.parse("overhead t2/AR")


def test_the_papers_effect_is_of_its_printed_numbers():
    def effect(text):
        return Comparison.parse(text).paper_effect

    assert effect("t2/ANR > t2/MLE1") == pytest.approx(0.643 - 0.505)
    assert effect("t4/BNR/0.3 > t4/MLE") == pytest.approx(0.673 - 0.524)
    assert effect("t1/MixNR/0.9 - t1/MixNR/0 > t2/MixNR/0.9 - t2/MixNR/0") == pytest.approx(
        (0.485 - 0.476) - (0.550 - 0.608)
    )
    # The paper's own best: alpha 0.7 for GPT2-XL, 0.9 on articles, where MLE is the better end.
    assert effect("best(t1/MixNR) >= ends(t1/MixNR)") == pytest.approx(0.487 - 0.476)
    assert effect("best(t3/BNR) >= ends(t3/BNR)") == pytest.approx(0.538 - 0.508)
    # Bars of figure 1 are not printed, one side alone is no effect, and an overhead is no win rate.
    assert effect("f1b/ANR > f1b/BNR") is None
    assert effect("t2/ANR > x/ANR/K5") is None
    assert effect("overhead t2/MixNR/0") is None


def test_claim_13_is_section_5_2s_own():
    assert load_profile("tiny").claims[13] == ("best(t3/BNR) > t3/MLE",)
    assert Comparison.parse("best(t3/BNR) > t3/MLE").paper_effect == pytest.approx(0.030)


def test_an_interval_may_exclude_the_papers_effect():
    def excludes(paper, low=-0.01, high=0.05):
        return Outcome("a > b", "undecided", 0.02, low, high, "", paper).excludes_paper

    assert excludes(0.138) is True and excludes(-0.02) is True
    assert excludes(0.05) is False and excludes(0.0) is False
    assert excludes(None) is None
    assert Outcome("a > b", "not run", paper_effect=0.138).excludes_paper is None


def test_a_profile_with_an_unknown_row_in_a_claim_is_refused():
    with pytest.raises(ProfileError, match=r"claims\.1.*t2/ANRR.*Did you mean 't2/ANR'"):
        load_profile("tiny", ["claims.1=[t2/ANRR > t2/MLE1]"])


def test_every_profile_names_comparisons_of_its_own_rows():
    for name in ("smoke", "tiny", "paper"):
        profile = load_profile(name)
        assert sorted(profile.claims) == list(range(1, 14))
        for texts in profile.claims.values():
            for text in texts:
                assert set(Comparison.parse(text).rows) <= set(profile.rows)


def test_holm_levels_by_hand():
    # Four tests at 0.05: 0.001 <= 0.05/4, 0.015 <= 0.05/3, 0.03 > 0.05/2: stop. The last keeps
    # 0.05/2, though 0.04 <= 0.05/1.
    levels = holm_levels([0.04, 0.001, 0.03, 0.015])
    assert levels == pytest.approx([0.025, 0.0125, 0.025, 0.05 / 3])
    assert holm_levels([]) == []


@settings(deadline=None)  # the first call imports statsmodels
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
def test_holm_decides_as_statsmodels_does(p_values):
    from statsmodels.stats.multitest import multipletests

    with mock.patch("gc.collect"):  # at each call: seconds where objects are many
        rejected = multipletests(p_values, 0.05, "holm")[0]
    ours = [p <= level for p, level in zip(p_values, holm_levels(p_values), strict=True)]
    assert ours == rejected.tolist()


def test_verdicts():
    assert decide(0.001, 0.1, ">") == "holds"
    assert decide(-0.1, -0.001, ">") == "fails"
    assert decide(-0.001, 0.1, ">") == "undecided"
    assert decide(-0.019, 0.1, ">=") == "holds"
    assert decide(-0.1, -0.021, ">=") == "fails"
    assert decide(-0.03, 0.01, ">=") == "undecided"
    assert decide(-0.019, 0.019, "~") == "holds"
    assert decide(0.021, 0.05, "~") == "fails"
    assert decide(-0.01, 0.05, "~") == "undecided"
    assert decide(-0.01, 0.02, "~") == decide(-0.02, 0.1, ">=") == "undecided"
    assert decide(0.0, 0.1, ">") == "undecided"
    # Of a ratio of seconds to tokens; up to 1.15 is "only the larger batch".
    assert decide(1.05, 1.14, "overhead") == "holds"
    assert decide(1.15, 1.15, "overhead") == "holds"
    assert decide(1.10, 1.20, "overhead") == "undecided"
    assert decide(1.16, 1.20, "overhead") == "fails"


def test_a_claim_holds_only_with_all_its_comparisons():
    def of(*verdicts):
        return combined(verdicts)

    assert of("holds", "holds") == "holds"
    assert of("holds", "fails", "undecided") == "fails"
    assert of("holds", "undecided") == "undecided"
    assert of("holds", "not run") == "undecided"
    assert of("not run") == of() == "not run"


def test_a_floor_decides_nothing_for_a_claim():
    assert combined(["uninformative", "uninformative"]) == "uninformative"
    assert combined(["uninformative", "not run"]) == "uninformative"
    assert combined(["uninformative", "holds"]) == "undecided"
    assert combined(["uninformative", "undecided"]) == "undecided"
    assert combined(["uninformative", "fails"]) == "fails"


def test_where_rows_have_no_room_to_differ():
    assert claims.on_a_floor([0.03, 0.049]).startswith("every row wins below 5%")
    assert claims.on_a_floor([0.96, 0.99]).startswith("every row wins above 95%")
    for rates in ([0.03, 0.06], [0.94, 0.99], [0.02, 0.98], [0.05], [0.95], [0.3, 0.6]):
        assert claims.on_a_floor(rates) == ""


class Judged:
    """As much of a `Suite` as the claims by win rate read: wins in the first prompts of 1,000."""

    profile = SimpleNamespace(
        name="trial", seeds=1, judge=SimpleNamespace(kind="oracle"),
        rows=("t2/ANR", "t2/MLE1", "t2/AN", "t3/MLE", "t3/BNR/0.5", "t3/BNR/0.7", "t3/BNR/0.9"),
        claims={
            1: ("t2/ANR > t2/MLE1",), 4: ("t2/ANR > t2/AN",), 2: ("t2/ANR > t2/DPO",),
            13: ("best(t3/BNR) > t3/MLE",),
        },
    )  # fmt: skip
    wins = {
        "t2/ANR": 40, "t2/MLE1": 0, "t2/AN": 400, "t3/MLE": 980, "t3/BNR/0.5": 1000,
        "t3/BNR/0.7": 990, "t3/BNR/0.9": 990,
    }  # fmt: skip

    def verdicts(self, row, decoding, seed, split):
        return SimpleNamespace(points=(np.arange(1000) < self.wins[row]).astype(float))


def test_a_comparison_on_a_floor_is_uninformative_and_never_holds_or_fails():
    outcomes = claims.judge_claims(Judged())
    # 4 % against 0 %, and 100 % against 98 %: intervals above 0, but every row loses, or wins.
    for number in (1, 13):
        (outcome,) = outcomes[number]
        assert outcome.low > 0 and decide(outcome.low, outcome.high, ">") == "holds"
        assert outcome.verdict == "uninformative"
    assert "every row wins below 5%" in outcomes[1][0].note
    assert "best(t3/BNR) is t3/BNR/0.5 by validation prompts" in outcomes[13][0].note
    # One of its rows is off the floor.
    assert outcomes[4][0].verdict == "fails"
    verdicts = claims.verdicts_by_claim(claims_frame(outcomes)).set_index("claim")["verdict"]
    assert verdicts[[1, 2, 4, 13]].tolist() == [
        "uninformative", "not run", "fails", "uninformative",
    ]  # fmt: skip


def test_bootstrap_against_the_normal_approximation():
    values = np.random.default_rng(1).normal(0.1, 1.0, (1, 2000))
    effect, drawn = bootstrap_difference([values])
    assert effect == pytest.approx(values.mean())
    # Standard error of a mean of n draws: sigma / sqrt(n); the bootstrap's own noise is 1 %.
    assert drawn.std() == pytest.approx(values.std() / np.sqrt(2000), rel=0.05)
    # Two independent sets: variances add up.
    both, drawn_both = bootstrap_difference([values, -values])
    assert both == pytest.approx(0.0, abs=1e-12)
    assert drawn_both.std() == pytest.approx(np.sqrt(2) * drawn.std(), rel=0.05)


def test_training_seeds_widen_the_interval():
    generator = np.random.default_rng(2)
    prompts = generator.normal(0, 0.1, 500)
    alike = np.stack([prompts, prompts, prompts])
    apart = alike + np.array([[-0.1], [0.0], [0.1]])
    one = bootstrap_difference([alike[:1]])[1]
    narrow, wide = (bootstrap_difference([points])[1] for points in (alike, apart))
    # Three equal trainings are as sure as one.
    assert narrow.std() == pytest.approx(one.std(), rel=0.02)
    # Seeds of -0.1, 0, 0.1 have a standard error of 0.1 / sqrt(3) = 0.0577, beside which that of
    # the prompts, 0.0045, hardly counts; Student's 97.5 % quantile at 2 degrees of freedom is
    # 4.303, and 0.0577 * 4.303 = 0.248.
    ends = np.percentile(wide, [2.5, 97.5]) - prompts.mean()
    assert ends == pytest.approx([-0.248, 0.248], rel=0.03)
    # Two independent sets of prompts, whose seeds pull against each other.
    effect, cancelled = bootstrap_difference([apart, -apart + prompts])
    assert effect == pytest.approx(prompts.mean())
    assert cancelled.std() < 0.02


def test_p_values():
    drawn = np.linspace(-0.1, 0.9, 1001)  # 10.1 % at or below 0
    assert p_value(drawn, ">") == pytest.approx(2 * 0.101, abs=0.003)
    assert p_value(np.full(1000, 0.5), ">") == 1 / claims.DRAWS
    assert p_value(np.full(1000, 0.0), "~") == 1 / claims.DRAWS
    assert p_value(np.full(1000, 0.5), "~") == 1.0


def test_the_frame_has_a_line_for_every_comparison():
    outcomes = {number: [] for number in claims.CLAIMS} | {
        1: [
            Outcome("a > b", "holds", 0.1, 0.05, 0.2, "", 0.3),
            Outcome("c > d", "undecided", 0.01, -1, 1),
        ]
    }
    frame = claims_frame(outcomes)
    assert list(frame) == [
        "claim", "verdict", "comparison", "effect", "low", "high", "paper_effect",
        "excludes_paper", "note",
    ]  # fmt: skip
    assert frame["claim"].tolist() == [1, *range(1, 14)]
    assert frame.loc[0, ["verdict", "comparison", "effect"]].tolist() == ["holds", "a > b", 0.1]
    assert frame.loc[1, ["verdict", "comparison", "effect"]].tolist() == [
        "undecided", "c > d", 0.01,
    ]  # fmt: skip
    assert frame.loc[0, ["paper_effect", "excludes_paper"]].tolist() == [0.3, True]
    assert frame.loc[1:, ["paper_effect", "excludes_paper"]].isna().all(axis=None)
    assert set(frame["verdict"][2:]) == {"not run"}
    by_claim = claims.verdicts_by_claim(frame)
    assert by_claim["claim"].tolist() == list(range(1, 14))
    assert by_claim["verdict"].tolist() == ["undecided", *["not run"] * 12]
    assert by_claim.loc[0, "comparisons"] == "1 holds, 1 undecided"


def test_rows_without_a_continued_mle_row_do_not_exist():
    from cpo_suite.paper import continued_mle

    for row in ROWS.values():
        mle = continued_mle(row)
        assert (mle.model, mle.task, mle.steps, mle.reference, mle.decoding) == (
            row.model, row.task, row.steps, row.reference, row.decoding,
        )  # fmt: skip


class Measured:
    """As much of a `Suite` as the claims without verdicts per prompt read."""

    profile = SimpleNamespace(seeds=2, continuation=SimpleNamespace(batch=2))

    def __init__(self, passes=1):
        self.passes = passes

    def measures(self, row, seed):
        # Replicates differ between the rows by 0.1, 0.2, 0.3 and are common otherwise.
        common, own = np.array([0.3, 0.7, 0.1]), np.array([0.1, 0.2, 0.3])
        replicates = common + (own if row == "t4/BNR/0.3" else 0)
        value = {"t4/BNR/0.3": 0.6 + 0.2 * seed, "t4/MLE": 0.5}[row]
        return {"mauve": Estimate(value, 0, 1, 6, tuple(replicates))}

    def history(self, row):
        seconds = (6.0, 6.0) if row == "t2/ANR" else (1.0, 2.0)
        return [{"seconds": one} for one in seconds * self.passes]

    def negatives(self, row):
        one = ((1, 2), (3,), ())  # the last is masked
        candidates = [one, ((1, 2), (3, 4, 5), (6,)), one, one]
        return SimpleNamespace(prefixes=[(7, 8)] * 4, candidates=candidates.__getitem__)


def test_a_difference_in_mauve_is_paired_over_halves():
    comparison = Comparison.parse("t4/BNR/0.3 > t4/MLE")
    effect, drawn, *_ = claims._mauve_difference(Measured(), comparison)
    # Values: (0.6 - 0.5 + 0.8 - 0.5) / 2. Halves: the variance of 0.1, 0.2, 0.3 is 0.01; seeds:
    # that of the differences 0.1 and 0.3 is 0.02, over 2 seeds 0.01.
    assert effect == pytest.approx(0.2)
    assert np.median(drawn) == pytest.approx(0.2, abs=0.005)
    # Student's distribution with (0.02 / 0.01)^2 (2 - 1) = 4 degrees of freedom: 2.776.
    assert np.percentile(drawn, 97.5) - 0.2 == pytest.approx(2.776 * np.sqrt(0.02), rel=0.02)


def test_overhead_is_seconds_over_tokens():
    effect, drawn, note, _ = claims._overhead(Measured(), "t2/ANR")
    # Two steps of two prompts. MLE reads 4 + 4 and 4 + 4 tokens, CPO 4 + 3 + 4 + 5 + 3 = 19 and
    # 7 + 7 = 14; 12 s against 3 s, 33 tokens against 16.
    assert effect == pytest.approx((12 / 3) / (33 / 16))
    assert "4.0 times the time for 2.1 times the tokens" in note
    # The three samples of two steps: twice the first, twice the second, both.
    expected = {(6 / 1) / (19 / 8), (6 / 2) / (14 / 8), effect}
    assert set(np.round(drawn, 9)) == set(np.round(sorted(expected), 9))
    # A second pass over both batches costs as much again, and reads as much again.
    effect, _, note, _ = claims._overhead(Measured(passes=2), "t2/ANR")
    assert effect == pytest.approx((24 / 6) / (66 / 32)) and note.startswith("24 against 6 s")
