"""One row for a prefix and its continuations, against the cache and plain repetition.

Lengths are those of real Dolly pairs (`CPO_DATA`), in tokens of 4.2 characters: a prompt, its
response, and eleven others as negatives. They are heavy-tailed; the other benchmarks here have
equal lengths. With gradient checkpointing the cache is not available. Seconds are of a step without
an optimizer; memory is its peak above weights and gradients, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.measurements import Line, device, synchronise
from benchmarks.memory import HANDED_BACK, _peak, _reset_peak
from benchmarks.shapes import SMALL_VOCABULARY, K, precision
from cpo.engine.forward_pass import checkpoint_layers
from cpo.engine.memory import keep_freed_memory
from cpo.losses import cpo_loss
from cpo.scoring import Group, GroupScorer, collate_groups, order_by_length
from cpo_suite.estimate import CHARACTERS_A_TOKEN

WAYS = ("cached", "packed", "repeated", "packed, checkpointed", "repeated, checkpointed")
PROMPTS, MICRO_BATCH, REPEATS = 16, 2, 3
LONGEST_PREFIX, LONGEST = 256, 192


def dolly_groups(count: int = PROMPTS, seed: int = 0) -> list[Group]:
    """Groups of random tokens with the lengths of Dolly's prompts and responses, by length.

    Raises:
        FileNotFoundError: `CPO_DATA` holds no Dolly.
    """
    path = Path(os.environ.get("CPO_DATA", "data"), "dolly", "databricks-dolly-15k.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    draw = random.Random(seed)

    def ids(text: str, most: int) -> list[int]:
        tokens = min(most, max(2, round(len(text) / CHARACTERS_A_TOKEN)))
        return [draw.randrange(1, SMALL_VOCABULARY.vocabulary) for _ in range(tokens)]

    groups = []
    for pair in draw.sample(pairs, count):
        others = [other["response"] for other in draw.sample(pairs, K - 1)]
        prefix = ids(pair["context"] + pair["instruction"], LONGEST_PREFIX)
        groups.append(Group(prefix, [ids(text, LONGEST) for text in (pair["response"], *others)]))
    return [groups[row] for row in order_by_length(groups, count)]


def scorer_of(way: str) -> GroupScorer:
    """A scorer that shares prefixes in this way, and in no other."""
    model = SMALL_VOCABULARY.model()
    sharing, _, checkpointed = way.partition(", ")
    scorer = GroupScorer(model, precision(), share_prefix=sharing != "repeated")
    left_out = {"cached": "packs", "packed": "shares_prefix"}.get(sharing)
    if left_out:
        scorer.forward_pass = dataclasses.replace(scorer.forward_pass, **{left_out: False})
    if checkpointed:
        checkpoint_layers(model)
        scorer.train()
    return scorer


def step(scorer: GroupScorer, groups: list[Group]) -> None:
    """A CPO step on all groups, micro-batch by micro-batch, up to the gradients."""
    for start in range(0, len(groups), MICRO_BATCH):
        batch = collate_groups(groups[start : start + MICRO_BATCH], device())
        logps = scorer(**batch)
        cpo_loss(logps, logps.detach(), 5.0).backward()
    synchronise()


def megabytes(way: str) -> float:
    """Peak memory of a step in this process, above weights and gradients."""
    scorer, groups = scorer_of(way), dolly_groups()
    step(scorer, [Group([1], [[2, 3]] * K)])  # allocates gradients
    before = _reset_peak()
    step(scorer, groups)
    return (_peak() - before) / 2**20


def seconds() -> dict[str, list[float]]:
    """Seconds of a step, `REPEATS` in turn after one of warm-up."""
    keep_freed_memory()
    groups, times = dolly_groups(), {way: [] for way in WAYS}
    scorers = {way: scorer_of(way) for way in WAYS}
    for repeat in range(REPEATS + 1):
        for way, scorer in scorers.items():
            began = time.perf_counter()
            step(scorer, groups)
            if repeat:
                times[way].append(time.perf_counter() - began)
    return times


def run() -> list[Line]:
    """The row against the cache and repetition, and both against repetition with checkpointing."""
    times = seconds()
    memory = {way: [_in_a_process(way)] for way in WAYS}
    lines = []
    for ours, peer in (
        ("packed", "cached"),
        ("packed", "repeated"),
        ("packed, checkpointed", "repeated, checkpointed"),
    ):
        for unit, measured in (("s", times), ("MB", memory)):
            case = f"CPO step on Dolly's lengths, {ours}"
            lines.append(Line("packing", case, peer, unit, measured[ours], measured[peer]))
            print(lines[-1], flush=True)
    tokens = [
        (len(group.prefix_ids), *map(len, group.continuations)) for group in dolly_groups()
    ]
    lines[0].notes["median_prefix"] = statistics.median(row[0] for row in tokens)
    lines[0].notes["median_continuation"] = statistics.median(n for row in tokens for n in row[1:])
    return lines


def _in_a_process(way: str) -> float:
    command = [sys.executable, "-m", "benchmarks.packing", way]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | HANDED_BACK
    )
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    torch.manual_seed(0)
    print(megabytes(sys.argv[1]))
