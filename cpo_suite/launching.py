"""Build artifacts in several processes: `accelerate launch` starts them, this process waits.

The processes run `cpo_suite.run.make`.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch

from cpo.negatives import SAMPLERS
from cpo.objectives import OBJECTIVES
from cpo.registry import is_ours
from cpo_suite.profile import Processes, Profile
from cpo_suite.store import Artifact

MODULE = "cpo_suite.run.make"  # started by name: it imports the suite, which imports this module
LAST_LINES = 25
LAUNCHER = "torch/distributed/elastic"


class LaunchError(RuntimeError):
    """The launched processes failed; the message holds the last lines they printed."""


def launch(profile: Profile, root: Path, *artifacts: Artifact) -> None:
    """Build artifacts in the profile's processes, started once, under the store's `root`.

    Their output is printed here as it arrives.

    Raises:
        LaunchError: a process failed, or cannot import a sampler or loss registered here.
    """
    processes = profile.processes
    job = {
        "profile": profile.model_dump_json(),
        "store": str(root),
        "keys": [artifact.key for artifact in artifacts],
        "modules": _own_modules(profile),
        "owner": {"host": socket.gethostname(), "pid": os.getpid()},
    }
    if torch.cuda.is_available():  # free memory for the process that shares this device
        gc.collect()
        torch.cuda.empty_cache()
    described = root / "partial" / f"{artifacts[0].key}.{os.getpid()}.job.json"
    described.parent.mkdir(parents=True, exist_ok=True)
    described.write_text(json.dumps(job), encoding="utf-8")
    try:
        code, last = _run(_command(processes, described))
    finally:
        described.unlink()
    if code:
        [first, *others] = artifacts
        what = f"{len(artifacts)} artifacts" if others else f"{first.stage} {first.key}"
        raise LaunchError(
            f"{processes.count} processes for {what} ended with code "
            f"{code}. Their last lines:\n{''.join(last)}\n"
            "Correct the error and run again: training resumes from the last checkpoint. "
            "processes.count=1 runs the same work in one process."
        )


def _command(processes: Processes, job: Path) -> list[str]:
    threads = max(1, (os.cpu_count() or 1) // processes.on_each_machine)
    return [
        *processes.before,
        *(sys.executable, "-m", "accelerate.commands.launch"),
        f"--num_processes={processes.count}",
        f"--num_cpu_threads_per_process={threads}",
        "--mixed_precision=no",  # autocast is the scorer's
        "--dynamo_backend=no",
        f"--num_machines={processes.machines}",
        # Selects torchrun, also on CPUs, where accelerate would otherwise need mpirun.
        "--multi_gpu",
        # Required, but ignored: the rendezvous assigns ranks.
        "--machine_rank=0",
        # On one machine any free port: others' launches may have taken the default.
        *(["--main_process_port=0"] if processes.machines == 1 else []),
        *processes.options,
        *("--module", MODULE, str(job)),
    ]


def _run(command: Sequence[str]) -> tuple[int, deque[str]]:
    """Exit code, and the last lines printed before the launcher's own messages."""
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
            process.terminate()  # its workers end too
            process.wait()
            raise
    return process.returncode, last


def _own_modules(profile: Profile) -> list[str]:
    """Modules of the custom samplers and losses that a profile's rows use, for other processes to
    import."""
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
            f"other processes cannot import {' and '.join(here)} from this notebook or script: "
            "move the function to a module, or set processes.count to 1"
        )
    return sorted(set(own.values()))
