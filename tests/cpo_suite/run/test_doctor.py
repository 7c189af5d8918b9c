"""The preflight: everything that is missing at once, each with its remedy, before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from chat_server import Answer, ScriptedServer
from hub_server import HubServer
from stand_ins import gpt2_folder, llama_folder
from test_model_folders import change, pickle

from cpo.evaluation import chat
from cpo_suite.estimate import Planned
from cpo_suite.profile import load_profile
from cpo_suite.run import doctor
from cpo_suite.run.runner import BadInput, run_suite

KEY = "CPO_TEST_KEY"


def test_everything_that_the_paper_s_profile_lacks_is_said_at_once(tmp_path):
    """The command itself, on a hub and chat servers on loopback."""
    sound = gpt2_folder(tmp_path / "sound", positions=1024)
    pickled = llama_folder(tmp_path / "pickled", positions=2048)
    pickle(pickled)
    change("tokenizer_config.json", eos_token=None)(pickled)
    change("config.json", quantization_config={"quant_method": "awq", "bits": 4})(pickled)
    models = {"openai-community/gpt2-xl": sound, "openlm-research/open_llama_3b": pickled}
    (tmp_path / "data").mkdir()
    names = ("databricks/databricks-dolly-15k", "wikimedia/wikipedia")
    refused = Answer(status=401, error={"message": "wrong key"})
    with (
        HubServer(models, dict.fromkeys(names, tmp_path / "data")) as hub,
        ScriptedServer(lambda request: refused) as judge,
        ScriptedServer() as writer,
    ):
        hub.gated.add("wikimedia/wikipedia")
        given = [f"judge.server.base_url={judge.url}", f"unhelpful.server.base_url={writer.url}"]
        given += [f"judge.server.api_key_variable={KEY}", "disk_gb=1e9", "memory_gb=1e6"]
        given += [f"unhelpful.server.api_key_variable={KEY}"]
        done = subprocess.run(
            [sys.executable, "-m", "cpo_suite", "doctor", "--profile", "paper"]
            + [part for one in given for part in ("--set", one)],
            env=os.environ
            | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), KEY: "sk-1"}
            | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            capture_output=True,
            text=True,
        )
    said = done.stdout
    assert done.returncode == 1, said + done.stderr
    lines = [line.strip() for line in said.splitlines()]
    for start, remedy in {
        "MISSING  memory: ": "Close other programs",
        "MISSING  disk: ": "set CPO_ARTIFACTS",
        "MISSING  GPU: 0 found (none), 8 needed": "--set gpus=1 --set processes.count=1",
        "MISSING  dataset wikimedia/wikipedia from the hub: gated": (
            "https://huggingface.co/wikimedia/wikipedia"
        ),
        "MISSING  model openlm-research/open_llama_3b from the hub: found: its weights are in "
        "pytorch_model.bin": "./run_all.sh convert openlm-research/open_llama_3b FOLDER",
        "MISSING  model openlm-research/open_llama_3b from the hub: found: its tokenizer has no "
        "EOS": "eos_token",
        "MISSING  model openlm-research/open_llama_3b from the hub: found: its weights are "
        "quantised (awq, 4 bits)": "Give the original model",
        "MISSING  judge.server, gpt-4.1-mini: ": "judge.server: base_url, model",
    }.items():
        places = [number for number, line in enumerate(lines) if line.startswith(start)]
        assert len(places) == 1, (start, said, done.stderr)
        place = places[0]
        assert lines[place + 1].startswith("->") and remedy in lines[place + 1], lines[place + 1]
    for start in (
        "ok       dataset databricks/databricks-dolly-15k from the hub: reachable",
        "ok       model openai-community/gpt2-xl from the hub: reachable",
        "ok       unhelpful.server, gpt-4.1-mini: answers",
        "ok       embedder: ",
    ):
        assert any(line.startswith(start) for line in lines), (start, said)
    # One cheap question to each server, and of the models only what is small.
    assert judge.questions == writer.questions == [chat.TRIAL]
    assert not [name for name in hub.sent if name.endswith((".safetensors", ".bin"))]
    assert "sk-1" not in said + done.stderr


def test_a_server_that_judges_and_writes_is_asked_once(monkeypatch):
    monkeypatch.setenv(KEY, "sk-1")
    with ScriptedServer() as server:
        given = [
            f"{part}.server.{key}"
            for part in ("judge", "unhelpful")
            for key in (f"base_url={server.url}", f"api_key_variable={KEY}")
        ]
        alike = "unhelpful.server.parameters={temperature: 0, max_tokens: 8}"
        findings = list(doctor.chat_models(load_profile("paper", [*given, alike])))
        assert [finding.ok for finding in findings] == [True] * 3  # two keys, one answer
        assert server.questions == [chat.TRIAL]
        # With other parameters it may answer otherwise.
        assert len(list(doctor.chat_models(load_profile("paper", given)))) == 4
        assert [one["max_tokens"] for one in server.requests] == [8, 8, 256]
        # Without a key nothing is sent: that it lacks is said by itself.
        monkeypatch.delenv(KEY)
        findings = list(doctor.chat_models(load_profile("paper", given)))
        assert [finding.detail for finding in findings] == [f"{KEY} is not set"] * 2
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "detail", "remedy"),
    [
        (
            Answer(None, finish_reason="length", message={"reasoning_content": "Hm. " * 5}),
            "its reply is cut off after 20 characters of reasoning, at max_tokens: 8 "
            "(finish_reason length)",
            "Raise judge.server.parameters.max_tokens: a reasoning model",
        ),
        (
            Answer("The letter is", finish_reason="length"),
            "its reply is cut off, at max_tokens: 8",
            "Raise judge.server.parameters.max_tokens",
        ),
        (
            Answer(None),
            "its reply is empty (finish_reason stop)",
            "Raise judge.server.parameters.max_tokens: a reasoning model",
        ),
        (
            Answer(status=400, error={"code": "content_filter", "message": "filtered"}),
            "the prompt is refused (finish_reason content_filter): ",
            "content filter",
        ),
    ],
)
def test_a_server_that_answers_with_nothing_is_a_finding(monkeypatch, answer, detail, remedy):
    monkeypatch.setenv(KEY, "sk-1")
    with ScriptedServer(lambda request: answer) as server:
        given = [f"judge.server.base_url={server.url}", f"judge.server.api_key_variable={KEY}"]
        key, _, found = doctor.chat_models(load_profile("paper", given), [planned(requests=3)])
        asked = server.requests[0]
    assert key.ok and not found.ok
    assert detail in found.detail and remedy in found.remedy
    assert (asked["temperature"], asked["max_tokens"]) == (0, 8)  # the profile's own


def test_a_server_that_is_not_there_is_given_up_soon(monkeypatch):
    monkeypatch.setenv(KEY, "sk-1")
    with ScriptedServer() as gone:
        url = gone.url
    given = [f"judge.server.base_url={url}", f"judge.server.api_key_variable={KEY}"]
    key, _, found = doctor.chat_models(load_profile("paper", given), [planned(requests=3)])
    assert key.ok and not found.ok and f"{url} cannot be reached" in found.detail


@dataclass
class Card:
    name: str = "NVIDIA A100"
    total_memory: float = 85e9


def test_starting_a_divided_training_takes_the_processors_memory(monkeypatch):
    def needed(*overrides: str) -> str:
        return next(
            one.detail
            for one in doctor.advice(load_profile("paper", overrides))
            if one.what == "memory"
        )

    # Each of 8 processes reads 3.43e9 weights of 4 bytes: 102 GiB.
    assert needed("gpu_memory_gb=43").endswith(" 102 GB needed")
    assert needed().endswith(" 64 GB needed")


@pytest.mark.parametrize(
    ("cards", "overrides", "missing"),
    [
        ([Card()] * 8, [], []),
        ([Card()], ["gpus=1", "processes.count=1"], []),
        ([Card()] * 4, [], ["GPU"]),
        ([Card()] * 8, ["processes.count=16"], ["processes"]),
        ([Card()] * 8, ["processes={count: 16, machines: 2}"], []),
        # OpenLlama-3B: 18 bytes of each of 3.43e9 weights, 62 GB, 10 of activations and 1 beside.
        ([Card(total_memory=72e9)] * 8, ["processes.divide=never"], ["GPU memory"]),
        ([Card(total_memory=43e9)] * 8, [], []),  # divided, 27 GB
        ([Card(total_memory=39e9)], ["gpus=1", "processes.count=1"], ["GPU memory"] * 2),
        ([Card(total_memory=79e9)] * 8, ["optimiser.micro_batch_tokens=1024"], []),
        ([Card()] * 8, ["gpu_memory_gb=72", "processes.divide=never"], ["GPU memory"]),
        # GPT2-XL alone is trained: 28 GB, 8 and 1.
        ([Card(total_memory=72e9)] * 8, ["rows=[t1/MLE, t1/ANR]"], []),
    ],
)
def test_gpus_are_counted_and_measured(cards, overrides, missing, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    found = list(doctor._gpus(load_profile("paper", overrides)))
    assert [item.what for item in found if not item.ok] == missing
    assert all(item.remedy for item in found if not item.ok)


def test_a_finished_run_needs_no_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    paper = load_profile("paper")
    made = Planned("model t1/MLE", "model", "ab", True, 0.0, 1.0, 0.0)
    assert all(item.ok for item in doctor.room(paper, [made]) if item.what != "disk")
    unmade = Planned("model t1/PSS", "model", "cd", False, 9.0, 1.0, 0.0)
    assert "GPU" in [item.what for item in doctor.room(paper, [made, unmade]) if not item.ok]


# --- Before a run ---------------------------------------------------------------------------------


def planned(**values: float) -> Planned:
    one = {"seconds": 1.0, "memory_gb": 1.0, "disk_gb": 0.0, "requests": 0, "tokens": 0.0}
    return Planned("verdicts on t1/MLE", "verdicts", "ab", cached=False, **(one | values))


@pytest.fixture
def start(make_notebook, tmp_path, artifacts, monkeypatch):
    """Starts a run of one notebook, which tells that it ran by a file."""
    ran = tmp_path / "ran"
    make_notebook("00_one", f"open({str(ran)!r}, 'w').close()")
    monkeypatch.setenv(KEY, "sk-1")

    def run(url: str, *artifacts: Planned, settings: tuple[str, ...] = ()) -> bool:
        judge = f"judge={{kind: openai, server: {{model: judge-1, base_url: '{url}', "
        ran.unlink(missing_ok=True)
        run_suite(
            "smoke",
            [judge + f"api_key_variable: {KEY}}}}}", *settings],
            root=tmp_path,
            plan=lambda *_: list(artifacts),
        )
        return ran.exists()

    return run


def test_a_run_asks_its_judge_first_and_only_where_there_is_something_to_judge(start):
    with ScriptedServer() as server:
        assert start(server.url)
        assert not server.requests
        assert start(server.url, planned(requests=3))
        assert server.questions == [chat.TRIAL]


def test_a_run_does_not_start_without_its_judge_or_room(start, tmp_path):
    refused = Answer(status=404, error={"message": "no such model"})
    with (
        ScriptedServer(lambda request: refused) as server,
        pytest.raises(BadInput) as said,
    ):
        start(server.url, planned(requests=3, disk_gb=1e9))
    assert "no model 'judge-1'" in str(said.value) and "1e+09 GB needed" in str(said.value)
    assert not (tmp_path / "ran").exists()


def test_little_memory_is_a_note_and_the_disk_counts_what_is_still_to_be_made(start, capsys):
    with ScriptedServer() as server:
        assert start(server.url, settings=("memory_gb=1e6", "disk_gb=1e9"))
    assert "Note: memory: " in capsys.readouterr().out


def test_data_that_cannot_be_planned_with_are_said_beside_the_rest(
    make_notebook, tmp_path, artifacts, monkeypatch
):
    make_notebook("00_one", "1 / 0")

    def plan(*_: object) -> list[Planned]:
        raise ValueError("line 7: malformed")

    monkeypatch.delenv(KEY, raising=False)
    judge = f"judge={{kind: openai, server: {{model: one, api_key_variable: {KEY}}}}}"
    with pytest.raises(BadInput) as said:
        run_suite("smoke", [judge], root=tmp_path, plan=plan)
    assert "line 7: malformed" in str(said.value) and f"{KEY} is not set" in str(said.value)
