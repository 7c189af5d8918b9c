"""`run.json`: what made the tables and figures beside it, without the names of folders."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cpo.engine.files import MANIFEST, hash_file, write_atomically
from cpo_suite import precision, provenance
from cpo_suite.estimate import Planned
from cpo_suite.profile import ROOT, map_override
from cpo_suite.run.executed import map_texts, without_machine_paths
from cpo_suite.store import artifacts_folder

if TYPE_CHECKING:
    from cpo_suite.run.invocation import Run

PACKAGES = (
    "torch", "transformers", "accelerate", "tokenizers", "numpy", "datasets", "openai", "papermill",
    "sentence-transformers", "mauve-text", "pandas", "scipy", "statsmodels", "matplotlib",
)  # fmt: skip


def write(
    run: Run, notebook_seconds: Mapping[str, float], started: float, planned: Sequence[Planned]
) -> None:
    """Write `run.json` into a run's output.

    Args:
        notebook_seconds: by a notebook's name, in the order of the run.
        started: when it began, in seconds since the epoch.
        planned: the suite's artifacts.
    """
    lock, known, artifacts = ROOT / "requirements.lock", provenance.provenance(), artifacts_folder()
    settings = run.settings
    made = [_artifact(item.name, item.stage, item.key) for item in planned]
    record = {
        "profile": Path(run.profile).name.removesuffix(".yaml").removesuffix(".yml"),
        "overrides": [map_override(override, _base_names) for override in run.overrides],
        "settings": precision.resolved(settings, artifacts).model_dump(mode="json"),
        "precision": precision.record(settings, artifacts),
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
        "notebook_seconds": {name: round(took, 1) for name, took in notebook_seconds.items()},
        "gpu_hours": round(sum(item["gpu_hours"] or 0.0 for item in made), 4),
        "artifacts": made,
        "outputs": {file.name: hash_file(file) for file in sorted(run.output.glob("*.csv"))},
    }
    text = json.dumps(without_machine_paths(_base_names(record)), indent=1) + "\n"
    write_atomically(run.output / "run.json", text)


def _artifact(name: str, stage: str, key: str) -> dict[str, Any]:
    """What is known of an artifact by its manifest; `sha256` is over the checksums of its files.

    Seconds are its own, without those of what it is made of; None where it has not been made, or,
    of GPUs, by a version that did not write them down.
    """
    file = artifacts_folder() / stage / key / MANIFEST
    manifest = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    seconds, gpus, checksums = map(manifest.get, ("seconds", "gpus", "sha256"))
    lines = json.dumps(checksums, sort_keys=True, separators=(",", ":"))
    origin = manifest.get("provenance", {})
    return {
        "name": name,
        "stage": stage,
        "recipe": key,
        "seed": manifest.get("recipe", {}).get("seed"),
        "seconds": seconds,
        "gpus": gpus,
        "gpu_hours": None if gpus is None else round(seconds * gpus / 3600, 6),
        "made": manifest.get("made"),
        "machine": origin.get("machine"),
        "git": origin.get("git"),
        "sha256": None if checksums is None else hashlib.sha256(lines.encode()).hexdigest(),
    }


def _base_names(value: Any) -> Any:
    """Absolute paths that a person gave, such as a data file's, come down to their last part."""
    return map_texts(value, lambda text: Path(text).name if text.startswith("/") else text)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
