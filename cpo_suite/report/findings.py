"""One sentence under a plot, made from its numbers: what is above, what is below, what is open.

A sentence names whatever its intervals decide, with the numbers, and only counts the rest. It can
therefore not contradict the plot, whatever came out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from cpo_suite.report.names import row_name

NAMED = 4  # of each side, the largest; the rest is counted


def finding(
    subject: str,
    lines: Iterable[tuple[str, float, float, float]],
    level: float = 0.0,
    above: str = "above",
    below: str = "below",
) -> str:
    """What intervals say of a level: "Gain over MLE: above 0 for A +0.020 [+0.004, +0.036]; ...".

    Args:
        subject: what the values are.
        lines: name, value, and the ends of its interval. Values may be NaN: not measured.
        level: what the intervals are held against: 0 for differences, one half for win rates.
        above, below: words for an interval that lies wholly above or below the level.
    """
    known = [line for line in lines if not pd.isna(line[1])]
    if not known:
        return f"{subject}: not measured in this run."
    signed = level == 0.0
    higher = sorted((line for line in known if line[2] > level), key=lambda line: -line[1])
    lower = sorted((line for line in known if line[3] < level), key=lambda line: line[1])
    parts = [
        f"{word} {level:g} for {_listed(decided, signed)}"
        for word, decided in ((above, higher), (below, lower))
        if decided
    ]
    undecided = len(known) - len(higher) - len(lower)
    if undecided == len(known):
        return f"{subject}: undecided for {'all ' if undecided > 1 else ''}{_names(known)}."
    if undecided:
        parts.append(f"undecided for {undecided} of {len(known)}")
    return f"{subject}: {'; '.join(parts)}."


def contrast_finding(learnt: pd.DataFrame) -> str:
    """The held-out contrast of each row from start to end, and whether it is learnt.

    Args:
        learnt: as `tables.learnt_frame`; losses are averaged over training seeds.
    """
    if learnt.empty:
        return "Held-out contrast: not measured in this run."
    parts = []
    for row_id, of_row in learnt.groupby("row", sort=False):
        losses = of_row.groupby("moment")["contrast_loss"].mean()
        worse = of_row.groupby("seed").last()["low"].gt(0).all()
        otherwise = "grew worse" if worse else "not shown to be learnt"
        outcome = "learnt" if of_row["learnt"].all() else otherwise
        parts.append(
            f"{row_name(str(row_id))} {losses['start']:.2f} to {losses['end']:.2f}, {outcome}"
        )
    return f"Held-out contrast, from start to end: {'; '.join(parts)}."


def highest_finding(subject: str, values: pd.Series, ends: tuple[float, float]) -> str:
    """Where a curve over alpha is highest, and its value at both ends.

    Args:
        values: by alpha; what was not measured is NaN.
        ends: the alphas of CPO and of continued MLE.
    """
    known = values.dropna()
    if known.empty:
        return f"{subject}: not measured in this run."
    at_ends = " and ".join(f"{known[one]:.3f} at {one:g}" for one in ends if one in known)
    return (
        f"{subject}: highest at alpha {known.idxmax():g}, {known.max():.3f}"
        + (f"; {at_ends}" if at_ends else "")
        + "."
    )


def levels_finding(
    subject: str,
    values: Mapping[str, float],
    lowest: str = "lowest",
    highest: str = "highest",
    shape: str = ".3f",
) -> str:
    """Which of several values are the ends: "Grade: lowest 0.340 for A; highest 0.930 for B.".

    Values that print alike share an end.

    Args:
        subject: what the values are.
        values: by name. They may be NaN or None: not measured.
        lowest, highest: words for the two ends.
        shape: format of a value.
    """
    known = {name: value for name, value in values.items() if not pd.isna(value)}
    if not known:
        return f"{subject}: not measured in this run."
    printed = {name: f"{value:{shape}}" for name, value in known.items()}
    low = printed[min(known, key=known.__getitem__)]
    high = printed[max(known, key=known.__getitem__)]
    if low == high:
        every = f"all {len(known)}" if len(known) > 1 else next(iter(known))
        return f"{subject}: {low} for {every}."
    ends = (
        f"{word} {end} for {_together([name for name in printed if printed[name] == end])}"
        for word, end in ((lowest, low), (highest, high))
    )
    return f"{subject}: {'; '.join(ends)}."


def _together(names: Sequence[str]) -> str:
    """Names as in a sentence; many are counted."""
    return f"{len(names)} of them" if len(names) > NAMED else joined(names)


def joined(items: Iterable[str]) -> str:
    """At least one item, as in a sentence: "A, B and C"."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def _listed(lines: list[tuple[str, float, float, float]], signed: bool) -> str:
    """The lines furthest out with their numbers, and how many more there are."""
    shape = "+.3f" if signed else ".3f"
    shown = [
        f"{name} {value:{shape}} [{low:{shape}}, {high:{shape}}]"
        for name, value, low, high in lines[:NAMED]
    ]
    more = len(lines) - NAMED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _names(lines: list[tuple[str, float, float, float]]) -> str:
    return lines[0][0] if len(lines) == 1 else str(len(lines))
