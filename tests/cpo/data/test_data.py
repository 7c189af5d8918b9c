"""Data: loading, splitting, and token ids that cannot move, vanish or turn into something else."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cpo import data
from cpo.data import Article, DataError, Example, LoadReport

ROWS = [
    {
        "instruction": f"Name the river of valley {number}.",
        "context": f"Valley {number} has one river." if number % 3 == 0 else "",
        "response": f"The river is number {number}, naïve “λ”.",
        "category": "open_qa" if number % 2 else "closed_qa",
    }
    for number in range(40)
]


def write(path: Path, rows: list[Any]) -> Path:
    """Rows (or raw lines) as .jsonl, .jsonl.gz or .parquet, as the name says."""
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def load(path: Path, source: Any = "jsonl", **settings: Any) -> data.InstructionTask:
    sizes = {"seed": 0, "validation_rows": 4, "test_prompts": 8} | settings
    return data.load_instructions(source, path, **sizes)


def hashes(task: Any) -> list[str]:
    return [data.content_hash(getattr(task, split)) for split in data.SPLITS]


def example(prefix: str, continuation: str, name: str = "row-1") -> Example:
    return Example(name, prefix, continuation, "", None)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = [row["instruction"] + " " + row["response"] for row in ROWS]
    return data.train_tokenizer(texts, 400)


@pytest.fixture(scope="module")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that adds BOS by itself, as Llama's does, with BOS another token than EOS."""
    made = data.train_tokenizer([row["response"] for row in ROWS], 400)
    made.add_special_tokens({"bos_token": "<s>"})
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    return made


def text_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


# --- The template ---------------------------------------------------------------------------------


def test_prefix_has_a_context_block_only_where_there_is_a_context() -> None:
    assert data.render_prefix("Add.", "1 and 2") == (
        "### Instruction:\nAdd.\n\n### Context:\n1 and 2\n\n### Response:\n"
    )
    assert data.render_prefix("Add.", " ") == "### Instruction:\nAdd.\n\n### Response:\n"


def test_prefix_keeps_braces_of_the_data() -> None:
    assert data.render_prefix("{context}", "{x}").count("{x}") == 1


# --- Loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["jsonl", "dolly"])
def test_copies_in_any_format_and_order_are_one_task(tmp_path: Path, source: str) -> None:
    plain = load(write(tmp_path / "a.jsonl", ROWS), source)
    zipped = load(write(tmp_path / "b.jsonl.gz", ROWS[::-1]), source)
    parquet = load(write(tmp_path / "c.parquet", ROWS[20:] + ROWS[:20]), source)
    assert plain == zipped == parquet
    assert hashes(plain) == hashes(parquet)
    assert len(plain.train) == 20 and len(plain.validation) == 4 and len(plain.test) == 8


def test_dolly_copies_with_columns_of_their_own_are_one_task(tmp_path: Path) -> None:
    plain = load(write(tmp_path / "a.jsonl", ROWS), "dolly")
    numbered = [row | {"id": number, "split": "train"} for number, row in enumerate(ROWS)]
    assert load(write(tmp_path / "b.jsonl", numbered), "dolly") == plain


def test_content_hash_follows_the_content(tmp_path: Path) -> None:
    changed = [*ROWS[:-1], ROWS[-1] | {"response": "Another."}]
    first = load(write(tmp_path / "a.jsonl", ROWS))
    assert hashes(load(write(tmp_path / "b.jsonl", changed))) != hashes(first)
    reseeded = load(tmp_path / "a.jsonl", seed=1)
    assert hashes(reseeded) != hashes(first)
    assert {item.id for item in reseeded.train} != {item.id for item in first.train}


def test_content_hash_covers_every_field_and_the_order() -> None:
    first, second = Example("a", "p", "c", "k", None), Example("b", "p", "c", "k", None)
    hashes = [data.content_hash(rows) for rows in ([first, second], [second, first], [first], [])]
    for name in ("id", "prefix", "continuation", "category"):
        hashes.append(data.content_hash([dataclasses.replace(first, **{name: "other"}), second]))
    article = Article("a", "t", "x", None)
    hashes.append(data.content_hash([article]))
    for name in ("id", "title", "text"):
        hashes.append(data.content_hash([dataclasses.replace(article, **{name: "other"})]))
    assert len(set(hashes)) == len(hashes) == 12
    assert data.content_hash([dataclasses.replace(first, source={"row": 1}), second]) == hashes[0]


