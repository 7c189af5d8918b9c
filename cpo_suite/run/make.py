"""Building what a profile's processes share out, in processes that `accelerate launch` started.

`accelerate launch -m cpo_suite make --profile P` builds all of it; what a suite launches
(`cpo_suite.launching`) is the same for one artifact. Each process opens the same suite and builds
alike: trainings go through transformers' trainer, which shares out each global batch; generation,
scoring and embedding share out their batches with `cpo.engine.processes`. The main process writes.
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


def make(profile: str, settings: Sequence[str]) -> int:
    """Build all of a profile's plan that is shared out, in as many processes as were launched.

    Returns:
        The exit code, 0.

    Raises:
        ProfileError: as `Suite.open`; or a global batch cannot be shared out among the processes.
    """
    build_shared(Suite.open(profile, [*settings, f"processes.count={process_count()}"]))
    return 0


def build_shared(suite: Suite, keys: Sequence[str] = ()) -> None:
    """Build what several processes build together, in every process that was launched for it: all
    of a suite's plan, or the artifacts with these keys.

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
    """Build what the job file that is named on the command line describes; one of its processes."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(job["owner"],), daemon=True).start()
    for module in job["modules"]:
        import_module(module)
    store = Store(job["store"])
    suite = Suite(Profile.model_validate_json(job["profile"]), store, store.root / "figures")
    build_shared(suite, job["keys"])


def _end_with(owner: dict[str, Any]) -> None:
    """End this process when the launcher, or the process that asked for all this, is gone."""
    launcher, same_host = os.getppid(), owner["host"] == socket.gethostname()
    while os.getppid() == launcher != 1 and (not same_host or psutil.pid_exists(owner["pid"])):
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    build_job()
