"""From a source to three splits of examples or articles.

A split is as the rows say, or seeded, with the rows of one prompt on one side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Generic, Literal, TypeVar

from cpo.data.examples import Article, Example, LoadReport, render_prefix
from cpo.data.rows import ARTICLES, INSTRUCTIONS, SPLITS, ArticleColumn, PairColumn, Row, read_rows

FEWEST_ROWS = 8  # below that, train, validation and test mean nothing

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
    parts = _split_rows(rows, half, validation_rows, test_prompts, seed, report)
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
    parts = _split_rows(rows, train_rows, validation_articles, test_articles, seed, report)
    return Splits(report, *(tuple(map(_article, part)) for part in parts))


def _example(row: Row) -> Example:
    prefix = render_prefix(row.texts["instruction"], row.texts["context"])
    return Example(row.id, prefix, row.texts["response"], row.texts["category"], row.source)


def _article(row: Row) -> Article:
    return Article(row.id, row.texts["title"], row.texts["text"], row.source)


def _split_rows(
    rows: Sequence[Row],
    train_rows: int,
    validation_rows: int,
    test_rows: int,
    seed: int,
    report: LoadReport,
) -> tuple[list[Row], list[Row], list[Row]]:
    """Train, validation and test rows: as the rows say, or else `train_rows` seeded ones to train.

    The order is that of a hash of seed and prompt, the same for every copy of the data. Test rows
    are taken from the front of the held-out prompts, one for each, and validation rows from their
    end, so that neither changes with the number of the other.

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
    validation: list[Row] = []
    if without_split:
        train, held_out = _take(_by_prompt(rows, None, seed), train_rows)
    else:
        train, _ = _take(_by_prompt(rows, "train", seed), len(rows))
        validation, _ = _take(_by_prompt(rows, "validation", seed), validation_rows)
        held_out = _by_prompt(rows, "test", seed)
        trained = {row.prompt for row in train}
        for row in (row for group in held_out for row in group if row.prompt in trained):
            report.note("test prompt that is also a training prompt, as the file splits", row.id)
    asked = test_rows + (0 if validation else validation_rows)
    if asked > len(held_out):
        test_rows = max(1, len(held_out) * test_rows // asked)
        validation_rows = len(held_out) - test_rows
        shared = f"{len(held_out):,} held-out prompts, {asked:,} asked for: shared in proportion"
        report.note(shared, f"{test_rows:,} for test")
    test = [group[0] for group in held_out[:test_rows]]
    for row in (row for group in held_out[:test_rows] for row in group[1:]):
        report.note("further response to a test prompt, left out of the test", row.id)
    if not validation:
        validation, _ = _take(held_out[: test_rows - 1 : -1], validation_rows)
    parts = train, validation, test
    if empty := [name for name, part in zip(SPLITS, parts, strict=True) if not part]:
        raise report.refusal(
            f"no {empty[0]} row is left by the split. Give more rows with different prompts, or "
            "ask for fewer held-out ones."
        )
    return parts


def _by_prompt(rows: Sequence[Row], split: str | None, seed: int) -> list[list[Row]]:
    """The rows of a split, those of one prompt together, in the seeded order of the prompts."""

    def order(row: Row) -> tuple[str, str]:
        return hashlib.sha256(f"{seed}:{row.prompt}".encode()).hexdigest(), row.id

    ordered = sorted((row for row in rows if row.split == split), key=order)
    return [list(group) for _, group in groupby(ordered, key=lambda row: row.prompt)]


def _take(groups: Iterable[list[Row]], count: int) -> tuple[list[Row], list[list[Row]]]:
    """The first groups that fit into `count` rows, whole, and the other groups."""
    taken: list[Row] = []
    others = []
    for group in groups:
        if len(taken) + len(group) <= count:
            taken.extend(group)
        else:
            others.append(group)
    return taken, others
