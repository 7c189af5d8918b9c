"""Build the artifacts that several processes share, in processes of `accelerate launch`.

`accelerate launch -m cpo_suite make --profile P` builds all of them, or what some rows need;
`cpo_suite.launching` builds those that it is asked for. Every process opens the same suite.
Trainings go through transformers' trainer, which divides each global batch; generation, scoring and
embedding divide their batches with `cpo.engine.processes`. The main process writes. Verdicts and
measures are left to the notebooks.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import psutil
import torch

from cpo.engine.processes import is_main_process, leave_together, process_count
from cpo_suite.artifacts import Step, Unhelpful
from cpo_suite.profile import Profile, ProfileError
from cpo_suite.run.selection import selected
from cpo_suite.store import Store, walk
from cpo_suite.suite import Suite


def build_profile(profile: str, settings: Sequence[str], only: Sequence[str] = ()) -> int:
    """Build artifacts of a profile's plan, in all launched processes.

    Args:
        only: rows and stages, as `selection.selected`; by default, all that is shared.

    Returns:
        The exit code, 0.

    Raises:
        ProfileError: as `Suite.open` and `selected`; the processes do not divide a global batch, or
            are several for a stage that one process builds; or there is no GPU for what needs one.
    """
    alone = ["processes.divide=auto"] if process_count() == 1 else []
    suite = Suite.open(profile, [*settings, f"processes.count={process_count()}", *alone])
    chosen = selected(suite, only)
    given = ["--profile", profile, *(part for setting in settings for part in ("--set", setting))]
    command = f"python -m cpo_suite make {shlex.join(given)}"
    _check_devices(suite, chosen, only, command)
    _announce_writing(suite, chosen, command)
    build(suite, chosen)
    return 0


def build(suite: Suite, artifacts: Sequence[Step]) -> None:
    """Build artifacts and their dependencies; called in every process."""
    for artifact in artifacts:
        if is_main_process():
            state = "build" if suite.store.find(artifact) is None else "cached"
            print(f"{state}: {artifact.title} ({artifact.stage} {artifact.key})", flush=True)
        suite.store.get(artifact)
    leave_together()


def _check_devices(suite: Suite, chosen: Sequence[Step], only: Sequence[str], command: str) -> None:
    """Refuse stages that several processes would build wrongly, and work without its GPUs."""
    alone = {artifact.stage for artifact in chosen if not artifact.shared}
    if alone and process_count() > 1:
        stages = " ".join(f"--only {stage}" for stage in only if stage in alone)
        raise ProfileError(
            f"One process builds {' and '.join(sorted(alone))}, without `accelerate launch`: "
            f"{command} {stages}"
        )
    missing = [item for item in walk(*chosen) if item.shared and not suite.store.find(item)]
    if missing and suite.profile.gpus and not torch.cuda.is_available():
        first = cast(Step, missing[0])
        raise ProfileError(
            f"{first.title} and {len(missing) - 1} others need GPUs, and there is none here. Build "
            "them where there are, or set gpus=0 to build them without."
        )


def _announce_writing(suite: Suite, chosen: Sequence[Step], command: str) -> None:
    """Say that a chat model will write unhelpful responses while several processes wait."""
    missing = [
        item
        for item in walk(*chosen)
        if isinstance(item, Unhelpful) and item.server and not suite.store.find(item)
    ]
    if missing and process_count() > 1 and is_main_process():
        sets = "set is" if len(missing) == 1 else "sets are"
        print(
            f"{len(missing)} {sets} missing of unhelpful responses, which a chat model now writes "
            f"while {process_count()} processes wait. Beforehand, without GPUs: {command} "
            "--only unhelpful",
            flush=True,
        )


def build_job() -> None:
    """Build, as one of its processes, the job in the file named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(job["owner"],), daemon=True).start()
    for module in job["modules"]:
        import_module(module)
    store = Store(job["store"])
    suite = Suite(Profile.model_validate_json(job["profile"]), store, store.root / "figures")
    build(suite, [artifact for artifact in suite.artifacts() if artifact.key in job["keys"]])


def _end_with(owner: dict[str, Any]) -> None:
    """End this process once the launcher, or the process that started it, is gone."""
    launcher, same_host = os.getppid(), owner["host"] == socket.gethostname()
    while os.getppid() == launcher != 1 and (not same_host or psutil.pid_exists(owner["pid"])):
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    build_job()
