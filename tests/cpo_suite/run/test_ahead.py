"""The second process of a run: when it starts, what it builds, and that it ends with the run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from filelock import FileLock

from cpo.engine import machine
from cpo_suite.estimate import Planned
from cpo_suite.profile import load_profile
from cpo_suite.run import ahead
from cpo_suite.run.invocation import Run
from cpo_suite.suite import Suite

SETTINGS = [
    "optimiser.precision=fp32", "leaves_out=[t1, t3, t4, f1a, f1b, x]", "reference.steps=1",
]  # fmt: skip
PRINT = "import torch; from cpo.engine.machine import *; print(torch.get_num_threads(), "


def planned(seconds: float) -> Planned:
    return Planned("model t1/ANR", "model", "aa", False, seconds, 1.0, 1.0)


@pytest.fixture
def run_of(tmp_path, monkeypatch):
    """A run of `tiny` on eight idle threads with 64 GiB, and whatever a test changes."""
    monkeypatch.setattr(machine, "threads", lambda: 8)
    monkeypatch.setattr(machine, "free_memory_gib", lambda: 64.0)

    def make(seconds: float = 3600, whole: bool = True, *settings: str) -> Run:
        profile = load_profile("tiny", settings)
        return Run("tiny", list(settings), profile, tmp_path, [], whole, whole, [planned(seconds)])

    return make


def test_a_long_whole_run_is_shared(run_of, monkeypatch):
    assert ahead.suits(run_of())
    assert not ahead.suits(run_of(seconds=60))
    assert not ahead.suits(run_of(whole=False))  # one notebook needs part of the plan
    assert not ahead.suits(run_of(3600, True, "processes.count=2"))
    asked = run_of()
    asked.alone = True
    assert not ahead.suits(asked)
    monkeypatch.setattr(machine, "threads", lambda: 1)
    assert not ahead.suits(run_of())


def test_a_machine_with_memory_for_one_process_builds_in_one(run_of, monkeypatch):
    needed = load_profile("tiny").memory_gb
    for free, shared in ((2 * needed + 0.1, True), (2 * needed - 0.1, False)):
        monkeypatch.setattr(machine, "free_memory_gib", lambda free=free: free)
        assert ahead.suits(run_of()) == shared


def test_a_gpu_is_not_shared(run_of, monkeypatch):
    monkeypatch.setattr(machine, "device", lambda: "cuda")
    assert not ahead.suits(run_of())


def test_kernels_take_half_of_the_threads_and_measure_the_same_machine(
    run_of, artifacts, monkeypatch
):
    monkeypatch.setattr(ahead, "__name__", "platform")  # a module that prints and ends
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    monkeypatch.setattr(machine, "threads", lambda: 2)
    before = dict(os.environ)
    with ahead.building(run_of()) as give_back_threads:
        command = [sys.executable, "-c", PRINT + "threads())"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert shown.split() == ["1", "2"]
        deadline = time.monotonic() + 60
        while dict(os.environ) != before:  # until the second process has ended
            give_back_threads()
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert dict(os.environ) == before
    assert (artifacts / "ahead-tiny.log").is_file()


def test_a_second_process_that_fails_is_told_of(run_of, artifacts, monkeypatch, capsys):
    monkeypatch.setattr(ahead, "__name__", "no_such_module")
    with ahead.building(run_of()) as give_back_threads:
        deadline = time.monotonic() + 60
        while machine.THREADS in os.environ:
            give_back_threads()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        give_back_threads()
    told = [line for line in capsys.readouterr().out.splitlines() if "ended with code" in line]
    assert len(told) == 1 and "ahead-tiny.log" in told[0]
    assert "no_such_module" in (artifacts / "ahead-tiny.log").read_text()


@pytest.fixture
def process(artifacts, tmp_path) -> Iterator[Any]:
    """The second process of a small run of `smoke`, which prints to `printed`."""
    command = [sys.executable, "-m", "cpo_suite.run.ahead", "smoke", str(tmp_path), *SETTINGS]
    with open(tmp_path / "printed", "w") as file:
        started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file)
    yield started
    started.kill()
    started.communicate()


@pytest.mark.slow
def test_it_builds_everything_but_waits_for_what_another_process_builds(
    process, artifacts, tmp_path
):
    suite = Suite.open("smoke", SETTINGS)
    reference = suite.reference_artifact("llama")
    suite.store.path(reference).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{suite.store.path(reference)}.lock"):
        deadline = time.monotonic() + 120
        while not any((artifacts / "base_model").glob("*/manifest.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(2)
        assert suite.store.find(reference) is None and process.poll() is None
    assert process.wait(300) == 0, (tmp_path / "printed").read_text()
    assert all(suite.store.find(step) for step in suite.artifacts())


def test_it_ends_when_the_run_is_killed(process, tmp_path):
    process.stdin.close()  # as the system does with a dead process's pipes
    assert process.wait(60) == 1
    assert "Traceback" not in (tmp_path / "printed").read_text()  # not of an error of its own


def test_what_asks_a_chat_model_is_left_to_the_notebooks(tmp_path, artifacts):
    from cpo_suite.store import Store

    suite = Suite.stated(load_profile("paper", ["gpus=0"]), Store(artifacts), tmp_path)
    stages = {step.stage for step in ahead.free_of_charge(suite)}
    assert "model" in stages and not stages & {"verdicts", "unhelpful"}
    titles = {step.title for step in ahead.free_of_charge(suite)}
    assert "model t1/ANR" in titles and "model t1/DPO" not in titles  # needs written responses
