"""`run.json`: the provenance of the tables and figures beside it, without folder names."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import psutil

from cpo.engine.files import MANIFEST, hash_file, write_atomically
from cpo_suite import precision, provenance
from cpo_suite.estimate import Planned
from cpo_suite.profile import ROOT
from cpo_suite.profile_files import map_override
from cpo_suite.run.executed import map_texts, without_machine_paths
from cpo_suite.run.invocation import Run
from cpo_suite.store import artifacts_folder

PACKAGES = (
    "torch", "transformers", "accelerate", "tokenizers", "numpy", "datasets", "openai", "papermill",
    "sentence-transformers", "mauve-text", "pandas", "scipy", "statsmodels", "matplotlib",
)  # fmt: skip


def write(run: Run) -> None:
    """Write `run.json` to the output of a run of all notebooks, unless one has failed."""
    if not (run.whole and run.succeeded):
        return
    settings, lock = run.settings, ROOT / "requirements.lock"
    machine, store = provenance.provenance(), artifacts_folder()
    artifacts = [_artifact(item) for item in run.planned]
    record = {
        "profile": Path(run.profile).name.removesuffix(".yaml").removesuffix(".yml"),
        "overrides": [map_override(override, _base_names) for override in run.overrides],
        "settings": precision.resolved(settings, store).model_dump(mode="json"),
        "precision": precision.record(settings, store),
        "seeds": list(range(settings.seeds)),
        "git": provenance.git_revision(),
        "requirements_lock_sha256": hash_file(lock) if lock.is_file() else None,
        "python": machine["python"],
        "versions": {name: provenance.package_version(name) for name in PACKAGES},
        "hardware": {
            "machine": machine["machine"],
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        },
        "started": _utc(run.started),
        "finished": _utc(time.time()),
        "notebook_seconds": {
            item.path.stem: round(item.seconds, 1) for item in run.notebooks if item.status
        },
        "gpu_hours": round(sum(item["gpu_hours"] or 0.0 for item in artifacts), 4),
        "artifacts": artifacts,
        "outputs": {file.name: hash_file(file) for file in sorted(run.output.glob("*.csv"))},
    }
    text = json.dumps(without_machine_paths(_base_names(record)), indent=1) + "\n"
    write_atomically(run.output / "run.json", text)


def _artifact(planned: Planned) -> dict[str, Any]:
    """An artifact's entry, from its manifest; `sha256` hashes the checksums of its files.

    Seconds exclude its dependencies. Fields are None for an artifact not built; `gpus` also where
    an older version did not record it.
    """
    file = artifacts_folder() / planned.stage / planned.key / MANIFEST
    manifest = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    seconds, gpus, checksums = map(manifest.get, ("seconds", "gpus", "sha256"))
    lines = json.dumps(checksums, sort_keys=True, separators=(",", ":"))
    origin = manifest.get("provenance", {})
    return {
        "name": planned.name,
        "stage": planned.stage,
        "recipe": planned.key,
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
    """The same value with every absolute path, such as a data file's, cut to its last part."""
    return map_texts(value, lambda text: Path(text).name if text.startswith("/") else text)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
