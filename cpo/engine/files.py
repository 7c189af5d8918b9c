"""Atomic writes, and checksums that detect damage."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

MANIFEST = "manifest.json"


def write_atomically(path: Path, text: str) -> None:
    """Write `path` so that readers see the old content or the new, even after a kill."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums_of(folder: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 of each file in a folder, by relative path, in sorted order."""
    return {
        str(path.relative_to(folder)): hash_file(path)
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }


def hash_folder(folder: Path, pattern: str = "*") -> str:
    """SHA-256 over the names and contents of a folder's files, manifests excluded."""
    checksums = checksums_of(folder, pattern).items()
    lines = [f"{name} {checksum}\n" for name, checksum in checksums if Path(name).name != MANIFEST]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def damaged_file(folder: Path, checksums: dict[str, str]) -> str:
    """The first file that is missing or fails its checksum, in words; "" if none."""
    for name, checksum in checksums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if hash_file(folder / name) != checksum:
            return f"{name} was altered or cut short"
    return ""
