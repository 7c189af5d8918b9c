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
from contextlib import nullcontext
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
        """All that determines it: plain values and inner identities, whose `describe` is theirs."""
        return {"stage": self.stage, "version": self.version} | {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.compare and getattr(self, field.name) != field.default
        }

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the canonical JSON.

        Raises:
            TypeError: a field holds something else than plain values and other artifacts.
        """
        text = json.dumps(self.describe(), sort_keys=True, separators=(",", ":"), default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def needs(self) -> Iterator[Artifact]:
        """The artifacts among its fields: they are built before it."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for part in value if isinstance(value, tuple) else (value,):
                if field.compare and isinstance(part, Artifact):
                    yield part
                elif field.compare and isinstance(part, Identity):
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
    return dataclasses.field(compare=False, repr=False, **kwargs)


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


def _plain(value: Any) -> dict[str, Any]:
    """An identity as JSON, which has no type for it."""
    if isinstance(value, Identity):
        return value.describe()
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
        """Whether it is there as its checksums say; where it was lost or altered, says so."""
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
            print(f"{artifact.stage} {artifact.key}: {damage}; it is built again", flush=True)
        else:
            self._intact.add(target)
        return not damage

    def _build(self, artifact: Artifact) -> None:
        target, main = self.path(artifact), is_main_process()
        temporary = target.with_name(f".{artifact.key}.tmp{'' if main else f'.{os.getpid()}'}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock") if main else nullcontext():
            # Another caller may have built it while this one waited for the lock.
            whole = partial(self._is_whole, artifact)
            if from_main_process(whole) if artifact.shared else whole():
                return
            # What a killed run left there: the lock is ours, so nobody is writing.
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                started, clock = time.time(), time.perf_counter()
                artifact.build(temporary, self)
                if main:
                    _write_manifest(temporary, artifact, started, time.perf_counter() - clock)
                    if target.exists():  # a folder without a manifest, or damaged
                        shutil.rmtree(target)
                    os.replace(temporary, target)
                    shutil.rmtree(self.partial(artifact), ignore_errors=True)
                    self._intact.add(target)
            finally:
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
        "provenance": provenance(),
        "sha256": checksums_of(folder),
    }
    text = json.dumps(manifest, indent=1, sort_keys=True, default=_plain)
    write_atomically(folder / MANIFEST, text)
