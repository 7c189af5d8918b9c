"""Notebooks in a hosted service: a clone of the project, and an environment without it."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest

from cpo_suite.profile import ROOT

HOSTED = ("00_the_method_by_hand", "02_negatives_one_by_one", "10_change_one_thing")


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> tuple[Path, Path]:
    """A clone, and the IPython of an environment that has IPython and PyTorch, as services do."""
    folder = tmp_path_factory.mktemp("hosted")
    clone, environment = folder / "clone", folder / "environment"
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    for name in filter(None, files):
        target = clone / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    [torch] = [line for line in (ROOT / "requirements.lock").read_text().splitlines()
               if line.startswith("torch==")]  # fmt: skip
    command = [python, "-m", "pip", "install", "--quiet", "ipython", "nbformat", torch]
    subprocess.run(command, check=True)
    return clone, environment / "bin" / "ipython"


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTED)
def test_a_notebook_installs_what_it_needs(bare, name: str) -> None:
    clone, ipython = bare
    path = clone / "notebooks" / f"{name}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    [parameters] = [cell for cell in notebook["cells"] if cell["id"] == "parameters"]
    parameters["source"] = 'profile, overrides, output = "smoke", [], ""'
    # Nothing of this environment, and no data but the world's.
    alone = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH",)}
    alone |= {"CPO_ARTIFACTS": str(clone / "artifacts"), "MPLBACKEND": "agg"}
    alone.pop("CPO_DATA", None)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    script = f"%run {path.name}\nprint('it ran, from', suite.__module__)"
    done = subprocess.run(
        [ipython, "--no-banner", "--colors=NoColor", "-c", script],
        cwd=path.parent, env=alone, capture_output=True, text=True,
    )  # fmt: skip
    assert "it ran, from cpo_suite.suite" in done.stdout, (done.stdout + done.stderr)[-4000:]
    assert "Traceback" not in done.stdout + done.stderr


def test_the_cell_that_installs_is_the_same_everywhere_and_looks_first() -> None:
    sources = set()
    for name in HOSTED:
        cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))["cells"]
        ids = [cell["id"] for cell in cells]
        assert ids.index("install") == ids.index("parameters") + 1
        sources.add("".join(cells[ids.index("install")]["source"]))
    assert len(sources) == 1 and "find_spec" in sources.pop()
