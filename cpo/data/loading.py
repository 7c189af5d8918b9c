"""From a source to three splits of examples or articles.

Rows name their own split, or the split is seeded; rows of one prompt stay on one side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Generic, Literal, TypeVar

from cpo.data.examples import SPLITS, Article, Example, LoadReport, render_prefix
from cpo.data.rows import ARTICLES, INSTRUCTIONS, ArticleColumn, PairColumn, RawRow, read_rows

FEWEST_ROWS = 8  # fewer rows cannot be split into train, validation and test

SplitItem = TypeVar("SplitItem", Example, Article)


@dataclass(frozen=True)
class Splits(Generic[SplitItem]):
    """Three disjoint splits, and the report on the rows they come from."""

    report: LoadReport = field(compare=False)
    train: tuple[SplitItem, ...]
    validation: tuple[SplitItem, ...]
    test: tuple[SplitItem, ...]


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
    """Instruction pairs from Dolly, a custom file, or a registered corpus (`SOURCES`).

    * a registered corpus, such as the embedded `world` of `cpo_suite`: split as the corpus says.
    * `dolly`: a local `.jsonl`, `.jsonl.gz` or `.parquet` file, or a folder with
      `databricks-dolly-15k.*`, directly or in `dolly/`; without a path, the hub's. A seeded half
      trains: 7,505 of 15,011 rows.
    * `jsonl`: such a file with instruction and response, and optionally context, category, id, and
      split (train, validation or test, in all rows or in none; without it, a seeded half trains).
      `columns` maps these names to the file's own, as in `{"context": "input"}`. Other columns are
      noted in the report.

    Of the held-out prompts, `test_prompts` are judged and `validation_rows` further rows serve as
    validation. Rows with the same prompt, exact duplicates included, never lie on both sides of a
    seeded split. Each prompt is judged once; duplicates are kept in training and counted.

    Raises:
        DataError: no such file, too few rows, an unused column whose name suggests needed content,
            or, with `on_bad_row="refuse"`, a bad row. The message says what was read so far.
    """
    report = LoadReport(f"{source} instructions", origin=str(path or source))
    if on_bad_row == "refuse":
        report.remedy = "Fix the row, or set on_bad_row to drop: such rows are skipped and counted."
    rows = read_rows(INSTRUCTIONS, source, path, columns, report)
    half = len(rows) // 2  # as in the paper
    parts = _split_rows(rows, half, validation_rows, test_prompts, seed, report)
    train, validation, test = (tuple(map(_example, part)) for part in parts)
    if train_rows is not None and train_rows > len(train):
        raise report.refusal(f"{train_rows:,} training rows requested, {source} has {len(train):,}")
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
    """Articles from Wikipedia, a custom file, or a registered corpus (`SOURCES`).

    `wikipedia` is a local `.jsonl`, `.jsonl.gz` or `.parquet` file with id, title and text, or a
    folder with `articles.*`, directly or in `wikipedia/`. Without a path it is the first 20,000
    articles of the hub's wikimedia/wikipedia 20231101.en. A custom file (`jsonl`) needs only text;
    id, title and split are used if present. `columns` maps these names to the file's own, as in
    `{"text": "body"}`.

    Raises:
        DataError: as `load_instructions`.
    """
    report = LoadReport(f"{source} articles", origin=str(path or source))
    rows = read_rows(ARTICLES, source, path, columns, report)
    train_rows = len(rows) - min(validation_articles + test_articles, len(rows) // 2)
    parts = _split_rows(rows, train_rows, validation_articles, test_articles, seed, report)
    return Splits(report, *(tuple(map(_article, part)) for part in parts))


def _example(row: RawRow) -> Example:
    prefix = render_prefix(row.texts["instruction"], row.texts["context"])
    return Example(row.id, prefix, row.texts["response"], row.texts["category"], row.source)


def _article(row: RawRow) -> Article:
    return Article(row.id, row.texts["title"], row.texts["text"], row.source)


def _split_rows(
    rows: Sequence[RawRow],
    train_rows: int,
    validation_rows: int,
    test_rows: int,
    seed: int,
    report: LoadReport,
) -> tuple[list[RawRow], list[RawRow], list[RawRow]]:
    """Train, validation and test rows: by the rows' own split, else `train_rows` seeded ones train.

    Rows are ordered by a hash of seed and prompt, the same for every copy of the data. Test rows
    come from the front of the held-out prompts, one per prompt, and validation rows from the end,
    so neither depends on the number of the other.

    Raises:
        DataError: too few rows, a split in some rows only, or a split without rows.
    """
    if len(rows) < FEWEST_ROWS:
        raise report.refusal(f"too few usable rows, at least {FEWEST_ROWS} are needed.")
    without_split = [row for row in rows if row.split is None]
    if 0 < len(without_split) < len(rows):
        raise report.refusal(
            f"{without_split[0].place}: no split, though other rows have one. Give every row a "
            "split (train, validation or test), or none."
        )
    validation: list[RawRow] = []
    if without_split:
        train, held_out = _take(_by_prompt(rows, None, seed), train_rows)
    else:
        train, _ = _take(_by_prompt(rows, "train", seed), len(rows))
        validation, _ = _take(_by_prompt(rows, "validation", seed), validation_rows)
        held_out = _by_prompt(rows, "test", seed)
        trained = {row.prompt for row in train}
        for row in (row for group in held_out for row in group if row.prompt in trained):
            report.note("test prompt that is also a training prompt, as the file splits", row.id)
    requested = test_rows + (0 if validation else validation_rows)
    if requested > len(held_out):
        test_rows = max(1, len(held_out) * test_rows // requested)
        validation_rows = len(held_out) - test_rows
        reason = f"{len(held_out):,} held-out prompts, {requested:,} requested: split in proportion"
        report.note(reason, f"{test_rows:,} for test")
    test = [group[0] for group in held_out[:test_rows]]
    for row in (row for group in held_out[:test_rows] for row in group[1:]):
        report.note("further response to a test prompt, left out of the test", row.id)
    if not validation:
        validation, _ = _take(held_out[: test_rows - 1 : -1], validation_rows)
    parts = train, validation, test
    if empty := [name for name, part in zip(SPLITS, parts, strict=True) if not part]:
        raise report.refusal(
            f"the split leaves no {empty[0]} row. Give more rows with different prompts, or hold "
            "out fewer."
        )
    return parts


def _by_prompt(rows: Sequence[RawRow], split: str | None, seed: int) -> list[list[RawRow]]:
    """The rows of a split grouped by prompt, the prompts in seeded order."""

    def order(row: RawRow) -> tuple[str, str]:
        return hashlib.sha256(f"{seed}:{row.prompt}".encode()).hexdigest(), row.id

    ordered = sorted((row for row in rows if row.split == split), key=order)
    return [list(group) for _, group in groupby(ordered, key=lambda row: row.prompt)]


def _take(groups: Iterable[list[RawRow]], count: int) -> tuple[list[RawRow], list[list[RawRow]]]:
    """The first whole groups that fit into `count` rows, and the remaining groups."""
    taken: list[RawRow] = []
    remaining = []
    for group in groups:
        if len(taken) + len(group) <= count:
            taken.extend(group)
        else:
            remaining.append(group)
    return taken, remaining
