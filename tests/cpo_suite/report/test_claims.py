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


def test_a_profile_with_an_unknown_row_in_a_claim_is_refused():
    with pytest.raises(ProfileError, match=r"claims\.1.*t2/ANRR.*Did you mean 't2/ANR'"):
        load_profile("tiny", ["claims.1=[t2/ANRR > t2/MLE1]"])


def test_every_profile_names_comparisons_of_its_own_rows():
    for name in ("smoke", "tiny", "paper"):
        profile = load_profile(name)
        assert sorted(profile.claims) == list(range(1, 13))
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
        return combined([Outcome(str(i), verdict) for i, verdict in enumerate(verdicts)])

    assert of("holds", "holds") == "holds"
    assert of("holds", "fails", "undecided") == "fails"
    assert of("holds", "undecided") == "undecided"
    assert of("holds", "not run") == "undecided"
    assert of("not run") == of() == "not run"


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
    narrow, wide = (bootstrap_difference([one])[1].std() for one in (alike, apart))
    # The mean of 3 draws with replacement from (-0.1, 0, 0.1) has a standard deviation of
    # sqrt(2/3) * 0.1 / sqrt(3) = 0.0471.
    assert wide == pytest.approx(np.hypot(narrow, 0.0471), rel=0.05)


def test_p_values():
    drawn = np.linspace(-0.1, 0.9, 1001)  # 10.1 % at or below 0
    assert p_value(drawn, ">") == pytest.approx(2 * 0.101, abs=0.003)
    assert p_value(np.full(1000, 0.5), ">") == 1 / claims.DRAWS
    assert p_value(np.full(1000, 0.0), "~") == 1 / claims.DRAWS
    assert p_value(np.full(1000, 0.5), "~") == 1.0


def test_the_frame_shows_the_comparison_that_decided():
    outcomes = {number: [] for number in claims.CLAIMS} | {
        1: [Outcome("a > b", "holds", 0.1, 0.05, 0.2), Outcome("c > d", "undecided", 0.01, -1, 1)]
    }
    frame = claims_frame(outcomes)
    assert frame["claim"].tolist() == list(range(1, 13))
    assert frame.loc[0, ["verdict", "comparison", "effect"]].tolist() == [
        "undecided", "c > d", 0.01,
    ]  # fmt: skip
    assert "a > b: holds +0.100 [+0.050, +0.200]" in frame.loc[0, "note"]
    assert set(frame["verdict"][1:]) == {"not run"}


def test_rows_without_a_continued_mle_row_do_not_exist():
    from cpo_suite.paper import continued_mle

    for row in ROWS.values():
        mle = continued_mle(row)
        assert (mle.model, mle.task, mle.steps, mle.reference, mle.decoding) == (
            row.model, row.task, row.steps, row.reference, row.decoding,
        )  # fmt: skip


class Measured:
    """As much of a `Suite` as the claims without verdicts per prompt read."""

    profile = SimpleNamespace(seeds=2)

    def measures(self, row, seed):
        # Replicates differ between the rows by 0.1, 0.2, 0.3 and are common otherwise.
        common, own = np.array([0.3, 0.7, 0.1]), np.array([0.1, 0.2, 0.3])
        replicates = common + (own if row == "t4/BNR/0.3" else 0)
        value = {"t4/BNR/0.3": 0.6 + 0.2 * seed, "t4/MLE": 0.5}[row]
        return {"mauve": Estimate(value, 0, 1, 6, tuple(replicates))}

    def history(self, row):
        return [{"seconds": one} for one in ((6.0, 6.0) if row == "t2/ANR" else (1.0, 2.0))]

    def negatives(self, row):
        one = ((1, 2), (3,), ())  # the last is masked
        candidates = [one, ((1, 2), (3, 4, 5), (6,)), one, one]
        return SimpleNamespace(prefixes=[(7, 8)] * 4, candidates=candidates.__getitem__)


def test_a_difference_in_mauve_is_paired_over_halves():
    comparison = Comparison.parse("t4/BNR/0.3 > t4/MLE")
    effect, drawn, _ = claims._mauve_difference(Measured(), comparison)
    # Values: (0.6 - 0.5 + 0.8 - 0.5) / 2. Halves: the variance of 0.1, 0.2, 0.3 is 0.01; seeds:
    # that of the differences 0.1 and 0.3 is 0.02, over 2 seeds 0.01.
    assert effect == pytest.approx(0.2)
    assert drawn.mean() == pytest.approx(0.2, abs=0.005)
    assert drawn.std() == pytest.approx(np.sqrt(0.02), rel=0.02)


def test_overhead_is_seconds_over_tokens():
    effect, drawn, note = claims._overhead(Measured(), "t2/ANR")
    # Two steps of two prompts. MLE reads 4 + 4 and 4 + 4 tokens, CPO 4 + 3 + 4 + 5 + 3 = 19 and
    # 7 + 7 = 14; 12 s against 3 s, 33 tokens against 16.
    assert effect == pytest.approx((12 / 3) / (33 / 16))
    assert "4.0 times the time for 2.1 times the tokens" in note
    # The three samples of two steps: twice the first, twice the second, both.
    expected = {(6 / 1) / (19 / 8), (6 / 2) / (14 / 8), effect}
    assert set(np.round(drawn, 9)) == set(np.round(sorted(expected), 9))
