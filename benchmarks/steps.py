"""Seconds per training step: CPO with K = 12 against TRL's DPO, plain repetition, and MLE.

All run in transformers' trainer, with AdamW, clipping and a log line per step. TRL gets the 11
pairs (chosen, rejected) equivalent to one group of 12. "matched" precomputes reference values and
turns gradient checkpointing off, like ours; "by default" is TRL's default configuration.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, TrainerCallback, TrainingArguments

from benchmarks.measurements import Line, device, synchronise
from benchmarks.shapes import (
    LARGE_VOCABULARY,
    PREFIX_AND_LENGTH,
    SMALL_VOCABULARY,
    K,
    Shape,
    autocast,
    precision,
    product_dtype,
    random_groups,
)
from cpo.engine.memory import keep_freed_memory
from cpo.scoring import Group, GroupScorer, collate_groups
from cpo.training import SequenceTrainer, TrainingExample, TrainingSettings

# Steps, including one of warm-up; fewer for many cases and for slow peers, so that everything is
# measured within a quarter of an hour.
STEPS, FEWER_STEPS, FEWEST_STEPS = 4, 3, 2
GROWN = 64  # tokens of prefix and of continuation as K or the model grows
TARGETS = {  # at P = L = 128 and P = 512, L = 64
    "TRL, matched": {(128, 128): 3.2, (512, 64): 9.0},
    "TRL, by default": {(128, 128): 5.0, (512, 64): 13.0},
    "plain repetition": {(128, 128): 2.0, (512, 64): 6.0},
}
MLE_TARGET = 1 / 1.15


class _Clock(TrainerCallback):
    """Seconds between log lines: a whole step with data, optimizer and logging."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        synchronise()
        if "loss" in logs:  # of a step, not the summary of the training
            self.times.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in pairwise(self.times)]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Discard the log lines and progress bars that both sides produce."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _arguments(folder: str, batch: int, steps: int, **more: Any) -> dict[str, Any]:
    """Training arguments common to both sides."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": device().type == "cpu",
        "dataloader_pin_memory": False,
        **more,
    }


class PlainRepetition(nn.Module):
    """The naive scorer: the prefix repeated for each continuation, all logits at once.

    Same inputs and output `[B, K]` as `GroupScorer`, for tokens without padding.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        prefix_ids: Tensor,
        prefix_mask: Tensor,
        continuation_ids: Tensor,
        continuation_mask: Tensor,
    ) -> Tensor:
        k, length = continuation_ids.shape[1:]
        ids = torch.cat(
            [prefix_ids.repeat_interleave(k, 0), continuation_ids.flatten(0, 1)], dim=-1
        )
        with autocast():
            logits = self.model(input_ids=ids, use_cache=False).logits
        logps = logits[:, -length - 1 : -1].float().log_softmax(-1)
        own = logps.gather(-1, ids[:, -length:, None])[..., 0].sum(-1)
        return own.unflatten(0, (-1, k))


def seconds_of(
    scorer: Any, groups: Sequence[Group], objective: str, micro_batch: int = 0, steps: int = STEPS
) -> list[float]:
    """Seconds of each step of CPO or MLE on all groups, in micro-batches of `micro_batch`."""
    count = len(groups)
    micro_batch = micro_batch or count
    reference_logps: list[list[float]] = [[] for _ in groups]
    if objective != "mle":
        reference_logps = []
        for start in range(0, count, micro_batch):
            part = collate_groups(groups[start : start + micro_batch], device())
            with torch.inference_mode():
                logps = scorer(**part)
            reference_logps += logps.tolist()
    examples = [
        TrainingExample(group, (True,) * len(group.continuations), logps)
        for group, logps in zip(groups, reference_logps, strict=True)
    ]
    settings = TrainingSettings(
        objective, steps, count, 1e-6, beta=5.0, precision=precision(), micro_batch=micro_batch
    )
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder, _quietly():
        SequenceTrainer(
            scorer,
            examples * steps,
            settings,
            args=TrainingArguments(
                **_arguments(folder, micro_batch, steps, remove_unused_columns=False),
                gradient_accumulation_steps=count // micro_batch,
                train_sampling_strategy="sequential",
            ),
            callbacks=[clock],
        ).train()
    return clock.seconds


