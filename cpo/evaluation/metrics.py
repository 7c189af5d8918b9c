"""Measures of texts without a judge: repetition, diversity, overlap with a recorded text, MAUVE."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch

from cpo.engine.forward_pass import last_hidden_states
from cpo.evaluation.statistics import Estimate, MetricError
from cpo.scoring import padded

Features = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
SAME_DIRECTION = 1e-5  # largest difference between unit features of equal texts
HALVES = 100  # random halves of the texts, for the interval of what no single text has

# --- Texts ----------------------------------------------------------------------------------------


def repeated_ngrams(tokens: Sequence[Hashable], n: int = 4) -> float:
    """Share of repeated n-grams in a text: 1 - distinct / total; 0 for fewer than n tokens.

    This is seq-rep-n of Welleck et al. 2020 (unlikelihood training). `tokens` are words or token
    ids.
    """
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def word_f1(response: str, recorded: str) -> float:
    """F1 of two texts' word counts, ignoring case; 0 if either is empty.

    The measure of extractive question answering (Rajpurkar et al. 2016). Unlike the ranking of
    negatives, it uses no embedding model.
    """
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in (response, recorded)]
    common = sum((counts[0] & counts[1]).values())
    return 2 * common / (counts[0].total() + counts[1].total()) if common else 0.0


def rouge_l(response: str, recorded: str) -> float:
    """ROUGE-L in [0, 1]: F1 of the longest common subsequence of words, ignoring case and endings.

    Of the package rouge-score with Porter's stemmer, as MiniLLM (Gu et al. 2024) reports it on
    Dolly. Its tokenizer drops whatever is no letter a-z or digit: texts in other scripts score 0.

    Raises:
        MetricError: rouge-score is missing.
    """
    return float(_rouge_scorer().score(recorded, response)["rougeL"].fmeasure)


@functools.cache
def _rouge_scorer() -> Any:
    try:
        from nltk.stem.porter import PorterStemmer
        from rouge_score import tokenize
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import Tokenizer
    except ImportError as error:
        remedy = "pip install rouge-score"
        raise MetricError(f"ROUGE-L needs the package rouge-score: {remedy}") from error

    class StemsEachWordOnce(Tokenizer):
        """The package's default tokenizer; stemming anew takes most of its time."""

        stem = staticmethod(functools.cache(PorterStemmer().stem))

        def tokenize(self, text: str) -> Any:
            return tokenize.tokenize(text, self)

    return RougeScorer(["rougeL"], tokenizer=StemsEachWordOnce())


def distinct_ngrams(
    texts: Sequence[Sequence[int]], n: int = 1, share: bool = True, halves: int = HALVES
) -> Estimate:
    """Diversity of a set of texts: the distinct n-grams in all of them together.

    As a share of all n-grams this is distinct-n (Li et al. 2016); their number for n = 1 is `uniq`
    of Welleck et al. 2020. Either depends on how many texts there are, and how long they are:
    compare sets of equal number, and read it beside the lengths.

    The interval is `value` +- 1.96 standard deviations over random halves, as for MAUVE. Half the
    texts have another level of distinct n-grams, so the halves' values are scaled to a mean of
    `value`.

    Args:
        texts: token ids of at least two texts.
        n: length of the n-grams.
        share: the share of all n-grams, or their number.
        halves: number of random halves.

    Raises:
        MetricError: no text has n tokens, or there are fewer than two texts.
    """
    grams = [tuple(text[at : at + n]) for text in texts for at in range(len(text) - n + 1)]
    if not grams or len(texts) < 2:
        raise MetricError(f"{len(texts)} texts with {len(grams)} {n}-grams: at least 2, and 1")
    numbers: dict[tuple[int, ...], int] = {}
    ids = np.array([numbers.setdefault(gram, len(numbers)) for gram in grams])
    owner = np.repeat(np.arange(len(texts)), [max(0, len(text) - n + 1) for text in texts])

    def distinct(rows: Rows) -> float:
        used = ids[np.isin(owner, rows)]
        found = np.count_nonzero(np.bincount(used, minlength=1))
        return found / max(1, len(used)) if share else float(found)

    value = distinct(np.arange(len(texts)))
    drawn = over_halves(distinct, len(texts), halves)
    mean = float(np.mean(drawn)) if drawn else 0.0
    replicates = tuple(one * value / mean for one in drawn) if mean else ()
    return _around_halves(value, len(texts), replicates, 1.0 if share else math.inf)


# --- Random halves --------------------------------------------------------------------------------


