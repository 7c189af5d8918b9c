"""Artifacts and their store: made once, found again.

An artifact is a frozen value: its fields are what determines it, its hash names it, and it knows
how to build and load itself. The store builds in a temporary place and promotes by atomic rename,
so that a kill at any moment leaves either nothing or all of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock

from cpo.engine.files import MANIFEST, checksums_of, damaged_file, write_atomically
from cpo.engine.processes import (
    from_main_process,
    is_main_process,
    process_count,
    wait_for_everyone,
)
from cpo_suite.profile import ROOT
from cpo_suite.provenance import provenance


@dataclass(frozen=True)
class Identity:
    """Plain values and other identities that together determine something.

    `version` is raised when the meaning of a stage changes, so that older artifacts are not taken
    for new ones. Two kinds of field stay out of the hash: those made by `how()`, which say how the
    work is done and not what comes out, and any field at its default, so that a setting added
    later, with the old behaviour as its default, keeps old names.
    """

    stage: ClassVar[str]
    version: ClassVar[int]

    def describe(self) -> dict[str, Any]:
        """All that determines it, as JSON; inner identities stand for themselves."""
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

    @property
    def needs(self) -> Iterator[Artifact]:
        """The artifacts among its fields: they are built before it."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata.get("identity", True):
                for part in value if isinstance(value, tuple) else (value,):
                    if isinstance(part, Artifact):
                        yield part
                    elif isinstance(part, Identity):
                        yield from part.needs


@dataclass(frozen=True)
class Artifact(Identity):
    """Something that is built into a folder of the store.

    `shared` says that several processes build it together, each with its share of the work.
    """

    shared: ClassVar[bool] = False

    def build(self, folder: Path, store: Store) -> None:
        """Write its files into an empty folder; what it needs is in the store already."""
        raise NotImplementedError

    def load(self, folder: Path) -> Any:
        """What its files hold."""
        return folder


def artifacts_folder() -> Path:
    """Where artifacts and scratch output are kept: `CPO_ARTIFACTS`, or `artifacts/`."""
    return Path(os.environ.get("CPO_ARTIFACTS") or ROOT / "artifacts").resolve()


def how(**kwargs: Any) -> Any:
    """A field that says how, not what: it enters neither the hash nor comparisons."""
    return dataclasses.field(metadata={"identity": False}, compare=False, repr=False, **kwargs)


def walk(*roots: Artifact) -> list[Artifact]:
    """The roots and all that they need, each once, in an order in which they can be built."""
    seen: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.key not in seen:
            for need in artifact.needs:
                visit(need)
            seen[artifact.key] = artifact

    for root in roots:
        visit(root)
    return list(seen.values())


def _canonical(value: Any) -> Any:
    if isinstance(value, Identity):
        return value.describe()
    if isinstance(value, dict):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    kind = type(value).__name__
    raise TypeError(f"an artifact's fields are plain values and other artifacts, not {kind}")


class Store:
    """Artifacts under one folder: `root/<stage>/<key>/`, each with its manifest.

    `elsewhere` is asked to build an artifact that is missing before this process does so itself;
    it returns whether it did, as when several processes were launched for it.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.elsewhere: Callable[[Artifact], bool] | None = None
        self._intact: set[Path] = set()

    def path(self, artifact: Artifact) -> Path:
        """Where the artifact stands, or will."""
        return self.root / artifact.stage / artifact.key

    def partial(self, artifact: Artifact) -> Path:
        """Where unfinished work on an artifact keeps what it needs to go on."""
        return self.root / "partial" / artifact.stage / artifact.key

    def find(self, artifact: Artifact) -> Path | None:
        """The finished artifact's folder, or None."""
        path = self.path(artifact)
        return path if (path / MANIFEST).is_file() else None

    def manifest(self, artifact: Artifact) -> dict[str, Any]:
        """What is known of a finished artifact: fields, versions, seconds, machine, checksums."""
        path = self.find(artifact)
        if path is None:
            raise FileNotFoundError(f"{artifact.stage} {artifact.key} has not been built")
        return json.loads((path / MANIFEST).read_text(encoding="utf-8"))

    def load(self, artifact: Artifact) -> Any:
        """What `artifact.load` makes of its folder, which is built first where it is missing."""
        return artifact.load(self.get(artifact))

    def get(self, artifact: Artifact) -> Path:
        """The artifact's folder; what it needs, and then itself, is built where missing.

        Two callers that ask for the same artifact wait for each other. If `build` raises, nothing
        is kept but what it put under `partial`. An artifact is compared with its checksums when a
        process first asks for it, and built again, after saying so, where a file was lost or
        altered. Called by several launched processes alike, they build it together if it is
        `shared`; else the main one builds and the others wait.
        """
        target = self.path(artifact)
        if from_main_process(lambda: self._is_whole(artifact)):
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
        if self.find(artifact) is None:
            return False
        damage = self._damage(self.path(artifact))
        if damage:
            print(f"{artifact.stage} {artifact.key}: {damage}; it is built again", flush=True)
        return not damage

    def _build(self, artifact: Artifact) -> None:
        target, main = self.path(artifact), is_main_process()
        temporary = target.with_name(f".{artifact.key}.tmp{'' if main else f'.{os.getpid()}'}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            if main:
                stack.enter_context(FileLock(f"{target}.lock"))
            # Another caller may have built it while this one waited for the lock.
            whole = partial(self._is_whole, artifact)
            if from_main_process(whole) if artifact.shared else whole():
                return
            # What a killed run left there: the lock is ours, so nobody is writing.
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            started, clock = time.time(), time.perf_counter()
            artifact.build(temporary, self)
            if not main:
                return
            processes = process_count() if artifact.shared else 1
            _write_manifest(temporary, artifact, started, time.perf_counter() - clock, processes)
            if target.exists():  # a folder without a manifest, or damaged
                shutil.rmtree(target)
            os.replace(temporary, target)
            shutil.rmtree(self.partial(artifact), ignore_errors=True)
            self._intact.add(target)

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
    folder: Path, artifact: Artifact, started: float, seconds: float, processes: int
) -> None:
    import torch

    manifest = {
        "recipe": artifact.describe(),
        "key": artifact.key,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(seconds, 3),
        "processes": processes,
        "gpus": processes if torch.cuda.is_available() else 0,
        "provenance": provenance(),
        "sha256": checksums_of(folder),
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
