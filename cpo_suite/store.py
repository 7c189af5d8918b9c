"""Recipes and the store: an artifact is made once and found again.

A recipe is a frozen value with all that determines one artifact; its hash names the artifact. The
store writes to a temporary place and promotes by atomic rename, so a kill at any moment leaves
either nothing or all of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock

from cpo.engine.files import MANIFEST, checksums_of, damaged_file, write_atomically


@dataclass(frozen=True)
class Recipe:
    """Base of all recipes: fields are plain values or other recipes.

    `version` is raised when the meaning of a stage changes, so that older artifacts are not taken
    for the new ones. A field whose metadata has `{"identity": False}` does not enter the hash: it
    says how the work is done (a micro-batch), not what comes out. A field at its default does not
    either, so that a setting added later, with the old behaviour as its default, keeps old names.
    """

    stage: ClassVar[str]
    version: ClassVar[int]

    def describe(self) -> dict[str, Any]:
        """All that determines the artifact, as JSON; inner recipes stand for themselves."""
        return {"stage": self.stage, "version": self.version} | {
            field.name: _canonical(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.metadata.get("identity", True) and getattr(self, field.name) != field.default
        }

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        text = json.dumps(self.describe(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def how(**kwargs: Any) -> Any:
    """A recipe field that says how, not what: it does not enter the recipe's hash."""
    return dataclasses.field(metadata={"identity": False}, **kwargs)


def _canonical(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.describe()
    if isinstance(value, dict):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a recipe holds plain values and recipes, not {type(value).__name__}")


class Store:
    """Artifacts under one folder: `root/<stage>/<key>/`, each with its manifest."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._intact: set[Path] = set()
        # Seconds that went into other artifacts, for each that is being made, the innermost last.
        self._elsewhere: list[float] = []

    def path(self, recipe: Recipe) -> Path:
        """Where the recipe's artifact stands, or will."""
        return self.root / recipe.stage / recipe.key

    def partial(self, recipe: Recipe) -> Path:
        """Where unfinished work of a recipe keeps what it needs to go on."""
        return self.root / "partial" / recipe.stage / recipe.key

    def find(self, recipe: Recipe) -> Path | None:
        """The finished artifact's folder, or None."""
        path = self.path(recipe)
        return path if (path / MANIFEST).is_file() else None

    def manifest(self, recipe: Recipe) -> dict[str, Any]:
        """What is known of a finished artifact: recipe, versions, seconds, machine, checksums."""
        path = self.find(recipe)
        if path is None:
            raise FileNotFoundError(f"{recipe.stage} {recipe.key} has not been made")
        return json.loads((path / MANIFEST).read_text(encoding="utf-8"))

    def get_or_make(self, recipe: Recipe, make: Callable[[Path], None], processes: int = 1) -> Path:
        """The artifact's folder; calls `make(folder)` first where it does not exist yet.

        `make` writes its files into the folder it is given. The manifest tells its seconds, without
        those of other artifacts that it asked for, how many `processes` made it, and on how many
        GPUs: one for each of them, where there are any. Two processes asking for the same
        recipe wait for each other. If `make` raises, nothing is kept but what it put under
        `partial`. An artifact is compared with its checksums when a process first asks for it, and
        made again, after saying so, where a file was lost or altered.
        """
        target = self.path(recipe)
        if self.find(recipe) and not self._damage(target):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if self.find(recipe):  # another process may have made it in the meantime
                damage = self._damage(target)
                if not damage:
                    return target
                print(f"{recipe.stage} {recipe.key}: {damage}; it is made again", flush=True)
            temporary = target.with_name(f".{recipe.key}.tmp")
            # Left by a killed run: the lock is ours, so nobody is writing there.
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            started, clock = time.time(), time.perf_counter()
            self._elsewhere.append(0.0)
            try:
                make(temporary)
                seconds = time.perf_counter() - clock - self._elsewhere[-1]
                _write_manifest(temporary, recipe, started, seconds, processes)
                if target.exists():  # a folder without a manifest is no artifact
                    shutil.rmtree(target)
                os.replace(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
                self._elsewhere.pop()
                if self._elsewhere:
                    self._elsewhere[-1] += time.perf_counter() - clock
            shutil.rmtree(self.partial(recipe), ignore_errors=True)
        self._intact.add(target)
        return target

    def _damage(self, target: Path) -> str:
        """What is wrong with an artifact by the checksums of its manifest; "" if nothing is."""
        if target not in self._intact:
            try:
                checksums = json.loads((target / MANIFEST).read_text(encoding="utf-8"))["sha256"]
            except (OSError, ValueError, LookupError, TypeError):
                return "its manifest cannot be read"
            if damage := damaged_file(target, checksums):
                return damage
            self._intact.add(target)
        return ""


def _write_manifest(
    folder: Path, recipe: Recipe, started: float, seconds: float, processes: int
) -> None:
    import torch

    manifest = {
        "recipe": recipe.describe(),
        "key": recipe.key,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(seconds, 3),
        "processes": processes,
        "gpus": processes if torch.cuda.is_available() else 0,
        "provenance": provenance(),
        "sha256": checksums_of(folder),
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))


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
