"""Run the notebooks of the suite: a thin layer over papermill.

papermill executes; this file decides what may run, where it writes, and whether it succeeded. The
metadata that papermill leaves cannot be trusted for the last: after a dead kernel every cell is
marked completed, and `SystemExit(0)` ends a notebook in silence. So an executed copy is written
beside and promoted only when every code cell has run without an error and every declared output was
written by this run.
"""

from __future__ import annotations

import logging
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError

from cpo_suite.estimate import Planned
from cpo_suite.profile import ROOT
from cpo_suite.report.page import write_report
from cpo_suite.run import doctor, dry_run, run_record
from cpo_suite.run.executed import KERNEL_DIED, failure_in, make_portable
from cpo_suite.run.invocation import BadInput, Notebook, Run, settle, shown

Plan = Callable[[str, Sequence[str], str], list[Planned]]


class Kernel(AsyncKernelManager):
    """A kernel in the interpreter that runs the suite, whatever kernelspecs a user has; its
    progress bars are for a terminal."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(transport_encryption="auto", **kwargs)

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict(), env={"CPO_PLAIN_PROGRESS": "1"})


def run_suite(
    profile: str = "tiny",
    settings: Sequence[str] = (),
    only: Sequence[str] = (),
    start_from: str | None = None,
    dry_run: bool = False,
    *,
    root: Path = ROOT,
    plan: Plan = dry_run.plan,
) -> int:
    """Run the notebooks, or with `dry_run` say what running them would take.

    Args:
        profile: name of a profile, or the path of a YAML file.
        settings: `key=value` each, with a dotted key of the profile.
        only: numbers of the notebooks to run, such as `03`.
        start_from: number of the first notebook to run.
        root: the checkout, with `notebooks/`; a full run writes to its `figures/`.
        plan: lists the artifacts of `(profile, overrides, output)`.

    Returns:
        0 when every notebook succeeded, 1 when one failed or was skipped.

    Raises:
        ProfileError: nothing was run; the message names everything that was wrong.
        KeyboardInterrupt: stopped by a signal; the kernel is gone.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)
    for variable in ("CPO_ARTIFACTS", "CPO_DATA"):
        # Kernels run in the notebooks' folder, where a relative path would be another.
        if value := os.environ.get(variable):
            os.environ[variable] = str(Path(value).expanduser().absolute())
    run = settle(profile, settings, only, start_from, root)
    if dry_run:
        _print_dry_run(run, plan)
        return 0
    run.planned = _preflight(run, plan)
    _print_totals(run)
    kind = "full run" if run.full else "partial or changed run, or a profile that is not committed"
    print(f"{len(run.notebooks)} notebooks -> {shown(run.output)} ({kind})", flush=True)
    (run.output / "notebooks").mkdir(parents=True, exist_ok=True)
    try:
        for notebook in run.notebooks:
            if notebook.after:  # it may show the record of what it reads
                run_record.write(run)
            _run_or_skip(notebook, run)
    finally:
        _print_summary(run)
    if run.succeeded and run.whole:
        for copy in (run.output / "notebooks").glob("*.ipynb"):
            if not (root / "notebooks" / copy.name).is_file():  # its notebook is no more
                copy.unlink()
    run_record.write(run)
    return int(not run.succeeded)


def _look(run: Run, plan: Plan) -> tuple[list[Planned] | None, list[doctor.Finding]]:
    """The artifacts to be, None where they cannot be counted, and what is missing for it."""
    missing = [finding for finding in doctor.inputs(run.profile, run.overrides) if not finding.ok]
    if missing:
        return None, missing
    print("Reading the data and looking up what is cached ...", flush=True)
    try:
        return plan(run.profile, run.overrides, str(run.output)), []
    except (ValueError, OSError, RuntimeError) as error:
        remedy = "Correct the data, or the setting that names it"
        return None, [doctor.Finding("data and models", False, str(error).rstrip("."), remedy)]


def _preflight(run: Run, plan: Plan) -> list[Planned]:
    """The artifacts to be, once everything they need is there; all that is not is said at once."""
    for finding in doctor.advice(run.settings):
        if not finding.ok:
            print(f"Note: {finding}.", flush=True)
    planned, missing = _look(run, plan)
    missing += doctor.room(run.settings, planned)
    missing += doctor.chat_models(run.settings, planned)
    lines = [f"  {finding}" for finding in missing if not finding.ok]
    if lines or planned is None:
        raise BadInput("\n".join([f"profile '{run.profile}' cannot run here:", *lines]))
    return planned


