"""Peak memory of a CPO step with K = 12 and V = 50,257: ours against plain repetition.

Counted is what a step adds to weights, gradients and AdamW's moments. Each measurement has a
process of its own, which hands freed memory back at once: what the system counts is then in use,
and no hole between two tensors. "bounded" scores the continuations in parts, each again for the
backward pass.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.lines import Line, device
from benchmarks.shapes import LARGE_VOCABULARY, K, random_groups
from benchmarks.steps import PlainRepetition
from cpo.logprobs import GroupScorer, collate_groups
from cpo.losses import cpo_loss

LENGTHS = [(128, 128), (512, 64)]
TARGET = 4.0
# glibc: blocks from this size on, in bytes, are the system's own, and go back when they are freed.
HANDED_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def added_megabytes(kind: str, prefix: int, length: int) -> float:
    """In this process: the peak of one step above what was there before it."""
    model = LARGE_VOCABULARY.model()
    scorer: Any = PlainRepetition(model)
    if kind != "plain":
        # Four parts of the continuations, with the prefix each.
        bound = prefix + K * length // 4 if kind == "bounded" else None
        scorer = GroupScorer(model, "bf16", tokens_at_once=bound)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step(p: int, size: int) -> None:
        groups = random_groups(LARGE_VOCABULARY, p, size, count=1)
        batch = {name: one.to(device()) for name, one in collate_groups(groups).items()}
        logps = scorer(**batch)
        cpo_loss(logps, logps.detach(), 5.0).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step(2, 2)  # makes gradients and moments
    before = _reset_peak()
    step(prefix, length)
    return (_peak() - before) / 2**20


def _reset_peak() -> int:
    """Starts counting the peak anew; bytes in use."""
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
    """Both pairs of lengths, the one whose continuations weigh most in parts as well."""
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
    return lines


def _in_a_process(kind: str, prefix: int, length: int) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", kind, str(prefix), str(length)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | HANDED_BACK
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(added_megabytes(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
