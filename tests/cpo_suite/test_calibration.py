"""Speeds of this machine: measured with the suite's own code, once, and remembered."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from cpo import training
from cpo_suite import calibration
from cpo_suite.estimate import Speeds
from cpo_suite.profile import load_profile
from cpo_suite.store import Store
from cpo_suite.suite import Suite


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.setattr(calibration, "measurable", lambda profile, model: True)
    monkeypatch.setattr(calibration, "LARGEST_STEP", 256)
    monkeypatch.setattr(calibration, "DECODED_ROWS", 4)
    profile = load_profile("smoke", ["optimiser.precision=fp32"])
    return Suite.stated(profile, Store(tmp_path), tmp_path)


def test_every_kind_of_work_is_timed_and_remembered(suite, monkeypatch):
    def all_speeds(of: Suite) -> dict[str, Speeds]:
        return {name: of.cost_model.speeds(name) for name in of.profile.models}

    speeds = all_speeds(suite)
    for one in speeds.values():
        rates = dataclasses.asdict(one).values()
        assert all(math.isfinite(rate) and rate > 0 for rate in rates)
    remembered = json.loads((suite.store.root / "machine.json").read_text())
    assert sum(key.startswith("speeds ") for kept in remembered.values() for key in kept) == len(
        speeds
    )

    def measured_again(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(calibration, "_measure", measured_again)
    again = Suite.stated(suite.profile, suite.store, suite.output)
    assert all_speeds(again) == speeds
    # Other lengths are another measurement.
    longer = load_profile("smoke", ["optimiser.precision=fp32", "reference.batch=4"])
    with pytest.raises(AssertionError, match="measured again"):
        all_speeds(Suite.stated(longer, suite.store, suite.output))


def test_timing_leaves_no_trace(suite):
    seen: list[object] = []

    def watcher(*told: object) -> None:
        seen.append(told)

    training.WATCHERS.append(watcher)
    threads = torch.get_num_threads()
    try:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(1)
        expected = [random.random(), np.random.random(), torch.rand(1).item()]
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(1)
        suite.cost_model.speeds("gpt2")
        assert [random.random(), np.random.random(), torch.rand(1).item()] == expected
        assert not seen and list(training.WATCHERS) == [watcher]
    finally:
        training.WATCHERS.remove(watcher)
    assert torch.get_num_threads() == threads


def test_several_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    shared = load_profile("smoke", ["processes.count=2"])
    assert calibration._threads(shared) == 4
    two_machines = ["processes.count=2", "processes.machines=2"]
    assert calibration._threads(load_profile("smoke", two_machines)) == 8


def test_a_profile_for_other_hardware_states_its_speeds(tmp_path):
    paper = Suite.stated(load_profile("paper"), Store(tmp_path), tmp_path)
    model = paper.profile.models["gpt2"]
    assert not calibration.measurable(paper.profile, model)
    assert paper.cost_model.speeds("gpt2").training == model.training_tokens_per_second
