"""Trainer callbacks: progress bar, watchers and checkpoints."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from cpo.engine.files import checksums_of, damaged_file, write_atomically
from cpo.engine.processes import from_main_process, is_main_process, wait_for_everyone
from cpo.engine.progress import progress_bar

CHECKSUMS = "sha256.json"

# Called with the training's description, its number of steps, and its log, one dict per step.
Watcher = Callable[[str, int, Sequence[Mapping[str, float]]], None]


class Progress(TrainerCallback):
    """A sparse progress bar; notifies `watchers` of each step and drops any that fails."""

    def __init__(self, description: str, watchers: list[Watcher]) -> None:
        self.description, self.watchers = description, watchers

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = progress_bar(state.max_steps, self.description)
        self.bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for watcher in list(self.watchers) if is_main_process() else []:
            try:
                watcher(self.description, state.max_steps, state.log_history)
            except Exception as error:  # a failed plot must not end a training
                self.watchers.remove(watcher)
                warnings.warn(f"a watcher failed and is dropped: {error!r}", stacklevel=2)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


class TimedCheckpoints(TrainerCallback):
    """Requests a checkpoint every `minutes`, and keeps only the newest intact one."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = (time.monotonic() - self.saved) / 60 >= self.minutes
        # One clock decides: all processes save together or none does.
        if state.global_step < state.max_steps and from_main_process(lambda: due):
            control.should_save = True
            self.saved = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint with checksums, then delete the previous one."""
        wait_for_everyone()  # each process writes its random state
        if not is_main_process():
            return
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_atomically(newest / CHECKSUMS, json.dumps(checksums_of(newest)))
        for older in Path(args.output_dir).glob("checkpoint-*"):
            if older != newest:
                shutil.rmtree(older)


def last_good_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that matches its checksums, which are written last; damaged ones are
    removed."""
    checkpoints = folder.glob("checkpoint-*")
    for path in sorted(checkpoints, key=lambda path: -int(path.name.split("-")[1])):
        try:
            damage = damaged_file(path, json.loads((path / CHECKSUMS).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            damage = "was not completely written"
        if not damage:
            return str(path)
        print(f"{path.name} is not used: {damage}", flush=True)
        shutil.rmtree(path)
    return None
