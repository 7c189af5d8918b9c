"""Every notebook through the real runner, sized as `smoke`; then some again, from artifacts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from chat_server import ScriptedServer

from cpo.evaluation.chat import TRIAL
from cpo_suite.profile import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


# The baseline, CPO with its negatives, ensembles, everything compared.
AGAIN = [part for number in ("01", "03", "06", "09") for part in ("--only", number)]
KEY_VARIABLE, KEY = "CPO_TEST_KEY", "sk-planted-in-the-smoke-test"


def run(artifacts: Path, *arguments: str) -> str:
    command = arguments or ("run", "--profile", "smoke")
    done = subprocess.run(
        [sys.executable, "-m", "cpo_suite", *command],
        env=os.environ | {"CPO_ARTIFACTS": str(artifacts), KEY_VARIABLE: KEY},
        cwd=artifacts.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def manifests(artifacts: Path) -> dict[str, int]:
    """Every artifact's manifest with the time it was written."""
    found = artifacts.glob("*/*/manifest.json")
    return {str(path.relative_to(artifacts)): path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """The artifacts of a whole run, and what it printed."""
    artifacts = tmp_path_factory.mktemp("smoke") / "artifacts"
    return artifacts, run(artifacts)


@pytest.mark.smoke
@pytest.mark.skipif(not NOTEBOOKS, reason="there are no notebooks")
def test_every_notebook_runs_and_some_again_from_artifacts(first_run):
    artifacts, said = first_run
    output = artifacts / "figures" / "smoke"

    summary = said[said.rindex("notebook ") :]
    for path in NOTEBOOKS:
        assert re.search(rf"^{path.stem} +ok ", summary, re.MULTILINE), summary
        declared = nbformat.read(path, as_version=4).metadata.cpo.outputs
        for name in declared:
            assert (output / name).stat().st_size > 0, name
        copy = (output / "notebooks" / path.name).read_text()
        assert str(ROOT) not in copy
        assert str(artifacts.parent) not in copy
    assert sorted(os.listdir(output / "notebooks")) == [path.name for path in NOTEBOOKS]

    record = json.loads((output / "run.json").read_text())
    assert record["notebook_seconds"].keys() == {path.stem for path in NOTEBOOKS}
    assert record["artifacts"]
    assert all(item["seconds"] is not None for item in record["artifacts"])
    assert str(ROOT) not in json.dumps(record)
    assert os.uname().nodename not in json.dumps(record)

    made = manifests(artifacts)
    assert {name.split("/")[0] for name in made} >= {"base_model", "model", "negatives"}
    planned = run(artifacts, "run", "--profile", "smoke", "--dry-run")
    assert re.search(r"(\d+) artifacts, \1 cached, 0 to build", planned)
    run(artifacts, "run", "--profile", "smoke", *AGAIN)
    assert manifests(artifacts) == made  # nothing was made anew


@pytest.mark.slow
@pytest.mark.smoke
def test_all_of_them_run_again_from_artifacts(first_run):
    artifacts, _ = first_run
    made = manifests(artifacts)
    said = run(artifacts)
    assert manifests(artifacts) == made
    assert re.search(r"(\d+) artifacts, \1 cached, 0 to build", said)


@pytest.mark.smoke
def test_a_paid_judge_is_asked_once_and_its_key_is_written_nowhere(first_run):
    artifacts, _ = first_run
    with ScriptedServer(lambda request: "A") as server:
        judge = f"judge={{kind: openai, server: {{model: judge-1, base_url: '{server.url}', "
        judge += f"api_key_variable: {KEY_VARIABLE}, usd_per_million_input: 1.0, max_usd: 5.0}}}}"
        asking = ("run", "--profile", "smoke", "--only", "07", "--set", judge)
        planned = run(artifacts, *asking, "--dry-run")
        assert not server.requests
        assert re.search(r"to build: .* [\d,]+ requests of .* tokens, \d+\.\d+ USD", planned)
        said = run(artifacts, *asking)
        # One question before anything else, of which no verdict comes.
        assert server.questions[0] == TRIAL and server.questions.count(TRIAL) == 1
        asked = len(server.requests) - 1
        assert asked > 24 and set(server.authorizations) == {f"Bearer {KEY}"}
        said += run(artifacts, *asking)
        # Rows of other notebooks are still to be judged: the server is tried, and nothing else.
        assert len(server.requests) - server.questions.count(TRIAL) == asked
    said += run(artifacts, "verdicts", "--export", str(artifacts / "verdicts.csv"))
    assert re.search(rf"judge-1 +{server.url} +{asked:,} +{asked:,} +0 +0 +0", said)
    assert len((artifacts / "verdicts.csv").read_text().splitlines()) > asked
    [table] = artifacts.glob("figures/smoke-*/table2.md")
    assert re.search(r"judge-1 at 127.0.0.1:\d+.*Judged \d{4}-\d\d-\d\d, prompt [0-9a-f]{8}",
                     table.read_text())  # fmt: skip
    assert KEY not in said
    for path in artifacts.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
