"""What `make` builds, of which rows and stages, in one process and in several."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from chat_server import ScriptedServer
from stand_ins import gpt2_folder, llama_folder, write_articles, write_dolly
from test_suite import SMALL

from cpo_suite.__main__ import main
from cpo_suite.profile import ProfileError, load_profile
from cpo_suite.run import make
from cpo_suite.run.selection import selected
from cpo_suite.store import Store
from cpo_suite.suite import Suite

KEY = "CPO_TEST_KEY"


def planned(folder: Path, *settings: str) -> Suite:
    """The paper's plan, without its data or models."""
    return Suite.stated(load_profile("paper", settings), Store(folder), folder)


def titles(suite: Suite, *only: str) -> list[str]:
    return [artifact.title for artifact in selected(suite, only)]


def test_a_table_alone_is_what_its_rows_share(tmp_path):
    suite = planned(tmp_path)
    chosen = selected(suite, ["t1"])
    alone = planned(tmp_path, "leaves_out=[t2, t3, t4, f1a, f1b, x]")
    assert [item.key for item in chosen] == [item.key for item in selected(alone)]
    assert {item.model_name for item in chosen} == {"gpt2"}
    assert {item.stage for item in chosen} == {"model", "negatives", "generations"}
    assert {item.key for item in chosen} < {item.key for item in selected(suite)}


def test_a_row_needs_its_reference_and_its_negatives(tmp_path):
    assert titles(planned(tmp_path), "t2/ANR") == [
        "reference/llama",
        "generations of reference/llama",
        "negatives of t2/ANR",
        "negatives of t2/ANR, held out",
        "model t2/ANR",
        "generations of t2/ANR",
    ]


def test_a_prefix_is_of_whole_parts_and_names_add_up(tmp_path):
    suite = planned(tmp_path)
    models = [title for title in titles(suite, "x/ANR", "t1/MLE") if title.startswith("model ")]
    assert models == ["model t1/MLE", "model x/ANR/K2", "model x/ANR/K5"]  # no other x/ANR-...
    both = titles(suite, "t1/MLE", "unhelpful")
    assert both.count("unhelpful responses for t1/DPO") == 2  # train and held out
    assert "unhelpful responses for t2/DPO" in both and "model t1/DPO" not in both


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("t1/ANX", "t1/ANR"),
        ("t7", "t4"),
        ("t2/MixN/0.5", "t2/MixNR/0.5"),
        ("negative", "negatives"),
    ],
)
def test_what_is_not_in_the_plan_is_refused_with_the_nearest(name, nearest, tmp_path):
    with pytest.raises(ProfileError, match=f"no stage '{name}'. Did you mean '{nearest}'"):
        selected(planned(tmp_path), ["t2/ANR", name])


def built(artifacts: Path) -> dict[str, int]:
    """Stages with their number of artifacts."""
    folders = [path.parent.parent.name for path in artifacts.glob("*/*/manifest.json")]
    return {stage: folders.count(stage) for stage in sorted(set(folders))}