def over_halves(statistic: Callable[[Rows], float], n: int, halves: int) -> tuple[float, ...]:
    """A statistic of random halves of n texts, drawn without replacement.

    Args:
        statistic: of the texts with the given numbers, `[n // 2]`.
        n: number of texts; the halves depend on it alone, so that models are paired.
        halves: how many of them.
    """
    draw = np.random.default_rng(0)
    return tuple(statistic(draw.permutation(n)[: n // 2]) for _ in range(halves))


def _around_halves(
    value: float, n: int, replicates: tuple[float, ...], most: float = 1.0
) -> Estimate:
    """An estimate in [0, `most`] with the interval that its values on random halves give."""
    margin = 1.96 * float(np.std(replicates, ddof=1)) if len(replicates) > 1 else math.nan
    return Estimate(value, max(0.0, value - margin), min(most, value + margin), n, replicates)


# --- MAUVE ----------------------------------------------------------------------------------------


@torch.inference_mode()
def last_token_features(
    model: Any, sequences: Sequence[Sequence[int]], batch: int = 32, max_tokens: int | None = None
) -> Features:
    """Features for MAUVE: the last hidden state at each text's last token, `[n, H]`, fp32.

    Args:
        model: a transformers causal language model; training or evaluation mode is restored.
        sequences: token ids of n texts, in the model's vocabulary.
        batch: texts per forward pass.
        max_tokens: texts are truncated to it. Use one value for both sides: MAUVE sees lengths.

    Raises:
        MetricError: no text, or an empty one, which mauve-text would silently drop.
    """
    texts = [list(text[:max_tokens]) for text in sequences]
    empty = [index for index, text in enumerate(texts) if not text]
    if empty or not texts:
        raise MetricError(
            f"{len(empty)} of {len(texts)} texts have no token (the first: {empty[:3]}). Keep the "
            "prefix or EOS of every text."
        )
    was_training = model.training
    model.eval()
    try:
        features: dict[int, torch.Tensor] = {}
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            # Right padding is invisible to a causal model at the last token.
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
    halves: int = HALVES,
    buckets: int | None = None,
) -> Estimate:
    """MAUVE (Pillutla et al. 2021): near 1 for equal distributions, near 0 for disjoint ones.

    The score depends on the number of texts, the buckets and the features; compare only scores that
    share all three. All other settings are mauve-text's, such as the scaling constant c = 5.

    The interval is `value` +- 1.96 standard deviations of the scores on random halves, the
    `replicates`. A bootstrap would put copies of a text into one bucket. A statistic on half of n
    texts, drawn without replacement, varies around that on all n as the latter varies over samples
    of n (half-sample replication, McCarthy 1969). A half has the same texts of both sides.

    Features of equal texts are made equal, and equal histograms score 1. By itself, mauve-text
    separates copies of a text by rounding if there are more buckets than texts. It also sorts the
    curve of equal histograms at random, which gave .75 instead of 1.

    mauve-text is GPLv3 and imported only here.

    Args:
        reference_features, generated_features: `[n, H]` each, aligned by prompt; see
            `last_token_features`.
        seeds: of the clustering; the value is the mean over them.
        halves: number of random halves, each scored with half as many buckets.
        buckets: number of clusters; None is mauve-text's default, n / 10 rounded, at least 2.

    Raises:
        MetricError: mauve-text is missing, or the features differ in shape, are not finite, do not
            vary, or are fewer than two per bucket.
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

    def run(texts: Rows, buckets: int, seed: int) -> float:
        score = compute_mauve(
            p_features=both[texts],
            q_features=both[n + texts],
            num_buckets=buckets,
            seed=seed,
            verbose=False,
        )
        return 1.0 if np.array_equal(score.p_hist, score.q_hist) else float(score.mauve)

    def mean_score(texts: Rows, buckets: int) -> float:
        return float(np.mean([run(texts, buckets, seed) for seed in seeds]))

    fewer = max(2, clusters // 2)
    # faiss warns below 39 points per cluster; MAUVE has 20.
    quiet = functools.partial(faiss.Kmeans, min_points_per_centroid=1)
    # This small clustering is five times as fast on one thread as on two.
    with mock.patch.object(faiss, "Kmeans", quiet), threadpool_limits(1):
        value = mean_score(np.arange(n), clusters)
        replicates = over_halves(lambda texts: mean_score(texts, fewer), n, halves)
    return _around_halves(value, n, replicates)


def _check_comparable(reference: Features, generated: Features, clusters: int) -> None:
    """Refuse input that mauve-text would score silently: see `mauve_score`."""
    shapes = f"{reference.shape} against {generated.shape}"
    if reference.ndim != 2 or reference.shape != generated.shape:
        raise MetricError(f"MAUVE needs two equal feature shapes [n, H], not {shapes}")
    n = len(reference)
    if clusters < 2 or n < 2 * clusters:
        raise MetricError(f"{n} texts are too few for {clusters} buckets: at least 2 of 2 texts")
    for name, features in (("reference", reference), ("generated", generated)):
        if not np.isfinite(features).all():
            raise MetricError(f"the {name} features contain values that are not finite")
        if np.ptp(_directions(features), axis=0).max() < SAME_DIRECTION:
            raise MetricError(
                f"the {name} features are all equal: MAUVE cannot tell two such sets apart. "
                "Look for copies of one text."
            )


def _directions(features: Features) -> Features:
    """Features scaled to unit length, as in mauve-text."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    norms[norms == 0] = 1
    return features / norms


def _without_rounding(features: Features) -> Features:
    """Features with rounding differences between equal texts removed."""
    directions = _directions(features)
    # Equal texts are neighbours in a projection onto any line.
    order = np.argsort(directions @ np.random.default_rng(0).normal(size=features.shape[1]))
    steps = np.abs(np.diff(directions[order], axis=0)).max(1)
    starts = np.concatenate([[True], steps >= SAME_DIRECTION])
    equal = np.empty_like(features)
    equal[order] = features[order][np.flatnonzero(starts)][np.cumsum(starts) - 1]
    return equal
