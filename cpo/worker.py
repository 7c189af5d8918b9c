"""One of several processes that make an artifact together; started by `cpo.launching`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cpo.experiments import Suite
from cpo.processes import is_main_process, wait_for_everyone
from cpo.profiles import Profile
from cpo.store import Recipe, Store


class WorkerStore(Store):
    """Makes one artifact, in the folder of the process that asked for it, and finds all others."""

    def __init__(self, root: Path, key: str, folder: Path) -> None:
        super().__init__(root)
        self.key = key
        self.folder = folder

    def get_or_make(self, recipe: Recipe, make: Callable[[Path], None]) -> Path:
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
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with tempfile.TemporaryDirectory() as scratch:
        # All go through the same code; what the others would write is of no use.
        folder = Path(job["folder"] if is_main_process() else scratch)
        store = WorkerStore(Path(job["store"]), job["key"], folder)
        suite = Suite(Profile.model_validate_json(job["profile"]), store, Path(scratch))
        name, *arguments = job["call"]
        getattr(suite, name)(*arguments)
        wait_for_everyone()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however that one ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
