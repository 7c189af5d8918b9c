"""Artifacts, and the store that builds each once and caches it.

An artifact is a frozen value: its fields determine its content, their hash is its key, and it can
build and load itself. The store builds in a temporary folder that it renames atomically, so that a
killed run leaves either nothing or a complete artifact.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from cpo.engine.files import MANIFEST, checksums_of, damaged_file, write_atomically
from cpo.engine.processes import (
    from_main_process,
    is_main_process,
    process_count,
    wait_for_everyone,
)
from cpo.engine.progress import progress_bar
from cpo_suite.profile import ROOT
from cpo_suite.provenance import peak_memory_gb, provenance, watch_memory


@dataclass(frozen=True)
class Identity:
    """A value whose key is the hash of its fields: plain values and other identities.

    `version` is raised when the meaning of a stage changes, which invalidates older artifacts. Two
    kinds of field are not hashed. Fields declared by `how()` affect how the work is done, not its
    result. Fields at their default are left out, so that a new setting keeps existing keys.
    """

    stage: ClassVar[str]
    version: ClassVar[int]

    def describe(self) -> dict[str, Any]:
        """The hashed fields; inner identities describe themselves."""
        return {"stage": self.stage, "version": self.version} | {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.compare and getattr(self, field.name) != field.default
        }

    @cached_property
    def key(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical JSON.

        Raises:
            TypeError: a field is neither a plain value nor an artifact.
        """
        text = json.dumps(self.describe(), sort_keys=True, separators=(",", ":"), default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def needs(self) -> Iterator[Artifact]:
        """Artifacts among its fields, which must be built first."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for part in value if isinstance(value, tuple) else (value,):
                if field.compare and isinstance(part, Artifact):
                    yield part
                elif field.compare and isinstance(part, Identity):
                    yield from part.needs


@dataclass(frozen=True)
class Artifact(Identity):
    """An identity whose content is built into a folder of the store.

    If `shared`, several processes build it together.
    """

    shared: ClassVar[bool] = False

    def build(self, folder: Path, store: Store) -> None:
        """Write its files into an empty folder; everything it needs is already built."""
        raise NotImplementedError

    def load(self, folder: Path) -> Any:
        """The content of its files."""
        return folder


def artifacts_folder() -> Path:
    """The folder of artifacts and scratch output: `CPO_ARTIFACTS`, or `artifacts/`."""
    return Path(os.environ.get("CPO_ARTIFACTS") or ROOT / "artifacts").resolve()


def how(**kwargs: Any) -> Any:
    """A field that affects how the work is done: excluded from hash and comparison."""
    return dataclasses.field(compare=False, repr=False, **kwargs)


def walk(*roots: Artifact) -> list[Artifact]:
    """The roots and all their dependencies, each once, in build order."""
    seen: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.key not in seen:
            for need in artifact.needs:
                visit(need)
            seen[artifact.key] = artifact

    for root in roots:
        visit(root)
    return list(seen.values())


def _plain(value: Any) -> dict[str, Any]:
    """An identity in a form that JSON can encode."""
    if isinstance(value, Identity):
        return value.describe()
    kind = type(value).__name__
    raise TypeError(f"an artifact's fields must be plain values or artifacts, not {kind}")


class Store:
    """Artifacts under one folder: `root/<stage>/<key>/`, each with its manifest.

    If `elsewhere` is set, it is asked first to build a missing artifact, for example in several
    launched processes; it returns whether it did.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.elsewhere: Callable[[Artifact], bool] | None = None
        self._intact: set[Path] = set()
        self._alone = False  # whether this process builds while the others wait for it

    def path(self, artifact: Artifact) -> Path:
        """The artifact's folder, whether built or not."""
        return self.root / artifact.stage / artifact.key

    def partial(self, artifact: Artifact) -> Path:
        """The folder for checkpoints of unfinished work on an artifact."""
        return self.root / "partial" / artifact.stage / artifact.key

    def find(self, artifact: Artifact) -> Path | None:
        """The folder of a built artifact, or None."""
        path = self.path(artifact)
        return path if (path / MANIFEST).is_file() else None

    def in_work(self, artifact: Artifact) -> bool:
        """Whether another process builds it now."""
        path = self.path(artifact)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{path}.lock", timeout=0):
                return False
        except Timeout:
            return True

    def manifest(self, artifact: Artifact) -> dict[str, Any]:
        """The record of a built artifact: fields, versions, seconds, machine, checksums."""
        path = self.find(artifact)
        if path is None:
            raise FileNotFoundError(f"{artifact.stage} {artifact.key} has not been built")
        return json.loads((path / MANIFEST).read_text(encoding="utf-8"))

    def load(self, artifact: Artifact) -> Any:
        """The loaded artifact, built first if missing."""
        return artifact.load(self.get(artifact))

    def get(self, artifact: Artifact) -> Path:
        """The artifact's folder; missing dependencies, then the artifact, are built first.

        Concurrent callers wait for each other. If `build` raises, only files under `partial` are
        kept. A process verifies checksums on first access and rebuilds a damaged artifact, with a
        message. Launched processes build a `shared` artifact together; otherwise the main process
        builds and the others wait.
        """
        target, whole = self.path(artifact), partial(self._is_whole, artifact)
        if whole() if self._alone else from_main_process(whole):
            return target
        for need in artifact.needs:
            self.get(need)
        if self.elsewhere is not None and process_count() == 1 and self.elsewhere(artifact):
            return target
        if artifact.shared or is_main_process():
            self._build(artifact)
        wait_for_everyone()
        return target

    def _is_whole(self, artifact: Artifact) -> bool:
        """Whether it is built and matches its checksums; prints a message if it is damaged."""
        target = self.find(artifact)
        if target is None or target in self._intact:
            return target is not None
        try:
            checksums = self.manifest(artifact)["sha256"]
        except (OSError, ValueError, LookupError, TypeError):
            damage = "its manifest cannot be read"
        else:
            damage = damaged_file(target, checksums)
        if damage:
            print(f"{artifact.stage} {artifact.key}: {damage}; rebuilding it", flush=True)
        else:
            self._intact.add(target)
        return not damage

    @contextmanager
    def _locked(self, artifact: Artifact) -> Iterator[None]:
        """The artifact's lock, after a wait that is shown."""
        lock = FileLock(f"{self.path(artifact)}.lock")
        try:
            lock.acquire(timeout=1)  # another process may just look (`in_work`)
        except Timeout:
            with progress_bar(1, f"another process builds {artifact.stage} {artifact.key}") as bar:
                lock.acquire()
                bar.update()
        try:
            yield
        finally:
            lock.release()

    def _build(self, artifact: Artifact) -> None:
        target, main = self.path(artifact), is_main_process()
        temporary = target.with_name(f".{artifact.key}.tmp{'' if main else f'.{os.getpid()}'}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(artifact) if main else nullcontext():
            # Another caller may have built it while this one waited for the lock.
            whole = partial(self._is_whole, artifact)
            if from_main_process(whole) if artifact.shared else whole():
                return
            # Left by a killed run: we hold the lock, so nobody else is writing.
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            outer = self._alone
            try:
                watch_memory()
                started, clock = time.time(), time.perf_counter()
                self._alone = not artifact.shared
                artifact.build(temporary, self)
                if main:
                    _write_manifest(temporary, artifact, started, time.perf_counter() - clock)
                    if target.exists():  # damaged, or without a manifest
                        shutil.rmtree(target)
                    os.replace(temporary, target)
                    shutil.rmtree(self.partial(artifact), ignore_errors=True)
                    self._intact.add(target)
            finally:
                self._alone = outer
                shutil.rmtree(temporary, ignore_errors=True)


def _write_manifest(folder: Path, artifact: Artifact, started: float, seconds: float) -> None:
    import torch

    processes = process_count() if artifact.shared else 1
    manifest = {
        "recipe": artifact.describe(),
        "key": artifact.key,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(seconds, 3),
        "processes": processes,
        "gpus": processes if torch.cuda.is_available() else 0,
        "peak_memory_gb": round(peak_memory_gb(), 3),  # of the main process
        "provenance": provenance(),
        "sha256": checksums_of(folder),
    }
    text = json.dumps(manifest, indent=1, sort_keys=True, default=_plain)
    write_atomically(folder / MANIFEST, text)
