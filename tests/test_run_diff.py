"""What differed between two runs, by their records."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from cpo_suite.__main__ import main
from cpo_suite.run.run_diff import differences

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
    code, shown = compare(RUN, later | {"gpu_hours": 2.5})
    assert code == 0
    assert "Artifacts took 0 and 2.5 GPU-hours." in shown
    assert "Notebooks took 2 min and 30 s.\n" in shown and "Nothing else differed.\n" in shown


def test_settings_recipes_and_outputs_that_differ_are_named(compare):
    other = copy.deepcopy(RUN)
    other["settings"]["continuation"]["beta"] = 5.0
    other["settings"]["rows"] = ["t1/MLE", "t2/PSS"]
    other["git"]["clean"] = False
    other["artifacts"][1]["recipe"] = "cccc"
    other["outputs"] = {"table1.csv": "1234", "table2.csv": "5678"}
    code, shown = compare(RUN, other)
    assert code == 1
    lines = [line.split() for line in shown.splitlines()]
    assert ["settings.continuation.beta", "1.0", "5.0"] in lines
    assert ["settings.rows", "t1/ANR", "t2/PSS"] in lines
    assert ["git.clean", "true", "false"] in lines
    assert ["reference/gpt2", "(2)", "bbbb", "cccc"] in lines
    assert ["table2.csv", "-", "5678"] in lines
    assert not any(line[:1] == ["profile"] or line[:1] == ["table1.csv"] for line in lines)


def test_a_key_on_one_side_alone_is_a_difference():
    assert list(differences({"a": {"b": 1}}, {"a": {}})) == [("a.b", "1", "-")]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "is no run"), ("{", "cannot be read as JSON"), ("{}", "is not the record of a run")],
)
def test_what_is_no_run_is_refused(tmp_path: Path, capsys, content, says):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    assert main(["diff", str(path), str(path)]) == 2
    assert says in capsys.readouterr().err
