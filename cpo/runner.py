"""Run the notebooks of the suite: a thin layer over papermill.

papermill executes; this file decides what may run, where it writes, and whether it succeeded. The
metadata that papermill leaves cannot be trusted for the last: after a dead kernel every cell is
marked completed, and `SystemExit(0)` ends a notebook in silence. So an executed copy is written
beside and promoted only when every code cell has run without an error and every declared output was
written by this run.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill

from cpo import doctor, run_record
from cpo.costs import Planned
from cpo.dry_run import artifacts_table, stated_by, table, totals
from cpo.executed import failure_in, make_portable
from cpo.kernels import Kernel, LiveStream
from cpo.profiles import ROOT, Profile, load_profile, named_environment, nearest, parse_value

# The parameters that every notebook may declare; the runner alone gives them values.
RESERVED = ("profile", "overrides", "output")

Plan = Callable[[str, Sequence[str], str], list[Planned]]


class BadInput(ValueError):
    """Something asked for that cannot be run; the message says what, and what is valid."""


@dataclass(frozen=True)
class Notebook:
    """A notebook of the suite, and what its metadata says of it."""

    path: Path
    outputs: tuple[str, ...]
    after: tuple[str, ...]
    parameters: dict[str, Any]  # name -> default

    @property
    def number(self) -> str:
        return self.path.stem.split("_")[0]


@dataclass
class Result:
    """What became of one notebook."""

    notebook: Notebook
    status: str  # ok, FAILED, skipped
    seconds: float = 0.0
    reason: str = ""


@dataclass
class Run:
    """One invocation, settled and checked before anything is executed."""

    profile: str
    overrides: list[str]
    output: Path
    notebooks: list[Notebook]
    full: bool
    parameters: dict[str, Any] = field(default_factory=dict)


def run_suite(
    profile: str = "tiny",
    settings: Sequence[str] = (),
    only: Sequence[str] = (),
    start_from: str | None = None,
    dry_run: bool = False,
    *,
    notebooks_dir: Path = ROOT / "notebooks",
    figures_dir: Path = ROOT / "figures",
    plan: Plan | None = None,
) -> int:
    """Run the notebooks, or with `dry_run` say what running them would take.

    Args:
        profile: name of a profile, or the path of a YAML file.
        settings: `key=value` each: a dotted key of the profile, or a parameter of a notebook.
        only: numbers of the notebooks to run, such as `03`.
        start_from: number of the first notebook to run.
        plan: lists the artifacts of `(profile, overrides, output)`; by default the suite's own.

    Returns:
        0 when every notebook succeeded, 1 when one failed or was skipped.

    Raises:
        BadInput, ProfileError: nothing was run; the message names everything that was wrong.
        KeyboardInterrupt: stopped by Ctrl-C or a termination signal; the kernel is gone.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)
    plan = plan or _suite_plan
    run = _settle(profile, settings, only, start_from, notebooks_dir, figures_dir)
    absent = [item for item in doctor.inputs(run.profile, run.overrides) if not item.ok]
    if dry_run:
        _print_dry_run(run, plan, absent)
        return 0
    if absent:
        raise BadInput(
            f"profile '{profile}' cannot run here:\n"
            + "\n".join(f"  {item.what}: {item.detail}. {item.remedy}" for item in absent)
        )
    settled = load_profile(run.profile, run.overrides)
    for line in totals(settled, plan(run.profile, run.overrides, str(run.output))):
        print(line)
    kind = "full run" if run.full else "partial or changed run, or a profile that is not committed"
    print(f"{len(run.notebooks)} notebooks -> {_shown(run.output)} ({kind})", flush=True)

    started = time.time()
    (run.output / "notebooks").mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    try:
        for notebook in run.notebooks:
            results.append(_run_or_skip(notebook, run, results))
    finally:
        if results:
            print("\n" + _summary(results), flush=True)
    succeeded = all(result.status == "ok" for result in results)
    if succeeded and not only and start_from is None:
        _remove_stale_copies(run)
        seconds = {result.notebook.path.stem: round(result.seconds, 1) for result in results}
        run_record.write(
            run.output / "run.json", run.profile, run.overrides, seconds, started,
            plan(run.profile, run.overrides, str(run.output)),
        )
    return 0 if succeeded else 1


