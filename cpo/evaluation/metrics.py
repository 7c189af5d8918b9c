"""What texts are measured by without a judge: repetition, overlap of words, length, MAUVE."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch

from cpo.engine.forward_pass import last_hidden_states
from cpo.evaluation.statistics import Estimate, MetricError
from cpo.scoring import padded

Features = npt.NDArray[np.float32]
SAME_DIRECTION = 1e-5  # by which two features of length 1 may differ and be of one text

# --- Texts ----------------------------------------------------------------------------------------


def repeated_ngrams(tokens: Sequence[Hashable], n: int = 4) -> float:
    """Share of a text's n-grams that it has said before: 1 - distinct / total; 0 below n tokens.

    `tokens` are words or token ids.
    """
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def word_f1(response: str, recorded: str) -> float:
    """Overlap of two texts' words, as F1 over their counts, case folded; 0 where either is empty.

    The measure of extractive question answering (Rajpurkar et al. 2016). It needs no model, so it
    is not the embedding that ranks negatives.
    """
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in (response, recorded)]
    common = sum((counts[0] & counts[1]).values())
    return 2 * common / (counts[0].total() + counts[1].total()) if common else 0.0


# --- MAUVE ----------------------------------------------------------------------------------------


@torch.inference_mode()
def last_token_features(
    model: Any, sequences: Sequence[Sequence[int]], batch: int = 32, max_tokens: int | None = None
) -> Features:
    """The last hidden state at each text's last token, `[n, H]`, fp32: what MAUVE compares.

    Args:
        model: a transformers causal language model, left in the mode that it came in.
        sequences: token ids of n texts, in the model's own vocabulary.
        batch: texts per forward pass.
        max_tokens: texts are cut to it. Give both sides the same: MAUVE sees lengths.

    Raises:
        MetricError: no text, or an empty one (MAUVE's own code would drop it without a word).
    """
    texts = [list(text[:max_tokens]) for text in sequences]
    empty = [index for index, text in enumerate(texts) if not text]
    if empty or not texts:
        raise MetricError(
            f"{len(empty)} of {len(texts)} texts have no token (the first: {empty[:3]}). Keep the "
            "prefix or EOS with each text."
        )
    was_training = model.training
    model.eval()
    try:
        features: dict[int, torch.Tensor] = {}
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            # Padded on the right, where a causal model never looks from the last token.
            ids, _ = padded([texts[row] for row in rows])
            hidden = last_hidden_states(model, ids.to(model.device))
            for position, row in enumerate(rows):
                features[row] = hidden[position, len(texts[row]) - 1].float().cpu()
    finally:
        model.train(was_training)
    return torch.stack([features[row] for row in range(len(texts))]).numpy()


def mauve_score(
    reference_features: npt.ArrayLike,
    generated_features: npt.ArrayLike,
    seeds: Sequence[int] = (0, 1, 2),
    halves: int = 100,
    buckets: int | None = None,
) -> Estimate:
    """MAUVE (Pillutla et al. 2021): near 1 for features of one distribution, near 0 for two apart.

    The score moves with the number of texts, of buckets, and the features; compare only scores that
    share all three. All else is as mauve-text has it, the scaling constant c = 5 among it.

    A text has no MAUVE of its own, and drawing texts with replacement would put equal texts into
    one bucket: the interval is from random halves instead. Without replacement, a statistic on half
    of n texts varies around that of all n as the latter varies over samples of n (half-sample
    replication, McCarthy 1969), so it is `value` +- 1.96 standard deviations of the halves' scores,
    which are the `replicates`. Text i of both sides is in a half, or neither is.

    Equal texts are one point, and two equal histograms have a MAUVE of 1. mauve-text alone tells
    copies of a text apart by the rounding of its features where there are more buckets than texts,
    and sorts the curve of equal histograms at random, which gave .75 for 1.

    mauve-text is GPLv3 and imported here alone: nothing else of this project needs it.

    Args:
        reference_features, generated_features: `[n, H]` each, text i of both of one prompt; see
            `last_token_features`.
        seeds: one run of the clustering each; the value is their mean.
        halves: random halves, each scored like the whole but with half as many buckets.
        buckets: clusters; None is mauve-text's choice, n / 10 rounded, at least 2.

    Raises:
        MetricError: mauve-text is missing, or there is nothing to compare: sizes that differ,
            values not finite, features that do not vary, or fewer than two texts per bucket.
    """
    reference = np.asarray(reference_features, dtype=np.float32)
    generated = np.asarray(generated_features, dtype=np.float32)
    n = len(reference)
    clusters = max(2, round(n / 10)) if buckets is None else buckets
    _check_comparable(reference, generated, clusters)
    if not seeds:
        raise MetricError("MAUVE needs at least one seed")
    try:
        import faiss
        from mauve import compute_mauve
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MetricError("MAUVE needs the package mauve-text: pip install mauve-text") from error

    both = _without_rounding(np.concatenate([reference, generated]))

    def run(texts: npt.NDArray[np.int64], buckets: int, seed: int) -> float:
        score = compute_mauve(
            p_features=both[texts],
            q_features=both[n + texts],
            num_buckets=buckets,
            seed=seed,
            verbose=False,
        )
        return 1.0 if np.array_equal(score.p_hist, score.q_hist) else float(score.mauve)

    def mean_score(texts: npt.NDArray[np.int64], buckets: int) -> float:
        return float(np.mean([run(texts, buckets, seed) for seed in seeds]))

    draw = np.random.default_rng(0)  # depends on n alone: the same halves for every model
    # faiss warns of every clustering with fewer than 39 points to a cluster; MAUVE has 20.
    quiet = functools.partial(faiss.Kmeans, min_points_per_centroid=1)
    # So small a clustering is five times as fast in one thread as in two that wait for each other.
    with mock.patch.object(faiss, "Kmeans", quiet), threadpool_limits(1):
        value = mean_score(np.arange(n), clusters)
        replicates = tuple(
            mean_score(draw.permutation(n)[: n // 2], max(2, clusters // 2)) for _ in range(halves)
        )
    margin = 1.96 * float(np.std(replicates, ddof=1)) if halves > 1 else math.nan
    return Estimate(value, max(0.0, value - margin), min(1.0, value + margin), n, replicates)


def _check_comparable(reference: Features, generated: Features, clusters: int) -> None:
    """Refuse what mauve-text would score without a word: see `mauve_score`."""
    shapes = f"{reference.shape} against {generated.shape}"
    if reference.ndim != 2 or reference.shape != generated.shape:
        raise MetricError(f"MAUVE: as many texts a side, in features of one size, not {shapes}")
    n = len(reference)
    if clusters < 2 or n < 2 * clusters:
        raise MetricError(f"{n} texts are too few for {clusters} buckets: 2 or more of two each")
    for name, features in (("reference", reference), ("generated", generated)):
        if not np.isfinite(features).all():
            raise MetricError(f"the {name} features hold values that are not finite")
        if np.ptp(_directions(features), axis=0).max() < SAME_DIRECTION:
            raise MetricError(
                f"the {name} features are all equal: MAUVE calls two such sets alike, whatever "
                "they say. Look for one text many times over."
            )


def _directions(features: Features) -> Features:
    """Features scaled to length 1, as mauve-text does: only directions count."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    norms[norms == 0] = 1
    return features / norms


def _without_rounding(features: Features) -> Features:
    """Features of equal texts made equal: those of two batches differ by rounding."""
    directions = _directions(features)
    # Along any line such rows are neighbours.
    order = np.argsort(directions @ np.random.default_rng(0).normal(size=features.shape[1]))
    steps = np.abs(np.diff(directions[order], axis=0)).max(1)
    starts = np.concatenate([[True], steps >= SAME_DIRECTION])
    equal = np.empty_like(features)
    equal[order] = features[order][np.flatnonzero(starts)][np.cumsum(starts) - 1]
    return equal
