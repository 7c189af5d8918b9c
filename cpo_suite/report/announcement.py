"""What a notebook says before it builds anything: what is missing, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterable

from cpo_suite import calibration
from cpo_suite.store import Artifact
from cpo_suite.suite import Suite


def announce(suite: Suite, wanted: Iterable[str | Artifact]) -> str:
    """One sentence to print before building things: what is still to be built, and how long it
    takes.

    Args:
        wanted: rows by id, each with its model, negatives and generations over all seeds, or single
            artifacts; what they are built from counts too.

    The minutes are the plan's estimate, by the speeds of this machine where they are measured
    (`calibration`), else by those that the profile states for the hardware that it names.

    Raises:
        KeyError: no such row.
    """
    profile = suite.profile
    roots = [
        item if isinstance(item, Artifact) else suite.generations_artifact(item, None, seed)
        for item in wanted
        for seed in range(profile.seeds)
    ]
    lacking = [planned for planned in suite.plan(*roots) if not planned.cached] if roots else []
    if not lacking:
        return "Everything this notebook needs is made already: it takes seconds."
    minutes = sum(planned.seconds for planned in lacking) / 60
    measured = all(calibration.measurable(profile, model) for model in profile.models.values())
    return (
        f"{len(lacking)} artifact{'s are' if len(lacking) > 1 else ' is'} still to be made, about "
        f"{minutes:.0f} minutes on {'this machine' if measured else profile.hardware}; what is "
        "made once is found again."
    )
