"""What a run would take, as text, said before any of it is spent: time, memory, disk and money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cpo_suite.estimate import Planned, micro_batch_that_fits, training_memory_gb
from cpo_suite.profile import Profile


def totals(profile: Profile, planned: Sequence[Planned]) -> list[str]:
    """What the profile is, what the artifacts still to make take together, and what does not fit.

    Memory is that of the largest artifact, as they are made in turn.
    """
    todo = [item for item in planned if not item.made]
    memory = max((item.memory_gb for item in todo), default=0.0)
    time = duration(sum(item.seconds for item in todo))
    if profile.gpus:
        count = profile.processes.count
        time += f" on {count} GPU{'s' * (count > 1)}"
        if count > 1:
            time += f" or {duration(sum(item.alone for item in todo))} on one"
        time += f", {sum(item.gpu_hours for item in todo):.1f} GPU-hours"
    each = " on each GPU" if profile.gpus else ""
    return [
        f"{profile.name}: {profile.description}. Meant for {profile.hardware}.",
        f"{len(planned)} artifacts, {len(planned) - len(todo)} made, {len(todo)} to make: about "
        f"{time}, up to {memory:.1f} GB of memory{each}, "
        f"{sum(item.disk_gb for item in todo):.2f} GB of disk, "
        f"{asked(sum(item.requests for item in todo), sum(item.tokens for item in todo))}"
        f"{sum(item.usd for item in todo):.2f} USD.",
        *_too_large(profile),
    ]


def own_rows(
    number: str, rows: Mapping[str, Sequence[str]], planned: Sequence[Planned]
) -> list[str]:
    """A line about the rows that a notebook adds itself, and that no plan can know; none without.

    Args:
        rows: their ids, each with the rows of which it is like the first that is planned.
    """
    of_row: dict[str, list[Planned]] = {}
    for item in planned:  # such as "model t2/ANR"
        of_row.setdefault(item.name.split(" ")[-1], []).append(item)
    like_theirs: list[Planned] = []
    for alike in rows.values():
        like_theirs += next((of_row[row] for row in alike if row in of_row), [])
    if not like_theirs:
        return []
    seconds, costs = sum(item.again for item in like_theirs), [one.cost for one in like_theirs]
    usd, requests = sum(cost.usd for cost in costs), sum(cost.requests for cost in costs)
    return [
        f"Not counted there: notebook {number} defines {', '.join(rows)} itself; if they are "
        f"not made yet, about {duration(seconds)} more, "
        f"{asked(requests, sum(cost.tokens for cost in costs))}{usd:.2f} USD."
    ]


def _too_large(profile: Profile) -> list[str]:
    """What does not fit into the GPUs that the profile names, and what to change."""
    if profile.gpu_memory_gb is None:
        return []
    lines = []
    for name in {row.model: None for row in profile.trained_rows}:
        needed = training_memory_gb(profile, name)
        if needed > profile.gpu_memory_gb:
            tokens = micro_batch_that_fits(profile, name)
            advice = f"take GPUs with more memory, or leave out the rows of models.{name}"
            if tokens:
                advice = f"set optimiser.micro_batch_tokens={tokens}"
            lines.append(
                f"Does not fit: training {name} takes {needed:.0f} GB on each GPU, and there are "
                f"{profile.gpu_memory_gb:g}: {advice}."
            )
    return lines


def asked(requests: int, tokens: float) -> str:
    """Requests to chat models and their tokens, as part of a list; "" where there are none."""
    return f"{requests:,} requests of {tokens / 1e6:.1f} M tokens, " if requests else ""


def artifacts_table(planned: Sequence[Planned]) -> str:
    """One line for each artifact: made or to make, and what making it takes."""
    rows: list[tuple[str, ...]] = [
        (
            *("artifact", "stage", "state", "time", "GPU-hours", "memory GB", "disk GB"),
            *("requests", "tokens", "USD"),
        )
    ]
    for item in planned:
        if item.made:
            rows.append((item.name, item.stage, "made", *[""] * 7))
        else:
            numbers = (
                f"{item.gpu_hours:.2f}",
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
