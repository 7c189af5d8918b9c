"""Rows: required columns, a user's own names of them, counts, and the row that is refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from cpo.data.examples import digest
from cpo.data.report import LoadReport

Task = Literal["instructions", "articles"]
PairColumn = Literal["instruction", "context", "response", "category", "id", "split"]
ArticleColumn = Literal["text", "title", "id", "split"]
SPLITS = ("train", "validation", "test")
ALIASES = {  # what others call a column
    "instruction": ("prompt", "question"),
    "context": ("input",),
    "response": ("output", "completion", "answer"),
    "text": ("content", "body"),
}


class PublicSet(NamedTuple):
    """A public data set: its name here, that of its local copies without suffix, and the hub's."""

    name: str
    file_stem: str
    hub: tuple[str, str | None]  # name and configuration
    hub_rows: int | None  # so many are streamed; None downloads them all
    more_columns: tuple[str, ...]  # what is read beside the texts; copies may hold more


class Kind(NamedTuple):
    """What sets instruction pairs and articles apart."""

    task: Task
    columns: tuple[str, ...]  # those of text
    required: tuple[str, ...]
    prompt: tuple[str, ...]  # rows equal in these stay on one side of a split
    public: PublicSet


DOLLY_HUB = ("databricks/databricks-dolly-15k", None)
WIKIPEDIA_HUB = ("wikimedia/wikipedia", "20231101.en")
INSTRUCTIONS = Kind(
    "instructions",
    columns=("instruction", "response", "context", "category"),
    required=("instruction", "response"),
    prompt=("instruction", "context"),
    public=PublicSet("dolly", "databricks-dolly-15k", DOLLY_HUB, None, more_columns=()),
)
ARTICLES = Kind(
    "articles",
    columns=("text", "title"),
    required=("text",),
    prompt=("text",),
    public=PublicSet("wikipedia", "articles", WIKIPEDIA_HUB, 20_000, more_columns=("id", "split")),
)


class Row(NamedTuple):
    """A row that passed the checks, with text in every column."""

    place: str
    id: str
    split: str | None  # as the source says, if it does
    texts: Mapping[str, str]
    prompt: str  # digest of the columns that make the prompt
    source: Any  # the row as read


def usable_rows(
    kind: Kind, rows: Iterable[tuple[str, Any]], columns: Mapping[str, str], report: LoadReport
) -> list[Row]:
    """Rows with text in every required column; the report counts the others and names them.

    `rows` come with their places; `columns` maps our names to those of the file. A row without an
    id is named by its content.

    Raises:
        DataError: a bad row is refused, or a column by its name holds what would be left out, or
            one of `columns` is in no row.
    """
    usable = []
    ids: set[str] = set()
    copies: Counter[str] = Counter()
    absent_columns = set(columns.values())
    for place, row in rows:
        report.read += 1
        if isinstance(row, dict):
            absent_columns -= row.keys()
            row = _renamed(kind, columns, place, row, report)
            place += f", id {row['id']}" if "id" in row else ""
        problem = _problem(kind, row)
        if problem is None and "id" in row and str(row["id"]) in ids:
            problem = "duplicate id"
        if problem is not None:
            report.drop(problem, place)
            continue
        texts = {name: row.get(name, "") for name in kind.columns}
        content = digest(list(texts.values()))
        copies[content] += 1
        id = content[:16]
        if copies[content] > 1:
            report.note("exact duplicate of another row", place)
            id += f"-{copies[content]}"
        id = str(row.get("id", id))
        ids.add(id)
        prompt = digest([texts[name] for name in kind.prompt])
        usable.append(Row(place, id, row.get("split"), texts, prompt, row | texts))
    if absent_columns:
        names = " or ".join(sorted(absent_columns))
        raise report.refusal(f"no row has {names}, which `{kind.task}.columns` names")
    return usable


def _renamed(
    kind: Kind, columns: Mapping[str, str], place: str, row: dict[str, Any], report: LoadReport
) -> dict[str, Any]:
    """The cells of a row that hold a value, under our names; those that are not used are noted."""
    used = {columns.get(name, name) for name in (*kind.columns, "id", "split")}
    unused = [name for name in sorted(row.keys() - used) if not _is_empty(row[name])]
    for column in unused:
        report.note(f"column {column}, not used", place)
    renamed = row | {name: row.get(column) for name, column in columns.items()}
    meant: dict[str, str] = {}
    for name in kind.columns:
        names = (name, *ALIASES.get(name, ()))
        namesakes = [column for column in unused if column.strip().lower() in names]
        if namesakes and name not in columns and _is_empty(renamed.get(name)):
            meant[name] = namesakes[0]
    if meant:
        setting = json.dumps({**columns, **meant}, ensure_ascii=False)
        raise report.refusal(
            f"{place}: what stands under {' and '.join(meant.values())} would be left out. If it "
            f"is what its name says, give `{kind.task}` in the profile the setting "
            f"`columns: {setting}`; else take it out of the file."
        )
    # pandas writes NaN for a missing value, and then floats for the whole numbers of a column.
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in renamed.items()
        if value is not None and value == value
    }


def _is_empty(value: Any) -> bool:
    is_blank = isinstance(value, str) and not value.strip()
    return is_blank or value in (None, [], {}) or value != value


def _problem(kind: Kind, row: Any) -> str | None:
    """What is wrong with a row, in the words of the report, or None."""
    if not isinstance(row, dict):
        return f"malformed: no JSON {'in UTF-8' if isinstance(row, bytes) else 'object'}"
    for name in kind.columns:
        if name in kind.required and name not in row:
            return f"missing field {name}"
        text = row.get(name, "")
        if not isinstance(text, str):
            return f"malformed: field {name} is no text"
        if name in kind.required and not text.strip():
            return f"empty {name}"
        if re.search("[\ud800-\udfff]", text):
            return f"malformed: field {name} holds half a surrogate pair"
    if not isinstance(row.get("id", ""), (str, int)):
        return "malformed: field id is neither text nor a whole number"
    if row.get("split", "train") not in SPLITS:
        return "malformed: field split is not train, validation or test"
    return None
