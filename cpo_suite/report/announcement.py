"""The message of a notebook before it builds anything: missing artifacts, and the time."""

from __future__ import annotations

from collections.abc import Iterable

from cpo_suite import calibration
from cpo_suite.store import Artifact
from cpo_suite.suite import Suite


def announce(suite: Suite, wanted: Iterable[str | Artifact]) -> str:
    """A sentence to print before building: the number of missing artifacts, and the time.

    Args:
        wanted: ids of rows, each with model, negatives and generations over all seeds, or single
            artifacts; their dependencies count too.

    The time is estimated from speeds measured here (`calibration`), or from the speeds stated in
    the profile.

    Raises:
        KeyError: unknown row.
    """
    profile = suite.profile
    roots = [
        item if isinstance(item, Artifact) else suite.generations_artifact(item, None, seed)
        for item in wanted
        for seed in range(profile.seeds)
    ]
    lacking = [planned for planned in suite.plan(*roots) if not planned.cached] if roots else []
    if not lacking:
        return "Everything this notebook needs is cached: it takes seconds."
    seconds = sum(planned.seconds for planned in lacking)
    time = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    measured = all(calibration.measurable(profile, model) for model in profile.models.values())
    return (
        f"{len(lacking)} artifact{'s are' if len(lacking) > 1 else ' is'} still to be built, about "
        f"{time} on {'this machine' if measured else profile.hardware}; built "
        "artifacts are cached."
    )
