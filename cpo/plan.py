"""Fixed in advance: the rows of a training, their order, and the seeds of random streams."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def plan_batches(rows: int, steps: int, batch: int, seed: int) -> Tensor:
    """Row indices `[steps, batch]`, int64: seeded epochs, each row at most once per epoch.

    No global batch repeats a row, so batch negatives always come from other rows. Rows that do not
    fill an epoch's last batch are skipped in that epoch. The plan for fewer steps is a prefix of
    the plan for more.

    Raises:
        ValueError: there are fewer rows than one batch needs.
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
    """The seed of an independent random stream, by its purpose: `stream_seed(0, "MN", 1)`."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
