"""Pairs of responses that people have labelled: what a judge is measured on.

PandaLM's test set (Wang et al. 2023) has 999 pairs on 170 instructions with three labels each, and
the recorded verdicts of two judges. Any other set is a JSONL file (`read_labelled`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cpo.data import DataError, Example
from cpo.data.examples import digest, render_prefix
from cpo.evaluation.judge_prompts import Verdict, parse_verdict
from cpo.evaluation.judging import JudgeError, Side, Verdicts
from cpo.evaluation.statistics import Array
from cpo.registry import unknown

Label = Literal["A", "B", "tie"]
POINTS: Mapping[Label, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}  # of response A
FORMAT = (
    "A line is an object with instruction, response_a, response_b and labels, a list of A, B or "
    "tie; context, id and recorded are optional (docs/judges.md)"
)
PANDALM = "PandaLM"
_PANDALM_LABELS: Sequence[Label] = ("tie", "A", "B")  # its 0, 1 and 2


@dataclass(frozen=True)
class LabelledPairs:
    """Pairs of responses, each with a label by every one of some people.

    Args:
        name: of the set, for tables.
        examples: the prompts, with response B as `continuation`.
        responses: response A of each pair.
        labels: `[people, n]`, the points of response A: 1, 0.5 for a tie, or 0.
        recorded: verdicts of judges who saw the pairs earlier, by the judge's name.
    """

    name: str
    examples: tuple[Example, ...]
    responses: tuple[str, ...]
    labels: Array
    recorded: Mapping[str, tuple[Verdict, ...]] = field(default_factory=dict)

    @property
    def prompts(self) -> list[str]:
        """The prompt of each pair; pairs of one prompt are not independent."""
        return [example.prefix for example in self.examples]

    @property
    def content_hash(self) -> str:
        """SHA-256 of prompts, responses and labels; 64 hexadecimal digits."""
        answers = [example.continuation for example in self.examples]
        labels = map(str, self.labels.T.flatten().tolist())
        return digest([*self.prompts, *self.responses, *answers, *labels])

    def recorded_verdicts(self, judge: str) -> Verdicts:
        """The recorded verdicts of a judge, in the one order in which it saw the pairs.

        Raises:
            JudgeError: the file has none of this judge; the message names those it has.
        """
        if judge not in self.recorded:
            raise JudgeError(f"{self.name}: {unknown('recorded judge', judge, self.recorded)}")
        ids = tuple(example.id for example in self.examples)
        side: Side = "A"
        return Verdicts(judge, ids, (side,) * len(ids), self.recorded[judge])


def _pairs(name: str, rows: Sequence[_Row], verdicts: Mapping[str, Any]) -> LabelledPairs:
    return LabelledPairs(
        name,
        tuple(
            Example(
                row.id or str(number),
                render_prefix(row.instruction, row.context),
                row.response_b,
                "",
                {"instruction": row.instruction, "context": row.context},
            )
            for number, row in enumerate(rows, start=1)
        ),
        tuple(row.response_a for row in rows),
        np.array([[POINTS[label] for label in row.labels] for row in rows]).T,
        verdicts,
    )


# --- A file of one's own --------------------------------------------------------------------------


class _Row(BaseModel):
    """A line of a labelled file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    instruction: str
    response_a: str
    response_b: str
    labels: list[Label] = Field(min_length=1)
    context: str = ""
    id: str = ""
    recorded: dict[str, str] = {}


def read_labelled(path: Path) -> LabelledPairs:
    """Read a JSONL file of labelled pairs, one a line; blank lines are skipped.

    Columns: `instruction`, `response_a`, `response_b`; `labels`, a list with "A", "B" or "tie" of
    each person, in every line of as many people. Optional: `context`; `id`; and `recorded`, replies
    of judges by name, such as `{"gpt-4": "A"}`, which `parse_verdict` reads. A judge that a line
    leaves out has no valid verdict on it.

    Raises:
        DataError: a line is not as described, or there is none; the message names file and line.
        OSError: the file cannot be read.
    """
    rows: list[_Row] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = _Row.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, problem["loc"]))
            raise DataError(
                f"{where}: {f'{key}: ' * bool(key)}{problem['msg']}. {FORMAT}"
            ) from None
        if rows and len(row.labels) != len(rows[0].labels):
            raise DataError(
                f"{where}: {len(row.labels)} labels, and {len(rows[0].labels)} in the first line. "
                "Give every pair a label by each of the same people, or leave the pair out"
            )
        rows.append(row)
    if not rows:
        raise DataError(f"{path} holds no labelled pair. {FORMAT}")
    judges = dict.fromkeys(name for row in rows for name in row.recorded)
    verdicts = {
        name: tuple(parse_verdict(row.recorded.get(name, "")) for row in rows) for name in judges
    }
    return _pairs(path.stem, rows, verdicts)


# --- PandaLM --------------------------------------------------------------------------------------


def read_pandalm(folder: Path) -> LabelledPairs:
    """PandaLM's test set, with the recorded verdicts of `gpt-3.5` and `pandalm-7b`.

    Args:
        folder: with `testset-v1.json`, `gpt-3.5-turbo-testset-v1.json` and
            `pandalm-7b-testset-v1.json`.

    Raises:
        DataError: the files are not PandaLM's.
        OSError: a file cannot be read.
    """
    names = ("testset-v1", "gpt-3.5-turbo-testset-v1", "pandalm-7b-testset-v1")
    texts = [(folder / f"{name}.json").read_text(encoding="utf-8") for name in names]
    try:
        pairs, gpt, pandalm = ({row["idx"]: row for row in json.loads(text)} for text in texts)
        rows = [
            _Row(
                instruction=row["instruction"],
                context=row["input"],
                response_a=str(row["response1"]),  # six are the JSON value true
                response_b=str(row["response2"]),
                labels=[_PANDALM_LABELS[row[f"annotator{person}"]] for person in (1, 2, 3)],
                id=str(index),
            )
            for index, row in pairs.items()
        ]
        # Its authors write "garbage" where they could not read GPT-3.5's reply.
        verdicts = {
            "gpt-3.5": tuple(parse_verdict(gpt[row]["gpt_result"], ("1", "2")) for row in pairs),
            "pandalm-7b": tuple(_PANDALM_LABELS[pandalm[row]["pandalm_result"]] for row in pairs),
        }
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder} does not hold PandaLM's test set as published ({type(error).__name__}: "
            f"{error}). Download its three files again, or give a file with --pairs"
        ) from None
    return _pairs(PANDALM, rows, verdicts)