def trl_seconds(shape: Shape, groups: Sequence[Group], matched: bool) -> list[float]:
    """Seconds of each step of TRL's DPO on all pairs, K - 1 for each group."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def text(ids: Sequence[int]) -> str:
        return "".join(f" w{token}" for token in ids)

    pairs = [
        {
            "prompt": text(group.prefix_ids),
            "chosen": text(group.continuations[0][:-1]),
            "rejected": text(negative[:-1]),
        }
        for group in groups
        for negative in group.continuations[1:]
    ]
    clock = _Clock()
    steps = FEWER_STEPS if matched and shape == SMALL_VOCABULARY else FEWEST_STEPS
    with tempfile.TemporaryDirectory() as folder, _quietly():
        options = (
            {
                "precompute_ref_log_probs": True,
                "gradient_checkpointing": False,
                "bf16": precision() == "bf16",
            }
            if matched
            else {}
        )
        model = shape.model()
        trainer = DPOTrainer(
            model=model,
            ref_model=copy.deepcopy(model),
            args=DPOConfig(**_arguments(folder, len(pairs), steps, beta=5.0, **options)),
            train_dataset=Dataset.from_list(pairs),
            processing_class=_words(shape.vocabulary),
            callbacks=[clock],
        )
        lengths = {len(row["prompt_ids"]) for row in trainer.train_dataset}
        assert lengths == {len(groups[0].prefix_ids)}
        trainer.train()
    return clock.seconds


def _words(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of words w1, w2, ..., which fixes the lengths of texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"</s>": 0, **{f"w{i}": i for i in range(1, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")


def matrix_rate() -> float:
    """Operations per second of matrix products: best of ten, of size 4,096 (8,192 on a GPU)."""
    size = 4096 if device().type == "cpu" else 8192
    matrix = torch.randn(size, size, device=device(), dtype=product_dtype())
    best = float("inf")
    for _ in range(10):
        synchronise()
        began = time.perf_counter()
        matrix @ matrix
        synchronise()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def run() -> list[Line]:
    """Measure every shape and pair of lengths against every peer, then growth with K and model."""
    keep_freed_memory()
    rate = matrix_rate()
    lines = []
    for shape in (SMALL_VOCABULARY, LARGE_VOCABULARY):
        for prefix, length in PREFIX_AND_LENGTH:
            # The large vocabulary only where there is a target: TRL's head takes minutes.
            if shape == SMALL_VOCABULARY or (prefix, length) in TARGETS["TRL, matched"]:
                lines += _compare(shape, prefix, length, rate)
                gc.collect()
    return [*lines, *_growth(rate)]


def _compare(shape: Shape, prefix: int, length: int, rate: float) -> list[Line]:
    """Measure a shape and a pair of lengths against every peer."""
    groups = random_groups(shape, prefix, length, count=1)
    ours = seconds_of(GroupScorer(shape.model(), precision()), groups, "cpo")
    operations = shape.shared(prefix, length)
    share = operations / min(ours) / rate
    case = f"CPO step, {shape}, P = {prefix}, L = {length}"

    def line(against: str, seconds: list[float], counted: float) -> Line:
        target = TARGETS[against].get((prefix, length))
        return Line(
            "steps", case, against, "s / step", ours, seconds, bound=counted / operations,
            target=target, notes={"share_of_matrix_rate": share},
        )  # fmt: skip

    whole = prefix + length
    pairs = 2 * (K - 1)
    # On a CPU TRL passes every token through the head, as plain repetition does.
    head = whole if device().type == "cpu" else length
    compared = [
        line(
            "TRL, matched",
            trl_seconds(shape, groups, matched=True),
            shape.repeated(prefix, length, pairs, head),
        ),
        # A third more for the reference's forward pass, another for recomputing the layers.
        line(
            "TRL, by default",
            trl_seconds(shape, groups, matched=False),
            shape.repeated(prefix, length, pairs, head, body_times=5 / 3, head_times=4 / 3),
        ),
        line(
            "plain repetition",
            seconds_of(PlainRepetition(shape.model()), groups, "cpo"),
            shape.repeated(prefix, length, K, whole),
        ),
    ]
    # MLE with as many operations: this many prompts in a step.
    needed = operations / shape.shared(prefix, length, k=1)
    prompts = random_groups(shape, prefix, length, count=round(needed), k=1)
    mle = seconds_of(GroupScorer(shape.model(), precision()), prompts, "mle")
    as_many = [seconds * needed / len(prompts) for seconds in mle]
    compared.append(
        Line(
            "steps",
            case,
            "MLE, as many operations",
            "s / step",
            ours,
            as_many,
            bound=1.0,
            target=MLE_TARGET,
            notes={"operations_over_mle": needed},
        )  # fmt: skip
    )
    for comparison in compared:
        print(comparison, flush=True)
    return compared


def _growth(rate: float) -> list[Line]:
    """Measure growth of a step with K and with the model, against plain repetition."""
    cases = [(SMALL_VOCABULARY, k) for k in (2, 8, 32, 64)]
    cases += [(Shape(8_192, 256, 4), K), (Shape(8_192, 768, 8), K)]
    lines = []
    for shape, k in cases:
        groups = random_groups(shape, GROWN, GROWN, count=1, k=k)
        ours, peer = (
            seconds_of(scorer, groups, "cpo", steps=FEWER_STEPS)
            for scorer in (GroupScorer(shape.model(), precision()), PlainRepetition(shape.model()))
        )
        operations = shape.shared(GROWN, GROWN, k)
        lines.append(
            Line(
                "growth",
                f"K = {k}, {shape}, P = L = {GROWN}",
                "plain repetition",
                "s / step",
                ours,
                peer,
                bound=shape.repeated(GROWN, GROWN, k, head=2 * GROWN) / operations,
                notes={"share_of_matrix_rate": operations / min(ours) / rate},
            )  # fmt: skip
        )
        print(lines[-1], flush=True)
    return lines
