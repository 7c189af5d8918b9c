"""What the plan says of time: shared out or not, on all GPUs and on one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpo.engine.files import MANIFEST
from cpo_suite import estimate
from cpo_suite.estimate import Cost, Planned
from cpo_suite.profile import load_profile
from cpo_suite.run.dry_run import artifacts_table, to_build, totals
from cpo_suite.store import Store
from cpo_suite.suite import Suite


def plan(folder: Path, *overrides: str) -> dict[str, Planned]:
    """The paper's artifacts by name, without its data or models."""
    suite = Suite.stated(load_profile("paper", overrides), Store(folder), folder)
    return {item.name: item for item in suite.plan()}


def test_what_is_shared_out_takes_less_time_and_no_fewer_gpu_hours(tmp_path):
    eight = plan(tmp_path)
    one = plan(tmp_path, "processes.count=1", "gpus=1")
    assert eight.keys() == one.keys()
    for name, item in one.items():
        assert item.alone == item.seconds == eight[name].alone
        # No GPU is used while a chat model answers.
        assert item.gpu_hours == pytest.approx(0 if item.requests else item.seconds / 3600)
    shared = eight["model t2/MixNR/0"]
    # An eighth of the time, but for half a second, 8e-9 s for each of 3.43e9 weights, the launch.
    fixed = 0.5 + 8e-9 * 3.43e9
    expected = (shared.alone - fixed) / 8 + fixed + estimate.LAUNCH_SECONDS
    assert shared.seconds == pytest.approx(expected)
    assert shared.gpu_hours == pytest.approx(8 * expected / 3600)
    # Measures and ensembles are made by one process, wherever.
    for name in ("measures of t2/MixNR/0", "model t2/MixNR/0.5"):
        assert eight[name].seconds == one[name].seconds
        assert eight[name].gpu_hours == pytest.approx(one[name].gpu_hours)


def test_a_training_is_counted_by_its_tokens_and_steps(tmp_path):
    one = plan(tmp_path, "processes.count=1")
    suite = Suite.stated(load_profile("paper"), Store(tmp_path), tmp_path)
    prefix, continuation = suite.cost_model.tokens("instructions")
    # 1,000 steps of 64 prefixes and 12 continuations each, and 900 tokens for the step itself.
    tokens = 1000 * (64 * (prefix + 12 * continuation) + 900)
    expected = tokens / 6060 + 0.5 + 8e-9 * 3.43e9
    assert one["model t2/MixNR/0"].seconds == pytest.approx(expected)
    # Prefixes alone are as long for MLE, with one continuation.
    tokens = 1000 * (64 * (prefix + continuation) + 900)
    assert one["model t2/MLE2"].seconds == pytest.approx(tokens / 6060 + 0.5 + 8e-9 * 3.43e9)


def test_decoding_is_counted_by_its_way(tmp_path):
    one = plan(tmp_path, "processes.count=1")
    fixed = 0.5 + 8e-9 * 3.43e9
    greedy, top_k, top_p, beam = (
        one[f"generations of f1a/MLE/{way}"].seconds - fixed
        if way != "greedy"
        else one["generations of t2/MLE1"].seconds - fixed  # the same model, decoded alike
        for way in ("greedy", "top_k", "top_p", "beam")
    )
    assert top_k == pytest.approx(greedy) and top_p == pytest.approx(greedy)
    assert beam == pytest.approx(4 * 2.5 * greedy)


@pytest.mark.parametrize(
    ("parameters", "reply"),
    [
        ("{temperature: 0}", 2),
        ("{max_tokens: 8}", 8),
        ("{max_completion_tokens: 4000, reasoning_effort: low}", 4000),
    ],
)
def test_a_judge_s_replies_are_as_long_as_its_parameters_allow(parameters, reply, tmp_path):
    judge = "{kind: openai, orders: 2, server: {model: m, usd_per_million_output: 5.0, "
    judge += f"usd_per_million_input: 1.0, parameters: {parameters}}}}}"
    profile = load_profile("smoke", [f"judge={judge}"])
    planner = Suite.stated(profile, Store(tmp_path), tmp_path).cost_model
    cost = planner.judging(profile.judge, prompts=100, prefix=30, response=50)
    # Both orders of 100 prompts; 60 tokens of template, the prefix and two responses.
    assert cost.requests == 200
    assert cost.tokens == 200 * (60 + 30 + 2 * 50 + reply)
    assert cost.usd == pytest.approx(200 * (190 * 1e-6 + reply * 5e-6))


@pytest.mark.parametrize("orders", [1, 2])
def test_a_judging_model_of_the_profile_costs_a_pass_over_each_question(orders, tmp_path):
    place = "../cpo_suite/world/models/llama"
    settings = [f"models.llama.pretrained={place}"]
    settings += [f"judge={{kind: local, model: {place}, orders: {orders}}}"]
    profile = load_profile("tiny", settings)
    planner = Suite.stated(profile, Store(tmp_path), tmp_path).cost_model
    cost = planner.judging(profile.judge, prompts=100, prefix=30, response=50)
    # 60 tokens of template, the prefix and two responses, three times as fast as in training.
    assert cost.seconds == pytest.approx(orders * 100 * (60 + 30 + 2 * 50) / (3 * 11000))
    other = profile.judge.model_copy(update={"model": "org/another"})
    assert planner.judging(other, prompts=100, prefix=30, response=50) == Cost()


def test_what_is_made_costs_nothing_more(tmp_path):
    suite = Suite.stated(load_profile("paper"), Store(tmp_path), tmp_path)
    built = suite.store.path(suite.reference_artifact("gpt2", "reference"))
    built.mkdir(parents=True)
    (built / MANIFEST).write_text("{}")
    planned = {item.name: item for item in suite.plan()}
    made = planned["reference/gpt2"]
    assert made.cached and made not in to_build([*planned.values()])
    # Neither its line nor the totals have anything of what it would take.
    [line] = artifacts_table([made]).splitlines()[1:]
    assert line.split() == ["reference/gpt2", "model", "cached"]
    assert "1 artifacts, 1 cached, 0 to build: about 0 s" in totals(suite.profile, [made])
