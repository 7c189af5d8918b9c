"""`run.json`: what made the tables and figures beside it, without the names of folders."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpo import store
from cpo.costs import Planned
from cpo.executed import without_machine_paths
from cpo.profiles import ROOT, load_profile

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "numpy",
    "datasets",
    "sentence-transformers",
    "mauve-text",
    "openai",
    "papermill",
    "pandas",
    "scipy",
    "statsmodels",
    "matplotlib",
)


def artifacts_folder() -> Path:
    """Where artifacts and scratch output are kept: `CPO_ARTIFACTS`, or `artifacts/`."""
    return Path(os.environ.get("CPO_ARTIFACTS") or ROOT / "artifacts").resolve()


def write(
    path: Path,
    profile: str,
    overrides: Sequence[str],
    notebook_seconds: dict[str, float],
    started: float,
    planned: Sequence[Planned],
) -> None:
    """Write `run.json` after a run of all notebooks; `planned` lists the suite's artifacts."""
    import psutil

    settings = load_profile(profile, overrides, substitute=False)
    lock = ROOT / "requirements.lock"
    known = store.provenance()
    record = {
        "profile": Path(profile).stem if profile.endswith((".yaml", ".yml")) else profile,
        "overrides": list(overrides),
        "settings": settings.model_dump(mode="json"),
        "seeds": list(range(settings.seeds)),
        "git": store.git_revision(),
        "requirements_lock_sha256": store.hash_file(lock) if lock.is_file() else None,
        "python": known["python"],
        "versions": {name: store.package_version(name) for name in PACKAGES},
        "hardware": {
            "machine": known["machine"],
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        },
        "started": _utc(started),
        "finished": _utc(time.time()),
        "notebook_seconds": notebook_seconds,
        "artifacts": [_artifact(item) for item in planned],
        "outputs": {one.name: store.hash_file(one) for one in sorted(path.parent.glob("*.csv"))},
    }
    text = json.dumps(_base_names(without_machine_paths(record)), indent=1) + "\n"
    store.write_atomically(path, text)


def _artifact(item: Planned) -> dict[str, Any]:
    manifest = artifacts_folder() / item.stage / item.key / store.MANIFEST
    made = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    return {
        "name": item.name,
        "stage": item.stage,
        "recipe": item.key,
        "seconds": made.get("seconds"),
        "made": made.get("made"),
        "machine": made.get("provenance", {}).get("machine"),
    }


def _base_names(value: Any) -> Any:
    """Absolute paths that a person gave, such as a data file's, come down to their last part."""
    if isinstance(value, dict):
        return {key: _base_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_base_names(item) for item in value]
    if isinstance(value, str):
        key, equals, path = value.rpartition("=")
        return f"{key}{equals}{Path(path).name}" if path.startswith("/") else value
    return value


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
