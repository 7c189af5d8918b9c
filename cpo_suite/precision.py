"""Which precision a profile takes on this machine, and what that rests on."""

from __future__ import annotations

from pathlib import Path

from cpo.engine import machine
from cpo.engine.precision import measured
from cpo_suite.profile import Profile

WARNED_FROM = 2.0  # times as slow as the other


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
