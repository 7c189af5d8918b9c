"""Milliseconds to embed a text for the order tau, against sentence-transformers in fp32.

The texts are the embedded world's: groups of 12, a response and 11 others of its category. The
notes say how alike the two order each group: Kendall's tau-b, similarities that differ by less than
1e-5 tied.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict

import numpy as np
import torch
from scipy.stats import kendalltau

from benchmarks.measurements import Line, synchronise
from cpo.ranking import embed_texts, embedder_name, minilm, rank_candidates
from cpo_suite.world import build_world

GROUPS, K, REPEATS = 40, 12, 3
TARGET = 3.0


def groups() -> list[list[str]]:
    """`GROUPS` of `K` responses of one category, the ground truth first."""
    draw, by_category = random.Random(0), defaultdict(list)
    pairs = [pair for pair in build_world(0).pairs if pair.split == "train"]
    for pair in pairs:
        by_category[pair.category].append(pair.response)
    return [
        [pair.response, *draw.sample(by_category[pair.category], K - 1)]
        for pair in draw.sample(pairs, GROUPS)
    ]


def taus(ours: torch.Tensor, theirs: torch.Tensor) -> np.ndarray:
    """Kendall's tau-b of each group of embeddings `[G, K, D]`, column 0 left out."""
    mask = torch.ones(ours.shape[:2], dtype=torch.bool)
    similarities = (
        rank_candidates(embeddings, mask)[1][:, 1:].mul(1e5).round().numpy()
        for embeddings in (ours, theirs)
    )
    return np.array([kendalltau(*pair).statistic for pair in zip(*similarities, strict=True)])


def run() -> list[Line]:
    """Measure `REPEATS` times in turn."""
    texts = [text for group in groups() for text in group]
    encoders = {name: minilm("fp32", name) for name in (embedder_name(), "minilm")}
    found, times = {}, {name: [] for name in encoders}
    for repeat in range(REPEATS + 1):
        for name, encoder in encoders.items():
            synchronise()
            began = time.perf_counter()
            found[name] = embed_texts(texts, encoder).view(GROUPS, K, -1)
            synchronise()
            if repeat:  # the first warms up
                times[name].append(1000 * (time.perf_counter() - began) / len(set(texts)))
    agreement = taus(found[embedder_name()], found["minilm"])
    line = Line(
        "embedding", f"{len(set(texts))} texts, {embedder_name()}",
        "sentence-transformers", "ms / text",
        times[embedder_name()], times["minilm"], target=TARGET,
        notes={"tau": float(np.nanmean(agreement)), "least_tau": float(np.nanmin(agreement))},
    )  # fmt: skip
    print(line, f"tau {line.notes['tau']:.4f}", flush=True)
    return [line]
