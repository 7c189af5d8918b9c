"""The machine in use: its device, its name, and stored measurements."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from cpo.engine.files import write_atomically

MEASURED = "machine.json"
CONTAINER = Path("/sys/fs/cgroup")
# The machine's threads, in a process that takes fewer beside others.
THREADS = "CPO_MACHINE_THREADS"
# Variables that limit which CPU instructions PyTorch's matrix products may use.
INSTRUCTION_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def device() -> str:
    """Where models run: `cuda` if there is an NVIDIA GPU, else `cpu`.

    Apple's `mps` is not used: log-probabilities have not been verified there, it has no float64 for
    sums, and its bf16 differs. See `unused_gpu`.
    """
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def unused_gpu() -> str:
    """Why this machine's GPU is not used, as a sentence; "" if it is, or there is none."""
    import torch

    if device() == "cpu" and torch.backends.mps.is_available():
        return (
            "Apple's GPU (mps) is not used: log-probabilities have not been verified there, and it "
            "has no float64."
        )
    return ""


def gpu_memory_gb() -> float | None:
    """Memory of the smallest GPU, in GB of 10^9 bytes; None without any."""
    import torch

    count = torch.cuda.device_count() if device() == "cuda" else 0
    sizes = [torch.cuda.get_device_properties(number).total_memory / 1e9 for number in range(count)]
    return min(sizes, default=None)


def free_memory_gib() -> float:
    """Memory of the processor that is left, in GiB: of the machine, or of a container's limit."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit, used = (
            int((CONTAINER / f"memory.{name}").read_text()) for name in ("max", "current")
        )
    except (OSError, ValueError):  # no container, or one without a limit
        return free / 2**30
    return min(free, limit - used) / 2**30


def name() -> str:
    """The GPU's name, or the processor's."""
    import torch

    return torch.cuda.get_device_name() if device() == "cuda" else processor()


@cache
def processor() -> str:
    """The processor's name."""
    try:
        if platform.system() == "Darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.check_output(command, text=True).strip()
        information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if model := re.search(r"^model name\s*: (.*)", information, re.MULTILINE):
            return model[1].strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine()


def threads() -> int:
    """PyTorch's threads on this machine, whatever this process takes of them."""
    import torch

    return int(os.environ.get(THREADS) or torch.get_num_threads())


def fingerprint() -> str:
    """What a measured speed depends on apart from the quantity measured, as one line."""
    import torch

    parts = [name(), f"torch {torch.__version__}"]
    if device() == "cpu":
        parts += [torch.backends.cpu.get_cpu_capability(), f"{threads()} threads"]
        parts += [f"{key}={os.environ[key]}" for key in INSTRUCTION_VARIABLES if key in os.environ]
    return ", ".join(parts)


def remembered(root: Path, key: str, measure: Callable[[], Any]) -> Any:
    """The stored result of `measure()` on this machine, as JSON; measured if missing.

    It is kept in `machine.json` under `root`, so that all processes and notebooks of a run use the
    same numbers. Concurrent measurements run one after the other.
    """
    path, here = root / MEASURED, fingerprint()
    known = _read(path)
    if key not in known.get(here, {}):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            known = _read(path)  # another process may have measured in the meantime
            if key not in known.get(here, {}):
                known.setdefault(here, {})[key] = measure()
                if THREADS not in os.environ:  # others' work would be measured, too
                    write_atomically(path, json.dumps(known, indent=1) + "\n")
    return known[here][key]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # missing or damaged: measured again
        return {}
