"""An artifact made by several processes: `accelerate launch` starts them, this one waits.

Each process opens the same suite and makes the same artifact. Trainings go through transformers'
trainer, which shares out each global batch; generation, scoring and embedding share out their
batches with `cpo.engine.processes`. The main process writes the result.
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
from cpo.own_code import is_ours
from cpo.training import OBJECTIVES
from cpo_suite.profile import Processes, Profile

LAST_LINES = 25
LAUNCHER = "torch/distributed/elastic"


class LaunchError(RuntimeError):
    """The processes did not come to their end; the message holds the last lines they printed."""


def launch(profile: Profile, store: Path, call: Sequence[object], key: str, folder: Path) -> None:
    """Make the artifact of recipe `key` in `folder` by calling a method of the suite of `profile`
    over `store` in every process: `call` is its name and its arguments.

    What the processes print is printed here as it comes.

    Raises:
        LaunchError: one of them failed, or they could not know a sampler or a loss that was
            registered here.
    """
    processes = profile.processes
    # In there nothing is launched again.
    alone = profile.model_copy(update={"processes": Processes(count=1)})
    job = {
        "profile": alone.model_dump_json(),
        "store": str(store),
        "call": list(call),
        "key": key,
        "folder": str(folder),
        "modules": _own_modules(profile),
        "owner": {"host": socket.gethostname(), "pid": os.getpid()},
    }
    if torch.cuda.is_available():  # room for the process that shares this one's device
        gc.collect()
        torch.cuda.empty_cache()
    described = folder / ".job.json"
    described.write_text(json.dumps(job), encoding="utf-8")
    command = [
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
        *("--module", "cpo_suite.worker", str(described)),
    ]
    last: deque[str] = deque(maxlen=LAST_LINES)
    told = False
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
                told = told or LAUNCHER in line
                if not told:  # what the launcher has to say of its own end is no help
                    last.append(line)
        except BaseException:
            process.terminate()  # its workers end with it
            process.wait()
            raise
    described.unlink()
    if process.returncode:
        what = " ".join(map(str, call))
        raise LaunchError(
            f"{processes.count} processes for '{what}' ended with code {process.returncode}. "
            f"Their last lines:\n{''.join(last)}\n"
            "Correct what they say and start again: it goes on from the last checkpoint. With "
            "processes.count=1 the same runs in one process."
        )


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
