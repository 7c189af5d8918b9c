"""Versions, git revision, machine and memory, as recorded in manifests and `run.json`."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

CORE = ("torch", "transformers", "accelerate")


@cache
def provenance() -> dict[str, Any]:
    """Versions, git revision and machine, as recorded in manifests and `run.json`."""
    import torch

    parts = [f"{platform.machine()} {platform.system()}", f"{os.cpu_count()} cores"]
    parts += [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return {
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in CORE},
        "git": git_revision(),
        "machine": ", ".join(parts),
        "executable": Path(sys.executable).name,
    }


def git_revision() -> dict[str, Any] | None:
    """Revision of the checkout and whether it was clean; None outside a checkout.

    Changes under `figures/` do not count: they are results of runs.
    """
    git = ["git", "-C", str(Path(__file__).parent), "status", "--porcelain=v2", "--branch", "--"]
    command = [*git, ":(top)", ":(top,exclude)figures"]
    try:
        status = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = status.stdout.splitlines()
    [revision] = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
    return {"revision": revision, "clean": all(line.startswith("# ") for line in lines)}


def watch_memory() -> None:
    """Forget this process's peak of GPU memory, so that the next `peak_memory_gb` is of what
    follows."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what earlier work left in reserve
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gb() -> float:
    """The most memory, in 10**9 bytes, that this process took of its GPU for tensors since
    `watch_memory`, with what its allocator held in reserve; without a GPU, the most that the
    process has taken so far."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def package_version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    return next((installed.version for installed in distributions(name=package)), None)
