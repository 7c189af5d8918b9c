"""Is it learnt? The objective on held-out prompts, while a training goes on.

A training loss also falls by memorising its examples. Prompts that the policy never saw tell the
two apart: for a contrast at the start, middle and end, for MLE as often as it takes to stop in
time.
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
from cpo.scoring import collate_groups, order_by_length
from cpo.training import TrainingExample, TrainingSettings, collate, reward_means

FILE = "held_out.jsonl"


class _Measured(TrainerCallback):
    """A measurement on held-out examples while a training goes on, written to `held_out.jsonl`.

    Every process scores all examples, so that each part of a sharded model takes part in every
    forward pass, and all decide alike.
    """

    def __init__(
        self, examples: Sequence[TrainingExample], settings: TrainingSettings, output: Path
    ) -> None:
        by_length = order_by_length([example.group for example in examples], len(examples))
        self.examples = [examples[row] for row in by_length]
        self.settings, self.output = settings, output

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        measured = measured_so_far(state)
        lines = [
            json.dumps({"step": step} | measured[step], sort_keys=True) + "\n"
            for step in sorted(measured)
        ]
        if is_main_process():
            write_atomically(self.output / FILE, "".join(lines))

    def add(self, state: Any, step: int, values: dict[str, float]) -> None:
        """Note a measurement in the log, so that a checkpoint holds it."""
        state.log_history.append({"step": step, "held_out": values})

    @torch.no_grad()
    def policy_logps(self, model: Any) -> Tensor:
        """Log-probabilities of the examples' continuations, `[N, K]`, fp32 on the CPU."""
        was_training, device = model.training, next(model.parameters()).device
        model.eval()
        parts: list[Tensor] = []
        for start in range(0, len(self.examples), self.settings.micro_batch):
            part = self.examples[start : start + self.settings.micro_batch]
            inputs = collate_groups([example.group for example in part])
            on_device = {name: value.to(device) for name, value in inputs.items()}
            parts.append(model(**on_device).float().cpu())
        model.train(was_training)
        return torch.cat(parts)


class HeldOutContrast(_Measured):
    """Measures a contrastive objective at the start, the middle and the end of a training.

    One line each, as from `contrast_on`.
    """

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step not in (max(1, state.max_steps // 2), state.max_steps):
            return
        inputs = collate([{"example": example, "batch_tokens": 0} for example in self.examples])
        reference_logps, mask = inputs["reference_logps"], inputs["mask"]
        extras = {name: inputs[name] for name in EXTRA_INPUTS if name in inputs}
        policy_logps = self.policy_logps(model)
        for step, logps in ((0, reference_logps), (state.global_step, policy_logps)):
            measured = contrast_on(logps, reference_logps, mask, self.settings, extras)
            self.add(state, step, measured)


class HeldOutLoss(_Measured):
    """Measures the MLE loss every `every` steps, and ends the training once it has risen.

    One line for each measurement: `loss`, in nats per continuation token.
    """

    def __init__(
        self,
        examples: Sequence[TrainingExample],
        settings: TrainingSettings,
        output: Path,
        every: int,
    ) -> None:
        super().__init__(examples, settings, output)
        self.every = every

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        tokens = sum(len(one.group.continuations[0]) for one in self.examples)
        loss = -float(self.policy_logps(model).double().sum()) / tokens
        before = [values["loss"] for values in measured_so_far(state).values()]
        self.add(state, state.global_step, {"loss": loss})
        if before and loss > min(before):
            control.should_training_stop = True


def measured_so_far(state: Any) -> dict[int, dict[str, float]]:
    """The measurements in a trainer's log, by step."""
    return {line["step"]: line["held_out"] for line in state.log_history if "held_out" in line}


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
