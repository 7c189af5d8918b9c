"""Work split among processes: `accelerate launch` starts them, each takes every n-th item.

A process launched alone does everything itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from cpo.engine import machine

# The others wait while the main process writes and checks up to tens of gigabytes.
PATIENCE = timedelta(hours=2)

WorkItem = TypeVar("WorkItem")
Result = TypeVar("Result")


def _state() -> PartialState:
    # Without `cpu`, processes launched together on CPUs would not see each other.
    return PartialState(cpu=machine.device() == "cpu", timeout=PATIENCE)


def process_count() -> int:
    """The number of processes launched together; 1 for a single one."""
    return int(_state().num_processes)


def is_main_process() -> bool:
    """Whether this process is the one that writes joint results."""
    return bool(_state().is_main_process)


def wait_for_everyone() -> None:
    """Block until all processes have arrived."""
    _state().wait_for_everyone()


def leave_together() -> None:
    """The last call of a process launched with others: wait for them and disconnect.

    A process that exits while connected may be aborted by a connection thread still running.
    """
    wait_for_everyone()
    _state().destroy_process_group()


def from_main_process(work: Callable[[], Result]) -> Result:
    """The result of `work()` in the main process, returned in every process."""
    if process_count() == 1:
        return work()
    result = [work() if is_main_process() else None]
    return broadcast_object_list(result)[0]


def least_of_all(value: float | None) -> float | None:
    """The smallest of the processes' values, returned in every process; None where all are None."""
    if process_count() == 1:
        return value
    values: list[float | None] = gather_object([value])
    return min((one for one in values if one is not None), default=None)


def shared_out(items: Sequence[WorkItem], work: Callable[[WorkItem], Result]) -> list[Result]:
    """`[work(item) for item in items]` in every process, each item computed by one of them.

    Results are pickled between processes: use lists, arrays or CPU tensors.
    """
    state = _state()
    if state.num_processes == 1:
        return [work(item) for item in items]
    own = range(state.process_index, len(items), state.num_processes)
    done = dict(gather_object([(index, work(items[index])) for index in own]))
    return [done[index] for index in range(len(items))]
