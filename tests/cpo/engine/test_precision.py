"""Which precision `auto` stands for: measured once a machine, and stable from then on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cpo.engine import machine, precision
from cpo.engine.precision import Measured
from cpo_suite import precision as profile_precision
from cpo_suite.profile import ROOT, Profile, load_profile
from cpo_suite.store import Store
from cpo_suite.suite import Suite

NO_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
MEASURE = """
import torch
from cpo.engine import precision
measured = precision.measure(768)
print(torch.ops.mkldnn._is_mkldnn_bf16_supported(), measured.fp32, measured.bf16, measured.faster)
"""


def fresh_process(**variables: str) -> list[str]:
    """What MEASURE prints in a process of its own: libraries read the variables when they load."""
    kept = {name: value for name, value in os.environ.items() if name not in NO_BF16}
    return subprocess.run(
        [sys.executable, "-c", MEASURE],
        env=kept | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


@pytest.mark.skipif(machine.device() != "cpu", reason="of processors")
def test_a_processor_without_bf16_instructions_takes_fp32():
    supported, fp32, bf16, faster = fresh_process(**NO_BF16)
    # Products fall back on plain loops: 0.2 to 12 GFLOP/s where fp32 has 30 and more.
    assert supported == "False" and faster == "fp32" and float(bf16) < float(fp32) / 2


@pytest.mark.skipif(machine.device() != "cpu", reason="of processors")
@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bf16 instructions here"
)
def test_a_processor_with_bf16_instructions_takes_what_is_faster():
    supported, fp32, bf16, faster = fresh_process()
    assert supported == "True"
    assert faster == ("bf16" if float(bf16) > 1.15 * float(fp32) else "fp32")
    # Twice as many operations in an instruction, less the casts of the fp32 weights and what a new
    # shape takes.
    assert float(bf16) > float(fp32)


@pytest.mark.parametrize(("bf16", "faster"), [(40.0, "fp32"), (114.0, "fp32"), (116.0, "bf16")])
def test_bf16_has_to_be_clearly_faster(bf16, faster):
    assert Measured("cpu", "one", 100.0, bf16).faster == faster


def answers(monkeypatch: pytest.MonkeyPatch, *speeds: tuple[float, float]) -> list[Measured]:
    """Let `measure` return these, fp32 and bf16, one after the other."""
    left = [Measured("cpu", "one", fp32, bf16) for fp32, bf16 in speeds]
    monkeypatch.setattr(precision, "measure", lambda width: left.pop(0))
    return left


def test_it_is_measured_once_for_each_kind_of_machine(tmp_path, monkeypatch):
    left = answers(monkeypatch, (100, 200), (100, 50))
    for _ in range(2):
        assert profile_precision.measured_for(smoke(), tmp_path).faster == "bf16"
    assert len(left) == 1
    monkeypatch.setattr(machine, "fingerprint", lambda: "another processor")
    assert profile_precision.measured_for(smoke(), tmp_path).faster == "fp32"
    monkeypatch.undo()  # what is known of the first is still known
    assert len(json.loads((tmp_path / "machine.json").read_text())) == 2


def test_what_limits_the_instructions_makes_another_machine(monkeypatch):
    for name in NO_BF16:
        monkeypatch.delenv(name, raising=False)
    plain = machine.fingerprint()
    assert machine.name() in plain and torch.__version__ in plain
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    if machine.device() == "cpu":
        assert machine.fingerprint() != plain


def test_it_is_measured_at_the_width_of_the_profile_s_widest_model(tmp_path, monkeypatch):
    widths = []

    def measure(width: int) -> Measured:
        widths.append(width)
        return Measured("cpu", "one", 100.0, 200.0, width)

    monkeypatch.setattr(precision, "measure", measure)
    for overrides in ([], ["models.llama.width=640"], ["models.llama.width=640"]):
        profile_precision.measured_for(smoke(*overrides), tmp_path)
    own = max(model.shape[0] for model in smoke().models.values())
    assert own and widths == [own, 640]
    wide = smoke("models.llama.width=640")
    assert "at width 640" in str(profile_precision.measured_for(wide, tmp_path))
    # Of a model from elsewhere a profile may say no width.
    paper = load_profile("paper", ["gpus=0", "models.gpt2.width=null"])
    profile_precision.measured_for(paper, tmp_path)
    assert widths[-1] == 3200
    paper = load_profile("paper", ["gpus=0", "models.llama.width=null"])
    profile_precision.measured_for(paper, tmp_path)
    assert widths[-1] == 1600


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"x": {}}'])
def test_a_damaged_file_is_measured_again(tmp_path, monkeypatch, damage):
    (tmp_path / "machine.json").write_text(damage)
    answers(monkeypatch, (100, 200))
    for _ in range(2):
        assert profile_precision.measured_for(smoke(), tmp_path).faster == "bf16"


def smoke(*overrides: str) -> Profile:
    return load_profile("smoke", overrides)


def test_recipes_name_the_precision_and_never_auto(tmp_path, monkeypatch):
    answers(monkeypatch, (100, 200))
    suite = Suite.stated(smoke(), Store(tmp_path), tmp_path)
    assert suite.profile.optimiser.precision == "bf16"
    assert suite.base_artifact("llama").describe()["precision"] == "bf16"
    for name in ("bf16", "fp32"):  # obeyed, and nothing is measured
        named = Suite.stated(smoke(f"optimiser.precision={name}"), Store(tmp_path), tmp_path)
        assert named.profile.optimiser.precision == name
        same = named.base_artifact("llama").key == suite.base_artifact("llama").key
        assert same == (name == "bf16")


def test_a_profile_for_gpus_is_planned_in_bf16_where_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "device", lambda: "cpu")
    paper = load_profile("paper")
    assert profile_precision.resolved(paper, tmp_path).optimiser.precision == "bf16"
    assert "this machine has none" in profile_precision.statement(paper, tmp_path)
    assert not (tmp_path / "machine.json").exists()


def test_the_much_slower_precision_is_taken_and_warned_of(tmp_path, monkeypatch):
    answers(monkeypatch, (100, 1))
    slow = smoke("optimiser.precision=bf16")
    assert profile_precision.resolved(slow, tmp_path) == slow
    said = profile_precision.statement(slow, tmp_path)
    measured_as = "a core of this processor, at width 1024: 100 GFLOP/s in fp32, 1 in bf16"
    assert said.startswith(f"precision: bf16 ({measured_as})")
    assert "100 times as slow" in said and said.count("\n") == 1
    for taken in (smoke(), smoke("optimiser.precision=fp32")):
        assert "slow" not in profile_precision.statement(taken, tmp_path)
    # From twice as slow on.
    answers(monkeypatch, (100, 51))
    assert "slow" not in profile_precision.statement(slow, Path(tmp_path / "another"))


def test_the_record_says_what_was_asked_taken_and_measured(tmp_path, monkeypatch):
    answers(monkeypatch, (100, 30.04))
    assert profile_precision.record(smoke(), tmp_path) == {
        "asked": "auto",
        "taken": "fp32",
        "device": "one",
        "fp32_gflops": 100.0,
        "bf16_gflops": 30.0,
    }


def test_apples_gpu_is_left_alone_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    answers(monkeypatch, (100, 50))
    assert machine.device() == "cpu"
    assert "mps" in profile_precision.statement(smoke(), tmp_path)
