"""Sentences under plots say what the numbers say; with the signs swapped, the opposite."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from cpo_suite.report.findings import (
    NAMED,
    contrast_finding,
    finding,
    highest_finding,
    levels_finding,
)
from cpo_suite.report.tables import LEARNT_COLUMNS

LINES = [("A", 0.02, 0.004, 0.036), ("B", -0.03, -0.05, -0.01), ("C", 0.001, -0.01, 0.012)]


def test_what_an_interval_decides_is_named_and_the_rest_counted() -> None:
    assert finding("Gain over MLE", LINES) == (
        "Gain over MLE: above 0 for A +0.020 [+0.004, +0.036]; below 0 for B -0.030 [-0.050, "
        "-0.010]; undecided for 1 of 3."
    )


def test_swapped_signs_swap_the_sides() -> None:
    swapped = [(name, -value, -high, -low) for name, value, low, high in LINES]
    said, opposite = finding("Gain", LINES), finding("Gain", swapped)
    assert "above 0 for A" in said and "below 0 for B" in said
    assert "above 0 for B" in opposite and "below 0 for A" in opposite


def test_a_win_rate_is_held_against_one_half() -> None:
    rates = [("A", 0.53, 0.51, 0.55), ("B", 0.47, 0.45, 0.49), ("C", 0.52, 0.49, 0.55)]
    assert finding("Win rate", rates, 0.5, "wins, above", "loses, below") == (
        "Win rate: wins, above 0.5 for A 0.530 [0.510, 0.550]; loses, below 0.5 for B 0.470 "
        "[0.450, 0.490]; undecided for 1 of 3."
    )


@pytest.mark.parametrize("end", [0.0, -0.01])
def test_an_interval_that_reaches_the_level_decides_nothing(end: float) -> None:
    assert finding("Gain", [("A", 0.02, end, 0.04)]) == "Gain: undecided for A."


def test_many_are_named_by_the_largest_alone() -> None:
    lines = [(f"R{place}", place / 10, place / 20, place / 5) for place in range(1, NAMED + 3)]
    said = finding("Gain", lines)
    assert said.startswith(f"Gain: above 0 for R{NAMED + 2} ") and said.endswith("and 2 more.")


def test_what_was_not_measured_is_said() -> None:
    assert finding("Gain", [("A", math.nan, math.nan, math.nan)]) == (
        "Gain: not measured in this run."
    )
    assert contrast_finding(pd.DataFrame(columns=LEARNT_COLUMNS)) == (
        "Held-out contrast: not measured in this run."
    )


@pytest.mark.parametrize(
    ("change", "half_width", "outcome"),
    [(-0.2, 0.1, "learnt"), (0.2, 0.3, "not shown to be learnt"), (0.2, 0.1, "grew worse")],
)
def test_a_contrast_is_told_from_start_to_end(
    change: float, half_width: float, outcome: str
) -> None:
    ends = change - half_width, change + half_width
    lines = [
        (
            "t2/ANR",
            seed,
            moment,
            step,
            1.6 + share * change,
            0.5,
            share * change,
            *ends,
            ends[1] < 0,
        )
        for seed in (0, 1)
        for step, (moment, share) in enumerate({"start": 0.0, "middle": 0.5, "end": 1.0}.items())
    ]
    said = contrast_finding(pd.DataFrame(lines, columns=LEARNT_COLUMNS))
    assert said == (
        f"Held-out contrast, from start to end: Llama, AN ranked 1.60 to {1.6 + change:.2f}, "
        f"{outcome}."
    )


def test_the_highest_point_of_a_curve_stands_beside_its_ends() -> None:
    curve = pd.Series({0.0: 0.48, 0.5: 0.53, 0.9: 0.51, 1.0: 0.5})
    assert highest_finding("MixN ranked", curve, (0.0, 1.0)) == (
        "MixN ranked: highest at alpha 0.5, 0.530; 0.480 at 0 and 0.500 at 1."
    )
    assert "highest at alpha 0, -0.480" in highest_finding("x", -curve, (0.0, 1.0))
    nothing = pd.Series({0.0: math.nan})
    assert highest_finding("x", nothing, (0.0, 1.0)) == "x: not measured in this run."


GRADES = {"classification": 0.34, "closed questions": 0.44, "creative writing": 0.93}


def test_the_lowest_and_the_highest_value_are_named() -> None:
    assert levels_finding("Mean grade", GRADES) == (
        "Mean grade: lowest 0.340 for classification; highest 0.930 for creative writing."
    )
    assert levels_finding("Gap", {"A": 0.13, "B": 0.27}, "smallest", "largest", "+.1f") == (
        "Gap: smallest +0.1 for A; largest +0.3 for B."
    )


def test_opposite_values_swap_the_ends() -> None:
    opposite = {name: -value for name, value in GRADES.items()}
    assert levels_finding("Mean grade", opposite) == (
        "Mean grade: lowest -0.930 for creative writing; highest -0.340 for classification."
    )


def test_values_that_print_alike_share_an_end() -> None:
    values = {"UN": 0.0, "MN": 0.479, "BN": 0.0001, "TN": 0.0}
    assert levels_finding("Copies", values) == (
        "Copies: lowest 0.000 for UN, BN and TN; highest 0.479 for MN."
    )
    many = {f"R{place}": 0.0 for place in range(NAMED + 1)} | {"A": 0.5, "B": 0.5}
    assert levels_finding("Copies", many) == (
        f"Copies: lowest 0.000 for {NAMED + 1} of them; highest 0.500 for A and B."
    )
    assert levels_finding("Tied", dict.fromkeys("ABC", 0.0)) == "Tied: 0.000 for all 3."


def test_ends_are_of_what_was_measured() -> None:
    assert levels_finding("Grade", {"A": math.nan, "B": 0.5}) == "Grade: 0.500 for B."
    assert levels_finding("Grade", {"A": math.nan}) == "Grade: not measured in this run."
    assert levels_finding("Grade", {}) == "Grade: not measured in this run."
