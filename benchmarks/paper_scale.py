"""`python -m benchmarks.paper_scale`: seconds per step at the paper's scale, hours for every row.

GPT2-XL's and OpenLlama-3B's exact shapes with random weights; batches of 64 by accumulation, K = 12
and 1, P = L = 128, bf16. Measured on a GPU; without one, estimated from counted operations and
marked as such.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from benchmarks.measurements import RESULTS, device, machine
from benchmarks.shapes import Shape, precision, random_groups
from benchmarks.steps import matrix_rate, seconds_of
from cpo.scoring import GroupScorer
from cpo_suite.estimate import SCORING_SPEEDUP
from cpo_suite.profile import Profile, load_profile

BATCH, PREFIX, LENGTH, MICRO_BATCH = 64, 128, 128, 4
# For the estimate: dense bf16 operations per second in an H200's data sheet, and the share of them
# that profiles/paper.yaml assumes.
H200_RATE, SHARE = 989e12, 0.40


@dataclass(frozen=True)
class PaperModel(Shape):
    """A model of the paper; `layer` counts the weights of one layer's matrices."""

    name: str
    layer: int
    config: Any

    @property
    def body(self) -> int:
        return self.layers * self.layer

    def model(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(self.config).to(device())

    def operations(self, k: int) -> float:
        """Operations of a step: a batch of prompts with K continuations each."""
        return BATCH * self.shared(PREFIX, LENGTH, k)


GPT2_XL = PaperModel(
    50_257, 1600, 48, "GPT2-XL", 12 * 1600**2, GPT2Config(n_embd=1600, n_layer=48, n_head=25)
)
OPEN_LLAMA = PaperModel(
    32_000,
    3200,
    26,
    "OpenLlama-3B",
    4 * 3200**2 + 3 * 3200 * 8640,
    LlamaConfig(hidden_size=3200, num_hidden_layers=26, intermediate_size=8640),
)
MODELS = {"gpt2": GPT2_XL, "llama": OPEN_LLAMA}


def measured_seconds(shape: PaperModel, k: int) -> float:
    """Median seconds of a step on this GPU."""
    groups = random_groups(shape, PREFIX, LENGTH, BATCH, k=k)
    scorer = GroupScorer(shape.model(), precision())
    times = seconds_of(scorer, groups, "cpo" if k > 1 else "mle", MICRO_BATCH)
    return sorted(times)[len(times) // 2]


def hours(profile: Profile, seconds: dict[tuple[str, int], float]) -> dict[str, float]:
    """Training hours by row, scaled to its K by operations; rows that share a model count once."""
    hours_by_row, trained = {}, set()
    for row in profile.trained_rows:
        training = replace(row, id="", decoding="", paper=None)
        if row.alpha or training in trained:
            continue
        trained.add(training)
        k = 1 + (sum(profile.negatives[row.negatives].values()) if row.negatives else 0)
        shape = MODELS[row.model]
        near = 12 if k > 1 else 1
        step = seconds[row.model, near] * shape.operations(k) / shape.operations(near)
        if row.objective == "pss":
            step *= 1 + profile.continuation.scheduled_sampling.passes / SCORING_SPEEDUP
        hours_by_row[row.id] = profile.continuation.steps[row.steps] * step / 3600
    return hours_by_row


def main() -> None:
    """Print steps and hours, and write them to `benchmarks/results`."""
    gpu = torch.cuda.is_available()
    rate = matrix_rate() if gpu else H200_RATE
    print(
        f"measured on {torch.cuda.get_device_name()}"
        if gpu
        else f"ESTIMATE, not measured: counted operations at {SHARE:.0%} of an H200's "
        f"{H200_RATE / 1e12:.0f} Tflop/s"
    )
    seconds, steps = {}, []
    for name, shape in MODELS.items():
        for k in (12, 1):
            operations = shape.operations(k)
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            elapsed = measured_seconds(shape, k) if gpu else operations / (SHARE * rate)
            seconds[name, k] = elapsed
            step = {"model": shape.name, "K": k, "seconds": elapsed, "operations": operations}
            step["share_of_matrix_rate"] = operations / elapsed / rate
            if gpu:
                step["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
            steps.append(step)
            print(f"{shape.name:14} K = {k:2}: {elapsed:6.2f} s a step of {BATCH}, "
                  f"{elapsed / 3.6:5.2f} h for 1,000")  # fmt: skip
    of_rows = hours(load_profile("paper"), seconds)
    for row, training_hours in of_rows.items():
        print(f"{row:20} {training_hours:6.2f} h")
    print(f"{'all trainings':20} {sum(of_rows.values()):6.2f} h on one GPU")
    record = {
        "kind": "measured" if gpu else "estimate from counted operations",
        "matrix_rate": rate,
        "machine": machine() if gpu else "one H200, by its data sheet",
        "steps": steps,
        "hours": of_rows,
    }
    text = torch.cuda.get_device_name() if gpu else "h200_estimate"
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '_', text.lower())}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
