"""What one invocation runs, with which values, and where to: settled before it starts."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill

from cpo.registry import nearest
from cpo_suite.profile import (
    ROOT,
    Profile,
    load_profile,
    parse_value,
    with_absolute_paths,
)
from cpo_suite.run import run_record

# The parameters that every notebook may declare; the runner alone gives them values.
RESERVED = ("profile", "overrides", "output")


class BadInput(ValueError):
    """Something asked for that cannot be run; the message says what, and what is valid."""


@dataclass(frozen=True)
class Notebook:
    """A notebook of the suite, and what its metadata says of it."""

    path: Path
    outputs: tuple[str, ...]
    after: tuple[str, ...]
    parameters: dict[str, Any]  # name -> default
    # Rows that it adds -> rows of which each is like the first that the profile has.
    own_rows: dict[str, list[str]] = field(default_factory=dict)

    @property
    def number(self) -> str:
        return self.path.stem.split("_")[0]

    @property
    def appendix(self) -> bool:
        return self.number.startswith("A")


@dataclass
class Run:
    """One invocation, settled and checked before anything is executed."""

    profile: str
    overrides: list[str]
    output: Path
    notebooks: list[Notebook]
    whole: bool  # all notebooks
    full: bool  # all notebooks of a committed profile, unchanged
    parameters: dict[str, Any] = field(default_factory=dict)


def find_notebooks(folder: Path) -> list[Notebook]:
    """The notebooks `NN_name.ipynb` of a folder in their order, then its appendices
    `An_name.ipynb`, with their declared outputs."""
    found = []
    for path in sorted(folder.glob("[0-9A][0-9]_*.ipynb")):
        try:
            metadata = nbformat.read(path, as_version=4).metadata.get("cpo", {})
            inspected = papermill.inspect_notebook(literal_path(path))
        except Exception as error:  # a damaged file fails in many ways; to a user all mean the same
            raise BadInput(f"{path.name} is no readable notebook: {error}") from error
        defaults = {name: _default(item["default"]) for name, item in inspected.items()}
        outputs, after = metadata.get("outputs", ()), metadata.get("after", ())
        own_rows = dict(metadata.get("own_rows", {}))
        found.append(Notebook(path, tuple(outputs), tuple(after), defaults, own_rows))
    if not found:
        raise BadInput(f"no notebooks NN_name.ipynb in {folder}")
    return found


def settle(
    profile: str,
    settings: Sequence[str],
    only: Sequence[str],
    start_from: str | None,
    notebooks_dir: Path,
    figures_dir: Path,
) -> Run:
    """What these arguments ask for; where it writes follows from whether the run is whole.

    Raises:
        BadInput, ProfileError: an unknown name, or a value that does not fit.
    """
    bundled = not profile.endswith((".yaml", ".yml"))
    if not bundled:
        profile = str(Path(profile).absolute())
    load_profile(profile)
    every = find_notebooks(notebooks_dir)
    selected = _select(every, only, start_from)
    overrides, parameters = _sort_settings(settings, selected)
    settled = load_profile(profile, overrides)
    whole = not only and start_from is None
    full = whole and bundled and settled.committed and not overrides and not parameters
    folder = run_record.artifacts_folder() / "figures"
    if full:
        folder = figures_dir
    name = profile if bundled else Path(profile).stem
    if overrides or parameters:
        text = json.dumps([overrides, parameters], sort_keys=True)
        name += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    run = Run(profile, overrides, (folder / name).resolve(), selected, whole, full, parameters)
    _check_dependencies(run)
    return run


def _select(
    every: Sequence[Notebook], only: Sequence[str], start_from: str | None
) -> list[Notebook]:
    numbers = {notebook.number: notebook for notebook in every}
    stems = {notebook.path.stem: notebook for notebook in every}

    def find(word: str) -> Notebook:
        stem = Path(word).stem
        found = numbers.get(word.zfill(2)) or stems.get(stem)
        if found is None:
            hint = nearest(stem if "_" in stem else word.zfill(2), [*stems, *numbers])
            raise BadInput(f"unknown notebook '{word}'.{hint} Known: {', '.join(stems)}.")
        return found

    # An appendix runs only when it is named: it makes settings, which are chosen beforehand.
    usual = {notebook.path for notebook in every if not notebook.appendix}
    wanted = {find(word).path for word in only} or usual
    first = find(start_from).path.name if start_from is not None else ""
    selected = [item for item in every if item.path in wanted and item.path.name >= first]
    if not selected:
        raise BadInput(f"--only and --from {start_from} leave no notebook to run")
    return selected


def _sort_settings(
    settings: Sequence[str], notebooks: Sequence[Notebook]
) -> tuple[list[str], dict[str, Any]]:
    """Overrides of the profile, and typed values for parameters of single notebooks."""
    defaults = {
        name: default
        for notebook in notebooks
        for name, default in notebook.parameters.items()
        if name not in RESERVED
    }
    overrides, parameters = [], {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise BadInput(f"--set takes key=value, not '{setting}'")
        if name in RESERVED:
            raise BadInput(f"'{name}' is not set with --set: use --profile, --set key=value")
        if name in defaults:
            parameters[name] = _typed(name, text, defaults[name])
        elif name.split(".")[0] in Profile.model_fields:
            # Kernels run in the notebooks' folder: a relative path would mean another file there.
            overrides.append(with_absolute_paths(setting))
        else:
            hint = nearest(name.split(".")[0], [*Profile.model_fields, *defaults])
            raise BadInput(f"--set {name}: unknown key or notebook parameter.{hint}")
    return overrides, parameters


def _typed(name: str, text: str, default: Any) -> Any:
    value = parse_value(text)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if default is not None and type(value) is not type(default):
        raise BadInput(
            f"parameter '{name}' is a {type(default).__name__}, such as {default!r}, not '{text}'"
        )
    return value


def _default(source: str) -> Any:
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return None


def _check_dependencies(run: Run) -> None:
    selected = {notebook.number for notebook in run.notebooks}
    every = {item.number: item for item in find_notebooks(run.notebooks[0].path.parent)}
    for notebook in run.notebooks:
        for number in notebook.after:
            if number not in every:
                raise BadInput(f"{notebook.path.name} goes after {number}, which does not exist")
            lacking = [name for name in every[number].outputs if not (run.output / name).exists()]
            if number not in selected and lacking:
                raise BadInput(
                    f"notebook {notebook.number} reads {', '.join(lacking)} of notebook {number}, "
                    f"not in {shown(run.output)} yet: run `--only {number}` first, or all"
                )


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def literal_path(path: Path) -> str:
    """papermill formats paths; braces in a folder's name are to stay what they are."""
    return str(path).replace("{", "{{").replace("}", "}}")
