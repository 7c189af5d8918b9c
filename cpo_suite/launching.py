"""Artifacts built by several processes: `accelerate launch` starts them, this process waits.

`accelerate launch -m cpo_suite make --profile P` builds all that a profile's processes share out;
what a notebook launches is the same for one artifact. Each process opens the same suite and builds
alike: trainings go through transformers' trainer, which shares out each global batch; generation,
scoring and embedding share out their batches with `cpo.engine.processes`. The main process writes.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cpo.engine.processes import leave_together
from cpo.negatives import SAMPLERS
from cpo.registry import is_ours
from cpo.training import OBJECTIVES
from cpo_suite.profile import Processes, Profile
from cpo_suite.store import Artifact, Store

if TYPE_CHECKING:
    from cpo_suite.suite import Suite

LAST_LINES = 25
LAUNCHER = "torch/distributed/elastic"


class LaunchError(RuntimeError):
    """The processes did not come to their end; the message holds the last lines they printed."""


def build_shared(suite: Suite, keys: Sequence[str] = ()) -> None:
    """Build what several processes build together, in every process that was launched for it: all
    of a suite's plan, or the artifacts with these keys.

    Verdicts, measures and ensembles are left to the notebooks.
    """
    for artifact in suite.artifacts():
        if artifact.shared and (not keys or artifact.key in keys):
            suite.store.get(artifact)
    leave_together()


def launch(profile: Profile, root: Path, artifact: Artifact) -> None:
    """Build an artifact of a profile's plan, under the store's `root`, in the profile's processes.

    What they print is printed here as it comes.

    Raises:
        LaunchError: one of them failed, or they could not know a sampler or a loss that was
            registered here.
    """
    processes = profile.processes
    # In there nothing is launched again.
    alone = profile.model_copy(update={"processes": Processes(count=1)})
    job = {
        "profile": alone.model_dump_json(),
        "store": str(root),
        "keys": [artifact.key],
        "modules": _own_modules(profile),
        "owner": {"host": socket.gethostname(), "pid": os.getpid()},
    }
    if torch.cuda.is_available():  # room for the process that shares this one's device
        gc.collect()
        torch.cuda.empty_cache()
    described = root / "partial" / f"{artifact.key}.{os.getpid()}.job.json"
    described.parent.mkdir(parents=True, exist_ok=True)
    described.write_text(json.dumps(job), encoding="utf-8")
    try:
        code, last = _run(_command(processes, described))
    finally:
        described.unlink()
    if code:
        raise LaunchError(
            f"{processes.count} processes for {artifact.stage} {artifact.key} ended with code "
            f"{code}. Their last lines:\n{''.join(last)}\n"
            "Correct what they say and start again: it goes on from the last checkpoint. With "
            "processes.count=1 the same runs in one process."
        )


def _command(processes: Processes, job: Path) -> list[str]:
    return [
        *processes.before,
        *(sys.executable, "-m", "accelerate.commands.launch"),
        f"--num_processes={processes.count}",
        "--num_cpu_threads_per_process",
        str(max(1, (os.cpu_count() or 1) // processes.on_each_machine)),
        "--mixed_precision=no",  # autocast is the scorer's
        "--dynamo_backend=no",
        f"--num_machines={processes.machines}",
        # torchrun's launcher, on processors too, where accelerate's own would ask for mpirun.
        "--multi_gpu",
        # Which machine this is, a rendezvous finds out by itself; without a number it would not
        # start.
        "--machine_rank=0",
        *processes.options,
        *("--module", "cpo_suite.launching", str(job)),
    ]


def _run(command: Sequence[str]) -> tuple[int, deque[str]]:
    """Exit code and the last lines before what the launcher has to say of its own end."""
    last: deque[str] = deque(maxlen=LAST_LINES)
    ended = False
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "CPO_PLAIN_PROGRESS": "1", "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                ended = ended or LAUNCHER in line
                if not ended:
                    last.append(line)
        except BaseException:
            process.terminate()  # its workers end with it
            process.wait()
            raise
    return process.returncode, last


def _own_modules(profile: Profile) -> list[str]:
    """Where the samplers and losses of a user's own are defined that a profile's rows and mixtures
    name: other processes have to import them."""
    kinds = {kind for mixture in profile.negatives.values() for kind in mixture}
    objectives = {row.objective for row in profile.trained_rows}
    own = {
        name: function.__module__
        for registered, names in ((SAMPLERS, kinds), (OBJECTIVES, objectives))
        for name, function in registered.items()
        if name in names and not is_ours(function)
    }
    if here := [name for name, module in own.items() if module == "__main__"]:
        raise LaunchError(
            f"{' and '.join(here)} of this notebook or script cannot be found by other processes: "
            "move the function to a module of its own, or set processes.count to 1"
        )
    return sorted(set(own.values()))


def main() -> None:
    """Build what the job file that is named on the command line describes; one of its processes."""
    from cpo_suite.suite import Suite

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
    while os.getppid() == launcher != 1 and not (same_host and _is_gone(owner["pid"])):
        time.sleep(0.5)
    os._exit(1)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


if __name__ == "__main__":
    main()
