"""One `transformers.Trainer` subclass for MLE, CPO and their relatives, on a fixed schedule.

Every objective sees the same thing: groups of K continuations scored to `[B, K]` by one module. MLE
is a group of one. The trainer reads the schedule in order; checkpoints, exact resume and mixed
precision are transformers' own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from cpo import losses
from cpo.engine import machine
from cpo.engine.callbacks import Progress, TimedCheckpoints, Watcher, last_good_checkpoint
from cpo.engine.processes import from_main_process, is_main_process, process_count
from cpo.models.folders import ModelFolderError, load_model
from cpo.registry import Registry
from cpo.scheduled_sampling import ScheduledSamplingScorer
from cpo.scoring import Group, GroupScorer, collate_groups, order_by_length

# A loss that compares continuations: (policy_logps, reference_logps, beta, mask) -> scalar mean.
Objective = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]

# Objectives that compare nothing: a mean over the tokens of the ground truth.
NEXT_TOKEN_OBJECTIVES = ("mle", "pss")

OBJECTIVES: Registry[Objective] = Registry(
    "objective",
    {
        "cpo": losses.cpo_loss,
        "ranked_cpo": losses.ranked_cpo_loss,
        "dpo": losses.dpo_loss,
        "ranking_nce": lambda policy, _, beta, mask: losses.ranking_nce_loss(policy, beta, mask),
    },
    reserved=NEXT_TOKEN_OBJECTIVES,
)

# Of them those to which the order of the columns, best first, means something.
RANKED_OBJECTIVES = {"ranked_cpo"}

# |first loss - loss of the reference itself|: beyond this, policy and reference were scored
# differently.
FIRST_LOSS_BOUND = {"fp32": 1e-4, "bf16": 0.1}

# |beta x log-ratio| of a mean over a batch: at the paper's beta of 5 a policy that gives a response
# e ** 2,000 times the reference's probability has left it for good.
EXPLODED_REWARD = 1e4

# Told of every step of every training in this process, such as what draws curves in a notebook.
WATCHERS: list[Watcher] = []


def register_objective(name: str, ranked: bool = False) -> Callable[[Objective], Objective]:
    """Make a loss known by name, as `@register_objective("hinge")`; a row then trains with it.

    The loss takes `(policy_logps, reference_logps, beta, mask)` as `losses.cpo_loss` does, and
    returns a scalar, the mean over the rows that it is given.

    Args:
        ranked: give it the columns in the order of the ranking, best first, and not as drawn.

    Raises:
        RegistryError: the name is one of the project's.
    """
    register = OBJECTIVES.register(name)

    def add(objective: Objective) -> Objective:
        (RANKED_OBJECTIVES.add if ranked else RANKED_OBJECTIVES.discard)(name)
        return register(objective)

    return add


def objective_identity(name: str) -> str:
    """What names an objective in a recipe: its name, with the hash of its source if it is yours.

    Raises:
        RegistryError: no objective is registered by this name, or as `registry.identity`.
    """
    named = OBJECTIVES.identity(name)
    # Which order of the columns it sees is said beside the function, not in it.
    return f"{named}:ranked" if named != name and name in RANKED_OBJECTIVES else named


class TrainingError(RuntimeError):
    """A training that must not go on; the message says what was seen and what to look at."""


@dataclass(frozen=True)
class TrainingExample:
    """A row of the schedule: a prefix, its K continuations (best first for the ranked objective),
    and their reference log-probabilities. For MLE, K = 1 and there is no reference."""

    group: Group
    mask: Sequence[bool] = (True,)
    reference_logps: Sequence[float] = ()


@dataclass(frozen=True)
class TrainingSettings:
    """What a training needs besides its examples; `batch` is the global batch.

    `micro_batch` examples are scored together, and of a micro-batch that is larger about
    `tokens_at_once` tokens. Neither changes values.
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
    checkpoint_minutes: float = 10.0
    description: str = "training"


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A micro-batch: the tensors of `collate_groups`, `reference_logps` and `mask` `[B, K]`."""
    examples: list[TrainingExample] = [row["example"] for row in rows]
    batch: dict[str, Any] = collate_groups([example.group for example in examples])
    if examples[0].reference_logps:
        batch["reference_logps"] = torch.tensor([list(row.reference_logps) for row in examples])
    batch["mask"] = torch.tensor([list(example.mask) for example in examples])
    batch["batch_tokens"] = rows[0]["batch_tokens"]
    return batch


class SequenceTrainer(Trainer):
    """Trains a `GroupScorer` on `steps x batch` examples with one of the objectives.

    The examples are read in order, those of a global batch by length. The number of ground-truth
    tokens of its whole global batch travels with each, so that a mean over them needs no exchange
    between micro-batches or processes. `args` has to ask for sequential sampling.
    """

    # compute_loss already divides by the whole global batch; micro-batches are added, not averaged.
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
            # Processes exchange gradients where they stand, not in a second copy of all of them.
            self.accelerator.ddp_handler.gradient_as_bucket_view = True

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """The micro-batch's share of the global batch's loss, scalar.

        MLE is a mean over the continuation tokens of the global batch, the others a mean over its
        examples; with an `mle_weight` alpha their sum alpha L_MLE + L (section 4). Shares add up
        over micro-batches; several processes are averaged, hence their number.
        """
        if not self.sums:  # the first micro-batch of a step
            self.step_began = time.monotonic()
        mask, batch_tokens = inputs.pop("mask"), inputs.pop("batch_tokens")
        reference_logps = inputs.pop("reference_logps", None)
        policy_logps: Tensor = model(**inputs)
        loss = -policy_logps[:, 0].sum() / batch_tokens  # L_MLE
        if self.settings.objective not in NEXT_TOKEN_OBJECTIVES:
            contrastive = self._contrastive_loss(policy_logps, reference_logps, mask)
            weight = self.settings.mle_weight
            loss = contrastive + weight * loss if weight else contrastive
        self._add({"loss": loss.detach()})
        return loss * self.accelerator.num_processes

    def _contrastive_loss(
        self, policy_logps: Tensor, reference_logps: Tensor, mask: Tensor
    ) -> Tensor:
        """The micro-batch's share of the objective; adds up what the log says of it."""
        objective, beta = OBJECTIVES[self.settings.objective], self.settings.beta
        loss = objective(policy_logps, reference_logps, beta, mask)
        if loss.dim():
            raise TrainingError(
                f"the objective '{self.settings.objective}' returned a tensor of shape "
                f"{tuple(loss.shape)}: the mean over its rows is wanted, a scalar"
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
        """Transformers' log line with the means of the step in it, and its seconds; refuses a
        broken step."""
        if self.sums and "loss" in logs:
            reduced = {name: self.accelerator.reduce(x, "sum") for name, x in self.sums.items()}
            step = {name: float(value) for name, value in reduced.items()}
            self.sums.clear()
            self._check(step)
            logs = {**logs, **step, "seconds": time.monotonic() - self.step_began}
        super().log(logs, start_time)

    def _check(self, step: dict[str, float]) -> None:
        """Raises `TrainingError` where the numbers of a step say that the training is broken."""
        number, name = self.state.global_step, self.settings.description
        reward = max(abs(step.get(f"reward_{kind}", 0.0)) for kind in ("chosen", "rejected"))
        if not math.isfinite(step["loss"]) or not reward <= EXPLODED_REWARD:
            raise TrainingError(
                f"{name}: the loss is {step['loss']} at step {number}, with rewards of up to "
                f"{reward:.3g}. The step's examples are in {self._save_batch(number)}: look at "
                "them, or lower the learning rate or beta."
            )
        if number > 1 or "loss_at_reference" not in step:
            return
        first, expected = step["contrastive_loss"], step["loss_at_reference"]
        bound = FIRST_LOSS_BOUND[self.settings.precision]
        if abs(first - expected) > bound and self.settings.objective != "ranking_nce":
            raise TrainingError(
                f"{name}: the first loss is {first:.4f}, but a policy that equals its reference "
                f"has {expected:.4f} (ln K, or ln K! when ranked, if nothing is masked). Their "
                f"distance {abs(first - expected):.2g} is above {bound:g}: policy and reference "
                "were not scored alike. Look for dropout or other randomness left on, and for "
                "reference values of another model, text or precision."
            )

    def _save_batch(self, number: int) -> Path:
        """The global batch of a step as JSON lines beside the checkpoints, for a person to see."""
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
        if state_dict is not None:  # gathered from processes that share the model out
            state_dict = {name.removeprefix("model."): state_dict[name] for name in state_dict}
        self._inner().save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        try:
            saved = load_model(Path(resume_from_checkpoint), self._inner().dtype)
            self._inner().load_state_dict(saved.state_dict())
        except (ModelFolderError, RuntimeError) as error:
            raise TrainingError(
                f"{resume_from_checkpoint} does not fit the model; take it away, and the training "
                f"starts anew. {error}"
            ) from error

    def _inner(self) -> Any:
        return self.accelerator.unwrap_model(self.model).model


def reward_means(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, mask: Tensor
) -> dict[str, Tensor]:
    """Rewards, margin, accuracy and log-probabilities of ground truth (chosen) and negatives
    (rejected): scalars, means over the rows of `[B, K]`, column 0 the ground truth."""
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
) -> list[dict[str, float]]:
    """Train `model` in place on `steps x batch` examples and save it under `output`.

    `output` becomes a `from_pretrained` folder with `history.jsonl`, one line a step. Unfinished
    work is kept under `partial` and taken up from there, to the same final weights.

    Returns:
        The history: a dict of numbers a step.

    Raises:
        ValueError: the number of examples is not `steps x batch`, or the objective is unknown.
        TrainingError: the loss is not finite or no scalar, a reward has exploded, or the first loss
            is not its value for policy = reference.
    """
    OBJECTIVES.check(settings.objective)
    steps, batch = settings.steps, settings.batch
    if len(examples) != steps * batch:
        raise ValueError(
            f"the plan is {steps} steps of {batch}, there are {len(examples)} examples"
        )
    scorer = GroupScorer(
        model, settings.precision, settings.fp32_head, tokens_at_once=settings.tokens_at_once
    )
    if settings.objective == "pss":
        scorer = ScheduledSamplingScorer(
            model, settings.precision, settings.sampling_probability, settings.sampling_passes
        )
    trainer = SequenceTrainer(
        scorer,
        examples,
        settings,
        _training_arguments(settings, partial),
        [Progress(settings.description, WATCHERS), TimedCheckpoints(settings.checkpoint_minutes)],
    )
    trainer.train(resume_from_checkpoint=from_main_process(lambda: last_good_checkpoint(partial)))
    trainer.save_model(str(output))
    history = [line for line in trainer.state.log_history if "loss" in line]
    if is_main_process():
        lines = [json.dumps(line) + "\n" for line in history]
        (output / "history.jsonl").write_text("".join(lines), encoding="utf-8")
    return history


def micro_batch(batch: int, longest: int, tokens: int, processes: int = 1) -> int:
    """The largest divisor of a process's share of `batch` that fits in `tokens` if every group has
    `longest`, its prefix and its K continuations together; 1 where none fits.

    Raises:
        ValueError: the batch cannot be shared out evenly.
    """
    if batch % processes:
        raise ValueError(f"a global batch of {batch} cannot be shared out among {processes}")
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
    # On several GPUs one process would wrap the model for all of them, and read so many batches.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