# --- Before anything runs -------------------------------------------------------------------------


def find_notebooks(folder: Path) -> list[Notebook]:
    """The notebooks `NN_name.ipynb` of a folder in their order, with their declared outputs."""
    found = []
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        try:
            metadata = nbformat.read(path, as_version=4).metadata.get("cpo", {})
            inspected = papermill.inspect_notebook(_literal_path(path))
        except Exception as error:  # a damaged file fails in many ways; to a user all mean the same
            raise BadInput(f"{path.name} is no readable notebook: {error}") from error
        defaults = {name: _default(item["default"]) for name, item in inspected.items()}
        outputs, after = metadata.get("outputs", ()), metadata.get("after", ())
        found.append(Notebook(path, tuple(outputs), tuple(after), defaults))
    if not found:
        raise BadInput(f"no notebooks NN_name.ipynb in {folder}")
    return found


def _settle(
    profile: str, settings: Sequence[str], only: Sequence[str], start_from: str | None,
    notebooks_dir: Path, figures_dir: Path,
) -> Run:
    every = find_notebooks(notebooks_dir)
    selected = _select(every, only, start_from)
    overrides, parameters = _sort_settings(settings, selected)
    bundled = not profile.endswith((".yaml", ".yml"))
    if not bundled:
        profile = str(Path(profile).resolve())
    settled = load_profile(profile, overrides, substitute=False)
    whole = len(selected) == len(every)
    full = whole and bundled and settled.committed and not overrides and not parameters
    folder = run_record.artifacts_folder() / "figures"
    if full:
        folder = figures_dir
    name = profile if bundled else Path(profile).stem
    if overrides or parameters:
        text = json.dumps([sorted(overrides), parameters], sort_keys=True)
        name += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    run = Run(profile, overrides, (folder / name).resolve(), selected, full, parameters)
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

    wanted = {find(word).path for word in only} or {notebook.path for notebook in every}
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
            is_path = name.rpartition(".")[2] in ("path", "pretrained") and Path(text).exists()
            overrides.append(f"{name}={Path(text).resolve()}" if is_path else setting)
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
                    f"not in {_shown(run.output)} yet: run `--only {number}` first, or all"
                )


def _suite_plan(profile: str, overrides: Sequence[str], output: str) -> list[Planned]:
    from cpo.experiments import Suite

    return Suite.open(profile, list(overrides), output).plan()


def _print_dry_run(run: Run, plan: Plan, absent: Sequence[doctor.Finding]) -> None:
    profile = load_profile(run.profile, run.overrides, substitute=False)
    rows = [(item.path.stem, ", ".join(item.outputs)) for item in run.notebooks]
    print(f"Notebooks, written to {_shown(run.output)}:")
    print(table([("notebook", "outputs"), *rows]) + "\n")
    for item in absent:
        print(f"Missing: {item.what}: {item.detail}. {item.remedy}")
    try:
        planned = plan(run.profile, run.overrides, str(run.output))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{profile.name}: {profile.description}.")
        print(f"Its artifacts cannot be counted here: {error}\n{stated_by(profile)}")
        return
    print(artifacts_table(planned) + "\n")
    print("\n".join(totals(profile, planned)))


# --- One notebook ---------------------------------------------------------------------------------


