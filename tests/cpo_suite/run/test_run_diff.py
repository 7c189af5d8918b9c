"""What differed between two runs, by their records."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from cpo_suite.__main__ import main

RUN: dict[str, Any] = {
    "profile": "tiny",
    "overrides": [],
    "settings": {"seeds": 1, "continuation": {"beta": 1.0}, "rows": ["t1/MLE", "t1/ANR"]},
    "git": {"revision": "abc", "clean": True},
    "started": "2026-01-01T00:00:00Z",
    "notebook_seconds": {"00_one": 60.0, "01_two": 40.0},
    "artifacts": [
        {"name": "reference/gpt2", "recipe": "aaaa", "seconds": 10.0},
        {"name": "reference/gpt2", "recipe": "bbbb", "seconds": 10.0},
    ],
    "outputs": {"table1.csv": "1234"},
}


@pytest.fixture
def compare(tmp_path, capsys):
    """Writes two runs, compares them; returns the exit code and what was printed."""

    def run(one: dict[str, Any], other: dict[str, Any]) -> tuple[int, str]:
        for name, record in (("one", one), ("other", other)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "run.json").write_text(json.dumps(record))
        # A folder, and its record.
        code = main(["diff", str(tmp_path / "one"), str(tmp_path / "other" / "run.json")])
        return code, capsys.readouterr().out

    return run


def test_two_equal_runs_differ_in_time_alone(compare):
    later = {**RUN, "started": "2026-02-01T00:00:00Z", "notebook_seconds": {"00_one": 30.0}}
    later["artifacts"] = [item | {"seconds": 20.0} for item in RUN["artifacts"]]
    code, shown = compare(RUN, later | {"gpu_hours": 2.5})
    assert code == 0
    assert shown == "Only the times differ.\n"


def test_settings_recipes_and_outputs_that_differ_are_named(compare):
    other = copy.deepcopy(RUN)
    other["settings"]["continuation"]["beta"] = 5.0
    other["settings"]["rows"] = ["t1/MLE", "t2/PSS"]
    other["git"]["clean"] = False
    other["artifacts"][1]["recipe"] = "cccc"
    other["outputs"] = {"table1.csv": "1234", "table2.csv": "5678"}
    code, shown = compare(RUN, other)
    assert code == 1
    lines = [line.replace(" ", "").rstrip(",") for line in shown.splitlines()]
    for line in (
        '-"beta":1.0', '+"beta":5.0', '-"t1/ANR"', '+"t2/PSS"', '-"clean":true', '+"clean":false',
        '-"reference/gpt2:bbbb"', '+"reference/gpt2:cccc"', '+"table2.csv":"5678"',
    ):  # fmt: skip
        assert line in lines, shown
    assert '"continuation":{' in lines  # where a value stands
    assert not any("aaaa" in line or '"profile"' in line for line in lines if line[0] in "+-")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run: give a folder of results, or its run.json"),
        ("{", "is not the record of a run: JSONDecodeError"),
        ("{}", "is not the record of a run: KeyError('artifacts')"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, capsys, content, message):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    assert main(["diff", str(path), str(path)]) == 2
    assert message in capsys.readouterr().err
