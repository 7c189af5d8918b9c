"""One `transformers.Trainer` subclass for MLE, CPO and their relatives, on a fixed schedule.

All objectives see groups of K continuations, scored to `[B, K]` by one module; for MLE, K = 1. The
trainer reads the schedule in order; checkpoints, exact resume and mixed precision are
transformers' own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from cpo import losses, objectives
from cpo.engine import machine
from cpo.engine.callbacks import Progress, TimedCheckpoints, Watcher, last_good_checkpoint
from cpo.engine.division import DividableTrainer, divide, has_shards, is_divided
from cpo.engine.processes import from_main_process, is_main_process, process_count
from cpo.models.folders import ModelFolderError, load_model
from cpo.scheduled_sampling import ScheduledSamplingScorer
from cpo.scoring import Group, GroupScorer, collate_groups, longest, order_by_length

# Bound on |first loss - loss at policy = reference|: beyond it, the two were scored differently.
FIRST_LOSS_BOUND = {"fp32": 1e-4, "bf16": 0.1}

# Bound on the batch mean of |beta x log-ratio|: at the paper's beta of 5, a response is then e **
# 2,000 times as probable as under the reference.
EXPLODED_REWARD = 1e4

# Called after every step of every training in this process, for example to draw curves.
WATCHERS: list[Watcher] = []


class TrainingError(RuntimeError):
    """A training that must stop; the message says what happened and what to check."""


@dataclass(frozen=True)
class TrainingExample:
    """A row of the training schedule: a prefix, its K continuations (best first if ranked), their
    reference log-probabilities and scores. For MLE, K = 1 without a reference. Objectives that
    take no scores need none."""

    group: Group
    mask: Sequence[bool] = (True,)
    reference_logps: Sequence[float] = ()
    scores: Sequence[float] = ()


@dataclass(frozen=True)
class TrainingSettings:
    """A training's settings apart from its examples; `batch` is the global batch.

    `micro_batch` examples are scored together, at most about `tokens_at_once` tokens at a time.
    Neither changes values, nor does whether the model is `divided` among the processes. A policy
    that `starts_at_reference` has a first loss known beforehand, which is checked.
    """

    objective: str
    steps: int
    batch: int
    learning_rate: float
    beta: float = 0.0
    mle_weight: float = 0.0
    sampling_probability: float = 0.0
    sampling_passes: int = 0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0
    precision: str = "fp32"
    fp32_head: bool = True
    seed: int = 0
    micro_batch: int = 16
    tokens_at_once: int | None = None
    divided: bool = False
    checkpoint_minutes: float = 10.0
    starts_at_reference: bool = True
    description: str = "training"


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A micro-batch: the tensors of `collate_groups`, and `[B, K]` `mask`, `lengths` and, where
    the examples have them, `reference_logps` and `scores`."""
    examples: list[TrainingExample] = [row["example"] for row in rows]
    batch: dict[str, Any] = collate_groups([example.group for example in examples])
    batch["lengths"] = batch["continuation_mask"].sum(-1)
    for name in ("reference_logps", "scores"):
        if getattr(examples[0], name):
            batch[name] = torch.tensor([list(getattr(example, name)) for example in examples])
    batch["mask"] = torch.tensor([list(example.mask) for example in examples])
    batch["batch_tokens"] = rows[0]["batch_tokens"]
    return batch