def given(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.mark.slow
def test_the_command_builds_a_row_and_nothing_else(artifacts, capsys):
    settings = [*SMALL, "continuation.held_out_batches=0"]
    assert main(["make", "--profile", "smoke", *given(settings), "--only", "t2/ANR"]) == 0
    assert built(artifacts) == {
        "base_model": 3,  # judged prompts fit every model: all tokenizers are needed
        "generations": 2,
        "model": 2,
        "negatives": 1,
        "world": 1,
    }
    assert "build: model t2/ANR" in capsys.readouterr().out
    assert main(["make", "--profile", "smoke", *given(settings), "--only", "t2/ANRR"]) == 2
    assert "Did you mean 't2/ANR'" in capsys.readouterr().err


def stand_ins(folder: Path) -> list[str]:
    """Settings that put small folders of models and data into the paper's profile."""
    pairs, articles = write_dolly(folder / "dolly", 60), write_articles(folder / "wikipedia", 30)
    settings = [f"instructions.path={pairs.parent}", f"articles.path={articles.parent}"]
    settings += ["instructions.validation_rows=8", "instructions.test_prompts=12"]
    for name, write in {"gpt2": gpt2_folder, "llama": llama_folder}.items():
        settings.append(f"models.{name}.pretrained={write(folder / name)}")
    steps = "{long: 2, short: 2, ablation: 2, articles: 2}"
    return [*settings, "continuation.batch=8", f"continuation.steps={steps}"]


def test_a_chat_model_writes_without_gpus(tmp_path, artifacts, monkeypatch, capsys):
    monkeypatch.setenv(KEY, "sk-1")
    with ScriptedServer(lambda request: "I would rather not say.") as server:
        settings = [*stand_ins(tmp_path), f"unhelpful.server.base_url={server.url}"]
        settings += [f"unhelpful.server.api_key_variable={KEY}"]
        command = ["make", "--profile", "paper", *given(settings)]
        assert main([*command, "--only", "unhelpful"]) == 0
        asked = len(server.requests)
        assert built(artifacts) == {"unhelpful": 2} and asked  # of table 1 and of table 2
        assert main([*command, "--only", "unhelpful"]) == 0
        assert len(server.requests) == asked
        capsys.readouterr()
        # The rest is for GPUs: eight, by the profile, and there is none.
        assert main([*command, "--only", "t1/DPO"]) == 2
    said = capsys.readouterr().err
    assert "reference/gpt2 and " in said and "need GPUs" in said and "set gpus=0" in said
    assert built(artifacts) == {"unhelpful": 2}


@pytest.fixture
def several(monkeypatch) -> list[list[str]]:
    """`make` as the first of two processes, which builds nothing; the titles that it would."""
    would_build: list[list[str]] = []
    monkeypatch.setattr(make, "process_count", lambda: 2)
    monkeypatch.setattr(make, "is_main_process", lambda: True)
    monkeypatch.setattr(
        make, "build", lambda suite, chosen: would_build.append([one.title for one in chosen])
    )
    return would_build


def test_several_processes_say_that_they_wait_for_a_writer(several, tmp_path, artifacts, capsys):
    settings = [*stand_ins(tmp_path), "gpus=0"]
    assert main(["make", "--profile", "paper", *given(settings), "--only", "t1"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "unhelpful" in line]
    assert line.startswith("1 set is missing of unhelpful responses, which a chat model now writes")
    assert "while 2 processes wait" in line
    command = "python -m cpo_suite make --profile paper --set "
    assert command in line and line.endswith("--set gpus=0 --only unhelpful")
    assert "model t1/DPO" in several[0] and not [one for one in several[0] if "unhelpful" in one]
    # Rules take no time, and other rows need none.
    for more in (["--only", "t1/MLE"], ["--set", "unhelpful.writer=other_response"]):
        assert main(["make", "--profile", "paper", *given(settings), *more]) == 0
        assert "unhelpful" not in capsys.readouterr().out


def test_several_processes_leave_to_one_what_one_builds(several, tmp_path, artifacts, capsys):
    arguments = ["make", "--profile", "smoke", "--only", "measures", "--only", "t1/MLE"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "One process builds measures, without `accelerate launch`" in said
    assert said.strip().endswith("python -m cpo_suite make --profile smoke --only measures")
    assert not several


def test_two_processes_build_what_depends_on_one(artifacts):
    """An ensemble and unhelpful responses are built by the first process while the other waits."""
    settings = [*SMALL, "continuation.held_out_batches=0", "instructions.validation_rows=8"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes=2", "--mixed_precision=no", "--dynamo_backend=no"]
    command += ["--num_machines=1", "--main_process_port=0"]  # tests beside have ports, too
    command += ["-m", "cpo_suite", "make", "--profile", "smoke"]
    done = subprocess.run(
        [*command, *given(settings), "--only", "t1/DPO", "--only", "t1/MixNR/0.5"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=140,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    made = built(artifacts)
    assert (made["ensemble"], made["unhelpful"]) == (1, 1)
    assert "measures" not in made and "verdicts" not in made
