"""Makes a notebook's section of exercises from one file of plain Python.

Such a file has the notebook's name, a docstring, and for each exercise these cells:

    # %% exercise: Two of a kind | easy | 5 minutes
    # What is asked, in Markdown.

    # %% stub
    def first_loss(copies: int) -> float:
        # solution
        return math.log(copies + 1)
        # end of solution

    # %% check
    assert first_loss(2) == ..., "what a learner should hear"

    # %% note
    # What stands below the folded solution. May be left out.

The notebook shows the stub without the lines of the solution, runs the check inside
`course.exercise`, and folds the solution away. An exercise stands alone: it imports what it
uses, and asks for nothing that the notebook made. What only the solution needs is imported in it;
imports at the beginning of a check go above the `with`.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAG = "exercise"
LEVELS = ("easy", "medium", "hard")
YOUR_TURN = 'raise NotImplementedError("your turn")'
BEGIN, END = "# solution", "# end of solution"
INTRODUCTION = """\
## Exercises

Each is a cell to complete and a cell that checks it; a solution is folded away below them. They
stand on their own: nothing above has to be run for them. The minutes are a guess."""


@dataclass(frozen=True)
class Exercise:
    """One exercise, as its source has it."""

    number: str  # such as "00.1"
    title: str
    level: str  # one of LEVELS
    minutes: int
    text: str  # Markdown
    written: str  # the cell `stub` with its solution and the lines that mark it
    check: str
    note: str  # Markdown, or empty

    def completed(self, line: str) -> str:
        """The stub with `line` in each place where the solution is asked for."""
        lines: list[str] = []
        inside = False
        for one in self.written.splitlines():
            if one.strip() == BEGIN:
                inside = True
                lines.append(one[: len(one) - len(one.lstrip())] + line)
            elif one.strip() == END:
                inside = False
            elif not inside:
                lines.append(one)
        return "\n".join(lines)

    @property
    def stub(self) -> str:
        """The cell that a learner completes."""
        return self.completed(YOUR_TURN)

    @property
    def solution(self) -> str:
        """The same cell, completed."""
        lines = self.written.splitlines()
        return "\n".join(one for one in lines if one.strip() not in (BEGIN, END))

    @property
    def check_cell(self) -> str:
        """The cell that a learner runs to check the one above."""
        imports: list[str] = []
        ours, lines = ["from cpo_suite.teaching.course import exercise"], self.check.splitlines()
        while lines and (not lines[0] or lines[0].startswith(("import ", "from "))):
            line = lines.pop(0)
            (ours if line.startswith("from cpo") else imports).append(line)
        head = "\n\n".join(part for part in (_joined(imports), _joined(sorted(ours))) if part)
        body = textwrap.indent("\n".join(lines), "    ")
        return f'{head}\n\nwith exercise("{self.number}"):\n{body}'


def read_exercises(path: Path) -> list[Exercise]:
    """The exercises of one file; ValueError says where a file does not keep to the format."""
    number = path.name.partition("_")[0]
    cells: list[tuple[int, str, list[str]]] = []
    for at, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("# %%"):
            cells.append((at, line.removeprefix("# %%").strip(), []))
        elif cells:
            cells[-1][2].append(line)

    exercises: list[Exercise] = []
    while cells:
        at, head, text = cells.pop(0)
        where = f"{path.name}, line {at}"
        given = re.fullmatch(r"exercise: (.+) \| (\w+) \| (\d+) minutes", head)
        if given is None or given[2] not in LEVELS:
            raise ValueError(
                f"{where}: expected '# %% exercise: TITLE | LEVEL | N minutes' with a level of "
                f"{', '.join(LEVELS)}, not '# %% {head}'"
            )
        parts = {}
        for name in ("stub", "check", "note"):
            if cells and cells[0][1] == name:
                start, _, body = cells.pop(0)
                parts[name] = (f"{path.name}, line {start}", body)
            elif name != "note":
                raise ValueError(f"{where}: this exercise has no cell '# %% {name}' in its place")
        exercise = Exercise(
            number=f"{number}.{len(exercises) + 1}",
            title=given[1],
            level=given[2],
            minutes=int(given[3]),
            text=_markdown(where, text),
            written="\n".join(parts["stub"][1]).strip(),
            check="\n".join(parts["check"][1]).strip(),
            note=_markdown(*parts["note"]) if "note" in parts else "",
        )
        _refuse_what_cannot_work(exercise, parts["stub"][0], parts["check"][0])
        exercises.append(exercise)
    if not exercises:
        raise ValueError(f"{path.name}: no exercise in this file")
    return exercises


def _joined(lines: list[str]) -> str:
    return "\n".join(lines).strip()


def _markdown(where: str, lines: list[str]) -> str:
    text = "\n".join(lines).strip()
    if not text or any(line.strip() and not line.startswith("#") for line in lines):
        raise ValueError(f"{where}: below this line every line of text starts with '# '")
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines())


def _refuse_what_cannot_work(exercise: Exercise, stub: str, check: str) -> None:
    marks = [one for one in exercise.written.splitlines() if one.strip() in (BEGIN, END)]
    if not marks or [one.strip() for one in marks] != [BEGIN, END] * (len(marks) // 2):
        raise ValueError(f"{stub}: the solution stands between '{BEGIN}' and '{END}'")
    if any(not one.startswith(" ") for one in marks):
        raise ValueError(f"{stub}: a solution outside of a function would stop the notebook")
    within, alone = ast.parse(exercise.check_cell).body[-1], ast.parse(exercise.check).body
    assert isinstance(within, ast.With)
    before = alone[-len(within.body) :]
    if [ast.dump(one) for one in within.body] != [ast.dump(one) for one in before]:
        raise ValueError(f"{check}: indenting changes a text of several lines; write it in one")


def section(exercises: list[Exercise]) -> list[dict[str, Any]]:
    """The notebook cells of a section of exercises."""
    cells = [_cell("exercises", "markdown", INTRODUCTION)]
    for place, one in enumerate(exercises, start=1):
        name = f"exercise-{place}"
        heading = f"### Exercise {one.number}: {one.title}\n\n*{one.level}, {one.minutes} minutes*"
        folded = f"<details>\n<summary>Solution</summary>\n\n```python\n{one.solution}\n```\n"
        if one.note:
            folded += f"\n{one.note}\n"
        cells += [
            _cell(name, "markdown", f"{heading}\n\n{one.text}"),
            _cell(f"{name}-stub", "code", one.stub),
            _cell(f"{name}-check", "code", one.check_cell),
            _cell(f"{name}-solution", "markdown", f"{folded}\n</details>"),
        ]
    return cells


def _cell(name: str, kind: str, source: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": name, "metadata": {"tags": [TAG]}}
    cell["source"] = source
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
        cell["source"] = source.splitlines(keepends=True)  # as ruff writes it
    return dict(sorted(cell.items()))


def with_exercises(notebook: str, exercises: list[Exercise]) -> str:
    """The text of a notebook file with this section of exercises as its last, and no other."""
    content = json.loads(notebook)
    kept = [one for one in content["cells"] if TAG not in one["metadata"].get("tags", [])]
    content["cells"] = kept + section(exercises)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
