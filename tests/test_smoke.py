"""Every notebook through the real runner, sized as `smoke`; then again, from artifacts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from cpo.profiles import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def run(artifacts: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cpo", "run", "--profile", "smoke"],
        env=os.environ | {"CPO_ARTIFACTS": str(artifacts)},
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


@pytest.mark.smoke
@pytest.mark.skipif(not NOTEBOOKS, reason="there are no notebooks")
def test_every_notebook_runs_and_runs_again_from_artifacts(tmp_path):
    artifacts = tmp_path / "artifacts"
    said = run(artifacts)
    output = artifacts / "figures" / "smoke"

    summary = said[said.rindex("notebook ") :]
    for path in NOTEBOOKS:
        assert re.search(rf"^{path.stem} +ok ", summary, re.MULTILINE), summary
        declared = nbformat.read(path, as_version=4).metadata.cpo.outputs
        for name in declared:
            assert (output / name).stat().st_size > 0, name
        copy = (output / "notebooks" / path.name).read_text()
        assert str(ROOT) not in copy
        assert str(tmp_path) not in copy
    assert sorted(os.listdir(output / "notebooks")) == [path.name for path in NOTEBOOKS]

    record = json.loads((output / "run.json").read_text())
    assert record["notebook_seconds"].keys() == {path.stem for path in NOTEBOOKS}
    assert record["artifacts"]
    assert all(item["seconds"] is not None for item in record["artifacts"])
    assert str(ROOT) not in json.dumps(record)
    assert os.uname().nodename not in json.dumps(record)

    made = manifests(artifacts)
    assert {name.split("/")[0] for name in made} >= {"base_model", "model", "negatives"}
    said = run(artifacts)
    assert manifests(artifacts) == made  # nothing was made anew
    assert re.search(r"(\d+) artifacts, \1 made, 0 to make", said)