def test_splits_are_disjoint_and_independent_of_each_others_size(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    task = load(path)
    parts = [{item.id for item in part} for part in (task.train, task.validation, task.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 32
    assert load(path, test_prompts=5).validation == task.validation
    assert load(path, test_prompts=5).test == task.test[:5]
    assert load(path, validation_rows=2).test == task.test
    assert load(path, train_rows=7).train == task.train[:7]
    with pytest.raises(DataError, match="21 training rows requested, jsonl has 20"):
        load(path, train_rows=21)


def test_example_carries_text_and_its_row(tmp_path: Path) -> None:
    task = load(write(tmp_path / "a.jsonl", ROWS))
    for item in task.train:
        assert item.source in ROWS
        assert item.prefix == data.render_prefix(item.source["instruction"], item.source["context"])
        assert item.continuation == item.source["response"]
        assert item.category == item.source["category"]


def test_absent_optional_fields_are_empty(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"instruction": row["instruction"], "response": row["response"]} for row in ROWS
    ]
    rows[0]["context"] = None
    task = load(write(tmp_path / "a.jsonl", rows))
    assert {item.category for item in task.train} == {""}
    assert all("### Context" not in item.prefix for item in task.train + task.test)
    assert not task.report.dropped


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 39), max_size=15), st.integers(0, 5))
def test_equal_prompts_never_straddle_a_seeded_split(repeated: list[int], seed: int) -> None:
    """With copies of rows, and rows that share a prompt but not the response."""
    import tempfile

    copies = [ROWS[number] for number in repeated]
    variants = [ROWS[number] | {"response": "Unknown."} for number in repeated[:3]]
    rows = ROWS + copies + variants
    with tempfile.TemporaryDirectory() as folder:
        task = load(write(Path(folder) / "a.jsonl", rows), seed=seed)
    prompts = [{item.prefix for item in part} for part in (task.train, task.validation, task.test)]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert len(task.test) == len(prompts[2])  # a prompt is judged once
    every = [item.id for item in task.train + task.validation + task.test]
    assert len(every) == len(set(every))
    # Single rows fill up what groups leave, so the halves are exact.
    assert len(task.train) == len(rows) // 2
    assert task.report.kept == task.report.read == len(rows)


def test_duplicates_are_kept_and_counted(tmp_path: Path) -> None:
    task = load(write(tmp_path / "a.jsonl", [*ROWS, ROWS[5], ROWS[5], ROWS[9]]))
    noted = task.report.noted["exact duplicate of another row"]
    assert noted == ["line 41", "line 42", "line 43"]
    assert task.report.kept == 43


def test_own_split_column_is_used(tmp_path: Path) -> None:
    names = ["train"] * 30 + ["validation"] * 4 + ["test"] * 6
    rows = [row | {"split": name} for row, name in zip(ROWS, names, strict=True)]
    task = load(write(tmp_path / "a.jsonl", rows), test_prompts=6)
    assert {item.source["split"] for item in task.train} == {"train"} and len(task.train) == 30
    assert {item.source["split"] for item in task.validation} == {"validation"}
    assert {item.source["split"] for item in task.test} == {"test"} and len(task.test) == 6


def test_own_split_without_validation_takes_it_from_test(tmp_path: Path) -> None:
    rows = [row | {"split": "test" if n < 15 else "train"} for n, row in enumerate(ROWS)]
    task = load(write(tmp_path / "a.jsonl", rows))
    assert {item.source["split"] for item in task.validation + task.test} == {"test"}
    assert (len(task.train), len(task.validation), len(task.test)) == (25, 4, 8)


def test_own_split_that_leaks_is_told(tmp_path: Path) -> None:
    rows = [row | {"split": "test" if n < 15 else "train"} for n, row in enumerate(ROWS)]
    rows.append(ROWS[0] | {"split": "train", "id": "leak"})
    task = load(write(tmp_path / "a.jsonl", rows))
    [reason] = [reason for reason in task.report.noted if "also a training prompt" in reason]
    assert len(task.report.noted[reason]) == 1


def test_split_in_some_rows_only_is_refused(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"split": "train"}, *ROWS[1:]]
    with pytest.raises(DataError, match=r"a\.jsonl: line 2: no split"):
        load(write(tmp_path / "a.jsonl", rows))


def test_small_file_shares_held_out_rows_in_proportion_and_says_so(tmp_path: Path) -> None:
    # 40 rows: 20 held out; 1000 : 512 of them is 13.2 : 6.8, so 13 and 7.
    path = write(tmp_path / "a.jsonl", ROWS)
    task = load(path, validation_rows=512, test_prompts=1000)
    assert (len(task.train), len(task.test), len(task.validation)) == (20, 13, 7)
    assert "20 held-out prompts, 1,512 requested" in task.report.summary()


def test_eight_rows_are_the_fewest(tmp_path: Path) -> None:
    task = load(write(tmp_path / "a.jsonl", ROWS[:8]), validation_rows=512, test_prompts=1000)
    assert len(task.train) == 4 and task.test and task.validation
    with pytest.raises(DataError, match="at least 8"):
        load(write(tmp_path / "a.jsonl", ROWS[:7]))


