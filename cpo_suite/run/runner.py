"""Run the notebooks of the suite: a thin layer over papermill.

papermill executes; this file decides what may run, where it writes, and whether it succeeded. The
metadata that papermill leaves cannot be trusted for the last: after a dead kernel every cell is
marked completed, and `SystemExit(0)` ends a notebook in silence. So an executed copy is written
beside and promoted only when every code cell has run without an error and every declared output was
written by this run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError

from cpo_suite import precision
from cpo_suite.costs import Planned
from cpo_suite.profile import ROOT, Profile, load_profile, named_environment
from cpo_suite.report.page import write_report
from cpo_suite.run import doctor, run_record
from cpo_suite.run.dry_run import artifacts_table, own_rows, table, totals
from cpo_suite.run.executed import failure_in, make_portable
from cpo_suite.run.invocation import BadInput, Notebook, Run, literal_path, settle, shown
from cpo_suite.run.kernels import Kernel, LiveStream

# The artifacts for which a chat model is asked, by the part of the profile that names it.
STAGE_OF = {"judge": "verdicts", "unhelpful": "unhelpful"}
ALL = set(STAGE_OF.values())

Plan = Callable[[str, Sequence[str], str], list[Planned]]


@dataclass
class Result:
    """What became of one notebook."""

    notebook: Notebook
    status: str  # ok, FAILED, skipped
    seconds: float = 0.0
    reason: str = ""


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
    run = settle(profile, settings, only, start_from, notebooks_dir, figures_dir)
    found = doctor.inputs(run.profile, run.overrides)
    if dry_run:
        _print_dry_run(run, plan, [item for item in found if not item.ok])
        return 0
    planned = _preflight(run, plan, found)
    asked = load_profile(run.profile, run.overrides)
    store = run_record.artifacts_folder()
    said = [precision.statement(asked, store)]
    said += [*totals(precision.resolved(asked, store), planned), *_own_rows(run, planned)]
    print("\n".join(said))
    kind = "full run" if run.full else "partial or changed run, or a profile that is not committed"
    print(f"{len(run.notebooks)} notebooks -> {shown(run.output)} ({kind})", flush=True)

    started = time.time()
    (run.output / "notebooks").mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    try:
        for notebook in run.notebooks:
            if notebook.after:  # it may show the record of what it reads
                _write_record(run, results, started, planned)
            results.append(_run_or_skip(notebook, run, results))
    finally:
        if results:
            print("\n" + _summary(results), flush=True)
    succeeded = all(result.status == "ok" for result in results)
    if succeeded and run.whole:
        _remove_stale_copies(run)
    _write_record(run, results, started, planned)
    return 0 if succeeded else 1


def _preflight(run: Run, plan: Plan, found: list[doctor.Finding]) -> list[Planned]:
    """The artifacts to be, once everything they need is there; all that is not is said at once."""
    settings = load_profile(run.profile, run.overrides, substitute=False)
    planned: list[Planned] | None = None
    if all(item.ok or not item.to_plan for item in found):
        print("Reading the data and looking up what is made already ...", flush=True)
        try:
            planned = plan(run.profile, run.overrides, str(run.output))
        except (ValueError, OSError) as error:
            remedy = "Correct the data, or the setting that names it"
            found.append(doctor.Finding("data and models", False, str(error).rstrip("."), remedy))
    found += doctor.machine(settings, planned)
    asked = {item.stage for item in planned if item.requests} if planned is not None else ALL
    found += doctor.servers(settings, [part for part, one in STAGE_OF.items() if one in asked])
    for item in found:
        if not (item.ok or item.stops):
            print(f"Note: {item.what}: {item.detail}. {item.remedy}.", flush=True)
    absent = [item for item in found if item.stops and not item.ok]
    if absent or planned is None:
        said = (f"  {item.what}: {item.detail}. {item.remedy}".rstrip() for item in absent)
        raise BadInput(f"profile '{run.profile}' cannot run here:\n" + "\n".join(said))
    return planned


def _write_record(
    run: Run, results: Sequence[Result], started: float, planned: Sequence[Planned]
) -> None:
    """`run.json`, of runs of all notebooks alone, and only while none has failed."""
    if run.whole and all(result.status == "ok" for result in results):
        seconds = {result.notebook.path.stem: round(result.seconds, 1) for result in results}
        path = run.output / "run.json"
        run_record.write(path, run.profile, run.overrides, seconds, started, planned)


def _suite_plan(profile: str, overrides: Sequence[str], output: str) -> list[Planned]:
    from cpo_suite.suite import Suite

    return Suite.open(profile, list(overrides), output).plan()


def _stated_plan(profile: Profile, output: Path) -> list[Planned]:
    from cpo_suite.stated import StatedSuite
    from cpo_suite.store import Store

    return StatedSuite(profile, Store(run_record.artifacts_folder()), output).plan()


def _print_dry_run(run: Run, plan: Plan, absent: Sequence[doctor.Finding]) -> None:
    profile = load_profile(run.profile, run.overrides, substitute=False)
    rows = [(item.path.stem, ", ".join(item.outputs)) for item in run.notebooks]
    print(f"Notebooks, written to {shown(run.output)}:")
    print(table([("notebook", "outputs"), *rows]) + "\n")
    reason = ""
    for item in absent:
        print(f"Missing: {item.what}: {item.detail}. {item.remedy}")
        if item.to_plan:
            reason = "for want of what is missing"
    try:
        planned = plan(run.profile, run.overrides, str(run.output)) if not reason else []
    except (ValueError, OSError, RuntimeError) as error:
        reason = f"since here {str(error).rstrip('.')}"
    if reason:
        print(f"Counted by the profile alone, with texts as long as Dolly's, {reason}.")
        planned = _stated_plan(profile, run.output)
    print("\n" + artifacts_table(planned) + "\n")
    store = run_record.artifacts_folder()
    print(precision.statement(profile, store))
    settled = precision.resolved(profile, store)
    print("\n".join([*totals(settled, planned), *_own_rows(run, planned)]))


def _own_rows(run: Run, planned: Sequence[Planned]) -> list[str]:
    lines = [own_rows(item.number, item.own_rows, planned) for item in run.notebooks]
    return [line for found in lines for line in found]


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
        "profile": run.profile,
        "overrides": run.overrides,
        # Relative within the checkout, so that executed copies do not name the machine's folders.
        "output": os.path.relpath(run.output, notebook.path.parent)
        if run.output.is_relative_to(ROOT)
        else str(run.output),
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
                literal_path(notebook.path),
                literal_path(running),
                parameters={name: given[name] for name in given if name in notebook.parameters},
                kernel_name="cpo",
                language="python",
                cwd=str(notebook.path.parent),
                progress_bar=False,
                start_timeout=180,
                kernel_manager_class=Kernel,
                stdout_file=LiveStream(sys.stdout),
                stderr_file=LiveStream(sys.stderr),
            )
    except DeadKernelError:
        reason = "the kernel died, of too little memory perhaps"
    except Exception as error:  # whatever it is, the other notebooks go on
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    if Kernel.signalled is not None:
        running.unlink(missing_ok=True)
        raise KeyboardInterrupt
    if not running.exists():
        return reason or "papermill wrote no executed copy"
    executed = nbformat.read(running, as_version=4)
    reason = failure_in(executed) or reason
    make_portable(executed)
    if not reason and "report.html" in notebook.outputs:
        write_report(executed, run.output / "report.html")
    for name in notebook.outputs if not reason else ():
        path = run.output / name
        if not path.exists():
            reason = f"declared output {name} was not written"
        elif path.stat().st_mtime_ns < started:
            reason = f"declared output {name} is older than this run"
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
    """Of notebooks that are no more; a copy of an appendix, run by itself, stays."""
    sources = run.notebooks[0].path.parent
    for path in (run.output / "notebooks").glob("*.ipynb"):
        if not (sources / path.name).is_file():
            path.unlink()


def _summary(results: Sequence[Result]) -> str:
    rows = [("notebook", "status", "seconds", "reason")]
    for item in results:
        reason = item.reason if len(item.reason) <= 160 else item.reason[:157] + "..."
        rows.append((item.notebook.path.stem, item.status, f"{item.seconds:.1f}", reason))
    return table(rows)
