"""From a source to three splits of examples or articles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Generic, Literal, TypeVar

from cpo.data.examples import Article, Example, render_prefix
from cpo.data.report import LoadReport
from cpo.data.rows import ARTICLES, INSTRUCTIONS, ArticleColumn, PairColumn, Row
from cpo.data.sources import read_rows
from cpo.data.splits import split_rows

Item = TypeVar("Item", Example, Article)


@dataclass(frozen=True)
class Splits(Generic[Item]):
    """Three disjoint splits, and the report on the rows they were taken from."""

    report: LoadReport = field(compare=False)
    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]


InstructionTask = Splits[Example]
ArticleTask = Splits[Article]


def load_instructions(
    source: str,
    path: str | Path | None = None,
    *,
    seed: int,
    validation_rows: int = 512,
    test_prompts: int = 1000,
    train_rows: int | None = None,
    on_bad_row: Literal["drop", "refuse"] = "drop",
    columns: Mapping[PairColumn, str] = MappingProxyType({}),
) -> InstructionTask:
    """Instruction pairs from Dolly, a file of one's own, or a registered corpus (`SOURCES`).

    * a registered corpus, such as the embedded `world` of `cpo_suite`: split as it says.
    * `dolly`: a local `.jsonl`, `.jsonl.gz` or `.parquet` file, or a folder that holds
      `databricks-dolly-15k.*`, there or in `dolly/`; without a path, the hub's. A seeded half
      trains: 7,505 of 15,011 rows.
    * `jsonl`: such a file with instruction and response, and if wanted context, category, id, and
      split (train, validation or test, in all rows or in none; without it, a seeded half trains).
      `columns` maps these names to the file's own, as in `{"context": "input"}`. Other columns are
      noted in the report.

    `validation_rows` further test rows, beside the `test_prompts` judged ones, serve as validation.
    Rows with the same prompt, exact duplicates among them, never lie on both sides of a seeded
    split, and a prompt is judged once; duplicates are kept in training and counted.

    Raises:
        DataError: no such file, too few rows, a column that by its name holds what would be left
            out, or, with `on_bad_row="refuse"`, a bad row. It says what was read until then.
    """
    report = LoadReport(f"{source} instructions", origin=str(path or source))
    if on_bad_row == "refuse":
        report.remedy = "Mend the row, or set on_bad_row to drop to leave such rows out, counted."
    rows = read_rows(INSTRUCTIONS, source, path, columns, report)
    half = len(rows) // 2  # as in the paper
    parts = split_rows(rows, half, validation_rows, test_prompts, seed, report)
    train, validation, test = (tuple(map(_example, part)) for part in parts)
    if train_rows is not None and train_rows > len(train):
        raise report.refusal(f"{train_rows:,} training rows asked for, {source} has {len(train):,}")
    return Splits(report, train[:train_rows], validation, test)


def load_articles(
    source: str,
    path: str | Path | None = None,
    *,
    seed: int,
    validation_articles: int = 64,
    test_articles: int = 1000,
    columns: Mapping[ArticleColumn, str] = MappingProxyType({}),
) -> ArticleTask:
    """Articles from Wikipedia, a file of one's own, or a registered corpus (`SOURCES`).

    `wikipedia` is a local `.jsonl`, `.jsonl.gz` or `.parquet` file with id, title and text, or a
    folder that holds `articles.*`, there or in `wikipedia/`; without a path, the hub's
    wikimedia/wikipedia 20231101.en, its first 20,000 articles. An own file (`jsonl`) needs text
    alone; id, title and split are used where present, and `columns` maps these names to the file's
    own, as in `{"text": "body"}`.

    Raises:
        DataError: as `load_instructions`.
    """
    report = LoadReport(f"{source} articles", origin=str(path or source))
    rows = read_rows(ARTICLES, source, path, columns, report)
    train_rows = len(rows) - min(validation_articles + test_articles, len(rows) // 2)
    parts = split_rows(rows, train_rows, validation_articles, test_articles, seed, report)
    return Splits(report, *(tuple(map(_article, part)) for part in parts))


def _example(row: Row) -> Example:
    prefix = render_prefix(row.texts["instruction"], row.texts["context"])
    return Example(row.id, prefix, row.texts["response"], row.texts["category"], row.source)


def _article(row: Row) -> Article:
    return Article(row.id, row.texts["title"], row.texts["text"], row.source)