BAD_ROWS = {
    "malformed: not UTF-8 JSON": b'{"instruction": "Cut off',
    "malformed: not a JSON object": b'["a", "list"]',
    "malformed: field response is not text": ROWS[0] | {"response": 7},
    "malformed: field context is not text": ROWS[0] | {"context": ["a"]},
    "malformed: field instruction holds half a surrogate pair": ROWS[0] | {"instruction": "\ud800"},
    "malformed: field split is not train, validation or test": ROWS[0] | {"split": "dev"},
    "malformed: field id is neither text nor a whole number": ROWS[0] | {"id": 1.5},
    "missing field response": {"instruction": "Why?"},
    "missing field instruction": {"response": "So.", "instruction": None},
    "empty response": ROWS[0] | {"response": " \n"},
    "empty instruction": ROWS[0] | {"instruction": ""},
    "duplicate id": ROWS[0] | {"id": "3"},
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_bad_row_is_dropped_and_named_or_refused(tmp_path: Path, reason: str) -> None:
    good: list[Any] = [row | {"id": number} for number, row in enumerate(ROWS)]
    path = write(tmp_path / "own.jsonl", [*good[:10], BAD_ROWS[reason], *good[10:]])
    task = load(path)
    assert list(task.report.dropped) == [reason]
    # A repeated id is the later row's fault: number 3 stands before line 11.
    [name] = task.report.dropped[reason]
    assert name.split(",")[0] == "line 11"
    assert task.report.read == 41 and task.report.kept == 40
    assert f"Dropped 1: {reason} (line 11" in task.report.summary()
    with pytest.raises(DataError, match=r"own\.jsonl: line 11.*: " + reason) as refused:
        load(path, on_bad_row="refuse")
    assert "on_bad_row" in str(refused.value)


# --- Columns of other names, and cells without a value --------------------------------------------

OTHER_NAMES = {
    "input": "context",
    "prompt": "instruction",
    "question": "instruction",
    "output": "response",
    "completion": "response",
    "answer": "response",
    "Context": "context",
    "Response": "response",
}


def renamed(rows: list[dict[str, str]], **names: str) -> list[dict[str, str]]:
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("alias", OTHER_NAMES)
def test_a_column_by_another_name_is_asked_for_and_then_read(tmp_path: Path, alias: str) -> None:
    ours = OTHER_NAMES[alias]
    path = write(tmp_path / "own.jsonl", renamed(ROWS, **{ours: alias}))
    first = 1 if ours != "context" else next(n for n, row in enumerate(ROWS, 1) if row["context"])
    with pytest.raises(DataError) as refused:
        load(path)
    message, counts = str(refused.value).splitlines()[:2]
    assert f"own.jsonl: line {first}: the content of {alias} would be left out" in message
    assert (
        f"set `columns: {json.dumps({ours: alias})}` under `instructions` in the profile" in message
    )
    assert counts == f"jsonl instructions: {first} read, {first} kept."
    task = load(path, columns={ours: alias})
    assert task == load(write(tmp_path / "a.jsonl", ROWS))
    assert not task.report.noted


def test_text_of_an_input_column_is_not_lost(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"Summarise text number {number}.",
            "input": f"A long text {number}.",
            "response": f"About {number}.",
        }
        for number in range(40)
    ]
    path = write(tmp_path / "alpaca.jsonl", rows)
    with pytest.raises(DataError, match=r'`columns: \{"context": "input"\}`'):
        load(path)
    for item in load(path, columns={"context": "input"}).train:
        assert item.source["input"] in item.prefix


def test_all_columns_that_are_meant_stand_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", renamed(ROWS, instruction="prompt", response="a: b"))
    with pytest.raises(DataError) as refused:
        load(path, columns={"response": "a: b"})
    # Read as YAML it is the setting.
    match = re.search(r"`(columns: .*?)`", str(refused.value))
    assert match is not None
    setting = yaml.safe_load(match[1])["columns"]
    assert setting == {"response": "a: b", "instruction": "prompt"}
    assert load(path, columns=setting) == load(write(tmp_path / "b.jsonl", ROWS))


def test_columns_may_change_places_and_one_of_ours_is_noted_where_another_is_read(
    tmp_path: Path,
) -> None:
    swapped = renamed(ROWS, instruction="response", response="instruction")
    swap: Any = {"instruction": "response", "response": "instruction"}
    task = load(write(tmp_path / "a.jsonl", ROWS))
    assert load(write(tmp_path / "b.jsonl", swapped), columns=swap) == task
    both = [row | {"chosen": row["response"], "response": "An old one."} for row in ROWS]
    read = load(write(tmp_path / "c.jsonl", both), columns={"response": "chosen"})
    assert read == task
    assert len(read.report.noted["column response, not used"]) == 40


