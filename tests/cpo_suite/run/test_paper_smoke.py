"""The rehearsal of the paper's run by its real command, in two processes that divide their
trainings, on small stand-ins for data and models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from stand_ins import gpt2_folder, llama_folder, write_articles, write_dolly

from cpo_suite.profile import load_profile

KINDS = {
    "model", "negatives", "unhelpful", "generations", "verdicts", "measures", "ensemble",
    "gradients",
}  # fmt: skip
SIZES = (
    "gpus=0",
    "processes={count: 2, divide: always}",
    "models.gpt2.parameters=5e4",
    "models.llama.parameters=5e4",
    "instructions={source: dolly, validation_rows: 16, test_prompts: 12, max_prefix_tokens: 160, "
    "max_continuation_tokens: 64, over_long: drop, path: PATH}",
    "articles={source: wikipedia, validation_articles: 6, test_articles: 16, max_tokens: 48, "
    "path: PATH}",
    "optimiser.precision=fp32",
    "reference.batch=8",
    "articles_reference.batch=8",
    "continuation.batch=8",
    "mauve.max_text_tokens=16",
    "judge.kind=longest",
    "unhelpful.writer=other_response",
)


def test_every_kind_of_artifact_is_built_and_compared_with_the_estimate(tmp_path):
    data = tmp_path / "data"
    texts = [
        line
        for path in (write_dolly(data / "dolly", 120), write_articles(data / "wikipedia", 60))
        for line in path.read_text().splitlines()
    ]
    given = [one.replace("PATH", str(data)) for one in SIZES]
    for name, write in {"gpt2": gpt2_folder, "llama": llama_folder}.items():
        given.append(f"models.{name}.pretrained={write(tmp_path / name, texts)}")
    said = rehearse(tmp_path / "artifacts", given)
    trainings = said.count("build: model ") + said.count("build: reference/")
    trainings += said.count("build: articles_reference/")
    assert said.count(": divided among 2 processes") == trainings > 5
    manifests = {
        path.parent.parent.name: json.loads(path.read_text())
        for path in (tmp_path / "artifacts").glob("*/*/manifest.json")
    }
    assert manifests.keys() == KINDS
    assert {kind for kind, made in manifests.items() if made["processes"] == 2} == {
        "model", "negatives", "generations",
    }  # fmt: skip
    assert all(made["peak_memory_gb"] > 0 for made in manifests.values())
    table = said[said.index("stage ") :].splitlines()
    lines = {tuple(line.split()[:2]): line.split() for line in table[1:-1]}
    for stage in ("model", "negatives", "generations", "measures"):
        for model in ("gpt2", "llama"):
            _, _, count, *numbers = lines[stage, model]
            assert int(count) >= 1 and len(numbers) == 4
            assert all(float(number) > 0 for number in numbers[1:])
    assert ("ensemble", "gpt2") in lines and ("gradients", "llama") in lines
    assert ("start", "of") in lines
    # Nothing is built twice: the table comes again from the manifests.
    again = rehearse(tmp_path / "artifacts", given)
    assert "start of 2 processes" not in again
    table = again[again.index("stage ") :].splitlines()
    assert {tuple(line.split()[:2]): line.split()[4] for line in table[1:-2]} == {
        names: line[4] for names, line in lines.items() if names[0] not in ("start", "all")
    }


def rehearse(artifacts: Path, given: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cpo_suite", "rehearse"]
        + [part for one in given for part in ("--set", one)],
        env={**os.environ, "CPO_ARTIFACTS": str(artifacts), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_the_rehearsal_has_the_paper_s_sizes():
    paper, smoke = load_profile("paper"), load_profile("paper-smoke")
    for setting in ("models", "optimiser", "negatives", "processes", "generation_batch", "judge"):
        assert getattr(smoke, setting) == getattr(paper, setting)
    for setting in ("max_prefix_tokens", "max_continuation_tokens"):
        assert getattr(smoke.instructions, setting) == getattr(paper.instructions, setting)
    assert smoke.articles.max_tokens == paper.articles.max_tokens
    assert smoke.continuation.batch == smoke.reference.batch == 64
    assert set(smoke.continuation.steps.values()) == {smoke.reference.steps} == {2}
    assert {row.model for row in smoke.trained_rows} == {"gpt2", "llama"}
