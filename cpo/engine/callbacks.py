"""What a training does beside its steps: a progress bar, those who watch, and its checkpoints."""

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

# Is told what is trained, how many steps it has, and its log so far, a dict a step.
Watcher = Callable[[str, int, Sequence[Mapping[str, float]]], None]


class Progress(TrainerCallback):
    """A sparse progress bar; tells `watchers` of each step, and leaves out one that fails."""

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
            except Exception as error:  # a picture is not worth a training
                self.watchers.remove(watcher)
                warnings.warn(f"not watched any further: {error!r}", stacklevel=2)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


class TimedCheckpoints(TrainerCallback):
    """Asks a `Trainer` for a checkpoint every `minutes`, and keeps the newest that is whole."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = (time.monotonic() - self.saved) / 60 >= self.minutes
        # By one clock: all processes save together or none does.
        if state.global_step < state.max_steps and from_main_process(lambda: due):
            control.should_save = True
            self.saved = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint with checksums; only then the one before it goes."""
        wait_for_everyone()  # each process writes the state of its random numbers
        if not is_main_process():
            return
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_atomically(newest / CHECKSUMS, json.dumps(checksums_of(newest)))
        for older in Path(args.output_dir).glob("checkpoint-*"):
            if older != newest:
                shutil.rmtree(older)


def last_good_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that agrees with its checksums, which are written last; the damaged
    ones are removed."""
    checkpoints = folder.glob("checkpoint-*")
    for path in sorted(checkpoints, key=lambda path: -int(path.name.split("-")[1])):
        try:
            damage = damaged_file(path, json.loads((path / CHECKSUMS).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            damage = "was not written to its end"
        if not damage:
            return str(path)
        print(f"{path.name} is not used: {damage}", flush=True)
        shutil.rmtree(path)
    return None
