"""What one invocation runs, at which settings, and where to: settled before it starts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from cpo.registry import nearest
from cpo_suite.estimate import Planned
from cpo_suite.profile import ROOT, Profile, ProfileError, load_profile, with_absolute_paths
from cpo_suite.store import artifacts_folder


class BadInput(ProfileError):
    """Something asked for that cannot be run; the message says what, and what is valid."""


@dataclass
class Notebook:
    """A notebook of the suite, what its metadata says of it, and what became of it in this run."""

    path: Path
    outputs: list[str] = field(default_factory=list)  # files that it writes
    after: list[str] = field(default_factory=list)  # numbers of notebooks whose outputs it reads
    # Rows that it adds: each is like the first planned of these.
    own_rows: dict[str, list[str]] = field(default_factory=dict)
    status: str = ""  # ok, FAILED or skipped; before it has run none
    reason: str = ""
    seconds: float = 0.0

    @property
    def number(self) -> str:
        return self.path.stem.split("_")[0]


@dataclass
class Run:
    """One invocation, settled and checked before anything is executed."""

    profile: str  # its name, or its file's absolute path
    overrides: list[str]
    settings: Profile  # of both
    output: Path
    notebooks: list[Notebook]
    whole: bool  # all notebooks
    full: bool  # all notebooks of a committed profile, unchanged
    planned: Sequence[Planned] = ()
    started: float = field(default_factory=time.time)  # seconds since the epoch

    @property
    def succeeded(self) -> bool:
        """Whether no notebook has failed or was skipped so far."""
        return all(notebook.status in ("", "ok") for notebook in self.notebooks)


def find_notebooks(folder: Path) -> list[Notebook]:
    """The notebooks `NN_name.ipynb` of a folder in their order, then its appendices
    `An_name.ipynb`, with their declared outputs."""
    notebooks = []
    for path in sorted(folder.glob("[0-9A][0-9]_*.ipynb")):
        try:
            metadata = nbformat.read(path, as_version=4).metadata
            notebooks.append(Notebook(path, **metadata.get("cpo", {})))
        except Exception as error:  # a damaged file fails in many ways; to a user all mean the same
            raise BadInput(f"{path.name} is no readable notebook: {error}") from error
    if not notebooks:
        raise BadInput(f"no notebooks NN_name.ipynb in {folder}")
    return notebooks


def settle(
    profile: str, settings: Sequence[str], only: Sequence[str], start_from: str | None, root: Path
) -> Run:
    """What these arguments ask for; where it writes follows from whether the run is full.

    Raises:
        ProfileError: an unknown name, or a value that does not fit.
    """
    bundled = not profile.endswith((".yaml", ".yml"))
    name = profile if bundled else Path(profile).stem
    profile = profile if bundled else str(Path(profile).absolute())
    # Kernels run in the notebooks' folder: a relative path would mean another file there.
    overrides = [with_absolute_paths(setting) for setting in settings]
    settled = load_profile(profile, overrides)
    every = find_notebooks(root / "notebooks")
    notebooks = _select(every, only, start_from)
    whole = not only and start_from is None
    full = whole and bundled and settled.committed and not overrides
    if overrides:
        name += f"-{hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:8]}"
    output = ((root if full else artifacts_folder()) / "figures" / name).resolve()
    _check_dependencies(notebooks, every, output)
    return Run(profile, overrides, settled, output, notebooks, whole, full)


def _select(
    every: Sequence[Notebook], only: Sequence[str], start_from: str | None
) -> list[Notebook]:
    """The notebooks named by number, name or path; without names all but the appendices."""
    known = {item.path.stem: item for item in every} | {item.number: item for item in every}
    named = []
    for word in [*only, start_from or every[0].number]:
        name = Path(word).stem.zfill(2)
        if name not in known:
            names = ", ".join(item.path.stem for item in every)
            raise BadInput(f"unknown notebook '{word}'.{nearest(name, known)} Known: {names}.")
        named.append(known[name])
    *wanted, first = named
    # An appendix runs only when it is named: it makes settings, which are chosen beforehand.
    wanted = wanted or [item for item in every if not item.number.startswith("A")]
    selected = [item for item in every if item in wanted and item.path >= first.path]
    if not selected:
        raise BadInput(f"--only and --from {start_from} leave no notebook to run")
    return selected


def _check_dependencies(
    notebooks: Sequence[Notebook], every: Sequence[Notebook], output: Path
) -> None:
    """Refuse to run a notebook without what another is to have written before."""
    numbers = {notebook.number: notebook for notebook in every}
    for notebook in notebooks:
        for number in notebook.after:
            if number not in numbers:
                raise BadInput(f"{notebook.path.name} goes after {number}, which does not exist")
            earlier = numbers[number]
            lacking = [name for name in earlier.outputs if not (output / name).exists()]
            if lacking and earlier not in notebooks:
                raise BadInput(
                    f"notebook {notebook.number} reads {', '.join(lacking)} of notebook {number}, "
                    f"not in {shown(output)} yet: run `--only {number}` first, or all"
                )


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
