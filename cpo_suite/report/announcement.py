"""What a notebook says before it builds anything: what is missing, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cpo_suite import calibration
from cpo_suite.store import Artifact

if TYPE_CHECKING:
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
    roots: list[Artifact] = []
    for item in wanted:
        if isinstance(item, Artifact):
            roots.append(item)
        else:
            seeds = range(suite.profile.seeds)
            roots += [suite.generations_artifact(item, None, seed) for seed in seeds]
    lacking = [item for item in suite.plan(*roots) if not item.made] if roots else []
    if not lacking:
        return "Everything this notebook needs is made already: it takes seconds."
    minutes = sum(item.seconds for item in lacking) / 60
    plural = "s are" if len(lacking) > 1 else " is"
    profile = suite.profile
    measured = all(calibration.measurable(profile, model) for model in profile.models.values())
    where = "this machine" if measured else profile.hardware
    return (
        f"{len(lacking)} artifact{plural} still to be made, about {minutes:.0f} minutes on "
        f"{where}; what is made once is found again."
    )
