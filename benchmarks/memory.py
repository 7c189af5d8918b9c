"""Peak memory of a CPO step with K = 12 and V = 50,257: ours against plain repetition.

The peak counts what a step adds to weights, gradients and AdamW's moments. Each measurement runs in
its own process, which returns freed memory at once, so that resident memory excludes fragmentation.
"bounded" scores the continuations in parts, recomputed in the backward pass. The last line compares
a whole training process, fragmentation included, with the estimate of `--dry-run`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurements import Line, device
from benchmarks.shapes import LARGE_VOCABULARY, K, precision, random_groups
from benchmarks.steps import PlainRepetition
from cpo.engine.memory import keep_freed_memory
from cpo.losses import cpo_loss
from cpo.scoring import GroupScorer, collate_groups
from cpo_suite.profile import load_profile
from cpo_suite.training_memory import training_memory_gb

LENGTHS = [(128, 128), (512, 64)]
TARGET = 4.0
PROMPTS = 4  # of the training that is compared with the estimate
# glibc returns blocks of at least this size, in bytes, to the system when they are freed.
HANDED_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "1048576"}


def megabytes(kind: str, prefix: int, length: int, count: int) -> float:
    """Peak memory of a step with `count` prompts in this process, above the level before it.

    For a "training", the peak of the whole process, or on a GPU of its tensors.
    """
    model = LARGE_VOCABULARY.model()
    scorer: Any = PlainRepetition(model)
    if kind != "plain":
        # Four parts of the continuations, each with the prefix.
        bound = prefix + K * length // 4 if kind == "bounded" else None
        scorer = GroupScorer(model, precision(), tokens_at_once=bound)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step(p: int, size: int) -> None:
        groups = random_groups(LARGE_VOCABULARY, p, size, count)
        batch = collate_groups(groups, device())
        logps = scorer(**batch)
        cpo_loss(logps, logps.detach(), 5.0).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    if kind == "training":
        keep_freed_memory()
    step(2, 2)  # allocates gradients and moments
    before = 0 if kind == "training" else _reset_peak()
    step(prefix, length)
    return (_peak() - before) / 2**20


def planned_megabytes(tokens: int) -> float:
    """The plan's estimate for such a training with `tokens` in a micro-batch."""
    shape = LARGE_VOCABULARY
    overrides = {
        "models.llama.parameters": shape.parameters,
        "models.llama.width": shape.width,
        "models.llama.layers": shape.layers,
        "optimiser.micro_batch_tokens": tokens,
        "optimiser.precision": precision(),
        "gpus": int(torch.cuda.is_available()),
        "processes.count": 1,
    }
    settings = [f"{key}={value}" for key, value in overrides.items()]
    return training_memory_gb(load_profile("paper", settings), "llama") * 1e9 / 2**20


def _reset_peak() -> int:
    """Restart the count of the peak; returns the bytes in use."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def run() -> list[Line]:
    """Measure both pairs of lengths; where continuations dominate, in parts as well."""
    lines = []
    for prefix, length in LENGTHS:
        kinds = ["ours"] if prefix > length else ["ours", "bounded"]
        measured = {kind: [_in_a_process(kind, prefix, length)] for kind in (*kinds, "plain")}
        for kind in kinds:
            parts = ", in four parts" if kind == "bounded" else ""
            lines.append(
                Line(
                    "memory",
                    f"CPO step{parts}, {LARGE_VOCABULARY}, P = {prefix}, L = {length}",
                    "plain repetition",
                    "MB",
                    measured[kind],
                    measured["plain"],
                    target=TARGET,
                )
            )
            print(lines[-1], flush=True)
    prefix, length = LENGTHS[0]
    tokens = PROMPTS * (prefix + K * length)
    lines.append(
        Line(
            "memory",
            f"process that trains, {LARGE_VOCABULARY}, {tokens:,} tokens",
            "what --dry-run says",
            "MB",
            [_in_a_process("training", prefix, length, PROMPTS)],
            [planned_megabytes(tokens)],
            target=1.0,
        )
    )
    print(lines[-1], flush=True)
    return lines


def _in_a_process(kind: str, prefix: int, length: int, count: int = 1) -> float:
    arguments = [kind, *map(str, (prefix, length, count))]
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    settings = {} if kind == "training" else HANDED_BACK
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | settings
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(megabytes(sys.argv[1], *map(int, sys.argv[2:]))))
