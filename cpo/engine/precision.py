"""Which precision is faster here, fp32 or bf16: measured, not assumed.

A processor without bf16 instructions multiplies in bf16 a hundred times slower than in fp32. One
with them is up to three times as fast, but prepares itself longer for every new shape of a product.
Batches of texts have new shapes all the time, so that small models are slower in bf16 there, too.
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

# How much faster bf16 has to be to be taken: noise is not to decide, and fp32 is the exacter.
CLEARLY = 1.15
TRIAL_WIDTH, TRIAL_TOKENS = 128, 32  # tried first, for processors that are hopeless in bf16
TOKENS = 2048  # of a product, one fewer each time
UNKNOWN_WIDTH = 1024  # of models whose width a profile does not say
HOPELESS = 4.0  # times as slow in bf16: nothing larger is tried
REPETITIONS = 60
SECONDS = 0.5  # for the repetitions of one size


@dataclass(frozen=True)
class Measured:
    """Speeds of a training-shaped product, forward and backward, in GFLOP/s: those of a GPU, or of
    one core. `width` is that of the product."""

    device: str  # cpu or cuda
    name: str
    fp32: float
    bf16: float
    width: int = UNKNOWN_WIDTH

    @property
    def faster(self) -> Precision:
        """The precision to take: bf16 only where it is clearly faster."""
        return "bf16" if self.bf16 > CLEARLY * self.fp32 else "fp32"

    def __str__(self) -> str:
        where = "a core of this processor" if self.device == "cpu" else self.name
        speeds = f"{self.fp32:.3g} GFLOP/s in fp32, {self.bf16:.3g} in bf16"
        return f"{where}, at width {self.width}: {speeds}"


def measured(width: int, root: Path) -> Measured:
    """The speeds of this machine at a width, measured once and remembered under `root`."""
    key = f"precision at width {width}"
    return Measured(**machine.remembered(root, key, lambda: asdict(measure(width))))


def measure(width: int) -> Measured:
    """Time the matrix products of a transformer block's MLP, forward and backward.

    Each repetition has another number of tokens, as batches of texts have. On one thread of a
    processor: several wait for each other whenever other work takes a core. It takes about a
    second.
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
    """GFLOP/s by precision, the best of repetitions of so many tokens each, the two precisions in
    turn; in bf16 as the scorer does it, autocast over fp32 weights."""
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
            # 6 operations for each weight and token: 2 forward, 4 backward.
            speed = 6 * rows * 8 * width**2 / (clock() - start) / 1e9
            if repetition:  # the first warms up
                best[precision] = max(best[precision], speed)
        if repetition and clock() - began > SECONDS:
            break
    return best
