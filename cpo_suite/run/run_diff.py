"""`python -m cpo_suite diff RUN RUN`: what differed between two runs, by their `run.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpo_suite.run.dry_run import duration, table

# Of no consequence for what came out, or compared in words of their own.
APART = ("started", "finished", "notebook_seconds", "gpu_hours", "artifacts", "outputs")
ABSENT = "-"


def report(one: str, other: str) -> int:
    """Print what differed; returns 0 if nothing did that could change a number, 1 if something did,
    2 if a run cannot be read."""
    try:
        runs = [_read(one), _read(other)]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    here, there = runs
    settings = list(differences(_causes(here), _causes(there)))
    artifacts = list(differences(_recipes(here), _recipes(there)))
    outputs = list(differences(here.get("outputs", {}), there.get("outputs", {})))
    for title, found in (
        ("What was asked for, and where it ran", settings),
        ("Artifacts by other recipes", artifacts),
        ("Tables and data of figures, by their checksums", outputs),
    ):
        if found:
            print(f"{title}:\n{table([('', one, other), *found])}\n")
    times = [duration(sum(run.get("notebook_seconds", {}).values())) for run in runs]
    print(f"Notebooks took {times[0]} and {times[1]}.")
    hours = [run.get("gpu_hours", 0.0) for run in runs]
    if any(hours):
        print(f"Artifacts took {hours[0]:g} and {hours[1]:g} GPU-hours.")
    if not (settings or artifacts or outputs):
        print("Nothing else differed.")
    return int(bool(settings or artifacts or outputs))


def differences(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted name, value here, value there) of everything that is not the same in two records."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(one.get(key, ABSENT), other.get(key, ABSENT), inner)
    elif isinstance(one, list) and isinstance(other, list) and name.split(".")[-1] == "rows":
        here, there = (
            [item for item in a if item not in b] for a, b in ((one, other), (other, one))
        )
        if here or there:
            yield name, _short(", ".join(here) or ABSENT), _short(", ".join(there) or ABSENT)
    elif one != other:
        yield name, _short(one), _short(other)


def _causes(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name not in APART}


def _recipes(run: dict[str, Any]) -> dict[str, str]:
    """Names of artifacts with their recipes' hashes; a further seed's stand under a number."""
    found: dict[str, str] = {}
    for artifact in run.get("artifacts", []):
        name, number = artifact["name"], 2
        while name in found:
            name, number = f"{artifact['name']} ({number})", number + 1
        found[name] = artifact["recipe"]
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read(place: str) -> dict[str, Any]:
    path = Path(place) / "run.json" if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise ValueError(
            f"{place} is no run: give a folder of results with a run.json, or that file"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(record, dict) or "artifacts" not in record:
        raise ValueError(f"{path} is not the record of a run")
    return record
