"""Build all artifacts of a profile in one start of its processes, and compare with the estimate.

For `paper-smoke`, the paper's sizes with two steps: whether a node can do the work, and what it
takes, before `paper` asks for thirty hours.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cpo_suite.artifacts import Step, Unhelpful
from cpo_suite.estimate import LAUNCH_SECONDS, WITHOUT_MODEL, Planned
from cpo_suite.launching import launch
from cpo_suite.run import dry_run
from cpo_suite.suite import Suite

HEADING = ("stage", "model", "artifacts", "s estimated", "s taken", "GB estimated", "GB taken")
NOTE = (
    "Seconds exclude dependencies. GB are those of the largest artifact, in the first process: on "
    "a GPU what its tensors took, without one what the process had taken by then."
)


class Compared(NamedTuple):
    """An artifact's seconds and GB, as estimated and as taken; None where there are none."""

    expected: float
    seconds: float
    expected_gb: float | None = None
    gb: float | None = None


def rehearse(profile: str, settings: Sequence[str]) -> int:
    """Build every artifact of a profile that is not cached, then print `comparison`.

    Unhelpful responses are written before other processes start; these build what is shared, and
    this process the rest.

    Returns:
        The exit code, 0.

    Raises:
        ProfileError: as `Suite.open`.
        LaunchError: as `launch`.
    """
    suite = Suite.open(profile, settings)
    artifacts, planned = suite.artifacts(), suite.plan()
    print(dry_run.totals(suite.profile, planned), flush=True)
    for artifact in artifacts:
        if isinstance(artifact, Unhelpful):
            suite.store.get(artifact)
    starting = _build_shared(suite, artifacts) if suite.profile.processes.count > 1 else None
    for artifact in artifacts:
        suite.store.get(artifact)
    print(f"\n{comparison(suite, planned, starting)}\n{NOTE}", flush=True)
    return 0


def _build_shared(suite: Suite, artifacts: Sequence[Step]) -> float | None:
    """Build what is shared in the profile's processes; returns the seconds of their start."""
    unbuilt = [item for item in artifacts if not suite.store.find(item)]
    if not (shared := [item for item in unbuilt if item.shared]):
        return None
    clock = time.perf_counter()
    launch(suite.profile, suite.store.root, *shared)
    built = [suite.store.manifest(item) for item in unbuilt if suite.store.find(item)]
    return time.perf_counter() - clock - sum(made["seconds"] for made in built)


def comparison(suite: Suite, planned: Sequence[Planned], starting: float | None = None) -> str:
    """Seconds and memory by stage and base model, as estimated and as the manifests record them.

    Args:
        planned: the plan of all the suite's artifacts, which are built.
        starting: seconds of the processes' start, if they were started.
    """
    groups: dict[tuple[str, str], list[Compared]] = {}
    for artifact, plan in zip(suite.artifacts(), planned, strict=True):
        names = artifact.stage, artifact.model_name
        groups.setdefault(names, []).append(_compared(suite, artifact, plan))
    rows = [(*names, str(len(made)), *_cells(made)) for names, made in groups.items()]
    every = [one for made in groups.values() for one in made]
    if starting is not None:
        start = Compared(LAUNCH_SECONDS, starting)
        rows.append(
            (f"start of {suite.profile.processes.count} processes", "", "", *_cells([start]))
        )
        every.append(start)
    rows.append(("all", "", str(len(planned)), *_cells(every)))
    return dry_run.text_table([HEADING, *rows])


def _compared(suite: Suite, artifact: Step, plan: Planned) -> Compared:
    manifest = suite.store.manifest(artifact)
    # The plan starts the processes for each artifact; here they were started once.
    several = artifact.shared and suite.profile.processes.count > 1
    expected = plan.seconds - (LAUNCH_SECONDS if several else 0.0)
    if artifact.stage in WITHOUT_MODEL:
        return Compared(expected, manifest["seconds"])
    gb = manifest.get("peak_memory_gb")
    return Compared(expected, manifest["seconds"], plan.memory_gb, gb)


def _cells(made: Sequence[Compared]) -> tuple[str, ...]:
    """Sums of seconds, and the largest GB."""
    seconds = (sum(one.expected for one in made), sum(one.seconds for one in made))
    largest = (_largest(one.expected_gb for one in made), _largest(one.gb for one in made))
    return (*(f"{value:.1f}" for value in seconds), *largest)


def _largest(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.1f}" if known else ""
