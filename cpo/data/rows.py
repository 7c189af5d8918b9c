"""Rows of a file, public data set or registered corpus: read, renamed, checked and counted."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cpo.data.examples import SPLITS, LoadReport, digest

Task = Literal["instructions", "articles"]
PairColumn = Literal["instruction", "context", "response", "category", "id", "split"]
ArticleColumn = Literal["text", "title", "id", "split"]
FORMATS = (".jsonl", ".jsonl.gz", ".parquet")

# Registered corpora: (path or None) -> pairs and articles, with columns, id and split as
# attributes.
SOURCES: dict[str, Callable[[Any], tuple[Sequence[Any], Sequence[Any]]]] = {}


class Kind(NamedTuple):
    """What distinguishes instruction pairs from articles: columns and public data set."""

    task: Task
    columns: Mapping[str, tuple[str, ...]]  # text columns, with common aliases
    required: tuple[str, ...]
    prompt: tuple[str, ...]  # rows equal in these stay on one side of a split
    public: str  # source name of the public data set
    file_stem: str  # of its local copies
    public_columns: tuple[str, ...]  # columns read; copies may hold more
    hub: tuple[str, str | None]  # name and configuration
    hub_rows: int | None  # number streamed; None downloads all


INSTRUCTIONS = Kind(
    "instructions",
    columns={
        "instruction": ("prompt", "question"),
        "response": ("output", "completion", "answer"),
        "context": ("input",),
        "category": (),
    },
    required=("instruction", "response"),
    prompt=("instruction", "context"),
    public="dolly",
    file_stem="databricks-dolly-15k",
    public_columns=("instruction", "response", "context", "category"),
    hub=("databricks/databricks-dolly-15k", None),
    hub_rows=None,
)
ARTICLES = Kind(
    "articles",
    columns={"text": ("content", "body"), "title": ()},
    required=("text",),
    prompt=("text",),
    public="wikipedia",
    file_stem="articles",
    public_columns=("text", "title", "id", "split"),
    hub=("wikimedia/wikipedia", "20231101.en"),
    hub_rows=20_000,
)


class RawRow(NamedTuple):
    """A row that passed the checks, with text in every column."""

    place: str  # as in "line 7"
    id: str
    split: str | None  # the source's own, if any
    texts: Mapping[str, str]
    prompt: str  # digest of the columns that make the prompt
    source: Any  # the row as read, or the corpus's own object


def read_rows(
    kind: Kind, source: str, path: str | Path | None, columns: Mapping[Any, str], report: LoadReport
) -> list[RawRow]:
    """The usable rows of a source; the report counts and names the others.

    `columns` maps our names to the file's.

    Raises:
        DataError: no such source, file or format; a damaged file; an error of the hub's client; or
            as `_usable_rows`.
    """
    known = (*SOURCES, kind.public, "jsonl")
    if source not in known:
        raise report.refusal(f"unknown source '{source}': give one of {', '.join(known)}")
    if columns and source != "jsonl":
        raise report.refusal(f"{kind.task}.columns applies to the source jsonl, not to {source}")
    if source in SOURCES:
        items = SOURCES[source](path)[0 if kind is INSTRUCTIONS else 1]
        report.read = len(items)
        return [_corpus_row(kind, item) for item in items]
    if path is None and source == "jsonl":
        raise report.refusal(f"the source jsonl needs a path: a file {', '.join(FORMATS)}")
    return _usable_rows(kind, _placed_rows(kind, source, path, report), columns, report)


def _corpus_row(kind: Kind, item: Any) -> RawRow:
    texts = {name: getattr(item, name) for name in kind.columns}
    return RawRow(item.id, item.id, item.split, texts, _prompt(kind, texts), item)


def _prompt(kind: Kind, texts: Mapping[str, str]) -> str:
    return digest([texts[name] for name in kind.prompt])


# --- Reading --------------------------------------------------------------------------------------


def _placed_rows(
    kind: Kind, source: str, path: str | Path | None, report: LoadReport
) -> Iterator[tuple[str, Any]]:
    """The stored rows with their positions, as in "line 7"; a line that is not JSON as bytes."""
    if path is None:
        unit, rows = "row", _hub_rows(kind)
        failure = f"{kind.hub[0]} could not be fetched from the hub: give a local copy as path"
    else:
        file = _file(kind, source, Path(path), report)
        unit, rows = "row" if file.suffix == ".parquet" else "line", _file_rows(file)
        failure = f"{file} is damaged or cannot be read: fetch it again"
    try:
        for number, row in enumerate(rows, start=1):
            if source == kind.public and isinstance(row, dict):
                row = {name: row[name] for name in kind.public_columns if name in row}
            if not isinstance(row, bytes) or row.strip():
                yield f"{unit} {number}", row
    except Exception as error:  # many exception types, one meaning to the user
        raise report.refusal(f"{failure} ({type(error).__name__}: {error})") from error


def _file(kind: Kind, source: str, path: Path, report: LoadReport) -> Path:
    """The file itself, or a public data set's copy in a folder."""
    if source == kind.public and path.is_dir():
        pattern = f"{kind.file_stem}.*"
        copies = [*sorted((path / kind.public).glob(pattern)), *sorted(path.glob(pattern))]
        path = next((copy for copy in copies if copy.name.endswith(FORMATS)), path / pattern)
    if not path.is_file():
        raise report.refusal(f"no file {path}: give one that ends in {', '.join(FORMATS)}")
    if not path.name.endswith(FORMATS):
        raise report.refusal(f"{path} has none of the supported formats: {', '.join(FORMATS)}")
    return path


