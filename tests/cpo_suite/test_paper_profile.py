"""The paper's profile through unchanged code, on small stand-ins of both architectures: only sizes,
folders and the judge's address are set."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from chat_server import ScriptedServer, question_of
from stand_ins import gpt2_folder, llama_folder, write_articles, write_dolly

from cpo.evaluation.chat import TRIAL
from cpo_suite.profile import ROOT, load_profile

KEY = "CPO_TEST_KEY"
SIZES = (
    "gpus=0",
    "processes.count=1",
    "models.gpt2.parameters=5e4",
    "models.llama.parameters=5e4",
    "instructions={source: dolly, validation_rows: 8, test_prompts: 12, max_prefix_tokens: 160, "
    "max_continuation_tokens: 64, over_long: drop, path: PATH}",
    "articles={source: wikipedia, validation_articles: 6, test_articles: 16, max_tokens: 48, "
    "path: PATH}",
    "reference.steps=2",
    "reference.batch=8",
    "ablation_reference.steps=1",
    "ablation_reference.batch=8",
    "articles_reference.steps=2",
    "articles_reference.batch=8",
    "continuation.batch=8",
    "continuation.steps={long: 2, short: 1, ablation: 1, articles: 2}",
    "mauve.seeds=1",
    "mauve.max_text_tokens=16",
)


def stand_ins(folder: Path) -> list[str]:
    """Writes data and models; returns what sets the profile to them and their size."""
    data = folder / "data"
    pairs, articles = write_dolly(data / "dolly", 120), write_articles(data / "wikipedia", 60)
    texts = [line for path in (pairs, articles) for line in path.read_text().splitlines()]
    models = {"gpt2": gpt2_folder, "llama": llama_folder}
    given = [one.replace("PATH", str(data)) for one in SIZES]
    for name, write in models.items():
        given.append(f"models.{name}.pretrained={write(folder / name, texts)}")
    return given


def answer(request: dict) -> str:
    """Any question of the judge by the hash of its text; what else is asked wants a text."""
    question = question_of(request)
    if question == TRIAL:
        return "A"
    if request["max_tokens"] == 8:
        return "AB"[hashlib.sha256(question.encode()).digest()[0] % 2]
    return "I would rather not say."


def run_paper(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    given = stand_ins(folder)
    with ScriptedServer(answer) as server:
        for part in ("judge", "unhelpful"):
            given += [f"{part}.server.base_url={server.url}"]
            given += [f"{part}.server.api_key_variable={KEY}"]
        return subprocess.run(
            [sys.executable, "-m", "cpo_suite", "run", "--profile", "paper", *arguments]
            + [part for one in given for part in ("--set", one)],
            env={**os.environ, KEY: "sk-1", "CPO_ARTIFACTS": str(folder / "artifacts")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.mark.slow
def test_every_table_and_figure_of_the_paper_is_made(tmp_path):
    done = run_paper(tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    [output] = (tmp_path / "artifacts" / "figures").iterdir()
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        for name in nbformat.read(path, as_version=4).metadata.cpo.outputs:
            assert (output / name).stat().st_size > 0, name
    profile = load_profile("paper")
    tables = {name: pd.read_csv(output / f"{name}.csv") for name in (
        "table1", "table2", "table3", "table4", "figure1", "figure2", "extras"
    )}  # fmt: skip
    made = {row for table in tables.values() for row in table.loc[table["ours"].notna(), "row"]}
    assert made >= set(profile.rows)
    for name in ("table1", "table2", "table3"):
        assert tables[name]["judge"].str.startswith("gpt-4.1-mini at 127.0.0.1:").all()
    claims = pd.read_csv(output / "claims.csv")
    assert claims["claim"].nunique() == 13 and (claims["verdict"] != "not run").all(), claims
    record = json.loads((output / "run.json").read_text())
    assert all(one["seconds"] is not None for one in record["artifacts"])
    assert {one["stage"] for one in record["artifacts"]} >= {"unhelpful", "verdicts", "ensemble"}
    assert str(tmp_path) not in json.dumps(record) and "sk-1" not in done.stdout
