"""Tokens per second in sampling 11 AN for each prompt, against transformers' own `generate`.

The model is random but ends its text after about 50 tokens on average, the length of a Dolly
response; in `generate`, finished sequences wait for the longest of the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.measurements import Line, device, synchronise
from benchmarks.shapes import (
    LARGE_VOCABULARY,
    SMALL_VOCABULARY,
    Shape,
    autocast,
    precision,
    random_groups,
)
from cpo.engine.memory import keep_freed_memory
from cpo.generation import generate, up_to_eos
from cpo.negatives import AUTOREGRESSIVE_TOP_K

PROMPTS, PREFIX, NEGATIVES, LONGEST, REPEATS = 2, 128, 11, 128, 2
TARGET = 1.5


def _ending_model(shape: Shape) -> Any:
    """A model that draws EOS about once in fifty tokens."""
    model = shape.model().eval()
    head = nn.Linear(shape.width, shape.vocabulary).to(device())
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        # As probable as any of the top 50 entries, whose logits hardly differ.
        typical = model(torch.randint(1, shape.vocabulary, (4, 64), device=device())).logits
        head.weight[0] = 0
        head.bias[0] = typical.topk(AUTOREGRESSIVE_TOP_K).values.mean()
    model.lm_head = head
    return model


def run() -> list[Line]:
    """Measure both vocabularies."""
    keep_freed_memory()
    return [_compare(shape) for shape in (SMALL_VOCABULARY, LARGE_VOCABULARY)]


def _compare(shape: Shape) -> Line:
    model = _ending_model(shape)
    prefixes = [group.prefix_ids for group in random_groups(shape, PREFIX, 2, PROMPTS, k=1)]

    def ours() -> int:
        groups = generate(
            model, prefixes, eos_token_id=0, max_new_tokens=LONGEST, per_prefix=NEGATIVES,
            batch=PROMPTS * NEGATIVES, precision=precision(), do_sample=True,
            top_k=AUTOREGRESSIVE_TOP_K, temperature=1.0,
        )  # fmt: skip
        return sum(len(ids) for group in groups for ids in group)

    def peer() -> int:
        ids = torch.tensor(prefixes, device=device())
        with torch.inference_mode(), autocast():
            sequences = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True,
                top_k=AUTOREGRESSIVE_TOP_K, temperature=1.0, max_new_tokens=LONGEST,
                num_return_sequences=NEGATIVES, eos_token_id=0, pad_token_id=0,
            )  # fmt: skip
        return sum(len(up_to_eos(row, 0)) for row in sequences[:, PREFIX:].tolist())

    speeds: dict[Callable[[], int], list[float]] = {ours: [], peer: []}
    for _ in range(REPEATS):
        for function, measured in speeds.items():
            synchronise()
            began = time.perf_counter()
            tokens = function()
            synchronise()
            measured.append(tokens / (time.perf_counter() - began))
    line = Line(
        "sampling", f"{NEGATIVES} AN of {PROMPTS} prompts, {shape}, P = {PREFIX}",
        "generate(num_return_...)", "tokens / s", speeds[ours], speeds[peer],
        more_is_better=True, target=TARGET,
    )  # fmt: skip
    print(line, flush=True)
    return line
