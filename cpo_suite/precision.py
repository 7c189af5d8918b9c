"""The precision of a profile on this machine, and the measurement behind it."""

from __future__ import annotations

from pathlib import Path

from cpo.engine import machine
from cpo.engine.precision import UNKNOWN_WIDTH, Measured, measured_speed
from cpo.engine.processes import least_of_all
from cpo_suite.profile import Profile

WARNED_FROM = 2.0  # slowdown relative to the other precision


def measured_for(profile: Profile, root: Path) -> Measured | None:
    """Speeds of this machine at the width of the profile's widest model.

    None if the profile needs a GPU that this machine lacks: here it is only planned.
    """
    if profile.gpus > 0 and machine.device() == "cpu":
        return None
    width = max(model.shape[0] or UNKNOWN_WIDTH for model in profile.models.values())
    return measured_speed(width, root)


def resolved(profile: Profile, root: Path) -> Profile:
    """The profile with `auto` replaced by the precision that is faster here, and, where it needs
    GPUs, with the memory of the smallest of all processes' GPUs, if that is less than it states.

    Processes launched together must all call it: they must agree on whether to divide a model.
    """
    if profile.gpus:
        sizes = profile.gpu_memory_gb, least_of_all(machine.gpu_memory_gb())
        least = min((size for size in sizes if size is not None), default=None)
        profile = profile.model_copy(update={"gpu_memory_gb": least})
    if profile.optimiser.precision != "auto":
        return profile
    speeds = measured_for(profile, root)
    precision = speeds.faster if speeds else "bf16"
    optimiser = profile.optimiser.model_copy(update={"precision": precision})
    return profile.model_copy(update={"optimiser": optimiser})


def statement(profile: Profile, root: Path) -> str:
    """The precision and the measurement behind it, in a line or two."""
    precision = resolved(profile, root).optimiser.precision
    if (speeds := measured_for(profile, root)) is None:
        return f"precision: {precision}, for GPUs; this machine has none to measure"
    lines = (f"precision: {precision} ({speeds})", slow(profile, root), machine.unused_gpu())
    return "\n".join(filter(None, lines))


def slow(profile: Profile, root: Path) -> str:
    """A warning if the profile names a precision that is much slower here; "" otherwise."""
    precision = profile.optimiser.precision
    if precision == "auto" or (speeds := measured_for(profile, root)) is None:
        return ""
    ratio = speeds.bf16 / speeds.fp32
    times = ratio if precision == "fp32" else 1 / ratio
    warning = (
        f"optimiser.precision={precision} is {times:.0f} times as slow here as the other "
        "precision; `auto` takes the faster one"
    )
    return warning if times > WARNED_FROM else ""


def record(profile: Profile, root: Path) -> dict[str, str | float]:
    """The entry of `run.json`: the precision, and the measurement."""
    taken = resolved(profile, root).optimiser.precision
    chosen: dict[str, str | float] = {"asked": profile.optimiser.precision, "taken": taken}
    if speeds := measured_for(profile, root):
        chosen["device"] = speeds.name
        chosen["fp32_gflops"] = round(speeds.fp32, 1)
        chosen["bf16_gflops"] = round(speeds.bf16, 1)
    return chosen
