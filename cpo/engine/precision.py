"""Which precision is faster here, fp32 or bf16: measured, not assumed.

A processor without bf16 instructions multiplies in bf16 a hundred times slower than in fp32. One
with them is up to twice as fast.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cpo.engine import machine
from cpo.engine.memory import keep_freed_memory

Precision = Literal["fp32", "bf16"]

# How much faster bf16 has to be to be taken: noise is not to decide, and fp32 is the exacter.
CLEARLY = 1.15
# Width of the products and tokens, by device, a small one first: where bf16 was so many times
# slower in it, the next is not tried. A processor's take some milliseconds, so that of many
# repetitions some are undisturbed by other work.
SIZES = {"cpu": ((128, 32), (256, 256)), "cuda": ((1024, 256), (2048, 4096))}
HOPELESS = 4.0
REPETITIONS = 60
SECONDS = 0.5  # for the repetitions of one size


@dataclass(frozen=True)
class Measured:
    """Speeds of a training-shaped product, forward and backward, in GFLOP/s: those of a GPU, or of
    one core."""

    device: str  # cpu or cuda
    name: str
    fp32: float
    bf16: float

    @property
    def faster(self) -> Precision:
        """The precision to take: bf16 only where it is clearly faster."""
        return "bf16" if self.bf16 > CLEARLY * self.fp32 else "fp32"

    def __str__(self) -> str:
        where = "a core of this processor" if self.device == "cpu" else self.name
        return f"{where}: {self.fp32:.3g} GFLOP/s in fp32, {self.bf16:.3g} in bf16"


def measured(root: Path) -> Measured:
    """The speeds of this machine, measured once and remembered under `root`."""
    return Measured(**machine.remembered(root, "precision", lambda: asdict(measure())))


def measure() -> Measured:
    """Time the matrix products of a transformer block's MLP, forward and backward.

    On one thread of a processor: several wait for each other whenever other work takes a core. It
    takes about a second.
    """
    import torch

    keep_freed_memory()
    device = machine.device()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for width, tokens in SIZES[device]:
            speeds = _speeds(width, tokens, device)
            if speeds["bf16"] * HOPELESS < speeds["fp32"]:
                break
    finally:
        torch.set_num_threads(threads)
    return Measured(device, machine.name(), **speeds)


def _speeds(width: int, tokens: int, device: str) -> dict[str, float]:
    """GFLOP/s by precision, the best of several repetitions, the two precisions in turn; in bf16 as
    the scorer does it, autocast over fp32 weights."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        block = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        block.to(device, torch.float32)
        inputs = torch.randn(tokens, width, device=device, dtype=torch.float32)

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    best = {"fp32": float("inf"), "bf16": float("inf")}
    began = clock()
    for repetition in range(REPETITIONS):
        for precision in best:
            start = clock()
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                states = block(inputs)
            states.float().sum().backward()
            if repetition:  # the first warms up
                best[precision] = min(best[precision], clock() - start)
        if repetition and clock() - began > SECONDS:
            break
    # 6 operations for each weight and token: 2 forward, 4 backward.
    operations = 6 * tokens * 8 * width**2
    return {precision: operations / seconds / 1e9 for precision, seconds in best.items()}
