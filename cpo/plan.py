"""Fixed before anything runs: which rows a training sees, in which order, and random streams'
seeds."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def plan_batches(rows: int, steps: int, batch: int, seed: int) -> Tensor:
    """Row indices `[steps, batch]`, int64: seeded epochs, each row at most once an epoch.

    No global batch holds a row twice, so that batch negatives are always other rows: the rows that
    do not fill the last batch of an epoch sit that epoch out. The plan for fewer steps is a prefix
    of the plan for more.

    Raises:
        ValueError: there are fewer rows than one batch takes.
    """
    if rows < batch:
        raise ValueError(
            f"a global batch of {batch} needs at least {batch} training rows, there are {rows}: "
            "lower the batch or give more data"
        )
    generator = torch.Generator().manual_seed(seed)
    per_epoch = rows // batch
    epochs = [
        torch.randperm(rows, generator=generator)[: per_epoch * batch].view(per_epoch, batch)
        for _ in range(-(-steps // per_epoch))
    ]
    return torch.cat(epochs)[:steps]


def stream_seed(*parts: object) -> int:
    """The seed of a random stream of its own, by what it is for: `stream_seed(0, "MN", 1)`."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
