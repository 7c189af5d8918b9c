"""Results of a benchmark: lines, each a ratio to a named peer measured in the same run."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from cpo.engine.machine import processor

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch", "transformers", "trl", "accelerate", "openai", "sentence-transformers",
    "cpo-reference",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A comparison; `ratio` is above 1 if `ours` is better than `peer`.

    `ours` and `peer` are measurements in `unit`. `ratio` is that of their medians; `low` and `high`
    are its extremes over all pairs of measurements. `bound` is the ratio that counted operations
    allow, `target` the one aimed at.
    """

    benchmark: str
    case: str
    against: str
    unit: str
    ours: list[float]
    peer: list[float]
    more_is_better: bool = False
    bound: float | None = None
    target: float | None = None
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self._better(statistics.median(self.ours), statistics.median(self.peer))

    @property
    def low(self) -> float:
        return min(self._better(ours, peer) for ours in self.ours for peer in self.peer)

    @property
    def high(self) -> float:
        return max(self._better(ours, peer) for ours in self.ours for peer in self.peer)

    def _better(self, ours: float, peer: float) -> float:
        return ours / peer if self.more_is_better else peer / ours

    def __str__(self) -> str:
        medians = statistics.median(self.ours), statistics.median(self.peer)
        measured = f"{medians[0]:9.3f} {medians[1]:9.3f} {self.unit:10}"
        bound, target = (
            f"{x:6.2f}" if x is not None else "     -" for x in (self.bound, self.target)
        )
        ratio = f"{self.ratio:6.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.case:44} {self.against:22} {measured} {ratio:22} {bound} {target}"


HEADER = (
    f"{'case':44} {'against':22} {'ours':>9} {'peer':>9} {'unit':10} {'ratio':>6} {'':15} "
    f"{'bound':>6} {'target':>6}"
)


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise() -> None:
    """Wait for the GPU to finish its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, object]:
    """Hardware, versions and date of a measurement."""
    return {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": time.strftime("%Y-%m-%d"),
    }


def write(name: str, lines: Sequence[Line], seconds: float) -> Path:
    """Write the lines and their machine to `benchmarks/results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    rows = [
        {**asdict(line), "ratio": line.ratio, "low": line.low, "high": line.high} for line in lines
    ]
    record = {"machine": machine(), "seconds": round(seconds, 1), "lines": _rounded(rows)}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
