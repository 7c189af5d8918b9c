"""One `transformers.Trainer` subclass for MLE, CPO and their relatives, on a fixed batch plan.

Every objective sees the same thing: groups of K continuations scored to `[B, K]` by one module. MLE
is a group of one. The trainer reads the plan in order; checkpoints, exact resume and mixed
precision are transformers' own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from cpo import losses
from cpo.engine import machine
from cpo.engine.files import checksums_of, damaged_file, write_atomically
from cpo.engine.processes import (
    from_main_process,
    is_main_process,
    process_count,
    wait_for_everyone,
)
from cpo.engine.progress import progress_bar
from cpo.models.folders import ModelFolderError, load_model
from cpo.own_code import check_name, identity
from cpo.scheduled_sampling import ScheduledSamplingScorer
from cpo.scoring import Group, GroupScorer, collate_groups, order_by_length

Objective = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]

# Objectives that compare nothing: a mean over the tokens of the ground truth.
NEXT_TOKEN_OBJECTIVES = ("mle", "pss")

# Objectives that compare continuations: (policy_logps, reference_logps, beta, mask) -> mean loss.
# MLE and PSS compare nothing and stand apart in `SequenceTrainer.compute_loss`.
OBJECTIVES: dict[str, Objective] = {
    "cpo": losses.cpo_loss,
    "ranked_cpo": losses.ranked_cpo_loss,
    "dpo": losses.dpo_loss,
    "ranking_nce": lambda policy, reference, beta, mask: losses.ranking_nce_loss(
        policy, beta, mask
    ),
}

# Of them those to which the order of the columns, best first, means something.
RANKED_OBJECTIVES = {"ranked_cpo"}

# |first loss - loss of the reference itself|: beyond this, policy and reference were scored
# differently.
FIRST_LOSS_BOUND = {"fp32": 1e-4, "bf16": 0.1}

# |beta x log-ratio| of a mean over a batch: at the paper's beta of 5 a policy that gives a response
# e ** 2,000 times the reference's probability has left it for good.
EXPLODED_REWARD = 1e4

CHECKSUMS = "sha256.json"

# Told of every step of every training in this process: what is trained, how many steps it has, and
# its log so far, a dict a step; such as what draws curves in a notebook.
Watcher = Callable[[str, int, Sequence[Mapping[str, float]]], None]
WATCHERS: list[Watcher] = []


def register_objective(name: str, ranked: bool = False) -> Callable[[Objective], Objective]:
    """Make a loss known by name, as `@register_objective("hinge")`; a row then trains with it.

    The loss takes `(policy_logps, reference_logps, beta, mask)` as `losses.cpo_loss` does, and
    returns a scalar, the mean over the rows that it is given. A name of your own may be registered
    again, and stands for the new function then.

    Args:
        ranked: give it the columns in the order of the ranking, best first, and not as drawn.

    Raises:
        OwnCodeError: the name is one of the project's.
    """
    check_name(name, OBJECTIVES | dict.fromkeys(NEXT_TOKEN_OBJECTIVES, losses.cpo_loss), "loss")

    def add(objective: Objective) -> Objective:
        OBJECTIVES[name] = objective
        (RANKED_OBJECTIVES.add if ranked else RANKED_OBJECTIVES.discard)(name)
        return objective

    return add


def objective_identity(name: str) -> str:
    """What names an objective in a recipe: its name, with the hash of its source if it is yours.

    Raises:
        KeyError: no objective is registered by this name.
        OwnCodeError: as `own_code.identity`.
    """
    if name in NEXT_TOKEN_OBJECTIVES:
        return name
    if name not in OBJECTIVES:
        known = ", ".join((*NEXT_TOKEN_OBJECTIVES, *OBJECTIVES))
        raise KeyError(f"no objective '{name}'; known: {known}")
    named = identity(name, OBJECTIVES[name])
    # Which order of the columns it sees is said beside the function, not in it.
    return f"{named}:ranked" if named != name and name in RANKED_OBJECTIVES else named


class TrainingError(RuntimeError):
    """A training that must not go on; the message says what was seen and what to look at."""


@dataclass(frozen=True)
class TrainingExample:
    """One planned row: a prefix, its K continuations (best first for the ranked objective), and
    their reference log-probabilities. For MLE, K = 1 and there is no reference."""

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


class PlannedExamples(Dataset[dict[str, Any]]):
    """The planned rows, `steps x batch` of them, in order of length within each global batch.

    The number of continuation tokens of the whole global batch travels with each row, so that a
    mean over the tokens of the global batch needs no exchange between micro-batches or processes.
    """

    def __init__(self, examples: Sequence[TrainingExample], batch: int) -> None:
        if len(examples) % batch:
            raise ValueError(f"{len(examples)} planned rows are not whole batches of {batch}")
        self.examples = examples
        self.batch = batch
        self.order = order_by_length([example.group for example in examples], batch)
        tokens = [len(example.group.continuations[0]) for example in examples]
        self.batch_tokens = [
            sum(tokens[start : start + batch]) for start in range(0, len(examples), batch)
        ]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "example": self.examples[self.order[index]],
            "batch_tokens": self.batch_tokens[index // self.batch],
        }


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A micro-batch: the tensors of `collate_groups`, `reference_logps` and `mask` `[B, K]`."""
    examples: list[TrainingExample] = [row["example"] for row in rows]
    batch: dict[str, Any] = collate_groups([example.group for example in examples])
    if examples[0].reference_logps:
        batch["reference_logps"] = torch.tensor([list(one.reference_logps) for one in examples])
    batch["mask"] = torch.tensor([list(example.mask) for example in examples])
    batch["batch_tokens"] = rows[0]["batch_tokens"]
    return batch


