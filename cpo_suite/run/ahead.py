"""A second process that builds the plan from its end while the notebooks build it from its start.

Two threads train a small model only 1.6 times as fast as one. Two processes of one thread each
finish the plan sooner, and a notebook finds what is built.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from cpo.engine import machine
from cpo_suite.artifacts import Step
from cpo_suite.profile import Profile
from cpo_suite.run.dry_run import to_build
from cpo_suite.run.invocation import Run, shown
from cpo_suite.store import Artifact, Store, artifacts_folder, walk
from cpo_suite.suite import Suite

WORTH_SECONDS = 600  # of a plan, below which one process is enough
POLL_SECONDS = 0.5


def suits(run: Run) -> bool:
    """Whether a second process shortens this run: a whole one that takes long, on several threads
    of a CPU, with memory for two."""
    settings: Profile = run.settings
    return (
        run.whole
        and not run.alone
        and machine.THREADS not in os.environ  # this run is itself one of two processes
        and sum(item.seconds for item in to_build(run.planned)) >= WORTH_SECONDS
        and settings.processes.count == 1
        and machine.device() == "cpu"
        and machine.threads() > 1
        and machine.free_memory_gib() >= 2 * settings.memory_gb
    )


@contextmanager
def building(run: Run) -> Iterator[Callable[[], None]]:
    """A second process builds artifacts of the plan; it and the kernels started meanwhile take half
    of the threads each. It ends with this process.

    Yields a function that gives later kernels all threads if it has ended.
    """
    every = machine.threads()
    half = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(max(1, every // 2)))
    shared = half | {machine.THREADS: str(every)}
    before = {name: os.environ.get(name) for name in shared}
    log = artifacts_folder() / f"ahead-{run.settings.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", __name__, run.profile, str(run.output), *run.overrides]
    with log.open("w", encoding="utf-8") as file:
        other = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | shared | {"CPO_PLAIN_PROGRESS": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    print(
        "A second process builds the plan from its end, so that the run takes less time than "
        f"estimated (--alone: without). Its output goes to {shown(log)}.",
        flush=True,
    )

    def restore() -> None:
        for name, value in before.items():
            os.environ.pop(name, "") if value is None else os.environ.update({name: value})

    def give_back() -> None:
        if other.poll() is None or machine.THREADS not in os.environ:
            return
        restore()
        if code := other.returncode:
            where = f"see {shown(log)}. The notebooks build the rest"
            print(f"The second process ended with code {code}: {where}.", flush=True)

    os.environ.update(shared)
    try:
        yield give_back
    finally:
        other.kill()  # its unfinished work is resumed as that of any killed run
        other.communicate()
        restore()


def build_from_the_end(profile: str, output: str, *settings: str) -> int:
    """Build the plan's artifacts, last ones first, until all are built or in work; the exit code.

    Those that ask a chat model are left to the notebooks, which ask and pay once. It ends when its
    standard input does.
    """
    threading.Thread(target=_end_with_input, daemon=True).start()
    suite = Suite.open(profile, settings, output)
    wanted, missing = free_of_charge(suite), partial(_missing, suite.store)
    while wanted := [step for step in wanted if missing(step)]:
        idle = (step for step in wanted if not any(map(suite.store.in_work, missing(step))))
        if step := next(idle, None):
            print(step.title, flush=True)
            suite.store.get(step)
        elif all(map(suite.store.in_work, wanted)):
            break
        else:
            time.sleep(POLL_SECONDS)
    return 0


def free_of_charge(suite: Suite) -> list[Step]:
    """The plan's artifacts that ask no chat model, nor need one that does; last ones first."""
    paid = {item.key for item in suite.plan() if item.requests}
    steps = reversed(suite.artifacts())
    return [step for step in steps if paid.isdisjoint(part.key for part in walk(step))]


def _missing(store: Store, step: Step) -> list[Artifact]:
    """What has to be built for an artifact, itself included."""
    return [part for part in walk(step) if store.find(part) is None]


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(build_from_the_end(*sys.argv[1:]))
