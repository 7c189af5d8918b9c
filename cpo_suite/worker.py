"""One of several processes that make an artifact together; started by `cpo_suite.launching`."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from cpo.engine.processes import is_main_process, leave_together
from cpo_suite.profile import Profile
from cpo_suite.store import Recipe, Store
from cpo_suite.suite import Suite


class WorkerStore(Store):
    """Makes one artifact, in the folder of the process that asked for it, and finds all others."""

    def __init__(self, root: Path, key: str, folder: Path) -> None:
        super().__init__(root)
        self.key = key
        self.folder = folder

    def get_or_make(self, recipe: Recipe, make: Callable[[Path], None], processes: int = 1) -> Path:
        """The folder of the artifact, made if it is the one.

        Raises:
            FileNotFoundError: another one is missing.
        """
        if recipe.key == self.key:
            make(self.folder)
            return self.folder
        found = self.find(recipe)
        if found is None:
            raise FileNotFoundError(f"{recipe.stage} {recipe.key} should have been made before")
        return found


def main() -> None:
    """Make the artifact that the file named on the command line describes."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(job["owner"],), daemon=True).start()
    for module in job["modules"]:
        import_module(module)
    with tempfile.TemporaryDirectory() as scratch:
        # All go through the same code; what the others would write is of no use.
        folder = Path(job["folder"] if is_main_process() else scratch)
        store = WorkerStore(Path(job["store"]), job["key"], folder)
        suite = Suite(Profile.model_validate_json(job["profile"]), store, Path(scratch))
        name, *arguments = job["call"]
        getattr(suite, name)(*arguments)
        leave_together()


def _end_with(owner: dict[str, Any]) -> None:
    """End this process when the launcher, or the process that asked for all this, is gone."""
    launcher, same_host = os.getppid(), owner["host"] == socket.gethostname()
    while os.getppid() == launcher != 1 and not (same_host and _is_gone(owner["pid"])):
        time.sleep(0.5)
    os._exit(1)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


if __name__ == "__main__":
    main()
