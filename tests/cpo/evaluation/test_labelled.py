"""Labelled pairs: files as documented, and what is refused."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpo.data import DataError
from cpo.evaluation.judging import JudgeError
from cpo.evaluation.labelled import LabelledPairs, read_labelled, read_pandalm

ROW = {"instruction": "Add.", "response_a": "4", "response_b": "5", "labels": ["A", "tie"]}


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "mine.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_labelled_file_as_documented(tmp_path: Path) -> None:
    more = {"context": "2 + 2", "id": "p", "labels": ["B", "B"]}
    replies = {"recorded": {"gpt": "Response B is better.", "other": "Hm."}}
    pairs = read_labelled(written(tmp_path, ROW, "", ROW | more | replies))
    assert pairs.name == "mine"
    np.testing.assert_array_equal(pairs.labels, [[1, 0], [0.5, 0]])
    assert pairs.responses == ("4", "4")
    assert [example.continuation for example in pairs.examples] == ["5", "5"]
    assert [example.id for example in pairs.examples] == ["1", "p"]
    assert pairs.examples[1].source == {"instruction": "Add.", "context": "2 + 2"}
    assert "2 + 2" in pairs.prompts[1] and pairs.prompts[0] != pairs.prompts[1]
    assert pairs.recorded_verdicts("gpt").verdicts == ("invalid", "B")  # the first line has none
    assert pairs.recorded_verdicts("other").invalid == 2
    with pytest.raises(JudgeError, match="mine: unknown recorded judge 'gtp'. Did you mean 'gpt'"):
        pairs.recorded_verdicts("gtp")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{", "line 2: Invalid JSON"),
        ("[]", "line 2: "),
        ({**ROW, "labels": []}, "line 2: labels: "),
        ({**ROW, "labels": ["A", "C"]}, "line 2: labels.1: Input should be 'A', 'B' or 'tie'"),
        ({**ROW, "labels": "A"}, "line 2: labels: "),
        ({**ROW, "response_a": None}, "line 2: response_a: Input should be a valid string"),
        ({**ROW, "labls": ["A"]}, "line 2: labls: Extra inputs are not permitted"),
        ({name: ROW[name] for name in ROW if name != "labels"}, "line 2: labels: Field required"),
    ],
)
def test_a_bad_line_is_named_with_what_a_line_holds(row: Any, problem: str, tmp_path: Path) -> None:
    path = written(tmp_path, ROW, row)
    with pytest.raises(DataError) as error:
        read_labelled(path)
    assert str(error.value).startswith(f"{path}, {problem}")
    assert "A line is an object with instruction, response_a, response_b and labels" in str(
        error.value
    )


def test_every_pair_has_as_many_labels(tmp_path: Path) -> None:
    path = written(tmp_path, ROW, {**ROW, "labels": ["A"]})
    with pytest.raises(DataError, match="line 2: 1 labels, and 2 in the first line. Give every"):
        read_labelled(path)


def test_an_empty_file_holds_no_pair(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no labelled pair"):
        read_labelled(written(tmp_path, ""))


def test_the_hash_is_of_texts_and_labels(tmp_path: Path) -> None:
    first = read_labelled(written(tmp_path, ROW)).content_hash
    assert read_labelled(written(tmp_path, ROW | {"id": "other"})).content_hash == first
    for change in ({"labels": ["A", "A"]}, {"response_b": "6"}, {"context": "2 + 2"}):
        assert read_labelled(written(tmp_path, ROW | change)).content_hash != first


# --- PandaLM --------------------------------------------------------------------------------------

PANDALM = {
    "testset-v1": [
        {
            "idx": 7, "instruction": "Is it true?", "input": "", "response1": True,
            "response2": "Yes.", "annotator1": 0, "annotator2": 1, "annotator3": 2,
        },
    ],
    "gpt-3.5-turbo-testset-v1": [{"idx": 7, "gpt_result": "garbage"}],
    "pandalm-7b-testset-v1": [{"idx": 7, "pandalm_result": 2}],
}  # fmt: skip


def pandalm(folder: Path, **changes: Any) -> Path:
    for name, rows in (PANDALM | changes).items():
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def test_pandalms_files(tmp_path: Path) -> None:
    pairs = read_pandalm(pandalm(tmp_path))
    np.testing.assert_array_equal(pairs.labels, [[0.5], [1], [0]])
    assert pairs.responses == ("True",)  # as JSON has it, no text
    assert pairs.recorded == {"gpt-3.5": ("invalid",), "pandalm-7b": ("B",)}


def test_other_files_of_that_name_are_refused(tmp_path: Path) -> None:
    pandalm(tmp_path, **{"pandalm-7b-testset-v1": [{"idx": 8}]})
    with pytest.raises(DataError, match="does not hold PandaLM's test set as published .KeyError"):
        read_pandalm(tmp_path)


def real_pairs() -> LabelledPairs:
    folder = os.environ.get("CPO_DATA")
    if not folder:
        pytest.skip("CPO_DATA is not set: the folder of the real data")
    return read_pandalm(Path(folder) / "pandalm")


def test_pandalms_999_pairs() -> None:
    pairs = real_pairs()
    assert pairs.labels.shape == (3, 999)
    assert len(set(pairs.prompts)) == 170
    assert Counter(pairs.recorded["gpt-3.5"])["invalid"] == 25  # unparsable for its authors, too
