"""Which precision a profile takes on this machine, and what that rests on."""

from __future__ import annotations

from pathlib import Path

from cpo.engine import machine
from cpo.engine.precision import UNKNOWN_WIDTH, Measured, measured_speed
from cpo_suite.profile import Profile

WARNED_FROM = 2.0  # times as slow as the other


def measured(profile: Profile, root: Path) -> Measured | None:
    """The speeds of this machine at the width of a profile's widest model.

    None where a profile is for GPUs and none is here: it is planned here, and runs elsewhere.
    """
    if profile.gpus > 0 and machine.device() == "cpu":
        return None
    width = max(model.shape[0] or UNKNOWN_WIDTH for model in profile.models.values())
    return measured_speed(width, root)


def resolved(profile: Profile, root: Path) -> Profile:
    """The profile with the precision that `auto` stands for here; as it is where it names one."""
    if profile.optimiser.precision != "auto":
        return profile
    speeds = measured(profile, root)
    precision = speeds.faster if speeds else "bf16"
    optimiser = profile.optimiser.model_copy(update={"precision": precision})
    return profile.model_copy(update={"optimiser": optimiser})


def statement(profile: Profile, root: Path) -> str:
    """Which precision a profile takes and what that rests on, in a line or two."""
    precision = resolved(profile, root).optimiser.precision
    if (speeds := measured(profile, root)) is None:
        return f"precision: {precision}, for GPUs; there is none here to measure"
    lines = (f"precision: {precision} ({speeds})", slow(profile, root), machine.unused_gpu())
    return "\n".join(filter(None, lines))


def slow(profile: Profile, root: Path) -> str:
    """A warning where the profile names the precision that is much the slower; "" elsewhere."""
    precision = profile.optimiser.precision
    if precision == "auto" or (speeds := measured(profile, root)) is None:
        return ""
    ratio = speeds.bf16 / speeds.fp32
    times = ratio if precision == "fp32" else 1 / ratio
    warning = (
        f"optimiser.precision={precision} is {times:.0f} times as slow here as the other "
        "precision; `auto` takes the faster"
    )
    return warning if times > WARNED_FROM else ""


def record(profile: Profile, root: Path) -> dict[str, str | float]:
    """What `run.json` keeps of it: the precision, and what was measured where."""
    taken = resolved(profile, root).optimiser.precision
    chosen: dict[str, str | float] = {"asked": profile.optimiser.precision, "taken": taken}
    if speeds := measured(profile, root):
        chosen["device"] = speeds.name
        chosen["fp32_gflops"] = round(speeds.fp32, 1)
        chosen["bf16_gflops"] = round(speeds.bf16, 1)
    return chosen
