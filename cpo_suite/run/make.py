"""Build the artifacts that several processes share, in processes of `accelerate launch`.

`accelerate launch -m cpo_suite make --profile P` builds all of them; `cpo_suite.launching` builds a
single artifact. Every process opens the same suite. Trainings go through transformers' trainer,
which divides each global batch; generation, scoring and embedding divide their batches with
`cpo.engine.processes`. The main process writes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from cpo.engine.processes import is_main_process, leave_together, process_count
from cpo_suite.profile import Profile
from cpo_suite.store import Store
from cpo_suite.suite import Suite


def build_profile(profile: str, settings: Sequence[str]) -> int:
    """Build every shared artifact of a profile's plan, in all launched processes.

    Returns:
        The exit code, 0.

    Raises:
        ProfileError: as `Suite.open`; or the processes do not divide a global batch.
    """
    build_shared(Suite.open(profile, [*settings, f"processes.count={process_count()}"]))
    return 0


def build_shared(suite: Suite, keys: Sequence[str] = ()) -> None:
    """Build a suite's shared artifacts, or those with these keys; called in every process.

    Verdicts and measures are left to the notebooks.
    """
    for artifact in suite.artifacts():
        if artifact.shared and (not keys or artifact.key in keys):
            if is_main_process():
                state = "build" if suite.store.find(artifact) is None else "cached"
                print(f"{state}: {artifact.title} ({artifact.stage} {artifact.key})", flush=True)
            suite.store.get(artifact)
    leave_together()


def build_job() -> None:
    """Build, as one of its processes, the job in the file named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(job["owner"],), daemon=True).start()
    for module in job["modules"]:
        import_module(module)
    store = Store(job["store"])
    suite = Suite(Profile.model_validate_json(job["profile"]), store, store.root / "figures")
    build_shared(suite, job["keys"])


def _end_with(owner: dict[str, Any]) -> None:
    """End this process once the launcher, or the process that started it, is gone."""
    launcher, same_host = os.getppid(), owner["host"] == socket.gethostname()
    while os.getppid() == launcher != 1 and (not same_host or psutil.pid_exists(owner["pid"])):
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    build_job()
