"""Exercises: in step with the notebooks, failed by their stubs, passed by their solutions."""

from __future__ import annotations

import json
import linecache
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cpo import negatives
from cpo_suite.teaching import course
from exercises.build import Exercise, read_exercises, section, with_exercises

ROOT = Path(__file__).parents[3]
SOURCES = sorted((ROOT / "exercises").glob("[0-9A]*.py"))
EXERCISES = [one for source in SOURCES for one in read_exercises(source)]
NUMBERS = [one.number for one in EXERCISES]

SOURCE = '''"""Exercises of a notebook."""

# %% exercise: Twice | easy | 5 minutes
# Write *twice*.
#
# It doubles.

# %% stub
def twice(x: int) -> int:
    """2x."""
    # solution
    two = 2
    return two * x
    # end of solution


# %% check
import math

from cpo_suite.teaching import course

for x in (1, math.pi):
    assert twice(x) == x + x, "twice is x and x again"

# %% note
# Or `x << 1`.
'''


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """What exercises draw, set and register for the whole process is taken back."""
    samplers = dict(negatives.SAMPLERS)
    with torch.random.fork_rng():
        yield
    negatives.SAMPLERS.clear()
    negatives.SAMPLERS.update(samplers)
    torch.set_default_dtype(torch.float32)


def write(folder: Path, text: str = SOURCE) -> Path:
    path = folder / "00_numbers.py"
    path.write_text(text)
    return path


