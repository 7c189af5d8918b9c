"""Splits: as the rows say, or seeded, with the rows of one prompt on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby

from cpo.data.report import LoadReport
from cpo.data.rows import SPLITS, Row

FEWEST_ROWS = 8  # below that, train, validation and test mean nothing


def split_rows(
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
    if without_split:
        train, held_out = _take(_by_prompt(rows, None, seed), train_rows)
        validation: list[Row] = []
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
    for name, part in zip(SPLITS, (train, validation, test), strict=True):
        if not part:
            raise report.refusal(
                f"no {name} row is left by the split. Give more rows with different prompts, or "
                "ask for fewer held-out ones."
            )
    return train, validation, test


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
