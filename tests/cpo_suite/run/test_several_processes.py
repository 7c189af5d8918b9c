"""The notebooks with two processes, through the real runner and a real `accelerate launch`: the
tables of the same run with one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from cpo_suite.paper import COMPARISONS

# What a training, a set of negatives and a set of answers is. PSS is left out: its draws are each
# process's own.
FEW_ROWS = ("t2/MLE2", "t2/MixNR/0")
ROWS = (
    *("t1/MLE", "t1/DPO", "t1/ANR", *FEW_ROWS, "t2/MixNR/0.5", "t3/MLE", "t3/BNR/0", "t4/MLE"),
    *("t4/BNR/0", "f1a/MLE/greedy", "f1a/ANR/top_p", "f1b/MLE", "f1b/MNR", "x/NCE"),
)
SHARED_OUT = ("model", "negatives", "generations")


def run(artifacts: Path, processes: int, rows: Sequence[str], notebooks: Sequence[str]) -> Path:
    """Run notebooks at the size of `smoke`; returns the folder of their tables."""
    arguments = [f"rows=[{', '.join(rows)}]", f"processes.count={processes}"]
    arguments += ["optimiser.precision=fp32"]  # measured in each store, it might differ
    arguments += [f"claims.{number}=[]" for number in COMPARISONS]  # seconds are among them
    command = [part for one in arguments for part in ("--set", one)]
    command += [part for one in notebooks for part in ("--only", one)]
    done = subprocess.run(
        [sys.executable, "-m", "cpo_suite", "run", "--profile", "smoke", *command],
        env={**os.environ, "CPO_ARTIFACTS": str(artifacts), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    [output] = (artifacts / "figures").iterdir()
    return output


def compare(folder: Path, rows: Sequence[str], notebooks: Sequence[str] = ()) -> list[str]:
    """Run with one process and with two, each on artifacts of its own but for the base models;
    returns the names of the tables, which agree."""
    alone = run(folder / "one", 1, rows, notebooks)
    for stage in ("world", "base_model"):
        shutil.copytree(folder / "one" / stage, folder / "two" / stage)
    together = run(folder / "two", 2, rows, notebooks)
    made = {
        path.relative_to(folder / "two").parent: json.loads(path.read_text())["processes"]
        for path in (folder / "two").glob("*/*/manifest.json")
    }
    assert {key.parts[0] for key, count in made.items() if count == 2} == set(SHARED_OUT)
    assert made.keys() == {
        path.relative_to(folder / "one").parent
        for path in (folder / "one").glob("*/*/manifest.json")
    }
    names = sorted(path.name for path in alone.glob("*.csv"))
    assert names == sorted(path.name for path in together.glob("*.csv"))
    for name in names:
        assert_alike(alone / name, together / name)
    return names


def assert_alike(one: Path, two: Path) -> None:
    """Weights differ by rounding, in the eighth digit or so. A loss then differs in its fourth at
    most, and of n answers one may be another where two tokens were as good as equal."""
    left, right = pd.read_csv(one), pd.read_csv(two)
    assert list(left) == list(right) and len(left) == len(right), one.name
    for column in left:
        types = pd.api.types
        if types.is_bool_dtype(left[column]) or not types.is_numeric_dtype(left[column]):
            assert left[column].fillna("").equals(right[column].fillna("")), (one.name, column)
            continue
        allowed = 1e-3 * left[column].abs() + 1e-3
        if "n" in left and column in ("ours", "value", "low", "high"):
            measure = left["measure"] if "measure" in left else pd.Series("", left.index)
            widths = measure.map({"tokens": 48.0, "held_out_loss": 0.0}).fillna(1.0)
            allowed += widths / left["n"]
            allowed += (measure == "mauve") * 0.1  # of a clustering, in which one moves others
        elif column in ("ties", "valid", "invalid"):
            allowed += 1
        apart = (left[column] - right[column]).abs() > allowed
        assert not apart.any(), (one.name, column, left[apart], right[apart])
        assert left[column].isna().equals(right[column].isna()), (one.name, column)


@pytest.mark.slow  # `test_processes` has a row of its own
def test_two_processes_train_and_sample_to_the_same_tables(tmp_path):
    names = compare(tmp_path, FEW_ROWS, ["01", "03"])
    assert names == ["gradients.csv", "reference.csv", "training_curves.csv"]


@pytest.mark.slow
def test_two_processes_make_every_table_of_the_suite(tmp_path):
    names = compare(tmp_path, ROWS)
    assert {f"table{number}.csv" for number in range(1, 5)} <= set(names)
    assert {"figure1.csv", "figure2.csv", "measures.csv", "negatives.csv"} <= set(names)
    assert {"gradients.csv", "learnt.csv", "exposure_bias.csv"} <= set(names)
