"""What a run would take, as text, said before any of it is spent: time, memory, disk and money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cpo.costs import OVERHEAD_SECONDS, Cost, Planned
from cpo.profiles import Profile


def totals(profile: Profile, planned: Sequence[Planned]) -> list[str]:
    """Two lines: what the profile is, and what the artifacts still to make take together.

    Memory is that of the largest artifact, as they are made in turn.
    """
    todo = [item for item in planned if not item.made]
    memory = max((item.memory_gb for item in todo), default=0.0)
    return [
        f"{profile.name}: {profile.description}. Meant for {profile.hardware}.",
        f"{len(planned)} artifacts, {len(planned) - len(todo)} made, {len(todo)} to make: about "
        f"{duration(sum(item.seconds for item in todo))}, up to {memory:.1f} GB of memory, "
        f"{sum(item.disk_gb for item in todo):.2f} GB of disk, "
        f"{asked(sum(item.requests for item in todo), sum(item.tokens for item in todo))}"
        f"{sum(item.usd for item in todo):.2f} USD.",
    ]


def own_rows(
    number: str, rows: Mapping[str, Sequence[str]], planned: Sequence[Planned]
) -> list[str]:
    """A line about the rows that a notebook adds itself, and that no plan can know; none without.

    Args:
        rows: their ids, each with the rows of which it is like the first that is planned.
    """
    of_row: dict[str, list[Cost]] = {}
    for item in planned:  # such as "model t2/ANR"
        of_row.setdefault(item.name.split(" ")[-1], []).append(item.cost)
    costs = []
    for alike in rows.values():
        costs += next((of_row[row] for row in alike if row in of_row), [])
    if not costs:
        return []
    seconds = sum(cost.seconds + OVERHEAD_SECONDS for cost in costs)
    usd, requests = sum(cost.usd for cost in costs), sum(cost.requests for cost in costs)
    return [
        f"Not counted there: notebook {number} defines {', '.join(rows)} itself; if they are "
        f"not made yet, about {duration(seconds)} more, "
        f"{asked(requests, sum(cost.tokens for cost in costs))}{usd:.2f} USD."
    ]


def asked(requests: int, tokens: float) -> str:
    """Requests to chat models and their tokens, as part of a list; "" where there are none."""
    return f"{requests:,} requests of {tokens / 1e6:.1f} M tokens, " if requests else ""


def artifacts_table(planned: Sequence[Planned]) -> str:
    """One line for each artifact: made or to make, and what making it takes."""
    rows: list[tuple[str, ...]] = [
        ("artifact", "stage", "state", "time", "memory GB", "disk GB", "requests", "tokens", "USD")
    ]
    for item in planned:
        if item.made:
            rows.append((item.name, item.stage, "made", *[""] * 6))
        else:
            numbers = (
                f"{item.memory_gb:.2f}",
                f"{item.disk_gb:.3f}",
                f"{item.requests:,}",
                f"{item.tokens:,.0f}",
                f"{item.usd:.2f}",
            )
            rows.append((item.name, item.stage, "to make", duration(item.seconds), *numbers))
    return table(rows)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells, the first the heading, as text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
