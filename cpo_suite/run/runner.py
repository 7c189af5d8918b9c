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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError

from cpo_suite.estimate import Planned
from cpo_suite.profile import ROOT
from cpo_suite.report.page import write_report
from cpo_suite.run import doctor, run_record
from cpo_suite.run import dry_run as estimate
from cpo_suite.run.executed import failure_in, make_portable
from cpo_suite.run.invocation import BadInput, Notebook, Run, settle, shown
from cpo_suite.run.kernels import Kernel

# The artifacts for which a chat model is asked, by the part of the profile that names it.
STAGE_OF = {"judge": "verdicts", "unhelpful": "unhelpful"}

Plan = Callable[[str, Sequence[str], str], list[Planned]]


@dataclass(frozen=True)
class Result:
    """What became of one notebook."""

    notebook: Notebook
    status: str  # ok, FAILED, skipped
    seconds: float
    reason: str


def run_suite(
    profile: str = "tiny",
    settings: Sequence[str] = (),
    only: Sequence[str] = (),
    start_from: str | None = None,
    dry_run: bool = False,
    *,
    notebooks_dir: Path = ROOT / "notebooks",
    figures_dir: Path = ROOT / "figures",
    plan: Plan = estimate.plan,
) -> int:
    """Run the notebooks, or with `dry_run` say what running them would take.

    Args:
        profile: name of a profile, or the path of a YAML file.
        settings: `key=value` each, with a dotted key of the profile.
        only: numbers of the notebooks to run, such as `03`.
        start_from: number of the first notebook to run.
        plan: lists the artifacts of `(profile, overrides, output)`.

    Returns:
        0 when every notebook succeeded, 1 when one failed or was skipped.

    Raises:
        ProfileError: nothing was run; the message names everything that was wrong.
        KeyboardInterrupt: stopped by a signal; the kernel is gone.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)
    run = settle(profile, settings, only, start_from, notebooks_dir, figures_dir)
    # Kernels run in the notebooks' folder, where a relative path would be another.
    for name in ("CPO_ARTIFACTS", "CPO_DATA"):
        value = os.environ.get(name, "")
        if value and (name == "CPO_ARTIFACTS" or os.path.exists(value)):
            os.environ[name] = os.path.abspath(value)
    if dry_run:
        _print_dry_run(run, plan)
        return 0
    planned = _preflight(run, plan)
    print(_totals(run, planned))
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


def _look(run: Run, plan: Plan) -> tuple[list[Planned] | None, list[doctor.Finding]]:
    """The artifacts to be, None where they cannot be counted, and what is missing."""
    missing = [finding for finding in doctor.inputs(run.profile, run.overrides) if not finding.ok]
    planned = None
    if not missing:
        print("Reading the data and looking up what is cached ...", flush=True)
        try:
            planned = plan(run.profile, run.overrides, str(run.output))
        except (ValueError, OSError, RuntimeError) as error:
            remedy = "Correct the data, or the setting that names it"
            missing.append(doctor.Finding("data and models", False, str(error).rstrip("."), remedy))
    return planned, missing + [finding for finding in doctor.keys(run.settings) if not finding.ok]


def _preflight(run: Run, plan: Plan) -> list[Planned]:
    """The artifacts to be, once everything they need is there; all that is not is said at once."""
    for finding in doctor.advice(run.settings):
        if not finding.ok:
            print(f"Note: {finding.what}: {finding.detail}. {finding.remedy}.", flush=True)
    planned, findings = _look(run, plan)
    stages = (
        None
        if planned is None
        else {item.stage for item in estimate.to_make(planned) if item.requests}
    )
    parts = [part for part, stage in STAGE_OF.items() if stages is None or stage in stages]
    findings += [*doctor.room(run.settings, planned), *doctor.servers(run.settings, parts)]
    missing = [f"  {item.what}: {item.detail}. {item.remedy}" for item in findings if not item.ok]
    if missing or planned is None:
        raise BadInput(f"profile '{run.profile}' cannot run here:\n" + "\n".join(missing))
    return planned


def _print_dry_run(run: Run, plan: Plan) -> None:
    print(f"Notebooks, written to {shown(run.output)}:")
    rows = [(notebook.path.stem, ", ".join(notebook.outputs)) for notebook in run.notebooks]
    print(estimate.table([("notebook", "outputs"), *rows]) + "\n")
    planned, missing = _look(run, plan)
    for finding in missing:
        print(f"Missing: {finding.what}: {finding.detail}. {finding.remedy}")
    if planned is None:
        print("Counted by the profile alone, with texts as long as Dolly's.")
        planned = estimate.plan_without_data(run.settings, run.output)
    print(f"\n{estimate.artifacts_table(planned)}\n\n{_totals(run, planned)}")


def _totals(run: Run, planned: Sequence[Planned]) -> str:
    lines = [estimate.totals(run.settings, planned)]
    for notebook in run.notebooks:
        lines += estimate.own_rows(notebook.number, notebook.own_rows, planned)
    return "\n".join(lines)


def _write_record(
    run: Run, results: Sequence[Result], started: float, planned: Sequence[Planned]
) -> None:
    """`run.json`, of runs of all notebooks alone, and only while none has failed."""
    if run.whole and all(result.status == "ok" for result in results):
        seconds = {result.notebook.path.stem: result.seconds for result in results}
        run_record.write(run, seconds, started, planned)


def _remove_stale_copies(run: Run) -> None:
    """Of notebooks that are no more; a copy of an appendix, run by itself, stays."""
    sources = run.notebooks[0].path.parent
    for path in (run.output / "notebooks").glob("*.ipynb"):
        if not (sources / path.name).is_file():
            path.unlink()


def _summary(results: Sequence[Result]) -> str:
    rows = [("notebook", "status", "seconds", "reason")]
    for result in results:
        reason = result.reason if len(result.reason) <= 160 else result.reason[:157] + "..."
        rows.append((result.notebook.path.stem, result.status, f"{result.seconds:.1f}", reason))
    return estimate.table(rows)


# --- One notebook ---------------------------------------------------------------------------------


def _run_or_skip(notebook: Notebook, run: Run, earlier: Sequence[Result]) -> Result:
    name, clock = notebook.path.stem, time.perf_counter()
    print(f"\n[{name}]", flush=True)
    broken = [result.notebook.number for result in earlier if result.status != "ok"]
    if lacking := [number for number in broken if number in notebook.after]:
        status, reason = "skipped", f"needs what notebook {', '.join(lacking)} did not deliver"
    else:
        reason = _execute(notebook, run)
        status = "FAILED" if reason else "ok"
    seconds = time.perf_counter() - clock
    outcome = f"{status}: {reason}" if reason else status
    print(f"[{name}] {outcome} ({seconds:.1f} s)", flush=True)
    return Result(notebook, status, seconds, reason)


def _execute(notebook: Notebook, run: Run) -> str:
    """Execute one notebook; the empty string, or in one line why it does not count as done."""
    folder, name = run.output / "notebooks", notebook.path.stem
    running, failed = folder / f".{name}.running.ipynb", folder / f"{name}.failed.ipynb"
    running.unlink(missing_ok=True)
    before = _times_written(notebook, run)
    reason = _papermill(notebook, run, running)
    if not running.exists():
        return reason or "papermill wrote no executed copy"
    executed = nbformat.read(running, as_version=4)
    reason = failure_in(executed) or reason
    make_portable(executed)
    if not reason and "report.html" in notebook.outputs:
        write_report(executed, run.output / "report.html")
    after = _times_written(notebook, run)
    for output in notebook.outputs if not reason else ():
        if output not in after:
            reason = f"declared output {output} was not written"
        elif after[output] == before.get(output):
            reason = f"declared output {output} is older than this run"
    nbformat.write(executed, running)
    os.replace(running, failed if reason else folder / f"{name}.ipynb")
    if not reason:
        failed.unlink(missing_ok=True)
    return reason


def _papermill(notebook: Notebook, run: Run, running: Path) -> str:
    """Have a notebook executed into the file `running`; the empty string, or what went wrong."""
    output = str(run.output)
    if run.output.is_relative_to(ROOT):  # so that executed copies do not name the machine's folders
        output = os.path.relpath(run.output, notebook.path.parent)
    # papermill formats paths; braces in a folder's name are to stay what they are.
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook.path, running)]
    try:
        papermill.execute_notebook(
            *paths,
            parameters={"profile": run.profile, "overrides": run.overrides, "output": output},
            kernel_name="cpo",
            language="python",
            cwd=str(notebook.path.parent),
            progress_bar=False,
            start_timeout=180,
            kernel_manager_class=Kernel,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
    except DeadKernelError:
        return "the kernel died, of too little memory perhaps"
    except Exception as error:  # whatever it is, the other notebooks go on
        return " ".join(f"{type(error).__name__}: {error}".split())
    except KeyboardInterrupt:
        running.unlink(missing_ok=True)
        raise
    return ""


def _times_written(notebook: Notebook, run: Run) -> dict[str, int]:
    """When the notebook's declared outputs were last written, of those that there are."""
    paths = {name: run.output / name for name in notebook.outputs}
    return {name: path.stat().st_mtime_ns for name, path in paths.items() if path.exists()}
