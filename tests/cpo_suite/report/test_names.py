"""Rows and comparisons in words."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest

from cpo_suite.paper import COMPARISONS, MODE_COMPARISONS, ROWS, Row
from cpo_suite.report.names import _ID, comparison_name, mixture_name, row_name


@pytest.mark.parametrize(
    ("row_id", "name"),
    [
        ("t1/MLE", "GPT-2, MLE"),
        ("t2/AN", "Llama, AN unranked"),
        ("t2/MixNR/0.1", "Llama, MixN ranked, alpha 0.1"),
        ("t3/BNR/0", "Llama, BN ranked, articles"),
        ("f1a/ANR/top_k", "Llama, AN ranked, top-k"),
        ("f1b/MNR", "Llama, MN ranked, ablation"),
        ("x/ANR/K2", "Llama, AN ranked, K = 2"),
        ("x/MixNR+MLE/0.5", "Llama, MixN ranked + 0.5 MLE"),
        ("x/mode/ANR-beam/beam", "Llama, beam AN ranked, articles, beam search"),
        ("articles_reference/llama", "Llama, articles reference"),
        ("own/SNR", "SNR"),
        ("something else", "something else"),
    ],
)
def test_a_row_has_a_name(row_id: str, name: str) -> None:
    assert row_name(row_id) == name


def test_rows_of_one_name_are_one_model_decoded_alike() -> None:
    def bare(row: Row) -> Row:
        return replace(row, id="", paper=None, alpha=row.alpha or None)

    alike: dict[str, set[Row]] = {}
    for row in ROWS.values():
        alike.setdefault(row_name(row.id), set()).add(bare(row))
    assert {name: rows for name, rows in alike.items() if len(rows) > 1} == {}


@pytest.mark.parametrize(
    ("comparison", "name"),
    [
        ("t2/ANR > t2/MLE1", "Llama: AN ranked > MLE1"),
        ("f1a/ANR/top_p > f1a/MLE/top_p", "Llama, top-p: AN ranked > MLE"),
        ("t2/ANR > x/ANR/K5", "Llama: AN ranked > AN ranked (K = 5)"),
        (
            "best(t3/BNR) >= ends(t3/BNR)",
            "Llama, articles: best ensemble of BN ranked >= its better end",
        ),
        ("overhead t2/MixNR/0", "Llama: overhead of MixN ranked"),
        (
            "t2/ANR - t2/MLE1 > x/small/ANR - x/small/MLE",
            "Llama AN ranked - Llama MLE1 > small Llama AN ranked - small Llama MLE",
        ),
        ("no comparison named", "no comparison named"),
    ],
)
def test_a_comparison_says_once_what_its_rows_share(comparison: str, name: str) -> None:
    assert comparison_name(comparison) == name


def test_every_comparison_has_a_name_of_its_own_without_an_id() -> None:
    comparisons = [*chain(*COMPARISONS.values()), *MODE_COMPARISONS]
    names = [comparison_name(one) for one in comparisons]
    assert len(set(names)) == len(names)
    assert not any(_ID.search(name) for name in names)


def test_a_mixture_is_a_sum_of_kinds() -> None:
    assert mixture_name({"BN": 2, "MN": 3, "TN": 2}) == "2 BN + 3 MN + 2 TN"
    assert mixture_name({"AN-untruncated": 7}) == "7 untruncated AN"
