"""Run the notebooks of the suite: a thin layer over papermill.

papermill executes; this file decides what runs, where it writes, and whether it succeeded.
papermill's own metadata cannot tell: after a dead kernel every cell is marked completed, and
`SystemExit(0)` ends a notebook silently. So an executed copy is promoted only if every code
cell ran without an error and this run wrote every declared output.
"""

from __future__ import annotations

import logging
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
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
from cpo_suite.run import ahead, doctor, dry_run, model_packages, run_record
from cpo_suite.run.executed import KERNEL_DIED, failure_in, make_portable
from cpo_suite.run.invocation import BadInput, Notebook, Run, settle, shown
from cpo_suite.store import Store, artifacts_folder
from cpo_suite.suite import Suite

Plan = Callable[[str, Sequence[str], str], list[Planned]]


class Kernel(AsyncKernelManager):
    """A kernel in the interpreter of the suite, whatever kernelspecs the user has.

    Its progress bars are plain text, and interactive pieces are stored as states without controls.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(transport_encryption="auto", **kwargs)

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict(), env={"CPO_PLAIN_PROGRESS": "1"})


def plan_suite(profile: str, overrides: Sequence[str], output: str) -> list[Planned]:
    """The plan of a suite in build order; reads data, builds nothing."""
    return Suite.open(profile, list(overrides), output).plan()


def run_suite(
    profile: str = "tiny",
    settings: Sequence[str] = (),
    only: Sequence[str] = (),
    start_from: str | None = None,
    dry_run: bool = False,
    alone: bool = False,
    *,
    root: Path = ROOT,
    plan: Plan = plan_suite,
) -> int:
    """Run the notebooks, or with `dry_run` print what they would cost.

    Args:
        profile: name of a profile, or the path of a YAML file.
        settings: overrides `key=value`, with dotted keys of the profile.
        only: numbers of the notebooks to run, such as `03`.
        start_from: number of the first notebook to run.
        alone: never share the plan with a second process (`ahead`).
        root: the checkout, with `notebooks/`; a full run writes to its `figures/`.
        plan: gives the artifacts of `(profile, overrides, output)`.

    Returns:
        0 when every notebook succeeded, 1 when one failed or was skipped.

    Raises:
        ProfileError: nothing was run; the message names every problem.
        KeyboardInterrupt: stopped by a signal; the kernel has ended.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)
    for variable in ("CPO_ARTIFACTS", "CPO_DATA"):
        # Kernels run in the notebooks' folder, where a relative path would name another.
        if value := os.environ.get(variable):
            os.environ[variable] = str(Path(value).expanduser().absolute())
    if not dry_run:
        model_packages.install_missing(profile, settings)
    run = settle(profile, settings, only, start_from, root)
    run.alone = alone
    if dry_run:
        _print_dry_run(run, plan)
        return 0
    run.planned = _preflight(run, plan)
    _print_totals(run)
    kind = "full run" if run.full else "partial or changed run, or a profile that is not committed"
    print(f"{len(run.notebooks)} notebooks -> {shown(run.output)} ({kind})", flush=True)
    (run.output / "notebooks").mkdir(parents=True, exist_ok=True)
    try:
        in_one: Any = nullcontext(lambda: None)
        with ahead.building(run) if ahead.suits(run) else in_one as give_back_threads:
            for notebook in run.notebooks:
                give_back_threads()
                if notebook.after:  # it may show the record of this run
                    run_record.write(run)
                _run_or_skip(notebook, run)
    finally:
        _print_summary(run)
    if run.succeeded and run.whole:
        for copy in (run.output / "notebooks").glob("*.ipynb"):
            if not (root / "notebooks" / copy.name).is_file():  # its notebook was removed
                copy.unlink()
    run_record.write(run)
    return int(not run.succeeded)


def _try_plan(run: Run, plan: Plan) -> tuple[list[Planned] | None, list[doctor.Finding]]:
    """The planned artifacts and no findings, or None and what is missing."""
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
    """The planned artifacts.

    Raises:
        BadInput: a requirement is not met; the message names all of them.
    """
    for finding in doctor.advice(run.settings):
        if not finding.ok:
            print(f"Note: {finding}.", flush=True)
    planned, missing = _try_plan(run, plan)
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
    planned, missing = _try_plan(run, plan)
    for finding in [*missing, *doctor.chat_models(run.settings, ask=False)]:
        if not finding.ok:
            print(f"Missing: {finding}.")
    if planned is None:
        print("Estimated from the profile alone, with texts as long as Dolly's.")
        planned = Suite.stated(run.settings, Store(artifacts_folder()), run.output).plan()
    run.planned = planned
    print(f"\n{dry_run.artifacts_table(planned)}\n")
    _print_totals(run)


def _print_totals(run: Run) -> None:
    print(dry_run.totals(run.settings, run.planned))
    print(dry_run.of_notebooks(len(run.notebooks)))
    for notebook in run.notebooks:
        for line in dry_run.custom_rows(notebook.number, notebook.own_rows, run.planned):
            print(line)


def _print_summary(run: Run) -> None:
    """Print a table of the notebooks that have run or were skipped."""
    rows = [("notebook", "status", "seconds", "reason")]
    for notebook in run.notebooks:
        if notebook.status:
            reason = textwrap.shorten(notebook.reason, 160, placeholder="...")
            rows.append((notebook.path.stem, notebook.status, f"{notebook.seconds:.1f}", reason))
    if len(rows) > 1:
        print("\n" + dry_run.text_table(rows), flush=True)


# --- One notebook ---------------------------------------------------------------------------------


def _run_or_skip(notebook: Notebook, run: Run) -> None:
    """Run a notebook, or skip it after a failure that it depends on; records the outcome."""
    name, clock = notebook.path.stem, time.perf_counter()
    print(f"\n[{name}]", flush=True)
    broken = [item.number for item in run.notebooks if item.status in ("FAILED", "skipped")]
    if failed := [number for number in broken if number in notebook.after]:
        notebook.reason = f"needs outputs of notebook {', '.join(failed)}, which did not succeed"
        notebook.status = "skipped"
    else:
        notebook.reason = _execute(notebook, run)
        notebook.status = "FAILED" if notebook.reason else "ok"
    notebook.seconds = time.perf_counter() - clock
    outcome = ": ".join(filter(None, [notebook.status, notebook.reason]))
    print(f"[{name}] {outcome} ({notebook.seconds:.1f} s)", flush=True)


def _execute(notebook: Notebook, run: Run) -> str:
    """Execute one notebook; returns why it failed, in one line, or an empty string."""
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
    """Execute a notebook into the file `running`; returns the error, or an empty string."""
    folder, output = notebook.path.parent, str(run.output)
    if run.output.is_relative_to(ROOT):  # executed copies name no folder of this machine
        output = os.path.relpath(output, folder)
    # papermill formats paths: braces in a folder's name are escaped.
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
    except Exception as error:  # whatever the error, the other notebooks run
        return " ".join(f"{type(error).__name__}: {error}".split())
    except KeyboardInterrupt:
        running.unlink(missing_ok=True)
        raise
    return ""


def _written(notebook: Notebook, run: Run) -> set[tuple[str, int]]:
    """Existing declared outputs of a notebook, each with its modification time in ns."""
    paths = {name: run.output / name for name in notebook.outputs}
    return {(name, path.stat().st_mtime_ns) for name, path in paths.items() if path.exists()}
