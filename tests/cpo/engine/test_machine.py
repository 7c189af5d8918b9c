"""The machine in use: memory that is left, and measurements that are kept."""

from types import SimpleNamespace

import psutil
import pytest

from cpo.engine import machine


@pytest.mark.parametrize(
    ("limit", "free"),
    [
        (str(8 * 2**30), 5.0),  # of 8 GiB, 3 are used
        (str(64 * 2**30), 16.0),  # the machine has less
        ("max", 16.0),  # a container without a limit
        (None, 16.0),  # none
    ],
)
def test_memory_is_that_of_a_container(limit, free, tmp_path, monkeypatch):
    memory = SimpleNamespace(available=16 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(machine, "CONTAINER", tmp_path)
    if limit:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{3 * 2**30}\n")
    assert machine.free_memory_gib() == free


def test_what_is_measured_beside_other_work_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(machine.THREADS, str(machine.threads()))
    assert machine.remembered(tmp_path, "speed", lambda: 1.0) == 1.0
    monkeypatch.delenv(machine.THREADS)
    assert machine.remembered(tmp_path, "speed", lambda: 2.0) == 2.0
    monkeypatch.setenv(machine.THREADS, str(machine.threads()))
    assert machine.remembered(tmp_path, "speed", lambda: 3.0) == 2.0
