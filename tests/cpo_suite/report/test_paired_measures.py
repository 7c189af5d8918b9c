"""Measures against continued MLE: paired by prompt, by halves and over seeds, in one family."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cpo.evaluation.statistics import Array, Estimate, paired_difference, token_mean_loss
from cpo_suite.paper import ROWS
from cpo_suite.report import captions
from cpo_suite.report.paired_measures import (
    AGAINST_COLUMNS,
    degeneration_frame,
    differences,
    measures_against_mle,
)

N = 300
BASE = np.random.default_rng(0).normal(0.3, 0.1, N)  # what is common to a prompt's responses
WEIGHTS = np.random.default_rng(1).integers(1, 40, N).astype(float)
# By how much a row is above continued MLE, on average; its noise is its own.
GAINS = {"t2/ANR": 0.05, "t2/AN": 0.0, "t2/DPO": -0.05, "t2/PSS": 0.002}


class Suite:
    """As much of a suite as paired measures read."""

    def __init__(self, seeds: int = 1, samplings: int = 0) -> None:
        names = ("t2/MLE1", "t2/MLE2", *GAINS)
        rows = [ROWS[name] for name in names]
        self.profile: Any = SimpleNamespace(
            trained_rows=rows, rows=names, seeds=seeds, sampled_rows=rows,
            samplings=[f"sampling/{seed}" for seed in range(samplings)],
        )  # fmt: skip

    def responses(self, row: str, seed: int = 0, decoding: str | None = None) -> dict[str, Array]:
        own = np.random.default_rng([*f"{row}/{seed}/{decoding}".encode()]).normal(0, 0.02, N)
        values = BASE + GAINS.get(row, 0.0) + own + (1.0 if decoding else 0.0)
        return {"rouge_l": values, "held_out_loss": 2 + values, "recorded_tokens": WEIGHTS}

    def measures(self, row: str, seed: int = 0, decoding: str | None = None) -> dict[str, Estimate]:
        common, own = np.array([0.3, 0.7, 0.1]), np.array([0.1, 0.2, 0.3])
        ours = tuple(common + (own if row == "t2/ANR" else 0))
        value = 0.6 + (0.2 if row == "t2/ANR" else 0.0)
        # Without replicates a measure has no pairs: it belongs to single responses.
        return {"mauve": Estimate(value, 0, 1, N, ours), "rouge_l": Estimate(0.3, 0, 1, N)}


def test_a_measure_of_responses_is_paired_by_prompt() -> None:
    suite = Suite()
    found = differences(suite, ROWS["t2/ANR"])  # type: ignore[arg-type]
    ours, theirs = suite.responses("t2/ANR"), suite.responses("t2/MLE1")
    gap = ours["rouge_l"] - theirs["rouge_l"]
    assert found["rouge_l"].by_seed == pytest.approx([gap.mean()])
    assert found["rouge_l"].over_prompts == pytest.approx(gap.var(ddof=1) / N)
    bootstrap = paired_difference(ours["rouge_l"], theirs["rouge_l"])
    low, high = np.percentile(found["rouge_l"].drawn[1], [2.5, 97.5])
    assert (low, high) == pytest.approx((bootstrap.low, bootstrap.high), abs=2e-4)
    # What the prompts have in common, ten times the models' own noise, has cancelled.
    assert high - low < 0.2 * 2 * 1.96 * BASE.std() / np.sqrt(N) * 2


def test_the_held_out_loss_weighs_tokens_and_not_responses() -> None:
    suite = Suite()
    found = differences(suite, ROWS["t2/DPO"])["held_out_loss"]  # type: ignore[arg-type]
    ours, theirs = (suite.responses(row)["held_out_loss"] for row in ("t2/DPO", "t2/MLE2"))
    expected = token_mean_loss(-(ours - theirs) * WEIGHTS, WEIGHTS)
    assert found.by_seed == pytest.approx([expected.value])
    low, high = np.percentile(found.drawn[1], [2.5, 97.5])
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=3e-4)


def test_a_measure_of_all_responses_is_paired_by_halves() -> None:
    found = differences(Suite(), ROWS["t2/ANR"])  # type: ignore[arg-type]
    # By hand: the halves differ by 0.1, 0.2 and 0.3, whose variance is 0.01.
    assert found["mauve"].by_seed == pytest.approx([0.2])
    assert found["mauve"].over_prompts == pytest.approx(0.01)
    assert list(found) == ["rouge_l", "held_out_loss", "mauve"]


def test_every_model_once_in_a_family_for_each_measure() -> None:
    frame = measures_against_mle(Suite())  # type: ignore[arg-type]
    assert list(frame.columns) == AGAINST_COLUMNS
    rouge = frame[frame["measure"] == "rouge_l"].set_index("row")
    assert rouge["against"].to_dict() == {
        "t2/ANR": "t2/MLE1", "t2/AN": "t2/MLE1", "t2/DPO": "t2/MLE2", "t2/PSS": "t2/MLE2",
    }  # fmt: skip
    assert rouge.loc["t2/ANR", "low"] > 0 > rouge.loc["t2/DPO", "high"]
    assert rouge.loc["t2/AN", "low"] < 0 < rouge.loc["t2/AN", "high"]
    # Holm: the clearest of four has the level 0.05 / 4, 2.498 standard errors either way.
    single = differences(Suite(), ROWS["t2/ANR"])["rouge_l"]  # type: ignore[arg-type]
    half = (rouge.loc["t2/ANR", "high"] - rouge.loc["t2/ANR", "low"]) / 2
    assert half / np.sqrt(single.over_prompts) == pytest.approx(2.498, rel=0.02)
    text = captions.caption(frame, SimpleNamespace(name="trial", seeds=1))  # type: ignore[arg-type]
    assert "differences to continued MLE" in text and "random halves" in text


def test_sampling_seeds_are_averaged_by_prompt_and_training_seeds_widen() -> None:
    one = differences(Suite(), ROWS["t2/ANR"])["rouge_l"]  # type: ignore[arg-type]
    suite = Suite(samplings=5)
    five = differences(suite, ROWS["t2/ANR"], suite.profile.samplings)  # type: ignore[arg-type]
    assert "held_out_loss" not in five  # nothing of it is sampled
    # The mean of five independent samples varies a fifth as much.
    assert five["rouge_l"].over_prompts == pytest.approx(one.over_prompts / 5, rel=0.3)
    frame = measures_against_mle(suite)  # type: ignore[arg-type]
    assert {"rouge_l", "sampled_rouge_l", "sampled_mauve"} <= set(frame["measure"])
    three = differences(Suite(seeds=3), ROWS["t2/ANR"])["rouge_l"]  # type: ignore[arg-type]
    assert three.by_seed.shape == (3,)
    assert three.over_prompts == pytest.approx(one.over_prompts / 3, rel=0.3)


def test_without_rows_of_the_mode_there_is_no_table_of_it() -> None:
    frame = degeneration_frame(Suite())  # type: ignore[arg-type]
    assert isinstance(frame, pd.DataFrame) and frame.empty
