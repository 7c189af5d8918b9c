"""Which precision is faster here, fp32 or bf16: measured, not assumed.

A processor without bf16 instructions multiplies in bf16 a hundred times slower than in fp32. One
with them is up to three times as fast, but prepares itself longer for every new shape of a product.
Batches of texts have new shapes all the time, so that small models are slower in bf16 there, too.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
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


def measured(profile: Profile, root: Path) -> Measured:
    """The speeds of this machine at the width of a profile's widest model, measured once and
    remembered under `root`."""
    width = max(model.known_width or UNKNOWN_WIDTH for model in profile.models.values())
    found = machine.remembered(
        root, f"precision at width {width}", lambda: dataclasses.asdict(measure(width))
    )
    return Measured(**found)


def resolved(profile: Profile, root: Path) -> Profile:
    """The profile with the precision that `auto` stands for here; as it is where it names one."""
    if profile.optimiser.precision != "auto":
        return profile
    precision = "bf16" if _elsewhere(profile) else measured(profile, root).faster
    optimiser = profile.optimiser.model_copy(update={"precision": precision})
    return profile.model_copy(update={"optimiser": optimiser})


def statement(profile: Profile, root: Path) -> str:
    """Which precision a profile takes and what that rests on, in a line or two."""
    precision = resolved(profile, root).optimiser.precision
    if _elsewhere(profile):
        return f"precision: {precision}, for GPUs; there is none here to measure"
    lines = [f"precision: {precision} ({measured(profile, root)})"]
    return "\n".join([*lines, *filter(None, (slow(profile, root), machine.unused_gpu()))])


def slow(profile: Profile, root: Path) -> str:
    """A warning where the profile names the precision that is much the slower; "" elsewhere."""
    precision = profile.optimiser.precision
    if precision == "auto" or _elsewhere(profile):
        return ""
    found = measured(profile, root)
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
    found = measured(profile, root)
    speeds = {"fp32_gflops": round(found.fp32, 1), "bf16_gflops": round(found.bf16, 1)}
    return chosen | {"device": found.name} | speeds


def _elsewhere(profile: Profile) -> bool:
    """Whether a profile is for GPUs, and none is here: it is planned here, and runs elsewhere."""
    return profile.gpus > 0 and machine.device() == "cpu"


def measure(width: int) -> Measured:
    """Time the matrix products of a transformer block's MLP, forward and backward.

    In bf16 as the scorer does it: autocast over fp32 weights. The best of several repetitions, each
    of another number of tokens, the two precisions in turn. On one thread of a processor: several
    wait for each other whenever other work takes a core. It takes about a second.
    """
    import torch

    keep_freed_memory()
    device = machine.device()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speeds = _gflops(TRIAL_WIDTH, [TRIAL_TOKENS] * REPETITIONS, device)
        if speeds["bf16"] * HOPELESS < speeds["fp32"]:
            width = TRIAL_WIDTH
        else:
            speeds = _gflops(width, range(TOKENS, TOKENS - REPETITIONS, -1), device)
    finally:
        torch.set_num_threads(threads)
    return Measured(device, machine.name(), speeds["fp32"], speeds["bf16"], width)


def _block(width: int, device: str) -> nn.Module:
    import torch
    from torch import nn

    block = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    return block.to(device, torch.float32)


def _gflops(width: int, tokens: Sequence[int], device: str) -> dict[str, float]:
    """Best GFLOP/s of a forward and a backward pass of so many tokens each time, by precision."""
    import torch

    with torch.random.fork_rng():
        block = _block(width, device)
        inputs = torch.randn(max(tokens), width, device=device, dtype=torch.float32)

    def once(precision: str, rows: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        clock = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            states = block(inputs[:rows])
        states.float().sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        # 6 operations for each weight and token: 2 forward, 4 backward.
        return 6 * rows * 8 * width**2 / (time.perf_counter() - clock) / 1e9

    best = {"fp32": 0.0, "bf16": 0.0}
    began = time.perf_counter()
    for repetition, rows in enumerate(tokens):
        for precision in best:
            speed = once(precision, rows)
            if repetition:  # the first warms up
                best[precision] = max(best[precision], speed)
        if repetition and time.perf_counter() - began > SECONDS:
            break
    return best
