"""Where rows come from: a file, a public set on disk or on the hub, or a registered corpus."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cpo.data.examples import digest
from cpo.data.report import LoadReport
from cpo.data.rows import INSTRUCTIONS, Kind, PublicSet, Row, usable_rows

FORMATS = (".jsonl", ".jsonl.gz", ".parquet")

# Corpora of objects, by name: (path or None) -> pairs and articles, each item with the columns, id
# and split as attributes.
SOURCES: dict[str, Callable[[Any], tuple[Sequence[Any], Sequence[Any]]]] = {}


def read_rows(
    kind: Kind,
    source: str,
    path: str | Path | None,
    columns: Mapping[Any, str],
    report: LoadReport,
) -> list[Row]:
    """The usable rows of a source, counted in the report.

    Raises:
        DataError: no such source, file or format, a damaged file, an error of the hub's client, or
            as `usable_rows`.
    """
    known = (*SOURCES, kind.public.name, "jsonl")
    if source not in known:
        raise report.refusal(f"unknown source '{source}': give one of {', '.join(known)}")
    if columns and source != "jsonl":
        raise report.refusal(f"{kind.task}.columns goes with the source jsonl, not with {source}")
    if source in SOURCES:
        pairs, articles = SOURCES[source](path)
        items = pairs if kind is INSTRUCTIONS else articles
        report.read = len(items)
        return [_corpus_row(kind, item) for item in items]
    if path is None and source == "jsonl":
        raise report.refusal(f"the source jsonl needs a path: a file {', '.join(FORMATS)}")
    return usable_rows(kind, _placed_rows(kind, source, path, report), columns, report)


def _corpus_row(kind: Kind, item: Any) -> Row:
    texts = {name: getattr(item, name) for name in kind.columns}
    prompt = digest([texts[name] for name in kind.prompt])
    return Row(item.id, item.id, item.split, texts, prompt, item)


def _placed_rows(
    kind: Kind, source: str, path: str | Path | None, report: LoadReport
) -> Iterator[tuple[str, Any]]:
    """The rows as stored, each with its place, as in "line 7"; a line that is no JSON as bytes."""
    public = kind.public if source == kind.public.name else None
    if path is None:
        unit, rows = "row", _hub_rows(kind.public)
        failure = f"{kind.public.hub[0]} could not be had from the hub: give a local copy as path"
    else:
        file = _file(Path(path), public, report)
        unit, rows = "row" if file.suffix == ".parquet" else "line", _file_rows(file)
        failure = f"{file} is damaged or cannot be read: fetch it again"
    try:
        for number, row in enumerate(rows, start=1):
            if public is not None and isinstance(row, dict):
                columns = (*kind.columns, *public.more_columns)
                row = {name: row[name] for name in columns if name in row}
            if not isinstance(row, bytes) or row.strip():
                yield f"{unit} {number}", row
    except Exception as error:  # of many kinds, which all mean the same to a user
        raise report.refusal(f"{failure} ({type(error).__name__}: {error})") from error


def _file(path: Path, public: PublicSet | None, report: LoadReport) -> Path:
    """The file itself, or the copy of a public set in a folder."""
    if public is not None and path.is_dir():
        wanted = f"{public.file_stem}.*"
        copies = [*sorted((path / public.name).glob(wanted)), *sorted(path.glob(wanted))]
        path = next((copy for copy in copies if copy.name.endswith(FORMATS)), path / wanted)
    if not path.is_file():
        raise report.refusal(f"no file {path}: give one that ends in {', '.join(FORMATS)}")
    if not path.name.endswith(FORMATS):
        raise report.refusal(f"{path} has none of the formats that are read: {', '.join(FORMATS)}")
    return path


def _file_rows(file: Path) -> Iterator[Any]:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(file).to_pylist()
        return
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = line
            yield row


def _hub_rows(public: PublicSet) -> Iterator[Any]:
    from datasets import load_dataset

    limit = public.hub_rows
    rows = load_dataset(*public.hub, split="train", streaming=limit is not None)
    yield from islice(rows, limit)
