"""Work shared out among processes: `accelerate launch` starts them, each takes every n-th item.

A process that was not launched with others does everything itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from cpo.engine import machine

# The others wait while the main process writes and checks what may be tens of gigabytes.
PATIENCE = timedelta(hours=2)

Item = TypeVar("Item")
Result = TypeVar("Result")


def _state() -> PartialState:
    # Without `cpu`, processes that were launched together on processors would not see each other.
    return PartialState(cpu=machine.device() == "cpu", timeout=PATIENCE)


def process_count() -> int:
    """How many processes were launched together; 1 where none were."""
    return int(_state().num_processes)


def is_main_process() -> bool:
    """Whether this process is the one that writes what all of them made."""
    return bool(_state().is_main_process)


def wait_for_everyone() -> None:
    """Returns when all processes have come here."""
    _state().wait_for_everyone()


def leave_together() -> None:
    """The last call of a process that was launched with others: waits for them, hangs up.

    One that exits without hanging up may be aborted by a thread of its connection that still runs.
    """
    wait_for_everyone()
    _state().destroy_process_group()


def from_main_process(work: Callable[[], Result]) -> Result:
    """`work()` of the main process, in every process."""
    if process_count() == 1:
        return work()
    result = [work() if is_main_process() else None]
    return broadcast_object_list(result)[0]


def shared_out(items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """`[work(item) for item in items]` in every process, each item done by one of them.

    Results travel between processes as pickles: they should be lists, arrays or CPU tensors.
    """
    state = _state()
    if state.num_processes == 1:
        return [work(item) for item in items]
    own = range(state.process_index, len(items), state.num_processes)
    done = dict(gather_object([(index, work(items[index])) for index in own]))
    return [done[index] for index in range(len(items))]