def _file_rows(file: Path) -> Iterator[Any]:
    """Rows of a file. A library's JSON reader stops at the first bad line, without its number."""
    if file.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(file).to_pylist()
        return
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                yield line


def _hub_rows(kind: Kind) -> Iterator[Any]:
    from datasets import load_dataset

    rows = load_dataset(*kind.hub, split="train", streaming=kind.hub_rows is not None)
    yield from islice(rows, kind.hub_rows)


# --- Checking -------------------------------------------------------------------------------------


def _usable_rows(
    kind: Kind, rows: Iterator[tuple[str, Any]], columns: Mapping[str, str], report: LoadReport
) -> list[RawRow]:
    """Rows with text in every required column. A row without an id is named after its content hash.

    Raises:
        DataError: a bad row is refused, an unused column's name suggests needed content, or a
            column named in `columns` is in no row.
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
        if problem := _problem(kind, row, ids):
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
        prompt = _prompt(kind, texts)
        usable.append(RawRow(place, id, row.get("split"), texts, prompt, row | texts))
    if absent_columns:
        names = " or ".join(sorted(absent_columns))
        raise report.refusal(f"no row has {names}, which `{kind.task}.columns` names")
    return usable


def _renamed(
    kind: Kind, columns: Mapping[str, str], place: str, row: dict[str, Any], report: LoadReport
) -> dict[str, Any]:
    """The non-empty cells of a row under our names; unused columns are noted."""
    used = {columns.get(name, name) for name in (*kind.columns, "id", "split")}
    unused = [name for name in sorted(row.keys() - used) if not _is_empty(row[name])]
    for column in unused:
        report.note(f"column {column}, not used", place)
    renamed = row | {name: row.get(column) for name, column in columns.items()}
    meant = {
        name: column
        for name, aliases in kind.columns.items()
        for column in reversed(unused)
        if column.strip().lower() in (name, *aliases)
        if name not in columns and _is_empty(renamed.get(name))
    }
    if meant:
        setting = json.dumps({**columns, **meant}, ensure_ascii=False)
        raise report.refusal(
            f"{place}: the content of {' and '.join(meant.values())} would be left out. If it is "
            f"what its name says, set `columns: {setting}` under `{kind.task}` in the profile; "
            "otherwise remove it from the file."
        )
    # pandas writes NaN for a missing value, and then floats for the whole numbers of a column.
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in renamed.items()
        if value is not None and value == value
    }


def _is_empty(value: Any) -> bool:
    text = value.strip() if isinstance(value, str) else value
    return text in (None, "", [], {}) or value != value


def _problem(kind: Kind, row: Any, ids: set[str]) -> str | None:
    """What is wrong with a row, as reported, or None; `ids` are those of earlier rows."""
    if not isinstance(row, dict):
        return f"malformed: not {'UTF-8 JSON' if isinstance(row, bytes) else 'a JSON object'}"
    for name in kind.columns:
        text = row.get(name, "")
        if name in kind.required and name not in row:
            return f"missing field {name}"
        if not isinstance(text, str):
            return f"malformed: field {name} is not text"
        if name in kind.required and not text.strip():
            return f"empty {name}"
        if re.search("[\ud800-\udfff]", text):
            return f"malformed: field {name} holds half a surrogate pair"
    if not isinstance(row.get("id", ""), (str, int)):
        return "malformed: field id is neither text nor a whole number"
    if row.get("split", "train") not in SPLITS:
        return "malformed: field split is not train, validation or test"
    return "duplicate id" if "id" in row and str(row["id"]) in ids else None
