"""Which precision is faster here, fp32 or bf16: measured, not assumed.

A CPU without bf16 instructions multiplies a hundred times slower in bf16 than in fp32. With them it
is up to three times as fast, but takes longer to set up each new matrix shape. Text batches keep
bringing new shapes, so small models are slower in bf16 there, too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cpo.engine import machine
from cpo.engine.memory import keep_freed_memory

Precision = Literal["fp32", "bf16"]

# The speed-up that bf16 must exceed: noise should not decide, and fp32 is more accurate.
CLEARLY = 1.15
TRIAL_WIDTH, TRIAL_TOKENS = 128, 32  # tried first: some CPUs are hopelessly slow in bf16
TOKENS = 2048  # of a product, one fewer per repetition
UNKNOWN_WIDTH = 1024  # for models whose width the profile does not give
HOPELESS = 4.0  # times slower in bf16: no larger size is tried
REPETITIONS = 60
SECONDS = 0.5  # for all repetitions of one size


@dataclass(frozen=True)
class Measured:
    """Speeds of a training-shaped product of `width`, forward and backward, in GFLOP/s, on a GPU or
    one CPU core."""

    device: str  # cpu or cuda
    name: str
    fp32: float
    bf16: float
    width: int = UNKNOWN_WIDTH

    @property
    def faster(self) -> Precision:
        """The precision to use: bf16 only if it is clearly faster."""
        return "bf16" if self.bf16 > CLEARLY * self.fp32 else "fp32"

    def __str__(self) -> str:
        where = "a core of this processor" if self.device == "cpu" else self.name
        speeds = f"{self.fp32:.3g} GFLOP/s in fp32, {self.bf16:.3g} in bf16"
        return f"{where}, at width {self.width}: {speeds}"


def measured_speed(width: int, root: Path) -> Measured:
    """The speeds of this machine at a width, measured once and stored under `root`."""
    key = f"precision at width {width}"
    return Measured(**machine.remembered(root, key, lambda: asdict(measure(width))))


def measure(width: int) -> Measured:
    """Time the matrix products of a transformer block's MLP, forward and backward.

    Each repetition has a different number of tokens, as text batches do. A CPU uses one thread,
    since several would wait for each other whenever other work takes a core. Takes about a second.
    """
    import torch

    keep_freed_memory()
    device = machine.device()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speeds = _speeds(TRIAL_WIDTH, [TRIAL_TOKENS] * REPETITIONS, device)
        if speeds["bf16"] * HOPELESS < speeds["fp32"]:
            width = TRIAL_WIDTH
        else:
            speeds = _speeds(width, range(TOKENS, TOKENS - REPETITIONS, -1), device)
    finally:
        torch.set_num_threads(threads)
    return Measured(device, machine.name(), **speeds, width=width)


def _speeds(width: int, tokens: Sequence[int], device: str) -> dict[str, float]:
    """GFLOP/s by precision: the best repetition, of the given token counts, alternating precisions.
    bf16 is as in the scorer, autocast over fp32 weights."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        block = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        block.to(device, torch.float32)
        inputs = torch.randn(max(tokens), width, device=device, dtype=torch.float32)

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    best = {"fp32": 0.0, "bf16": 0.0}
    began = clock()
    for repetition, rows in enumerate(tokens):
        for precision in best:
            start = clock()
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                states = block(inputs[:rows])
            states.float().sum().backward()
            # 6 operations per weight and token: 2 forward, 4 backward.
            speed = 6 * rows * 8 * width**2 / (clock() - start) / 1e9
            if repetition:  # the first warms up
                best[precision] = max(best[precision], speed)
        if repetition and clock() - began > SECONDS:
            break
    return best