class SequenceTrainer(DividableTrainer):
    """Trains a `GroupScorer` on `steps x batch` examples with one of the objectives.

    Examples are read in order, sorted by length within a global batch. Each carries the number of
    ground-truth tokens of its global batch, so that token means need no communication between
    micro-batches or processes. `args` must request sequential sampling.
    """

    # compute_loss already divides by the global batch; micro-batches are added, not averaged.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        scorer: GroupScorer,
        examples: Sequence[TrainingExample],
        settings: TrainingSettings,
        args: TrainingArguments,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.examples, self.settings = examples, settings
        self.sums: dict[str, Tensor] = {}
        self.step_began = 0.0
        tokens = [len(example.group.continuations[0]) for example in examples]
        starts = range(0, len(examples), settings.batch)
        sums = [sum(tokens[start : start + settings.batch]) for start in starts]
        order = order_by_length([example.group for example in examples], settings.batch)
        rows: Any = [
            {"example": examples[row], "batch_tokens": sums[row // settings.batch]} for row in order
        ]
        super().__init__(
            model=scorer,
            args=args,
            train_dataset=rows,
            data_collator=collate,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        if self.accelerator.ddp_handler is not None:
            # Processes exchange gradients in place, not in a second copy.
            self.accelerator.ddp_handler.gradient_as_bucket_view = True

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """The micro-batch's share of the global batch's loss, a scalar.

        MLE averages over the global batch's continuation tokens, the other objectives over its
        examples. With an `mle_weight` alpha, the loss is alpha L_MLE + L (section 4). Shares add up
        over micro-batches; processes are averaged, hence the factor of their number.
        """
        if not self.sums:  # the first micro-batch of a step
            self.step_began = time.monotonic()
        mask, batch_tokens = inputs.pop("mask"), inputs.pop("batch_tokens")
        reference_logps = inputs.pop("reference_logps", None)
        extras = {name: inputs.pop(name) for name in objectives.EXTRA_INPUTS if name in inputs}
        policy_logps: Tensor = model(**inputs)
        loss = -policy_logps[:, 0].sum() / batch_tokens  # L_MLE
        if self.settings.objective not in objectives.NEXT_TOKEN_OBJECTIVES:
            contrastive = self._contrastive_loss(policy_logps, reference_logps, mask, extras)
            weight = self.settings.mle_weight
            loss = contrastive + weight * loss if weight else contrastive
        self._add({"loss": loss.detach()})
        return loss * self.accelerator.num_processes

    def _contrastive_loss(
        self,
        policy_logps: Tensor,
        reference_logps: Tensor,
        mask: Tensor,
        extras: Mapping[str, Tensor],
    ) -> Tensor:
        """The micro-batch's share of the objective; accumulates the logged means."""
        objective = objectives.objective_with(self.settings.objective, extras)
        beta = self.settings.beta
        loss = objective(policy_logps, reference_logps, beta, mask)
        if loss.dim():
            raise TrainingError(
                f"the objective '{self.settings.objective}' returned a tensor of shape "
                f"{tuple(loss.shape)}: it must return a scalar, the mean over its rows"
            )
        share = len(policy_logps) / self.settings.batch
        with torch.no_grad():
            means = reward_means(policy_logps.detach(), reference_logps, beta, mask)
            means["loss_at_reference"] = objective(reference_logps, reference_logps, beta, mask)
            means["contrastive_loss"] = loss.detach()
            self._add({name: mean * share for name, mean in means.items()})
        return loss * share

    def _add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's means and seconds to transformers' log line; raise on a broken step."""
        if self.sums and "loss" in logs:
            reduced = {name: self.accelerator.reduce(x, "sum") for name, x in self.sums.items()}
            step = {name: float(value) for name, value in reduced.items()}
            self.sums.clear()
            self._check(step)
            logs = {**logs, **step, "seconds": time.monotonic() - self.step_began}
        super().log(logs, start_time)

    def _check(self, step: dict[str, float]) -> None:
        """Raise `TrainingError` if a step's numbers show that the training is broken."""
        number, name = self.state.global_step, self.settings.description
        reward = max(abs(step.get(f"reward_{kind}", 0.0)) for kind in ("chosen", "rejected"))
        if not math.isfinite(step["loss"]) or not reward <= EXPLODED_REWARD:
            raise TrainingError(
                f"{name}: the loss is {step['loss']} at step {number}, with rewards of up to "
                f"{reward:.3g}. The step's examples are in {self._save_batch(number)}: inspect "
                "them, or lower the learning rate or beta."
            )
        if number > 1 or "loss_at_reference" not in step or not self.settings.starts_at_reference:
            return
        first, expected = step["contrastive_loss"], step["loss_at_reference"]
        bound = FIRST_LOSS_BOUND[self.settings.precision]
        by_rewards = self.settings.objective in objectives.CHECKED_BY_REWARDS
        difference = reward if by_rewards else abs(first - expected)
        if difference > bound:
            raise TrainingError(
                f"{name}: the first loss is {first:.4f}, but a policy that equals its reference "
                f"has {expected:.4f} (CPO: ln K, or ln K! if ranked, if nothing is masked). The "
                f"difference {difference:.2g} exceeds {bound:g}: policy and reference were scored "
                "differently. Check for remaining dropout or other randomness, and for reference "
                "values of another model, text, precision or division among processes."
            )

    def _save_batch(self, number: int) -> Path:
        """Write a step's global batch as JSON lines beside the checkpoints, for inspection."""
        path = Path(str(self.args.output_dir), f"batch-{number}.jsonl")
        if is_main_process():
            path.parent.mkdir(parents=True, exist_ok=True)
            size = self.settings.batch
            rows = map(dataclasses.asdict, self.examples[(number - 1) * size : number * size])
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        # The inner model's own format: a from_pretrained folder, tied weights stored once.
        if state_dict is not None:
            state_dict = {name.removeprefix("model."): state_dict[name] for name in state_dict}
        self._inner().save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if has_shards(resume_from_checkpoint):
            return  # read with the optimizer's moments, once that exists
        if is_divided(self.model):
            raise TrainingError(
                f"{resume_from_checkpoint} was written by a training that was not divided among "
                "its processes: set processes.divide=never, or remove it, and the training restarts"
            )
        try:
            saved = load_model(Path(resume_from_checkpoint), self._inner().dtype)
            self._inner().load_state_dict(saved.state_dict())
        except (ModelFolderError, RuntimeError) as error:
            raise TrainingError(
                f"{resume_from_checkpoint} does not fit the model; remove it, and the training "
                f"restarts. {error}"
            ) from error

    def _inner(self) -> Any:
        return self.accelerator.unwrap_model(self.model).model


def reward_means(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor
) -> dict[str, Tensor]:
    """Means over the rows of `[B, K]`, column 0 the ground truth: rewards, margin, accuracy and
    log-probabilities of ground truth (chosen) and negatives (rejected), scalars."""
    rewards = losses.implicit_rewards(policy_logps, reference_logps, beta)
    negatives = mask[:, 1:]
    count = negatives.sum(-1).clamp(min=1)
    rejected = rewards[:, 1:].masked_fill(~negatives, 0.0).sum(-1) / count
    rejected_logps = policy_logps[:, 1:].masked_fill(~negatives, 0.0).sum(-1) / count
    best = rewards[:, 1:].masked_fill(~negatives, -math.inf).amax(-1)
    values = {
        "reward_chosen": rewards[:, 0],
        "reward_rejected": rejected,
        "margin": rewards[:, 0] - rejected,
        "accuracy": (rewards[:, 0] > best).float(),
        "logps_chosen": policy_logps[:, 0],
        "logps_rejected": rejected_logps,
    }
    return {name: value.mean() for name, value in values.items()}


def train(
    model: Any,
    examples: Sequence[TrainingExample],
    settings: TrainingSettings,
    output: Path,
    partial: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[dict[str, float]]:
    """Train `model` in place on `steps x batch` examples and save it under `output`.

    `output` becomes a `from_pretrained` folder with `history.jsonl`, one line per step. An
    interrupted training resumes from `partial` and reaches the same final weights. `callbacks` are
    called before those of the project.

    Returns:
        The history: one dict of numbers per step.

    Raises:
        ValueError: the number of examples is not `steps x batch`, or the objective is unknown.
        TrainingError: the loss is not a finite scalar, a reward has exploded, or the first loss
            differs from its value at policy = reference.
    """
    objectives.OBJECTIVES.check(settings.objective)
    steps, batch = settings.steps, settings.batch
    if len(examples) != steps * batch:
        raise ValueError(
            f"the plan is {steps} steps of {batch}, but there are {len(examples)} examples"
        )
    scorer = GroupScorer(
        model, settings.precision, settings.fp32_head, tokens_at_once=settings.tokens_at_once
    )
    if settings.objective == "pss":
        scorer = ScheduledSamplingScorer(
            model, settings.precision, settings.sampling_probability, settings.sampling_passes
        )
    if settings.divided:
        tokens = settings.micro_batch * longest(example.group for example in examples)
        divide(scorer, recompute=tokens > (settings.tokens_at_once or math.inf))
    trainer = SequenceTrainer(
        scorer,
        examples,
        settings,
        _training_arguments(settings, partial),
        [
            *callbacks,
            Progress(settings.description, WATCHERS),
            TimedCheckpoints(settings.checkpoint_minutes),
        ],
    )
    trainer.train(resume_from_checkpoint=from_main_process(lambda: last_good_checkpoint(partial)))
    trainer.save_model(str(output))
    history = [line for line in trainer.state.log_history if "loss" in line]
    if is_main_process():
        lines = [json.dumps(line) + "\n" for line in history]
        (output / "history.jsonl").write_text("".join(lines), encoding="utf-8")
    return history


def micro_batch(batch: int, longest: int, tokens: int, processes: int = 1) -> int:
    """The largest divisor of a process's share of `batch` that fits in `tokens`, if each group
    (prefix and K continuations) has `longest` tokens; at least 1.

    Raises:
        ValueError: the batch cannot be split evenly among the processes.
    """
    if batch % processes:
        raise ValueError(f"a global batch of {batch} cannot be split evenly among {processes}")
    share = batch // processes
    divisors = [size for size in range(1, share + 1) if share % size == 0]
    return max((size for size in divisors if size * longest <= tokens), default=1)


def _training_arguments(settings: TrainingSettings, folder: Path) -> TrainingArguments:
    cuda = machine.device() == "cuda"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.batch // (settings.micro_batch * process_count()),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        max_grad_norm=settings.clip,
        logging_steps=1,
        logging_nan_inf_filter=False,
        train_sampling_strategy="sequential",  # the schedule is the order
        save_strategy="no",
        seed=settings.seed,
        use_cpu=not cuda,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    # On several GPUs, one process would wrap the model for all and read a batch for each.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
