"""What an invocation runs, with which settings, and where it writes: fixed before it starts."""

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
from cpo_suite.profile import ROOT, Profile, ProfileError, load_profile
from cpo_suite.profile_files import with_absolute_paths
from cpo_suite.store import artifacts_folder


class BadInput(ProfileError):
    """A request that cannot be run; the message names it, and what is valid."""


@dataclass
class Notebook:
    """A notebook of the suite, its metadata, and its outcome in this run."""

    path: Path
    outputs: list[str] = field(default_factory=list)  # files that it writes
    after: list[str] = field(default_factory=list)  # numbers of notebooks whose outputs it reads
    # Custom rows that it adds, with candidate rows: each costs as much as the first one planned.
    own_rows: dict[str, list[str]] = field(default_factory=dict)
    status: str = ""  # ok, FAILED or skipped; empty before it has run
    reason: str = ""
    seconds: float = 0.0

    @property
    def number(self) -> str:
        return self.path.stem.split("_")[0]


@dataclass
class Run:
    """One invocation, checked before anything is executed."""

    profile: str  # name, or absolute path of its file
    overrides: list[str]
    settings: Profile  # the profile with its overrides
    output: Path
    notebooks: list[Notebook]
    whole: bool  # all notebooks
    full: bool  # all notebooks of a committed profile, unchanged
    planned: Sequence[Planned] = ()
    started: float = field(default_factory=time.time)  # seconds since the epoch
    alone: bool = False  # without a second process

    @property
    def succeeded(self) -> bool:
        """Whether no notebook has failed or was skipped so far."""
        return all(notebook.status in ("", "ok") for notebook in self.notebooks)


def find_notebooks(folder: Path) -> list[Notebook]:
    """The notebooks `NN_name.ipynb` of a folder in order, then its appendices `An_name.ipynb`."""
    notebooks = []
    for path in sorted(folder.glob("[0-9A][0-9]_*.ipynb")):
        try:
            metadata = nbformat.read(path, as_version=4).metadata
            notebooks.append(Notebook(path, **metadata.get("cpo", {})))
        except Exception as error:  # a damaged file fails in many ways
            raise BadInput(f"{path.name} cannot be read as a notebook: {error}") from error
    if not notebooks:
        raise BadInput(f"no notebooks NN_name.ipynb in {folder}")
    return notebooks


def settle(
    profile: str, settings: Sequence[str], only: Sequence[str], start_from: str | None, root: Path
) -> Run:
    """The run that these arguments ask for; only a full run writes to the committed figures.

    Raises:
        ProfileError: an unknown name, or an invalid value.
    """
    bundled = not profile.endswith((".yaml", ".yml"))
    name = profile if bundled else Path(profile).stem
    profile = profile if bundled else str(Path(profile).absolute())
    # Kernels run in the notebooks' folder, where a relative path would name another file.
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
    """The notebooks named by number, name or path; by default all but the appendices."""
    known = {item.path.stem: item for item in every} | {item.number: item for item in every}
    named = []
    for text in [*only, start_from or every[0].number]:
        name = Path(text).stem.zfill(2)
        if name not in known:
            names = ", ".join(item.path.stem for item in every)
            raise BadInput(f"unknown notebook '{text}'.{nearest(name, known)} Known: {names}.")
        named.append(known[name])
    *wanted, first = named
    # An appendix runs only when named: it chooses settings, which precede a run.
    wanted = wanted or [item for item in every if not item.number.startswith("A")]
    selected = [item for item in every if item in wanted and item.path >= first.path]
    if not selected:
        raise BadInput(f"--only and --from {start_from} leave no notebook to run")
    return selected


def _check_dependencies(
    notebooks: Sequence[Notebook], every: Sequence[Notebook], output: Path
) -> None:
    """Refuse to run a notebook without the outputs of others that it reads."""
    numbers = {notebook.number: notebook for notebook in every}
    for notebook in notebooks:
        for number in notebook.after:
            if number not in numbers:
                raise BadInput(
                    f"{notebook.path.name} follows notebook {number}, which does not exist"
                )
            earlier = numbers[number]
            missing = [name for name in earlier.outputs if not (output / name).exists()]
            if missing and earlier not in notebooks:
                raise BadInput(
                    f"notebook {notebook.number} reads {', '.join(missing)} of notebook {number}, "
                    f"not in {shown(output)} yet: run `--only {number}` or all notebooks first"
                )


def shown(path: Path) -> str:
    """A path as text, relative to the checkout if inside it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
