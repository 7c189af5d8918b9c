"""What `make` builds of a profile's plan: all that is shared, or what some rows and stages need."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from cpo.registry import nearest
from cpo_suite.artifacts import Step
from cpo_suite.paper import Row
from cpo_suite.profile import Profile, ProfileError
from cpo_suite.suite import Suite


def selected(suite: Suite, only: Sequence[str] = ()) -> list[Step]:
    """The artifacts to build, in build order.

    Args:
        only: rows, by id or prefix of ids, which stand for the shared artifacts that they need; and
            stages, which stand for all their artifacts. By default, all that is shared.

    Raises:
        ProfileError: the plan has no such row or stage; the message names the nearest.
    """
    every = suite.artifacts()
    if not only:
        return [artifact for artifact in every if artifact.shared]
    stages = {artifact.stage for artifact in every}
    rows: dict[str, Row] = {}
    for name in only:
        below = _rows_of(suite.profile, name)
        if not below and name not in stages:
            known = [*stages, *(part for row in suite.profile.rows for part in _prefixes(row))]
            what = f"--only: {suite.profile.name} trains no row and has no stage '{name}'."
            raise ProfileError(f"{what}{nearest(name, known)}")
        rows |= {row.id: row for row in below}
    needed = {artifact.key for artifact in suite.artifacts([*rows.values()]) if artifact.shared}
    return [item for item in every if item.key in needed or item.stage in only]


def _rows_of(profile: Profile, name: str) -> list[Row]:
    """The trained rows with this id, or below it."""
    return [row for row in profile.trained_rows if f"{row.id}/".startswith(f"{name}/")]


def _prefixes(row_id: str) -> list[str]:
    """`t1`, `t1/MixNR` and `t1/MixNR/0` of the last."""
    return list(accumulate(row_id.split("/"), lambda left, right: f"{left}/{right}"))