def _run_or_skip(notebook: Notebook, run: Run, earlier: Sequence[Result]) -> Result:
    broken = [
        result.notebook.number
        for result in earlier
        if result.status != "ok" and result.notebook.number in notebook.after
    ]
    if broken:
        reason = f"needs what notebook {', '.join(broken)} did not deliver"
        print(f"\n[{notebook.path.stem}] skipped: {reason}", flush=True)
        return Result(notebook, "skipped", reason=reason)
    print(f"\n[{notebook.path.stem}]", flush=True)
    clock = time.perf_counter()
    reason = _execute(notebook, run)
    seconds = time.perf_counter() - clock
    print(f"[{notebook.path.stem}] {reason or 'ok'} ({seconds:.1f} s)", flush=True)
    return Result(notebook, "FAILED" if reason else "ok", seconds, reason)


def _execute(notebook: Notebook, run: Run) -> str:
    """Execute one notebook; the empty string, or in one line why it does not count as done."""
    folder = run.output / "notebooks"
    running = folder / f".{notebook.path.stem}.running.ipynb"
    given = {
        "profile": run.profile, "overrides": run.overrides,
        # Relative, so that executed copies do not name the machine's folders.
        "output": os.path.relpath(run.output, notebook.path.parent),
    } | run.parameters
    reason = ""
    running.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile(dir=run.output) as stamp:
        # The file system's own clock: it ticks more coarsely than the processor's.
        started = os.stat(stamp.name).st_mtime_ns
    Kernel.signalled = None
    try:
        with _kernel_environment(run):
            papermill.execute_notebook(
                _literal_path(notebook.path), _literal_path(running),
                parameters={name: given[name] for name in given if name in notebook.parameters},
                kernel_name="cpo", language="python", cwd=str(notebook.path.parent),
                progress_bar=False, start_timeout=180, kernel_manager_class=Kernel,
                stdout_file=LiveStream(sys.stdout), stderr_file=LiveStream(sys.stderr),
            )
    except Exception as error:  # whatever it is, the other notebooks go on
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    if Kernel.signalled is not None:
        running.unlink(missing_ok=True)
        raise KeyboardInterrupt
    if not running.exists():
        return reason or "papermill wrote no executed copy"
    executed = nbformat.read(running, as_version=4)
    reason = failure_in(executed) or reason
    for name in notebook.outputs if not reason else ():
        path = run.output / name
        if not path.exists():
            reason = f"declared output {name} was not written"
        elif path.stat().st_mtime_ns < started:
            reason = f"declared output {name} is older than this run"
    make_portable(executed)
    nbformat.write(executed, running)
    failed = folder / f"{notebook.path.stem}.failed.ipynb"
    os.replace(running, failed if reason else folder / notebook.path.name)
    if not reason:
        failed.unlink(missing_ok=True)
    return reason


# --- Small things ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _kernel_environment(run: Run) -> Iterator[None]:
    """What kernels inherit: absolute folders, as they run elsewhere, and bars for a terminal."""
    artifacts = str(run_record.artifacts_folder())
    changed: dict[str, str] = {"CPO_ARTIFACTS": artifacts, "CPO_PLAIN_PROGRESS": "1"}
    for name in named_environment(run.profile, run.overrides):
        value = os.environ.get(name, "")
        if value and Path(value).exists():
            changed[name] = str(Path(value).resolve())
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, previous in before.items():
            if previous is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = previous


def _remove_stale_copies(run: Run) -> None:
    current = {notebook.path.name for notebook in run.notebooks}
    for path in (run.output / "notebooks").glob("*.ipynb"):
        if path.name not in current:
            path.unlink()


def _summary(results: Sequence[Result]) -> str:
    rows = [("notebook", "status", "seconds", "reason")]
    for item in results:
        reason = item.reason if len(item.reason) <= 160 else item.reason[:157] + "..."
        rows.append((item.notebook.path.stem, item.status, f"{item.seconds:.1f}", reason))
    return table(rows)


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _literal_path(path: Path) -> str:
    """papermill formats paths; braces in a folder's name are to stay what they are."""
    return str(path).replace("{", "{{").replace("}", "}}")