def run(exercise: Exercise, stub: str) -> bool:
    """Runs a version of the stub, then the check as the notebook has it; whether it was solved."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell, text in (("stub", stub), ("check", exercise.check_cell)):
        name = f"<{exercise.number} {cell}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), namespace)
    return course.results[exercise.number]


# ------------------------------------------------------------------------- every exercise


def test_every_notebook_of_the_course_has_two_to_four_exercises() -> None:
    notebooks = [path.stem for path in sorted((ROOT / "notebooks").glob("0[0-9]_*.ipynb"))]
    assert {one.stem for one in SOURCES} >= set(notebooks)
    for source in SOURCES:
        assert 2 <= len(read_exercises(source)) <= 4, source.name


@pytest.mark.parametrize("source", SOURCES, ids=lambda one: one.stem)
def test_notebooks_are_in_step_with_the_sources(source: Path) -> None:
    path = ROOT / "notebooks" / f"{source.stem}.ipynb"
    text = path.read_text(encoding="utf-8")
    assert with_exercises(text, read_exercises(source)) == text, "run python -m exercises"
    # The list of ideas that stood in the summary is gone, and nothing comes after the section.
    cells = json.loads(text)["cells"]
    assert sum("## Exercises" in one["source"] for one in cells) == 1
    assert "exercise" in cells[-1]["metadata"]["tags"]


@pytest.mark.parametrize("exercise", EXERCISES, ids=NUMBERS)
def test_a_check_fails_on_its_stub(exercise: Exercise, capsys: pytest.CaptureFixture[str]) -> None:
    assert not run(exercise, exercise.stub)
    assert "not yet. Write the cell above" in capsys.readouterr().out


@pytest.mark.parametrize("exercise", EXERCISES, ids=NUMBERS)
def test_a_check_passes_on_its_solution(
    exercise: Exercise, capsys: pytest.CaptureFixture[str]
) -> None:
    if exercise.number.startswith("00"):  # this notebook computes in double precision
        torch.set_default_dtype(torch.float64)
    assert run(exercise, exercise.solution), capsys.readouterr().out


CONSTANTS = ("None", "0", "1", "True", "False", '""', "[]", "{}")


@pytest.mark.parametrize("exercise", EXERCISES, ids=NUMBERS)
def test_a_check_is_not_passed_by_a_constant(exercise: Exercise) -> None:
    for constant in CONSTANTS:
        assert not run(exercise, exercise.completed(f"return {constant}")), constant


# ------------------------------------------------------------------------- the builder


def test_a_source_becomes_cells(tmp_path: Path) -> None:
    (exercise,) = read_exercises(write(tmp_path))
    assert (exercise.number, exercise.title) == ("00.1", "Twice")
    assert (exercise.level, exercise.minutes) == ("easy", 5)

    heading, task, stub, check, solution = section([exercise])
    assert heading["id"] == "exercises" and heading["source"].startswith("## Exercises\n")
    assert task["source"] == (
        "### Exercise 00.1: Twice\n\n*easy, 5 minutes*\n\nWrite *twice*.\n\nIt doubles."
    )
    assert "".join(stub["source"]) == (
        'def twice(x: int) -> int:\n    """2x."""\n    raise NotImplementedError("your turn")'
    )
    assert "".join(check["source"]) == (
        "import math\n\nfrom cpo_suite.teaching import course\n"
        "from cpo_suite.teaching.course import exercise\n\n"
        'with exercise("00.1"):\n    for x in (1, math.pi):\n'
        '        assert twice(x) == x + x, "twice is x and x again"'
    )
    assert solution["source"] == (
        "<details>\n<summary>Solution</summary>\n\n```python\n"
        'def twice(x: int) -> int:\n    """2x."""\n    two = 2\n    return two * x\n```\n\n'
        "Or `x << 1`.\n\n</details>"
    )
    names = ["exercise-1", "exercise-1-stub", "exercise-1-check", "exercise-1-solution"]
    assert [one["id"] for one in (task, stub, check, solution)] == names


def test_building_again_replaces_the_section_and_nothing_else(tmp_path: Path) -> None:
    own = {"cell_type": "markdown", "id": "summary", "metadata": {}, "source": "π stays"}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [own]}
    exercises = read_exercises(write(tmp_path))
    once = with_exercises(json.dumps(notebook), exercises)
    assert with_exercises(once, exercises) == once
    assert "π stays" in once and once.endswith("}\n")

    # An exercise is taken out and another cell written behind the section: the section moves.
    doubled = with_exercises(once, exercises * 2)
    late = json.loads(doubled)
    late["cells"].append({**own, "id": "late"})
    again = json.loads(with_exercises(json.dumps(late), exercises))
    assert [one["id"] for one in again["cells"][:3]] == ["summary", "late", "exercises"]
    assert len(again["cells"]) == 2 + 1 + 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("| easy |", "| simple |", "line 3: expected .* a level of easy, medium, hard"),
        ("# %% check", "# %% chek", "line 3: this exercise has no cell '# %% check'"),
        ("# Write *twice*.", "print()", "line 3: .* starts with '# '"),
        ("    # end of solution\n", "", "line 8: the solution stands between"),
        ("    # solution", "# solution", "line 8: a solution outside of a function"),
        ('"twice is x and x again"', '"""twice\nagain"""', "line 17: indenting changes"),
        ("# %% exercise: Twice", "# twice", "expected '# %% exercise"),
    ],
)
def test_a_source_that_does_not_keep_to_the_format_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in SOURCE
    with pytest.raises(ValueError, match=message):
        read_exercises(write(tmp_path, SOURCE.replace(old, new)))


# ------------------------------------------------------------------------- exercise()


def test_a_passed_check_is_solved(capsys: pytest.CaptureFixture[str]) -> None:
    with course.exercise("99.1"):
        pass
    assert capsys.readouterr().out == "Exercise 99.1: solved.\n"
    assert course.results["99.1"] is True


def test_an_untouched_stub_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    course.results["99.1"] = True
    with course.exercise("99.1"):
        raise NotImplementedError("your turn")
    assert capsys.readouterr().out == (
        "Exercise 99.1: not yet. Write the cell above, run it, then run this one again.\n"
    )
    assert course.results["99.1"] is False


def test_what_went_wrong_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with course.exercise("99.1"):
        raise ValueError("too long")
    with course.exercise("99.1"):
        raise AssertionError("expected ln 3")
    with course.exercise("99.1"):
        raise KeyError
    assert capsys.readouterr().out.splitlines() == [
        "Exercise 99.1: not yet: ValueError: too long",
        "Exercise 99.1: not yet: AssertionError: expected ln 3",
        "Exercise 99.1: not yet: KeyError",
    ]


def test_a_bare_assertion_is_shown_as_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (exercise,) = read_exercises(
        write(tmp_path, SOURCE.replace(', "twice is x and x again"', "  # and again"))
    )
    assert not run(exercise, "def twice(x):\n    return 7")
    assert capsys.readouterr().out == (
        "Exercise 00.1: not yet: AssertionError: assert twice(x) == x + x  # and again\n"
    )


def test_an_interrupt_passes() -> None:
    with pytest.raises(KeyboardInterrupt), course.exercise("99.1"):
        raise KeyboardInterrupt
    assert course.results["99.1"] is False