class SequenceTrainer(Trainer):
    """Trains a `GroupScorer` on planned examples with one of the objectives."""

    # compute_loss already divides by the whole global batch; micro-batches are added, not averaged.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        scorer: GroupScorer,
        examples: PlannedExamples,
        settings: TrainingSettings,
        args: TrainingArguments,
        **kwargs: Any,
    ) -> None:
        self.settings = settings
        self.sums: dict[str, Tensor] = {}
        self.step_began = 0.0
        super().__init__(
            model=scorer, args=args, train_dataset=examples, data_collator=collate, **kwargs
        )
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
        mle_loss = -policy_logps[:, 0].sum() / batch_tokens
        if self.settings.objective in NEXT_TOKEN_OBJECTIVES:
            loss = mle_loss
        else:
            objective = OBJECTIVES[self.settings.objective]
            beta = self.settings.beta
            share = len(policy_logps) / self.settings.batch
            loss = objective(policy_logps, reference_logps, beta, mask)
            if loss.dim():
                raise TrainingError(
                    f"the objective '{self.settings.objective}' returned a tensor of shape "
                    f"{tuple(loss.shape)}: the mean over its rows is wanted, a scalar"
                )
            loss = loss * share
            with torch.no_grad():
                self._count(policy_logps.detach(), reference_logps, mask, share)
                expected = objective(reference_logps, reference_logps, beta, mask) * share
                self._add("loss_at_reference", expected)
                self._add("contrastive_loss", loss.detach())
            if self.settings.mle_weight:
                loss = loss + self.settings.mle_weight * mle_loss
        self._add("loss", loss.detach())
        return loss * self.accelerator.num_processes

    def _count(
        self, policy_logps: Tensor, reference_logps: Tensor, mask: Tensor, share: float
    ) -> None:
        """Rewards, margins, accuracy and log-probabilities, means over the global batch's
        examples."""
        rewards = losses.implicit_rewards(policy_logps, reference_logps, self.settings.beta)
        negatives = mask[:, 1:]
        count = negatives.sum(-1).clamp(min=1)
        rejected = rewards[:, 1:].masked_fill(~negatives, 0.0).sum(-1) / count
        rejected_logps = policy_logps[:, 1:].masked_fill(~negatives, 0.0).sum(-1) / count
        best = rewards[:, 1:].masked_fill(~negatives, -math.inf).amax(-1)
        for name, values in {
            "reward_chosen": rewards[:, 0],
            "reward_rejected": rejected,
            "margin": rewards[:, 0] - rejected,
            "accuracy": (rewards[:, 0] > best).float(),
            "logps_chosen": policy_logps[:, 0],
            "logps_rejected": rejected_logps,
        }.items():
            self._add(name, values.mean() * share)

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Transformers' log line with the means of the step in it, and its seconds; refuses a
        broken step."""
        if self.sums and "loss" in logs:
            step = {
                name: float(self.accelerator.reduce(value, "sum"))
                for name, value in self.sums.items()
            }
            self.sums.clear()
            self._check(step)
            logs = {**logs, **step, "seconds": time.monotonic() - self.step_began}
        super().log(logs, start_time)

    def _check(self, step: dict[str, float]) -> None:
        number = self.state.global_step
        rewards = [abs(step.get(f"reward_{one}", 0.0)) for one in ("chosen", "rejected")]
        if not math.isfinite(step["loss"]) or not max(rewards) <= EXPLODED_REWARD:
            raise TrainingError(
                f"{self.settings.description}: the loss is {step['loss']} at step {number}, with "
                f"rewards of up to {max(rewards):.3g}. The step's examples are in "
                f"{self._save_batch(number)}: look at them, or lower the learning rate or beta."
            )
        if number == 1 and "loss_at_reference" in step:
            gap = abs(step["contrastive_loss"] - step["loss_at_reference"])
            bound = FIRST_LOSS_BOUND[self.settings.precision]
            if gap > bound and self.settings.objective != "ranking_nce":
                raise TrainingError(
                    f"{self.settings.description}: the first loss is "
                    f"{step['contrastive_loss']:.4f}, but a policy that equals its reference has "
                    f"{step['loss_at_reference']:.4f} "
                    f"(ln K, or ln K! when ranked, if nothing is masked). Their distance {gap:.2g} "
                    f"is above {bound:g}: policy and reference were not scored alike. Look for "
                    "dropout or other randomness left on, and for reference values of another "
                    "model, text or precision."
                )

    def _save_batch(self, number: int) -> Path:
        """The global batch of a step as JSON lines beside the checkpoints, for a person to see."""
        planned: Any = self.train_dataset
        size = self.settings.batch
        path = Path(str(self.args.output_dir)) / f"batch-{number}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = planned.examples[(number - 1) * size : number * size]
        lines = [json.dumps(dataclasses.asdict(one)) + "\n" for one in rows]
        if is_main_process():
            path.write_text("".join(lines), encoding="utf-8")
        return path

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        planned: Any = self.train_dataset
        return SequentialSampler(planned)  # the plan is the order

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        # The inner model's own format: a from_pretrained folder, tied weights stored once.
        if state_dict is not None:  # gathered from processes that share the model out
            state_dict = {name.removeprefix("model."): one for name, one in state_dict.items()}
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


class _Progress(TrainerCallback):
    """A sparse progress bar, and a checkpoint every so many minutes."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings
        self.saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = progress_bar(state.max_steps, self.settings.description)
        self.bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(1)
        minutes = (time.monotonic() - self.saved) / 60
        due = minutes >= self.settings.checkpoint_minutes
        # By one clock: all processes save together or none does.
        if state.global_step < state.max_steps and from_main_process(lambda: due):
            control.should_save = True
            self.saved = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for watcher in list(WATCHERS) if is_main_process() else []:
            try:
                watcher(self.settings.description, state.max_steps, state.log_history)
            except Exception as error:  # a picture is not worth a training
                WATCHERS.remove(watcher)
                warnings.warn(f"not watched any further: {error!r}", stacklevel=2)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint with checksums; only then the one before it goes."""
        wait_for_everyone()  # each process writes the state of its random numbers
        if not is_main_process():
            return
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_atomically(newest / CHECKSUMS, json.dumps(checksums_of(newest)))
        for older in Path(args.output_dir).glob("checkpoint-*"):
            if older != newest:
                shutil.rmtree(older)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def train(
    model: Any,
    examples: Sequence[TrainingExample],
    settings: TrainingSettings,
    output: Path,
    partial: Path,
) -> list[dict[str, float]]:
    """Train `model` in place on `steps x batch` planned examples and save it under `output`.

    `output` becomes a `from_pretrained` folder with `history.jsonl`, one line a step. Unfinished
    work is kept under `partial` and taken up from there, to the same final weights.

    Raises:
        ValueError: the number of examples is not `steps x batch`, or the objective is unknown.
        TrainingError: the loss is not finite or no scalar, a reward has exploded, or the first loss
            is not its value for policy = reference.
    """
    known = (*NEXT_TOKEN_OBJECTIVES, *OBJECTIVES)
    if settings.objective not in known:
        raise ValueError(f"unknown objective '{settings.objective}'; known: {', '.join(known)}")
    if len(examples) != settings.steps * settings.batch:
        raise ValueError(
            f"the plan is {settings.steps} steps of {settings.batch}, "
            f"there are {len(examples)} examples"
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
        PlannedExamples(examples, settings.batch),
        settings,
        args=_training_arguments(settings, partial),
        callbacks=[_Progress(settings)],
    )
    # Our one bar replaces the two that transformers draws.
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in (
            "ProgressCallback",
            "NotebookProgressCallback",
            "PrinterCallback",
        ):
            trainer.remove_callback(callback)
    trainer.train(resume_from_checkpoint=from_main_process(lambda: _last_good_checkpoint(partial)))
    trainer.save_model(str(output))
    history = [line for line in trainer.state.log_history if "loss" in line]
    if is_main_process():
        with open(output / "history.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in history)
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
    return max(
        size
        for size in range(1, share + 1)
        if share % size == 0 and (size == 1 or size * longest <= tokens)
    )


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


def _last_good_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that agrees with its checksums, which are written last."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in reversed(found):
        try:
            checksums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            damage = "was not written to its end"
        else:
            damage = damaged_file(path, checksums)
        if not damage:
            return str(path)
        print(f"{path.name} is not used: {damage}", flush=True)
        shutil.rmtree(path)
    return None
