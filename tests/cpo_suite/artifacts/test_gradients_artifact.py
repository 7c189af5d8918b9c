"""Gradients of a suite's negatives: what they are made of, and their place in the plan."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_suite import opened

from cpo.losses import cpo_loss, ranked_cpo_loss
from cpo_suite.artifacts.gradients import UNTRUNCATED
from cpo_suite.estimate import Speeds
from cpo_suite.profile import load_profile
from cpo_suite.suite import Suite

SMALL = [
    "models.llama.pretraining.steps=3",
    "reference={steps: 3, batch: 8, learning_rate: 1e-3}",
    "continuation.batch=8",
    "continuation.steps={long: 3, short: 2, ablation: 2, articles: 2}",
    "optimiser.precision=fp32",
    "rows=[t2/ANR, t2/MixNR/0]",
    "claims={}",
]


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Suite:
    return opened(tmp_path_factory.mktemp("suite"), SMALL)


def test_each_kind_is_measured_on_the_prompts_that_all_have(suite):
    measured = suite.gradients()
    assert list(measured.measures) == ["MLE", "AN", "ANR", "BN", "MN", "TN"]
    for kind in ("AN", "ANR", "BN", "MN", "TN"):
        measures = measured.measures[kind]
        assert set(measures) == {"cosine", "length", "negative", "common"}
        assert all(one.n == 16 for one in measures.values())  # 2 steps of 8, of AN; MixN has 3
        assert measures["length"].value > 0
    # 1 - 1/K: three AN, and one of each other kind, in this profile, masked columns apart.
    assert measured.truth_weights["BN"] == pytest.approx(1 / 2)
    assert 2 / 3 < measured.truth_weights["AN"] <= 3 / 4
    assert suite.gradients() == measured  # as it was stored


def test_advantages_are_those_of_the_losses_on_the_stored_candidates(suite):
    artifact = suite.gradients_artifact()
    autoregressive, *mixed = artifact._candidates(suite.store)
    sets = suite.negatives("t2/ANR")
    logps = torch.tensor(sets.reference_logps[:16], dtype=torch.float64)
    order = torch.tensor(sets.order[:16].astype("int64"))
    assert (order != torch.arange(4)).any()  # else nothing shows that columns are put back
    for kind, loss, columns in (
        ("AN", cpo_loss, torch.arange(4).expand(16, -1)),
        ("ANR", ranked_cpo_loss, order),
    ):
        leaf = logps.clone().requires_grad_()
        rows = [one.gather(1, columns) for one in (leaf, logps, autoregressive.mask)]
        loss(rows[0], rows[1], 1.0, rows[2]).backward()
        torch.testing.assert_close(-leaf.grad, autoregressive.advantages[kind] / 16)
    for one in mixed:
        [(kind, weights)] = one.advantages.items()
        used = [name for name in suite.negatives("t2/MixNR/0").kinds if name in ("truth", kind)]
        assert used == ["truth", kind] and int((weights != 0).any(0).sum()) == 2


def test_untruncated_an_is_a_kind_of_its_own(suite):
    artifact = suite.gradients_artifact()
    both = dataclasses.replace(artifact, untruncated=artifact.autoregressive, mixed=None)
    assert both.key != artifact.key
    measures = suite.store.load(both).measures
    assert list(measures) == ["MLE", "AN", "ANR", UNTRUNCATED]
    for name, estimate in measures["AN"].items():
        assert measures[UNTRUNCATED][name].value == pytest.approx(estimate.value, rel=1e-4)


def test_the_plan_has_them_once_with_their_cost(suite):
    planned = [one for one in suite.plan() if one.stage == "gradients"]
    assert [one.name for one in planned] == ["gradients at reference/llama"]
    paper = Suite.stated(load_profile("paper"), suite.store, suite.output)
    artifact, costs = paper.gradients_artifact(), paper.cost_model
    assert (artifact.prompts, artifact.chunks) == (512, 8)
    prefix, continuation = costs.tokens("instructions")
    # Forward 1 and backward 2 of each token: five thirds of a training step for AN, which serve two
    # kinds, one for the rest. Prefixes are read for either half of the negatives.
    one_pass = 512 * (2 * prefix + 12 * continuation)
    kinds = 5 / 3 + 1 + (artifact.untruncated is not None)
    speeds: Speeds = costs.speeds("llama")
    assert artifact.cost(costs).seconds == pytest.approx(kinds * one_pass / speeds.contrast)


def test_without_such_rows_there_is_nothing_to_measure(suite):
    profile = suite.profile.model_copy(update={"rows": ("t1/MLE",), "claims": {}})
    other = Suite(profile, suite.store, suite.output)
    assert other.gradients_artifact() is None and other.gradients() is None
    assert not [one for one in other.plan() if one.stage == "gradients"]
    profile = suite.profile.model_copy(update={"rows": ("t2/MixNR/0",)})
    artifact = Suite(profile, suite.store, suite.output).gradients_artifact()
    assert artifact.autoregressive is None and artifact.mixed is not None
