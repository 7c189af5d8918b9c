"""The result told: five sentences that say what the numbers say, whatever they are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from cpo_suite.paper import MODE_COMPARISONS, Comparison
from cpo_suite.report import told
from cpo_suite.report.claims import ClaimVerdict, Outcome, claims_frame, comparisons_frame
from cpo_suite.report.paired_measures import AGAINST_COLUMNS
from cpo_suite.report.tables import LEARNT_COLUMNS, MEASURE_COLUMNS

GREEDY, TOP_K = "f1a/ANR/greedy > f1a/MLE/greedy", "f1a/ANR/top_k > f1a/MLE/top_k"
RANKING = "t2/ANR > t2/AN"


def outcome(comparison: str, verdict: ClaimVerdict, effect: float, half: float = 0.02) -> Outcome:
    paper = Comparison.parse(comparison).paper_effect
    if verdict == "not run":
        return Outcome(comparison, verdict, paper_effect=paper)
    return Outcome(comparison, verdict, effect, effect - half, effect + half, "", paper)


def claims(
    mle: ClaimVerdict = "undecided", decoding: ClaimVerdict = "undecided",
    ranking: ClaimVerdict = "undecided", effect: float = 0.01,
) -> pd.DataFrame:  # fmt: skip
    return claims_frame({
        1: [outcome("t1/ANR > t1/MLE", "undecided", 0.0), outcome("t2/ANR > t2/MLE1", mle, effect)],
        3: [outcome(GREEDY, decoding, effect), outcome(TOP_K, "holds", 0.03)],
        4: [outcome(RANKING, ranking, effect), outcome("t2/MixNR/0 > t2/MixN", "undecided", 0.0)],
    })  # fmt: skip


def learnt(seeds: int = 1, **rows: tuple[float, float]) -> pd.DataFrame:
    """A frame of rows, each with its accuracy and the change of its loss at the end."""
    lines = [
        (f"t2/{row}", seed, moment, step, 2.0, accuracy, change, change - 0.1, change + 0.1, end)
        for row, (last, fall) in rows.items()
        for seed in range(seeds)
        for step, (moment, share) in enumerate({"start": 0.0, "middle": 0.5, "end": 1.0}.items())
        for accuracy, change, end in [(share * last, share * fall, fall + 0.1 < 0)]
    ]
    return pd.DataFrame(lines, columns=LEARNT_COLUMNS)


def measures(**rows: float) -> pd.DataFrame:
    lines = [
        (name, "win_rate_vs_mle", value, value - 0.02, value + 0.02, 500)
        for name, value in rows.items()
    ]
    return pd.DataFrame(lines, columns=MEASURE_COLUMNS)


NO_ROWS, NOBODY = learnt(), measures()


def test_overlap_and_repetition_are_told_where_they_were_measured() -> None:
    lines = [
        ("t2/ANR", "t2/MLE1", "rouge_l", 0.03, 0.01, 0.05, 500),
        ("t2/AN", "t2/MLE1", "rouge_l", 0.0, -0.02, 0.02, 500),
        ("t2/DPO", "t2/MLE2", "rouge_l", -0.03, -0.05, -0.01, 500),
        ("t2/PSS", "t2/MLE2", "rouge_l", -0.04, -0.06, -0.02, 500),
        ("t2/PSS", "t2/MLE2", "tokens", 9.0, 8.0, 10.0, 500),
    ]
    paired = pd.DataFrame(lines, columns=AGAINST_COLUMNS)
    greedy, beam = MODE_COMPARISONS
    mode = comparisons_frame([outcome(greedy, "holds", 0.1), outcome(beam, "undecided", 0.01)])
    sentences = told.told(claims(), NO_ROWS, NOBODY, paired, mode)
    assert len(sentences) == 5
    assert sentences[2].endswith(
        "; by ROUGE-L, 1 of 4 models are above it, 2 below and 1 undecided."
    )
    assert sentences[3].endswith(
        "; after negatives drawn by the decoder itself, articles repeat themselves less under "
        "greedy (+0.100 [+0.080, +0.120]) and neither more nor less for sure under beam "
        "(+0.010 [-0.010, +0.030])."
    )
    # What was not run is not told.
    not_run = comparisons_frame([outcome(greedy, "not run", 0.0)])
    plain = told.told(claims(), NO_ROWS, NOBODY)
    assert told.told(claims(), NO_ROWS, NOBODY, paired[:0], not_run) == plain


def test_what_is_learnt_is_of_held_out_prompts() -> None:
    frame = learnt(ANR=(0.3, -0.5), AN=(0.05, 0.2), **{"MixNR/0": (0.7, -1.0)})
    first, second, *_ = told.told(claims(), frame, NOBODY)
    assert first == (
        "The contrast is learnt by 2 of 3 contrastive rows: on held-out prompts their loss ends "
        "below its start; that is not shown for Llama, AN unranked (+0.20)."
    )
    # The best and the least of those that are learnt.
    assert "for Llama, MixN ranked, the most, and on 30 % for Llama, AN ranked, the least" in second
    first, second, *_ = told.told(claims(), learnt(seeds=3, ANR=(0.3, -0.5)), NOBODY)
    assert first == (
        "The contrast is learnt by 1 of 1 contrastive rows: on held-out prompts their loss ends "
        "below its start with each of 3 seeds."
    )
    assert second.endswith("on 30 % of held-out prompts for Llama, AN ranked.")


def test_nothing_learnt_is_said() -> None:
    first, second, *_ = told.told(claims(), learnt(ANR=(0.08, -0.01), AN=(0.05, 0.2)), NOBODY)
    assert first == (
        "The contrast is learnt by none of 2 contrastive rows; that is not shown for Llama, "
        "AN ranked (-0.01) and Llama, AN unranked (+0.20)."
    )
    assert second.startswith("Nothing is learnt") and second.endswith("on 8 % at most.")


def test_an_improvement_stands_beside_the_papers() -> None:
    models = measures(**{"t2/ANR": 0.54, "t2/AN": 0.47, "t1/ANR": 0.51, "t2/MixN": 0.5})
    third = told.told(claims("holds", effect=0.069), NO_ROWS, models)[2]
    # 0.069 of 0.643 - 0.505 = 0.138, which lies above 0.089; 0 is no share of 0.035.
    assert third == (
        "Answers are better than those of continued MLE in 1 of 2 comparisons: GPT-2: AN ranked > "
        "MLE +0.000 [-0.020, +0.020], against the paper's +0.035, outside the interval; Llama: "
        "AN ranked > MLE1 +0.069 [+0.049, +0.089], 50 % of the paper's +0.138, outside the "
        "interval; head to head, 1 of 4 models beat it, 1 lose to it and 2 are undecided."
    )


def test_a_judge_that_people_do_not_confirm_is_said_to_decide_nothing() -> None:
    judge = {"judge": "local", "agreement": 0.457, "pairs": 999, "beats_longest": False}
    rules = [{"judge": "longest", "agreement": 0.601}, {"judge": "random", "agreement": 0.446}]
    third = told.told(claims(), NO_ROWS, NOBODY, judge=[judge, *rules])[2]
    assert (
        " (verdicts of a judge that agrees with people on 0.457 of 999 pairs, longest on 0.601 and "
        "random on 0.446, so they decide nothing)"
    ) in third
    believed = told.told(claims(), NO_ROWS, NOBODY, judge=[judge | {"beats_longest": True}])
    assert believed == told.told(claims(), NO_ROWS, NOBODY)


@pytest.mark.parametrize(
    ("verdict", "beginning"),
    [
        ("undecided", "None of 2 comparisons shows answers better than those of continued MLE: "),
        ("uninformative", "None of 2 comparisons shows answers better"),
        ("fails", "Answers are worse than those of continued MLE in 1 of 2 comparisons: "),
        ("not run", "None of 1 comparison shows answers better"),
    ],
)
def test_a_result_against_cpo_or_none_is_said(verdict: ClaimVerdict, beginning: str) -> None:
    third = told.told(claims(verdict, effect=-0.06), NO_ROWS, NOBODY)[2]
    assert third.startswith(beginning)
    assert third.endswith("; no judge compared the two head to head.")


def test_a_floor_says_nothing_about_the_papers_effect() -> None:
    third = told.told(claims("uninformative", effect=0.0), NO_ROWS, NOBODY)[2]
    assert "Llama: AN ranked > MLE1 +0.000 [-0.020, +0.020]; no judge" in third


def test_decodings_are_sorted_by_their_verdict() -> None:
    fourth = told.told(claims(decoding="undecided"), NO_ROWS, NOBODY)[3]
    assert fourth == (
        "The gain over continued MLE is shown under top-k +0.030 [+0.010, +0.050]; it is undecided "
        "under greedy +0.010 [-0.010, +0.030]."
    )
    fourth = told.told(claims(decoding="fails", effect=-0.05), NO_ROWS, NOBODY)[3]
    assert "it is a loss under greedy -0.050" in fourth
    fourth = told.told(claims(decoding="not run"), NO_ROWS, NOBODY)[3]
    assert fourth.endswith("it was not measured under greedy.")


@pytest.mark.parametrize(
    ("verdict", "beginning"),
    [
        (
            "holds",
            "Ranking is the reason: Llama: AN ranked > AN unranked +0.083 [+0.063, +0.103], "
            "100 % of",
        ),
        ("fails", "Ranking is not the reason, it does harm: "),
        ("undecided", "Whether ranking is the reason is undecided: "),
        ("uninformative", "Whether ranking is the reason cannot be told, since every row"),
        ("not run", "Whether ranking is the reason was not measured."),
    ],
)
def test_the_reason_is_ranking_or_not(verdict: ClaimVerdict, beginning: str) -> None:
    fifth = told.told(claims(ranking=verdict, effect=0.083), NO_ROWS, NOBODY)[4]
    assert fifth.startswith(beginning)


def test_ranking_is_the_reason_only_of_a_gain() -> None:
    frame = claims(ranking="holds", effect=0.083)
    frame = frame[frame["claim"] == 4]
    assert told.told(frame, NO_ROWS, NOBODY)[4].startswith("Ranking is a help: ")


def test_the_control_stands_beside_the_ranking() -> None:
    models = measures(**{"t2/ANR": 0.52, "x/ANR-oracle": 0.56})
    fifth = told.told(claims(), NO_ROWS, models)[4]
    assert fifth.endswith(
        "; head to head against continued MLE, the row wins 0.520 [0.500, 0.540], with a perfect "
        "ranking, the control, 0.560 [0.540, 0.580]."
    )


def test_the_folder_of_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = {
        "claims": claims("holds", effect=0.069), "learnt": learnt(ANR=(0.3, -0.5)),
        "measures": measures(**{"t2/ANR": 0.54}),
    }  # fmt: skip
    for name, frame in frames.items():
        frame.to_csv(tmp_path / f"{name}.csv", index=False, float_format="%.6g")
    told.main([str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == told.told(*frames.values())
    (tmp_path / "judge_quality.json").write_text(
        '[{"judge": "local", "agreement": 0.457, "pairs": 999, "beats_longest": false}]'
    )
    told.main([str(tmp_path)])
    assert "agrees with people on 0.457" in capsys.readouterr().out


def test_a_folder_without_tables_is_told_as_not_measured(tmp_path: Path) -> None:
    sentences = told.told_of(tmp_path)
    assert len(sentences) == 5
    assert all("not measured" in sentence for sentence in sentences)
    assert not any("nan" in sentence for sentence in sentences)
    assert len(set(sentences)) == 5


def test_the_committed_run_can_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    told.main(["tiny"])
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 5 and "nan" not in said
