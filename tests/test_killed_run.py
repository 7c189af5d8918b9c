"""A run that is killed in the middle of training, started again, ends like one that was not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import sys
from cpo import figures
from cpo.experiments import Suite
suite = Suite.open("smoke", ["continuation.steps.long=40"], sys.argv[1])
rows = ("t2/MLE2", "t2/MixNR/0", "t2/MixNR/0.5")
for row in rows:
    suite.model(row)
figures.measures_frame(suite, rows).to_csv(suite.output / "measures.csv", index=False)
"""


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_numbers(tmp_path: Path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    def start(name: str) -> subprocess.Popen:
        environment = {**os.environ, "CPO_ARTIFACTS": str(tmp_path / f"artifacts-{name}")}
        return subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / name)],
            env=environment,
            stderr=subprocess.DEVNULL,
        )

    assert start("whole").wait() == 0
    # The base model and the reference are made already; the kill comes in the trainings after them.
    shutil.copytree(tmp_path / "artifacts-whole", tmp_path / "artifacts-killed")
    for folder in ("model", "negatives", "generations", "measures", "ensemble"):
        for made in (tmp_path / "artifacts-killed" / folder).iterdir():
            if made.is_dir():
                shutil.rmtree(made)
    killed = start("killed")
    temporary = tmp_path / "artifacts-killed" / "model"
    deadline = time.monotonic() + 300
    while len(list(temporary.glob("[!.]*/manifest.json"))) < 2:  # reference and MLE are made
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "measures.csv").exists()
    assert start("killed").wait() == 0
    numbers = [(tmp_path / name / "measures.csv").read_bytes() for name in ("whole", "killed")]
    assert numbers[0] == numbers[1]
