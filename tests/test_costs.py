"""What the plan says of time: shared out or not, on all GPUs and on one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpo import costs
from cpo.costs import Planned
from cpo.profiles import load_profile
from cpo.stated import StatedSuite
from cpo.store import Store


def plan(folder: Path, *overrides: str) -> dict[str, Planned]:
    """The paper's artifacts by name, without its data or models."""
    suite = StatedSuite(load_profile("paper", overrides), Store(folder), folder)
    return {item.name: item for item in suite.plan()}


def test_what_is_shared_out_takes_less_time_and_no_fewer_gpu_hours(tmp_path):
    eight = plan(tmp_path)
    one = plan(tmp_path, "processes.count=1", "gpus=1")
    assert eight.keys() == one.keys()
    for name, item in one.items():
        assert item.alone == item.seconds == eight[name].alone
        assert item.gpu_hours == pytest.approx(item.seconds / 3600)
    shared = eight["model t2/MixNR/0"]
    # Apart from a second, 8e-9 s for each of 3.43e9 weights and the launch, an eighth of the time.
    fixed = 1.0 + 8e-9 * 3.43e9
    expected = (shared.alone - fixed) / 8 + fixed + costs.LAUNCH_SECONDS
    assert shared.seconds == pytest.approx(expected)
    assert shared.gpu_hours == pytest.approx(8 * expected / 3600)
    # Measures and ensembles are made by one process, wherever.
    for name in ("measures of t2/MixNR/0", "model t2/MixNR/0.5"):
        assert eight[name].seconds == one[name].seconds
        assert eight[name].gpu_hours == pytest.approx(one[name].gpu_hours)


def test_a_training_is_counted_by_its_tokens_and_steps(tmp_path):
    one = plan(tmp_path, "processes.count=1")
    suite = StatedSuite(load_profile("paper"), Store(tmp_path), tmp_path)
    prefix, continuation = costs._mean_tokens(suite)["instructions"]
    # 1,000 steps of 64 prefixes and 12 continuations each, and 900 tokens for the step itself.
    tokens = 1000 * (64 * (prefix + 12 * continuation) + 900)
    expected = tokens / 6060 + 1.0 + 8e-9 * 3.43e9
    assert one["model t2/MixNR/0"].seconds == pytest.approx(expected)
    # Prefixes alone are as long for MLE, with one continuation.
    tokens = 1000 * (64 * (prefix + continuation) + 900)
    assert one["model t2/MLE2"].seconds == pytest.approx(tokens / 6060 + 1.0 + 8e-9 * 3.43e9)


def test_decoding_is_counted_by_its_way(tmp_path):
    one = plan(tmp_path, "processes.count=1")
    fixed = 1.0 + 8e-9 * 3.43e9
    greedy, top_k, top_p, beam = (
        one[f"generations of f1a/MLE/{way}"].seconds - fixed
        if way != "greedy"
        else one["generations of t2/MLE1"].seconds - fixed  # the same model, decoded alike
        for way in ("greedy", "top_k", "top_p", "beam")
    )
    assert top_k == pytest.approx(greedy)
    assert top_p == pytest.approx(2.5 * greedy) and beam == pytest.approx(4 * 2.5 * greedy)


def test_what_is_made_costs_nothing_more(tmp_path):
    suite = StatedSuite(load_profile("paper"), Store(tmp_path), tmp_path)
    recipe = suite.reference_recipe("gpt2", "reference")
    suite.store.get_or_make(recipe, lambda folder: None)
    made = {item.name: item for item in suite.plan()}["reference/gpt2"]
    assert made.made and (made.seconds, made.alone, made.gpu_hours) == (0, 0, 0)
