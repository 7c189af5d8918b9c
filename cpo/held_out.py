"""Is it learnt? The objective on held-out prompts, at the start, middle and end of a training.

A training loss also falls by memorising its negatives. Negatives of prompts that the policy never
saw tell the two apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from cpo.engine.files import write_atomically
from cpo.engine.processes import is_main_process
from cpo.evaluation.statistics import mean_estimate
from cpo.objectives import EXTRA_INPUTS, objective_with
from cpo.scoring import order_by_length
from cpo.training import TrainingExample, TrainingSettings, collate, reward_means

FILE = "held_out.jsonl"


class HeldOutContrast(TrainerCallback):
    """Measures a training's objective on held-out examples, and writes it to `held_out.jsonl`.

    One line each for the start, the middle and the end, as from `contrast_on`. Every process scores
    all examples, so that each part of a sharded model takes part in every forward pass.
    """

    def __init__(
        self, examples: Sequence[TrainingExample], settings: TrainingSettings, output: Path
    ) -> None:
        by_length = order_by_length([example.group for example in examples], len(examples))
        self.examples = [examples[row] for row in by_length]
        self.settings, self.output = settings, output

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step not in (max(1, state.max_steps // 2), state.max_steps):
            return
        policy_logps, reference_logps, mask, extras = self._scores(model)
        for step, logps in ((0, reference_logps), (state.global_step, policy_logps)):
            measured = contrast_on(logps, reference_logps, mask, self.settings, extras)
            # In the log, so that a checkpoint holds it.
            state.log_history.append({"step": step, "held_out": measured})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        measured = {
            line["step"]: line["held_out"] for line in state.log_history if "held_out" in line
        }
        lines = [
            json.dumps({"step": step} | measured[step], sort_keys=True) + "\n"
            for step in sorted(measured)
        ]
        if is_main_process():
            write_atomically(self.output / FILE, "".join(lines))

    @torch.no_grad()
    def _scores(self, model: Any) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """`policy_logps`, `reference_logps`, `mask` and extra inputs of the examples, `[N, K]`, on
        the CPU."""
        was_training, device = model.training, next(model.parameters()).device
        model.eval()
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(self.examples), self.settings.micro_batch):
            part = self.examples[start : start + self.settings.micro_batch]
            inputs = collate([{"example": example, "batch_tokens": 0} for example in part])
            del inputs["batch_tokens"]
            names = [name for name in ("reference_logps", "mask", *EXTRA_INPUTS) if name in inputs]
            kept = {name: inputs.pop(name) for name in names}
            on_device = {name: value.to(device) for name, value in inputs.items()}
            parts.append({"policy_logps": model(**on_device).float().cpu(), **kept})
        model.train(was_training)
        of_all = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        logps = of_all.pop("policy_logps"), of_all.pop("reference_logps")
        return *logps, of_all.pop("mask"), of_all


def contrast_on(
    policy_logps: Tensor,
    reference_logps: Tensor,
    mask: Tensor,
    settings: TrainingSettings,
    extras: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """The objective over N prompts, and its change from the policy that equals its reference.

    Args:
        policy_logps, reference_logps: `[N, K]`, in the column order of the objective.
        mask: `[N, K]` bool.
        extras: `[N, K]` by name, the inputs that the objective takes besides.

    Returns:
        `contrast_loss`, a mean in nats; `accuracy`, the share of prompts whose ground truth has the
        highest reward; `change` of the loss, with its 95 % interval over prompts, `low` and `high`.
    """
    beta = settings.beta

    def loss(logps: Tensor, row: slice) -> Tensor:
        of_row = {name: value[row] for name, value in (extras or {}).items()}
        objective = objective_with(settings.objective, of_row)
        return objective(logps[row], reference_logps[row], beta, mask[row])

    def losses(logps: Tensor) -> Tensor:
        return torch.stack([loss(logps, slice(row, row + 1)) for row in range(len(logps))])

    at_policy = losses(policy_logps)
    change = at_policy - losses(reference_logps)
    changed = mean_estimate(change.numpy())
    accuracy = reward_means(policy_logps, reference_logps, beta, mask)["accuracy"]
    return {
        "contrast_loss": float(at_policy.mean()),
        "accuracy": float(accuracy),
        "change": changed.value,
        "low": changed.low,
        "high": changed.high,
    }
