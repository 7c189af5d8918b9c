"""Versions, git revision and machine, as they stand in manifests and `run.json`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@cache
def provenance() -> dict[str, Any]:
    """Versions, git revision and machine, as they stand in manifests and `run.json`."""
    import torch

    core = ("torch", "transformers", "accelerate")
    return {
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in core},
        "git": git_revision(),
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "executable": Path(sys.executable).name,
    }


def git_revision() -> dict[str, Any] | None:
    """Revision of the checkout and whether it was clean; None outside a checkout.

    What runs write under `figures/` does not make it unclean: it is a result, not a cause.
    """

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ":(top)", ":(top,exclude)figures")
        return {"revision": git("rev-parse", "HEAD"), "clean": not changed}
    except (OSError, subprocess.SubprocessError):
        return None


def package_version(package: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
