"""What a model's answers get wrong: mean grades by category, by length and by the part that was
hurt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .oracle import PAIR_PARTS, WorldExample, oracle_parts, score_of


class GroupGrades(NamedTuple):
    """One group of answers: how many, mean grade, mean of each part in the order of
    `PAIR_PARTS`."""

    group: str
    n: int
    grade: float
    right: float
    complete: float
    to_the_point: float
    well_formed: float


def _length(example: WorldExample) -> str:
    words = len(example.ideal.split())
    low = min(words // 10 * 10, 30)
    return f"ideal of {low}+ words" if low == 30 else f"ideal of {low}-{low + 9} words"


def _worst(parts: dict[str, float]) -> str:
    name = min(PAIR_PARTS, key=lambda part: parts[part])
    return "no fault" if parts[name] == 1 else f"worst part: {name}"


def diagnose(examples: Sequence[WorldExample], texts: Sequence[str]) -> list[GroupGrades]:
    """Grades of `texts`, one per example, by group: all, each category, length of the ideal, worst
    part.

    Raises ValueError if the two differ in length or are empty.
    """
    if len(examples) != len(texts) or not texts:
        raise ValueError(
            f"one text per example is needed: {len(examples)} examples, {len(texts)} texts"
        )
    groups: dict[str, list[dict[str, float]]] = {}
    for example, text in zip(examples, texts, strict=True):
        parts = oracle_parts(example, text)
        for group in ("all", example.category, _length(example), _worst(parts)):
            groups.setdefault(group, []).append(parts)

    def order(group: str) -> tuple[int, str]:
        starts = ("", "ideal", "no fault", "worst")
        place = max(i for i, start in enumerate(starts) if group.startswith(start))
        return (-1 if group == "all" else place), group

    return [_row(group, groups[group]) for group in sorted(groups, key=order)]


def _row(group: str, graded: list[dict[str, float]]) -> GroupGrades:
    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(graded)

    return GroupGrades(
        group, len(graded), mean(map(score_of, graded)),
        *(mean(parts[name] for parts in graded) for name in PAIR_PARTS),
    )  # fmt: skip


def markdown(rows: Sequence[GroupGrades]) -> str:
    """The rows as a Markdown table."""
    names = GroupGrades._fields
    lines = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    for row in rows:
        lines.append(f"| {row.group} | {row.n} | " + " | ".join(f"{x:.2f}" for x in row[2:]) + " |")
    return "\n".join(lines)
