"""`run.json`: what made the tables and figures beside it, without the names of folders."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpo.engine.files import MANIFEST, hash_file, write_atomically
from cpo_suite import precision, provenance
from cpo_suite.estimate import Planned
from cpo_suite.profile import ROOT, load_profile, map_override
from cpo_suite.run.executed import without_machine_paths

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

    asked = load_profile(profile, overrides)
    settings = precision.resolved(asked, artifacts_folder())
    lock = ROOT / "requirements.lock"
    known = provenance.provenance()
    artifacts = [_artifact(item) for item in planned]
    record = {
        "profile": Path(profile).stem if profile.endswith((".yaml", ".yml")) else profile,
        "overrides": [map_override(one, _base_names) for one in overrides],
        "settings": settings.model_dump(mode="json"),
        "precision": precision.record(asked, artifacts_folder()),
        "seeds": list(range(settings.seeds)),
        "git": provenance.git_revision(),
        "requirements_lock_sha256": hash_file(lock) if lock.is_file() else None,
        "python": known["python"],
        "versions": {name: provenance.package_version(name) for name in PACKAGES},
        "hardware": {
            "machine": known["machine"],
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        },
        "started": _utc(started),
        "finished": _utc(time.time()),
        "notebook_seconds": notebook_seconds,
        "gpu_hours": round(sum(item["gpu_hours"] or 0.0 for item in artifacts), 4),
        "artifacts": artifacts,
        "outputs": {one.name: hash_file(one) for one in sorted(path.parent.glob("*.csv"))},
    }
    text = json.dumps(without_machine_paths(_base_names(record)), indent=1) + "\n"
    write_atomically(path, text)


def _artifact(item: Planned) -> dict[str, Any]:
    """What is known of an artifact by its manifest; `sha256` is over the checksums of its files.

    Seconds are its own, without those of what it is made of; None where it has not been made, or,
    of GPUs, by a version that did not write them down.
    """
    manifest = artifacts_folder() / item.stage / item.key / MANIFEST
    made = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    seconds, gpus = made.get("seconds"), made.get("gpus")
    known = made.get("provenance", {})
    return {
        "name": item.name,
        "stage": item.stage,
        "recipe": item.key,
        "seed": made.get("recipe", {}).get("seed"),
        "seconds": seconds,
        "gpus": gpus,
        "gpu_hours": None if gpus is None else round(seconds * gpus / 3600, 6),
        "made": made.get("made"),
        "machine": known.get("machine"),
        "git": known.get("git"),
        "sha256": _digest(made["sha256"]) if "sha256" in made else None,
    }


def _digest(checksums: dict[str, str]) -> str:
    lines = json.dumps(checksums, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(lines.encode()).hexdigest()


def _base_names(value: Any) -> Any:
    """Absolute paths that a person gave, such as a data file's, come down to their last part."""
    if isinstance(value, dict):
        return {key: _base_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_base_names(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
