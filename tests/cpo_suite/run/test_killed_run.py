"""A run that is killed at any moment, and started again by the same command, ends in the same
numbers.

Two kills here; `CPO_KILLS=20 pytest tests/cpo_suite/run/test_killed_run.py` for
as many as one likes. They fall
into all of a run: its start, trainings, negatives, generations, tables. Every other one hits the
kernel that executes the notebook, the rest the command itself.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

KILLS = int(os.environ.get("CPO_KILLS", "2"))

# Base model and reference are taken over: the kills fall into what comes after them.
TAKEN_OVER = ("world", "base_model")

CELLS = (
    "from cpo_suite.report import tables\n"
    "from cpo_suite.suite import Suite\n"
    "suite = Suite.open(profile, overrides, output)",
    "rows = ('t2/MLE2', 't2/MixNR/0', 't2/ANR')\nfor row in rows:\n    suite.model(row)",
    "for row in rows:\n    suite.generations(row)",
    "tables.measures_frame(suite, rows).to_csv(suite.output / 'measures.csv', index=False)",
)

SETTINGS = (
    "optimiser.precision=fp32",  # measured in each store, it might differ
    "continuation.steps.long=30",
    "reference.steps=20",
    "optimiser.checkpoint_minutes=1e-6",  # after each step
)

# The command `./run_all.sh`, on the test's notebooks.
COMMAND = """
import sys
from pathlib import Path
from cpo_suite import __main__ as command
from cpo_suite.run import runner
settled = runner.run_suite
def on_these(*given):
    return settled(*given, root=Path(sys.argv[1]), plan=lambda *_: [])
runner.run_suite = on_these
sys.exit(command.main(["run", "--profile", "smoke", *sys.argv[2:]]))
"""


class Runs:
    """Runs of one command, each over artifacts of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = [part for one in SETTINGS for part in ("--set", one)]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        arguments = [str(self.folder), *self.settings]
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", COMMAND, *arguments],
                env={**os.environ, "CPO_ARTIFACTS": str(self.folder / name)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def finish(self, name: str) -> None:
        assert self.start(name).wait(600) == 0, (self.folder / f"{name}.log").read_text()

    def numbers(self, name: str) -> bytes:
        (path,) = (self.folder / name / "figures").rglob("measures.csv")
        return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Runs, float]:
    """A run that nobody disturbed, and the seconds that it took from its base model on."""
    folder = tmp_path_factory.mktemp("runs")
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "cpo", "display_name": "CPO", "language": "python"}
    notebook.metadata["cpo"] = {"outputs": ["measures.csv"], "after": []}
    parameters = nbformat.v4.new_code_cell('profile = "smoke"\noverrides = []\noutput = ""')
    parameters.metadata["tags"] = ["parameters"]
    notebook.cells = [parameters, *(nbformat.v4.new_code_cell(source) for source in CELLS)]
    (folder / "notebooks").mkdir()
    nbformat.write(notebook, folder / "notebooks" / "00_rows.ipynb")
    runs = Runs(folder)
    runs.finish("first")
    take_over(folder, "whole")
    began = time.monotonic()
    runs.finish("whole")
    assert runs.numbers("whole") == runs.numbers("first")
    return runs, time.monotonic() - began


def take_over(folder: Path, name: str) -> None:
    for stage in TAKEN_OVER:
        shutil.copytree(folder / "first" / stage, folder / name / stage)


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_ends_in_the_same_numbers(whole, number):
    runs, seconds = whole
    name = f"killed-{number}"
    take_over(runs.folder, name)
    # In equal parts of the run's time, at a random moment of each.
    moment = seconds * (number + random.random()) / KILLS
    process = runs.start(name)
    time.sleep(moment)
    kernel = kernel_of(process.pid) if number % 2 else None
    if kernel is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
    else:
        kernel.kill()
        # The command sees it, and ends by itself; if the notebook was through, in peace.
        if process.wait(120) != 0:
            assert "the kernel died" in (runs.folder / f"{name}.log").read_text()
    runs.finish(name)
    killed = "the command" if kernel is None else "its kernel"
    assert runs.numbers(name) == runs.numbers("whole"), f"{killed} killed after {moment:.1f} s"


def kernel_of(pid: int) -> psutil.Process | None:
    """The kernel of a running command; None where it has none yet, or no longer."""
    try:
        children = psutil.Process(pid).children(recursive=True)
        return next((one for one in children if "ipykernel_launcher" in one.cmdline()), None)
    except psutil.Error:
        return None
