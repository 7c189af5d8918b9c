"""Which precision is faster here, fp32 or bf16: measured, not assumed.

A processor without bf16 instructions multiplies in bf16 a hundred times slower than in fp32. One
with them is up to twice as fast.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cpo import machine
from cpo.memory import keep_freed_memory
from cpo.profiles import Profile

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["fp32", "bf16"]

# How much faster bf16 has to be to be taken: noise is not to decide, and fp32 is the exacter.
CLEARLY = 1.15
WARNED_FROM = 2.0  # times as slow as the other
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
    found = machine.remembered(root, "precision", lambda: dataclasses.asdict(measure()))
    return Measured(**found)


def resolved(profile: Profile, root: Path) -> Profile:
    """The profile with the precision that `auto` stands for here; as it is where it names one."""
    if profile.optimiser.precision != "auto":
        return profile
    precision = "bf16" if _elsewhere(profile) else measured(root).faster
    optimiser = profile.optimiser.model_copy(update={"precision": precision})
    return profile.model_copy(update={"optimiser": optimiser})


def statement(profile: Profile, root: Path) -> str:
    """Which precision a profile takes and what that rests on, in a line or two."""
    precision = resolved(profile, root).optimiser.precision
    if _elsewhere(profile):
        return f"precision: {precision}, for GPUs; there is none here to measure"
    lines = [f"precision: {precision} ({measured(root)})"]
    return "\n".join([*lines, *filter(None, (slow(profile, root), machine.unused_gpu()))])


def slow(profile: Profile, root: Path) -> str:
    """A warning where the profile names the precision that is much the slower; "" elsewhere."""
    precision = profile.optimiser.precision
    if precision == "auto" or _elsewhere(profile):
        return ""
    found = measured(root)
    mine, other = (found.fp32, found.bf16) if precision == "fp32" else (found.bf16, found.fp32)
    if other <= WARNED_FROM * mine:
        return ""
    return (
        f"optimiser.precision={precision} is {other / mine:.0f} times as slow here as the other "
        "precision; `auto` takes the faster"
    )


def record(profile: Profile, root: Path) -> dict[str, str | float]:
    """What `run.json` keeps of it: the precision, and what was measured where."""
    chosen: dict[str, str | float] = {
        "asked": profile.optimiser.precision,
        "taken": resolved(profile, root).optimiser.precision,
    }
    if _elsewhere(profile):
        return chosen
    found = measured(root)
    speeds = {"fp32_gflops": round(found.fp32, 1), "bf16_gflops": round(found.bf16, 1)}
    return chosen | {"device": found.name} | speeds


def _elsewhere(profile: Profile) -> bool:
    """Whether a profile is for GPUs, and none is here: it is planned here, and runs elsewhere."""
    return profile.gpus > 0 and machine.device() == "cpu"


def measure() -> Measured:
    """Time the matrix products of a transformer block's MLP, forward and backward.

    In bf16 as the scorer does it: autocast over fp32 weights. The best of several repetitions, the
    two precisions in turn. On one thread of a processor: several wait for each other whenever other
    work takes a core. It takes about a second.
    """
    import torch

    keep_freed_memory()
    device = machine.device()
    speeds = {"fp32": 0.0, "bf16": 0.0}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for width, tokens in SIZES[device]:
            times = _seconds(_block(width, device), width, tokens, device)
            # 6 operations for each weight and token: 2 forward, 4 backward.
            operations = 6 * tokens * 8 * width**2
            speeds = {name: operations / best / 1e9 for name, best in times.items()}
            if speeds["bf16"] * HOPELESS < speeds["fp32"]:
                break
    finally:
        torch.set_num_threads(threads)
    return Measured(device, machine.name(), speeds["fp32"], speeds["bf16"])


def _block(width: int, device: str) -> nn.Module:
    import torch
    from torch import nn

    block = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    return block.to(device, torch.float32)


def _seconds(block: nn.Module, width: int, tokens: int, device: str) -> dict[str, float]:
    """Best seconds of a forward and a backward pass, by precision."""
    import torch

    with torch.random.fork_rng():
        inputs = torch.randn(tokens, width, device=device, dtype=torch.float32)

    def once(precision: str) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        clock = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            states = block(inputs)
        states.float().sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - clock

    best = {"fp32": float("inf"), "bf16": float("inf")}
    began = time.perf_counter()
    for repetition in range(REPETITIONS):
        for precision in best:
            seconds = once(precision)
            if repetition:  # the first warms up
                best[precision] = min(best[precision], seconds)
        if repetition and time.perf_counter() - began > SECONDS:
            break
    return best