def _print_dry_run(run: Run, plan: Plan) -> None:
    print(f"Notebooks, written to {shown(run.output)}:")
    rows = [(notebook.path.stem, ", ".join(notebook.outputs)) for notebook in run.notebooks]
    print(dry_run.text_table([("notebook", "outputs"), *rows]) + "\n")
    planned, missing = _look(run, plan)
    for finding in [*missing, *doctor.chat_models(run.settings, ask=False)]:
        if not finding.ok:
            print(f"Missing: {finding}.")
    if planned is None:
        print("Counted by the profile alone, with texts as long as Dolly's.")
        planned = dry_run.plan_without_data(run.settings, run.output)
    run.planned = planned
    print(f"\n{dry_run.artifacts_table(planned)}\n")
    _print_totals(run)


def _print_totals(run: Run) -> None:
    print(dry_run.totals(run.settings, run.planned))
    for notebook in run.notebooks:
        for line in dry_run.own_rows(notebook.number, notebook.own_rows, run.planned):
            print(line)


def _print_summary(run: Run) -> None:
    """A table of the notebooks that are through."""
    rows = [
        (item.path.stem, item.status, f"{item.seconds:.1f}")
        + (textwrap.shorten(item.reason, 160, placeholder="..."),)
        for item in run.notebooks
        if item.status
    ]
    if rows:
        print(
            "\n" + dry_run.text_table([("notebook", "status", "seconds", "reason"), *rows]),
            flush=True,
        )


# --- One notebook ---------------------------------------------------------------------------------


def _run_or_skip(notebook: Notebook, run: Run) -> None:
    """Run a notebook, and write down in it what became of it."""
    name, clock = notebook.path.stem, time.perf_counter()
    print(f"\n[{name}]", flush=True)
    broken = [item.number for item in run.notebooks if item.status in ("FAILED", "skipped")]
    if lacking := [number for number in broken if number in notebook.after]:
        notebook.reason = f"needs what notebook {', '.join(lacking)} did not deliver"
        notebook.status = "skipped"
    else:
        notebook.reason = _execute(notebook, run)
        notebook.status = "FAILED" if notebook.reason else "ok"
    notebook.seconds = time.perf_counter() - clock
    outcome = ": ".join(filter(None, [notebook.status, notebook.reason]))
    print(f"[{name}] {outcome} ({notebook.seconds:.1f} s)", flush=True)


def _execute(notebook: Notebook, run: Run) -> str:
    """Execute one notebook; the empty string, or in one line why it does not count as done."""
    folder, name = run.output / "notebooks", notebook.path.stem
    running, failed = folder / f".{name}.running.ipynb", folder / f"{name}.failed.ipynb"
    running.unlink(missing_ok=True)
    before = _written(notebook, run)
    reason = _papermill(notebook, run, running)
    if not running.exists():
        return reason or "papermill wrote no executed copy"
    executed = nbformat.read(running, as_version=4)
    reason = failure_in(executed) or reason
    make_portable(executed)
    if not reason and "report.html" in notebook.outputs:
        write_report(executed, run.output / "report.html")
    unchanged = set(notebook.outputs).difference(dict(_written(notebook, run) - before))
    if unchanged and not reason:
        reason = f"declared output {', '.join(sorted(unchanged))} was not written by this run"
    nbformat.write(executed, running)
    running.replace(failed if reason else folder / f"{name}.ipynb")
    if not reason:
        failed.unlink(missing_ok=True)
    return reason


def _papermill(notebook: Notebook, run: Run, running: Path) -> str:
    """Have a notebook executed into the file `running`; the empty string, or what went wrong."""
    folder, output = notebook.path.parent, str(run.output)
    if run.output.is_relative_to(ROOT):  # so that executed copies do not name the machine's folders
        output = os.path.relpath(output, folder)
    # papermill formats paths; braces in a folder's name are to stay what they are.
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook.path, running)]
    try:
        papermill.execute_notebook(
            *paths,
            parameters={"profile": run.profile, "overrides": run.overrides, "output": output},
            kernel_name="cpo",
            language="python",
            cwd=str(folder),
            progress_bar=False,
            start_timeout=180,
            kernel_manager_class=Kernel,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
    except DeadKernelError:
        return KERNEL_DIED
    except Exception as error:  # whatever it is, the other notebooks go on
        return " ".join(f"{type(error).__name__}: {error}".split())
    except KeyboardInterrupt:
        running.unlink(missing_ok=True)
        raise
    return ""


def _written(notebook: Notebook, run: Run) -> set[tuple[str, int]]:
    """The notebook's declared outputs that there are, each with the time when it was written."""
    paths = {name: run.output / name for name in notebook.outputs}
    return {(name, path.stat().st_mtime_ns) for name, path in paths.items() if path.exists()}