def test_a_column_that_is_named_and_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no row has inptu, which `instr.*\n.*40 read"):
        load(path, columns={"context": "inptu"})
    with pytest.raises(DataError, match="columns applies to the source jsonl, not to dolly"):
        load(path, "dolly", columns={"context": "input"})


def test_other_columns_are_named_and_counted(tmp_path: Path) -> None:
    rows: list[Any] = [row | {"lang": "en", "input": "", "meta": {}, "score": 0} for row in ROWS]
    rows[0] |= {"source": "a book", "input": " ", "prompt": "Be kind.", "category": None}
    path = write(tmp_path / "a.jsonl", rows)
    report = load(path).report
    assert {reason: len(places) for reason, places in report.noted.items()} == {
        "column lang, not used": 40,
        "column prompt, not used": 1,  # the row has an instruction
        "column score, not used": 40,
        "column source, not used": 1,
    }
    assert "Noted 40: column lang, not used (line 1, line 2" in report.summary()
    assert not load(path, "dolly").report.noted  # a public set may have what it has


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_nan_is_no_value_whatever_the_column(tmp_path: Path, name: str) -> None:
    rows: list[Any] = [row | {"id": number} for number, row in enumerate(ROWS)]
    if name.endswith("parquet"):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(rows)
        frame.loc[7, "id"] = math.nan
        frame["empty"] = math.nan
        assert frame["id"].dtype == float
        frame.to_parquet(tmp_path / name)
    else:
        rows[7] |= {"id": math.nan, "context": math.nan, "category": math.nan, "split": math.nan}
        rows[7]["empty"] = math.nan
        write(tmp_path / name, rows)
    task = load(tmp_path / name)
    assert task.report.kept == 40 and not task.report.noted
    ids = {item.id for item in task.train + task.validation + task.test}
    others = {str(number) for number in range(40) if number != 7}
    assert len(ids & others) >= 31 and all(len(item) == 16 for item in ids - others)


def test_a_nan_where_text_is_required_is_a_missing_field(tmp_path: Path) -> None:
    rows = [*ROWS, ROWS[0] | {"response": math.nan}, ROWS[0] | {"response": math.inf}]
    assert load(write(tmp_path / "a.jsonl", rows)).report.dropped == {
        "missing field response": ["line 41"],
        "malformed: field response is not text": ["line 42"],
    }


def test_every_refusal_says_what_was_read(tmp_path: Path, tokenizer: Any) -> None:
    """Whatever stops a load after rows were read, its counts are said too."""
    bad = {"instruction": "Why?"}

    def counts(rows: list[Any], **load_settings: Any) -> str:
        with pytest.raises(DataError) as refused:
            load(write(tmp_path / "a.jsonl", rows), **load_settings)
        assert str(refused.value).count(" read, ") == 1
        return str(refused.value).split("\n", 1)[1]

    dropped = "Dropped 1: missing field response (line 41)."
    split = [row | {"split": "train"} for row in ROWS]
    for rows, load_settings in (
        ([*ROWS, bad], {"train_rows": 21}),
        ([*ROWS, bad], {"on_bad_row": "refuse"}),
        ([*split[:39], ROWS[39], bad], {}),  # a row without a split
        ([*split, bad], {}),  # no row to test on
    ):
        read = f"jsonl instructions: 41 read, 40 kept.\n{dropped}"
        assert counts(rows, **load_settings).startswith(read)
    few = counts([*ROWS[:3], bad])
    assert few.startswith("jsonl instructions: 4 read, 3 kept.")
    whole = gzip.compress(b"\n".join(json.dumps(row).encode() for row in ROWS * 99))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-99])
    with pytest.raises(DataError, match=r"is damaged(?s:.*)\njsonl instructions: [\d,]{3,} read"):
        load(tmp_path / "cut.jsonl.gz")
    texts = [example("Name it:", "A.", "row-1"), example("Name it:", "A river.", "row-2")]
    limits: Any = {"max_prefix_tokens": 99, "max_continuation_tokens": 3, "over_long": "refuse"}
    with pytest.raises(DataError, match=r"row-2(?s:.*)\ntokenised examples: 2 read, 1 kept"):
        data.tokenize(texts, tokenizer, **limits)
    with pytest.raises(DataError, match="tokens of 2 texts do not fill one block"):
        data.pack_articles(["a", "b"], tokenizer, 64)


def test_bytes_that_are_no_utf8_are_malformed(tmp_path: Path) -> None:
    bad = json.dumps(ROWS[0] | {"response": "caf@"}).encode().replace(b"@", b"\xe9")
    report = load(write(tmp_path / "a.jsonl", [*ROWS, bad])).report
    assert report.dropped == {"malformed: not UTF-8 JSON": ["line 41"]}


def test_byte_order_mark_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    first = b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode()
    task = load(write(tmp_path / "a.jsonl", [first, b"", *ROWS[1:], b"  "]))
    assert task.report.read == task.report.kept == 40


def test_parquet_rows_are_checked_too(tmp_path: Path) -> None:
    rows = [*ROWS, ROWS[0] | {"response": None}, ROWS[0] | {"response": ""}]
    report = load(write(tmp_path / "a.parquet", rows)).report
    assert report.dropped == {"missing field response": ["row 41"], "empty response": ["row 42"]}


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        load(tmp_path / "absent.jsonl")
    (tmp_path / "a.csv").write_text("instruction,response\n")
    with pytest.raises(DataError, match=r"supported formats: \.jsonl"):
        load(tmp_path / "a.csv")
    whole = gzip.compress(b"\n".join(json.dumps(row).encode() for row in ROWS))
    damaged = {
        "cut.jsonl.gz": whole[: len(whole) // 2],
        "altered.jsonl.gz": whole[:40] + b"@@@@@" + whole[45:],
        "no.jsonl.gz": b"plain text",
        "no.parquet": b"plain text",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            DataError, match=rf"{name} is damaged or cannot be read: fetch it again"
        ):
            load(tmp_path / name)
    with pytest.raises(DataError, match="needs a path"):
        data.load_instructions("jsonl", None, seed=0)
    with pytest.raises(DataError, match="unknown source 'dollly'"):
        load(tmp_path, "dollly")


@pytest.mark.parametrize("inner", [".", "dolly"])
def test_folder_is_searched_for_dolly(tmp_path: Path, inner: str) -> None:
    (tmp_path / inner).mkdir(exist_ok=True)
    with pytest.raises(DataError, match=r"no file .*databricks-dolly-15k"):
        load(tmp_path, "dolly")
    write(tmp_path / inner / "databricks-dolly-15k.jsonl.gz", ROWS)
    assert load(tmp_path, "dolly").report.kept == 40


def test_hub_rows_are_the_same_task_as_a_local_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def served(name: str, config: str | None, **how: Any) -> list[dict[str, str]]:
        asked.append((name, config, how))
        return ROWS[::-1]

    monkeypatch.setattr(datasets, "load_dataset", served)
    sizes: Any = {"seed": 0, "validation_rows": 4, "test_prompts": 8}
    task = data.load_instructions("dolly", None, **sizes)
    assert task == load(write(tmp_path / "a.jsonl", ROWS), "dolly")
    expected = ("databricks/databricks-dolly-15k", None, {"split": "train", "streaming": False})
    assert asked == [expected]


def test_hub_articles_are_streamed_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    served: list[int] = []
    asked = []

    def stream() -> Iterator[dict[str, str]]:
        for number in range(30_000):
            served.append(number)
            yield {"id": str(number), "title": f"T{number}", "text": f"{number}.", "url": "x"}

    def load_dataset(*name: str, **how: Any) -> Iterator[dict[str, str]]:
        asked.append((name, how))
        return stream()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = data.load_articles("wikipedia", seed=0, validation_articles=3, test_articles=5)
    assert len(served) == task.report.read == 20_000 and len(task.train) == 19_992
    assert not task.report.noted
    name = ("wikimedia/wikipedia", "20231101.en")
    assert asked == [(name, {"split": "train", "streaming": True})]


def test_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(*name: Any, **how: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=r"could not be fetched from the hub: give a local copy.*no route"
    ):
        data.load_instructions("dolly", None, seed=0)


def test_a_report_sums_up_what_was_dropped_and_noted() -> None:
    report = LoadReport("x", read=15)
    for name in "abcdefg":
        report.drop("empty response", name)
    report.note("odd", "h")
    assert (report.read, report.kept) == (15, 8)
    assert report.summary().splitlines() == [
        "x: 15 read, 8 kept.",
        "Dropped 7: empty response (a, b, c, d, e, ...).",
        "Noted 1: odd (h).",
    ]


# --- Articles -------------------------------------------------------------------------------------

ARTICLES = [
    {"id": number, "title": f"Title {number}", "text": f"Article {number} says so."}
    for number in range(30)
]


def test_articles_load_alike_from_any_copy(tmp_path: Path) -> None:
    sizes: Any = {"seed": 0, "validation_articles": 3, "test_articles": 6}
    (tmp_path / "wikipedia").mkdir()
    write(tmp_path / "wikipedia" / "articles.jsonl.gz", ARTICLES)
    texts = [row | {"id": str(row["id"])} for row in ARTICLES[::-1]]
    task = data.load_articles("wikipedia", tmp_path, **sizes)
    assert task == data.load_articles("wikipedia", write(tmp_path / "b.parquet", texts), **sizes)
    assert (len(task.train), len(task.validation), len(task.test)) == (21, 3, 6)
    assert all(isinstance(item.id, str) for item in task.train)
    assert len({item.id for item in task.train + task.validation + task.test}) == 30


@pytest.mark.parametrize("alias", ["content", "body", "Text"])
def test_articles_by_another_name_are_asked_for_and_then_read(tmp_path: Path, alias: str) -> None:
    rows = [{"title": row["title"], alias: row["text"], "url": "x"} for row in ARTICLES]
    path = write(tmp_path / "a.jsonl", rows)
    remedy = rf'set `columns: \{{"text": "{alias}"\}}` under `articles`'
    with pytest.raises(DataError, match=remedy):
        data.load_articles("jsonl", path, seed=0)
    task = data.load_articles("jsonl", path, seed=0, columns={"text": alias})
    assert sorted(item.text for item in task.train)[0] == "Article 0 says so."
    assert task.report.noted["column url, not used"][0] == "line 1"


def test_bad_articles_are_counted(tmp_path: Path) -> None:
    rows = [*ARTICLES, ARTICLES[4], {"id": 77, "title": "No text"}, {"text": "Untitled."}]
    task = data.load_articles("jsonl", write(tmp_path / "a.jsonl", rows), seed=0)
    assert task.report.dropped == {
        "duplicate id": ["line 31, id 4"],
        "missing field text": ["line 32, id 77"],
    }
    # 31 articles are kept: at most half of them are held out.
    assert len(task.train) == 16 and task.report.kept == 31


def test_world_is_loaded_with_its_own_split() -> None:
    world_module = pytest.importorskip("cpo_suite.world")
    world = world_module.build_world(seed=0)
    split = {pair.id: pair.split for pair in world.pairs}
    task = data.load_instructions("world", seed=0)
    assert {split[item.id] for item in task.train} == {"train"}
    assert {split[item.id] for item in task.validation + task.test} == {"test"}
    assert len(task.train) == list(split.values()).count("train")
    assert not {item.prefix for item in task.train} & {item.prefix for item in task.test}
    assert all(item.continuation == item.source.response for item in task.test)
    articles = data.load_articles("world", seed=0, test_articles=20, validation_articles=10)
    assert len(articles.test) == 20 and len(articles.validation) == 10
    assert {item.source.split for item in articles.train} == {"train"}


# --- Token ids ------------------------------------------------------------------------------------


def test_ids_are_those_of_prefix_and_continuation_apart(tokenizer: Any) -> None:
    # Joined, "ri" + "ver" would be one token " river"; apart, the boundary stays.
    [item], report = data.tokenize(
        [example("Name the ri", "ver.")],
        tokenizer,
        max_prefix_tokens=50,
        max_continuation_tokens=50,
    )
    assert item.prefix_ids == text_ids(tokenizer, "Name the ri")
    assert item.continuation_ids == (*text_ids(tokenizer, "ver."), tokenizer.eos_token_id)
    joined = text_ids(tokenizer, "Name the river.")
    assert len(joined) < len(item.prefix_ids) + len(item.continuation_ids) - 1
    assert item.has_eos and report.kept == 1


def test_bos_stands_where_the_tokenizer_puts_it_and_only_there(
    tokenizer: Any, bos_tokenizer: Any
) -> None:
    texts = [example("Name it:", "The river.")]
    limits: Any = {"max_prefix_tokens": 50, "max_continuation_tokens": 50}
    [without], _ = data.tokenize(texts, tokenizer, **limits)
    [with_bos], _ = data.tokenize(texts, bos_tokenizer, **limits)
    assert tokenizer.bos_token_id not in without.prefix_ids
    assert with_bos.prefix_ids == tuple(bos_tokenizer("Name it:")["input_ids"])
    assert with_bos.prefix_ids[0] == bos_tokenizer.bos_token_id
    assert bos_tokenizer.bos_token_id not in with_bos.continuation_ids
    assert with_bos.continuation_ids[-1] == bos_tokenizer.eos_token_id != with_bos.prefix_ids[0]


def test_special_tokens_spelt_in_the_data_stay_text(tokenizer: Any, bos_tokenizer: Any) -> None:
    text = "a<|endoftext|>b<|pad|>c<s>d"
    for one_tokenizer in (tokenizer, bos_tokenizer):
        [item], _ = data.tokenize(
            [example(text, text)],
            one_tokenizer,
            max_prefix_tokens=99,
            max_continuation_tokens=99,
        )
        special = set(one_tokenizer.all_special_ids)
        bos = one_tokenizer is bos_tokenizer
        assert not special & set(item.prefix_ids[bos:])
        assert not special & set(item.continuation_ids[:-1])
        assert one_tokenizer.decode(list(item.continuation_ids[:-1])) == text
        [block] = data.pack_articles([text], one_tokenizer, len(item.continuation_ids))
        assert tuple(block.tolist()) == item.continuation_ids
        # The tokenizer itself is left as it was: there the text does turn into the token.
        assert one_tokenizer.eos_token_id in text_ids(one_tokenizer, text)


def test_limits_include_eos_and_bos_exactly(bos_tokenizer: Any) -> None:
    item = example("Name it:", "The river.")
    prefix = 1 + len(text_ids(bos_tokenizer, item.prefix))
    continuation = len(text_ids(bos_tokenizer, item.continuation)) + 1

    def reasons(first: int, second: int) -> list[str]:
        kept, report = data.tokenize(
            [item],
            bos_tokenizer,
            max_prefix_tokens=first,
            max_continuation_tokens=second,
        )
        assert len(kept) == report.kept == 1 - len(report.dropped)
        return list(report.dropped)

    assert reasons(prefix, continuation) == []
    assert reasons(prefix - 1, continuation) == ["over-long prefix"]
    assert reasons(prefix, continuation - 1) == ["over-long continuation"]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [((2, 50), "prefix"), ((50, 2), "continuation")],
)
def test_over_long_example_is_refused_by_name(tokenizer: Any, limits: Any, reason: str) -> None:
    texts = [example("Name it:", "The river is number 7.", "row-7")]
    with pytest.raises(DataError, match=f"row-7: over-long {reason}.*raise the limit"):
        data.tokenize(
            texts,
            tokenizer,
            max_prefix_tokens=limits[0],
            max_continuation_tokens=limits[1],
            over_long="refuse",
        )


def test_truncated_continuation_has_no_eos(tokenizer: Any) -> None:
    texts = [
        example("Name it:", "The river is number 7.", "long"),
        example("Name it:", "T", "short"),
        example("Name it, " * 20, "T", "long prefix"),
    ]
    limits: Any = {"max_prefix_tokens": 20, "max_continuation_tokens": 3, "over_long": "truncate"}
    (long, short), report = data.tokenize(texts, tokenizer, **limits)
    assert long.continuation_ids == text_ids(tokenizer, "The river is number 7.")[:3]
    assert not long.has_eos and tokenizer.eos_token_id not in long.continuation_ids
    assert short.has_eos and short.continuation_ids[-1] == tokenizer.eos_token_id
    assert report.noted == {"continuation truncated, without EOS": ["long"]}
    assert report.dropped == {"over-long prefix": ["long prefix"]}


def test_tokenizer_without_eos_is_refused(tokenizer: Any) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    for call in (
        lambda: data.tokenize([], bare, max_prefix_tokens=9, max_continuation_tokens=9),
        lambda: data.tokenize_articles([], bare, max_tokens=20),
        lambda: data.pack_articles(["a"], bare, 1),
    ):
        with pytest.raises(DataError, match="no EOS"):
            call()


def test_articles_are_cut_at_fifteen_percent_of_their_own_tokens(tokenizer: Any) -> None:
    # The tokenizer never saw a tilde: it is one byte, and one token, each time.
    articles = [
        Article("whole", "", "~" * 100, None),  # 15 | 85 + EOS
        Article("capped", "", "~" * 300, None),  # 18 | 102 of the first 120, no EOS
        Article("full", "", "~" * 119, None),  # 119 + EOS fit: 18 (17.85) | 101 + EOS
        Article("just over", "", "~" * 120, None),  # no room for EOS
        Article("least", "", "~" * 8, None),  # 1 (1.2) | 7 + EOS
        Article("too short", "", "~" * 7, None),
    ]
    kept, report = data.tokenize_articles(articles, tokenizer, max_tokens=120)
    sizes = {
        item.id: (len(item.prefix_ids), len(item.continuation_ids), item.has_eos) for item in kept
    }
    assert sizes == {
        "whole": (15, 86, True),
        "capped": (18, 102, False),
        "full": (18, 102, True),
        "just over": (18, 102, False),
        "least": (1, 8, True),
    }
    for item in kept:
        assert (item.continuation_ids[-1] == tokenizer.eos_token_id) == item.has_eos
    assert report.dropped == {"fewer than 8 tokens": ["too short"]}
    assert report.noted == {"capped to 120 tokens, without EOS": ["capped", "just over"]}


def test_article_ids_are_one_stretch_of_the_text(tokenizer: Any, bos_tokenizer: Any) -> None:
    text = " ".join(row["response"] for row in ROWS)
    for one_tokenizer, bos in ((tokenizer, 0), (bos_tokenizer, 1)):
        [item], _ = data.tokenize_articles(
            [Article("a", "", text, None)], one_tokenizer, max_tokens=60
        )
        assert (
            item.prefix_ids[bos:] + item.continuation_ids
            == text_ids(one_tokenizer, text)[: -bos or None][: 60 - bos]
        )
        assert len(item.prefix_ids) + len(item.continuation_ids) == 60
        assert len(item.prefix_ids) == bos + 9  # 15 % of 60 or of 59


def test_article_settings_that_make_no_sense_are_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="raise it to 8"):
        data.tokenize_articles([], tokenizer, max_tokens=7)


# --- The tokenizer and packing --------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_trained_tokenizer_gives_back_any_text(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(data.encode([text], tokenizer)[0]) == text


def test_trained_tokenizer_has_pad_apart_from_eos_and_adds_no_bos(tokenizer: Any) -> None:
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tuple(tokenizer("The river")["input_ids"]) == text_ids(tokenizer, "The river")
    assert len(tokenizer) <= 400
    with pytest.raises(ValueError, match="258"):
        data.train_tokenizer(["a"], 257)


def test_trained_tokenizer_survives_saving(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = [example("Name it:", "  The <|endoftext|> river , it 's λ.\n")]
    limits: Any = {"max_prefix_tokens": 50, "max_continuation_tokens": 50}
    assert data.tokenize(texts, again, **limits) == data.tokenize(texts, tokenizer, **limits)
    assert again.decode(list(text_ids(again, "it 's , so"))) == "it 's , so"
    assert (again.pad_token_id, again.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
    )


def test_trained_tokenizer_is_the_same_in_another_process() -> None:
    code = (
        "from cpo.data import train_tokenizer; "
        "t = train_tokenizer([f'the {n} rivers of {n * 7 % 13} valleys' for n in range(99)], 330); "
        "print(t.backend_tokenizer.to_str())"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


def test_packing_joins_texts_by_eos_and_drops_the_last_partial_block(tokenizer: Any) -> None:
    texts = [f"Valley {number} has one river." for number in range(2500)]
    blocks = data.pack_articles(texts, tokenizer, 64)
    stream: list[int] = []
    for text in texts:
        stream += [*text_ids(tokenizer, text), tokenizer.eos_token_id]
    assert blocks.dtype == torch.long and blocks.shape == (len(stream) // 64, 64)
    assert blocks.flatten().tolist() == stream[: blocks.numel()]
    with pytest.raises(DataError, match="do not fill one block"):
        data.pack_articles(texts[:1], tokenizer, 64)


# --- Real data ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Path:
    folder = os.environ.get("CPO_DATA")
    if not folder:
        pytest.skip("CPO_DATA is not set: the folder of the real data")
    return Path(folder)


@pytest.fixture(scope="module")
def dolly(real: Path) -> data.InstructionTask:
    return data.load_instructions("dolly", real, seed=0)


def test_dolly_is_split_as_the_paper_says(dolly: data.InstructionTask) -> None:
    assert dolly.report.read == dolly.report.kept == 15_011
    assert len(dolly.train) == 7_505 and dolly.report.kept - len(dolly.train) == 7_506
    assert (len(dolly.test), len(dolly.validation)) == (1_000, 512)
    assert len(dolly.report.noted["exact duplicate of another row"]) == 8
    assert len({item.prefix for item in dolly.test}) == 1_000
    trained = {item.prefix for item in dolly.train}
    assert not any(item.prefix in trained for item in dolly.test + dolly.validation)


def test_dolly_against_the_context_of_gpt2(real: Path, dolly: data.InstructionTask) -> None:
    """194 of 15,011 rows exceed 1,024 tokens with template and EOS; 186 would without both."""
    tokenizer = AutoTokenizer.from_pretrained(real / "tokenizers" / "gpt2")
    with gzip.open(real / "dolly" / "databricks-dolly-15k.jsonl.gz") as lines:
        rows = [json.loads(line) for line in lines]
    examples = [
        Example(
            str(number),
            data.render_prefix(row["instruction"], row["context"]),
            row["response"],
            row["category"],
            row,
        )
        for number, row in enumerate(rows)
    ]
    limits: Any = {"max_prefix_tokens": 10**6, "max_continuation_tokens": 10**6}
    kept, report = data.tokenize(examples, tokenizer, **limits)
    assert len(kept) == 15_011 == report.kept
    totals = [len(item.prefix_ids) + len(item.continuation_ids) for item in kept]
    assert sum(total > 1024 for total in totals) == 194
    assert all(item.has_eos and item.continuation_ids[-1] == 50256 for item in kept)
    assert all(50256 not in item.prefix_ids + item.continuation_ids[:-1] for item in kept)
    bare = [row["instruction"] + row["context"] + row["response"] for row in rows]
    # A token is at least one byte: shorter texts cannot exceed 1,024.
    long = [text for text in bare if len(text.encode()) > 1024]
    assert sum(len(ids) > 1024 for ids in data.encode(long, tokenizer)) == 186


def test_gpt2_ids_are_the_published_ones(real: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real / "tokenizers" / "gpt2")
    [item], _ = data.tokenize(
        [example("Hello world", " world")],
        tokenizer,
        max_prefix_tokens=9,
        max_continuation_tokens=9,
    )
    assert item.prefix_ids == (15496, 995) and item.continuation_ids == (995, 50256)


def test_llama_tokenizer_gets_its_bos_and_keeps_text_as_text(real: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real / "stories260K")
    [item], _ = data.tokenize(
        [example("Once upon", "a </s> time")],
        tokenizer,
        max_prefix_tokens=50,
        max_continuation_tokens=50,
    )
    assert item.prefix_ids == tuple(tokenizer("Once upon")["input_ids"]) and item.prefix_ids[0] == 1
    assert (
        1 not in item.continuation_ids
        and item.continuation_ids.index(2) == len(item.continuation_ids) - 1
    )
    assert tokenizer.decode(list(item.continuation_ids[:-1])) == "a </s> time"


def test_real_wikipedia(real: Path) -> None:
    task = data.load_articles("wikipedia", real, seed=0)
    assert task.report.read == task.report.kept == 19_303
    assert (len(task.train), len(task.validation), len(task.test)) == (18_239, 64, 1_000)
    tokenizer = AutoTokenizer.from_pretrained(real / "tokenizers" / "gpt2")
    kept, report = data.tokenize_articles(task.test, tokenizer, max_tokens=120)
    assert report.kept == 1_000
    capped = [item for item in kept if not item.has_eos]
    assert len(capped) > 900
    assert {(len(item.prefix_ids), len(item.continuation_ids)) for item in capped} == {(18, 102)}
