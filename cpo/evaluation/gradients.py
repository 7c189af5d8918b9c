"""What CPO's gradient is at the start, where the policy is its reference, beside that of MLE.

With s_j = grad log pi_theta(y_j | x), summed over the tokens of y_j, the gradient of either loss is
a fixed combination of its candidates' scores: -grad L / beta = sum_j A_j s_j, mean over prompts.
`advantages` has the A_j of equation 1, `ranked_advantages` those of equation 2. So no loss is
computed here, only gradients of weighted sums of log-probabilities. MLE's is the mean of s_1.

The comparison is on one batch of prompts and recorded responses. MLE's gradient is then known, and
that of a kind of negative is an expectation over its draws. A mean of noisy gradients is longer
than their expectation, so the squared length of the negative part comes from the inner product of
two halves of the negatives, whose noise is independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpo.engine.progress import progress_bar
from cpo.evaluation.statistics import CONFIDENCE, Estimate
from cpo.scoring import Group, GroupScorer, collate_groups, order_by_length

Array = npt.NDArray[np.float64]

COORDINATES = 2_000_000  # gradients of larger models are compared on about this many entries
ENTRIES_AT_ONCE = 2**18  # bounds the memory of inner products in float64


# --- Advantages -----------------------------------------------------------------------------------


def advantages(mask: Tensor) -> Tensor:
    """A_j of equation 1 at policy = reference: 1 - 1/K for the ground truth, -1/K for a negative.

    Args:
        mask: `[B, K]` bool, True where a candidate is usable, as column 0 must be. A row's K in
            these formulas counts its usable candidates.

    Returns:
        `[B, K]` float64, 0 where masked; each row adds up to 0.
    """
    softmax = mask / mask.sum(-1, keepdim=True).double()  # of equal rewards
    truth = torch.zeros_like(softmax)
    truth[:, 0] = 1
    return truth - softmax  # eq. 1: -dL/dr_j = [j = 1] - softmax(r)_j


def ranked_advantages(mask: Tensor) -> Tensor:
    """A_m of equation 2 at policy = reference: from 1 - 1/K for the best to 1 - H_K for the worst,
    where H_n = 1 + 1/2 + ... + 1/n.

    They are the advantages of a policy gradient (REINFORCE) whose reward is a function of the rank.

    Args:
        mask: as for `advantages`, but the columns are best first.

    Returns:
        `[B, K]` float64, 0 where masked; each row adds up to 0.
    """
    competitors = mask.sum(-1, keepdim=True) - mask.cumsum(-1) + 1.0  # in the m-th denominator
    shares = mask / competitors.double()
    return (1 - shares.cumsum(-1)) * mask  # eq. 2: a_m = 1 - (H_K - H_(K-m))


@dataclass(frozen=True)
class Candidates:
    """Groups of candidates, and the kinds of gradient to compute on them.

    Attributes:
        groups: N prompts with K candidates each, column 0 the recorded response.
        mask: `[N, K]` bool, True where a candidate is usable.
        advantages: by name of the kind, `[N, K]`, 0 where masked.
    """

    groups: Sequence[Group]
    mask: Tensor
    advantages: Mapping[str, Tensor]


# --- Gradients ------------------------------------------------------------------------------------


def compare_gradients(
    model: Any,
    candidates: Sequence[Candidates],
    chunks: int = 8,
    micro_batch: int = 16,
    coordinates: int = COORDINATES,
) -> dict[str, dict[str, Estimate]]:
    """Each kind's expected gradient against MLE's on one batch of N prompts.

    Costs about a training step on all candidates, and a backward pass more for each further kind
    on the same candidates. Beside the model, memory holds a micro-batch's activations, at most one
    whole gradient, and a few chunks' entries of others.

    Args:
        model: policy and reference, a causal language model with fp32 weights; left unchanged.
        candidates: on the same N prompts and recorded responses.
        chunks: parts of the prompts, in order, for intervals; best whole global batches, since
            batch negatives tie the prompts of one.
        micro_batch: groups scored at once.
        coordinates: as for `chunk_gradients`.

    Returns:
        By kind and measure; n counts prompts, intervals are 95 % (jackknife over chunks):
        `cosine` to MLE's gradient; `length`, divided by that of MLE's; `negative`, the same for the
        negative part, the sum over the negatives alone; `common`, the share of the squared length
        that chunks of other prompts have in common, also for the kind `MLE`. Estimates without bias
        can leave the range of what they estimate: a cosine can exceed 1, a share be negative; a
        length with a negative estimated square is 0.

    Raises:
        ValueError: fewer than two prompts, or candidates for other recorded responses.
    """
    groups = candidates[0].groups
    truths = [(group.prefix_ids, group.continuations[0]) for group in groups]
    for other in candidates:
        if [(group.prefix_ids, group.continuations[0]) for group in other.groups] != truths:
            raise ValueError("gradients are compared on the same prompts and recorded responses")
    if len(groups) < 2:
        raise ValueError("gradients are compared on two prompts or more")

    def means(groups: Sequence[Group], weights: Tensor, description: str) -> Tensor:
        sizes = chunks, micro_batch, coordinates
        return chunk_gradients(model, groups, weights, *sizes, f"gradients of {description}")

    first = torch.zeros_like(candidates[0].mask, dtype=torch.float64)
    first[:, 0] = 1
    (mle,) = means(groups, first[None], "MLE")  # the mean of s_1
    measured: dict[str, dict[str, Estimate]] = {}
    for one in candidates:
        weights, names = torch.stack(list(one.advantages.values())), ", ".join(one.advantages)
        positive = torch.zeros_like(weights)
        positive[..., 0] = weights[..., 0]
        halves = (half * weights for half in _halves(one.mask))
        parts = [means(one.groups, part, names) for part in (positive, *halves)]
        for name, *vectors in zip(one.advantages, *parts, strict=True):
            products = inner_products(torch.stack([mle, *vectors]))
            measured |= comparison(name, products, len(groups))
    return measured


def chunk_gradients(
    model: Any,
    groups: Sequence[Group],
    weights: Tensor,
    chunks: int,
    micro_batch: int = 16,
    coordinates: int = COORDINATES,
    description: str = "gradients",
) -> Tensor:
    """The mean of sum_j w_j s_j over the prompts of each chunk, for P choices of weights.

    One forward pass of the candidates with a weight, and P backward passes.

    Args:
        model: a causal language model with fp32 weights; left unchanged.
        groups: N prompts with K continuations each.
        weights: `[P, N, K]`.
        chunks: C consecutive parts of the prompts, of nearly equal size; at most N.
        micro_batch: groups scored at once.
        coordinates: of a model with more weights, about this many entries of the gradient are kept,
            drawn at random, always the same: ratios of inner products keep their expectation.
        description: of the progress bar.

    Returns:
        `[P, C, D]` fp32, on the CPU.
    """
    scorer = GroupScorer(model)
    parameters = [one for one in scorer.parameters() if one.requires_grad]
    kept = _kept_entries(parameters, coordinates)
    groups, weights = _weighted_only(groups, weights)
    parts = torch.arange(len(groups)).tensor_split(min(chunks, len(groups)))
    means = torch.zeros(len(weights), len(parts), sum(map(len, kept)))
    with (
        _differentiated(parameters, kept) as entries,
        progress_bar(len(groups), description, "prompt") as bar,
    ):
        for chunk, rows in enumerate(parts):
            by_length = order_by_length([groups[row] for row in rows], len(rows))
            for part in rows[by_length].split(micro_batch):
                batch = collate_groups([groups[row] for row in part], scorer.model.device)
                logps = scorer(**batch)
                for choice, weight in enumerate(weights[:, part].to(logps) / len(rows)):
                    for one in entries:
                        one.zero_()  # some weights may have no part in this pass
                    logps.backward(weight, retain_graph=choice + 1 < len(weights))
                    means[choice, chunk] += torch.cat(entries).cpu()
                bar.update(len(part))
    return means


@contextmanager
def _differentiated(parameters: Sequence[Tensor], kept: Sequence[Any]) -> Iterator[list[Tensor]]:
    """The kept entries of each parameter's gradient by the last backward pass. A gradient is freed
    once its entries are taken: of a large model, never are all held at once."""
    pairs = list(zip(parameters, kept, strict=True))
    entries = [torch.zeros(len(of), dtype=one.dtype, device=one.device) for one, of in pairs]
    before = [one.grad for one in parameters]

    def taking(place: int) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            assert parameter.grad is not None
            entries[place] = parameter.grad.flatten()[kept[place]]
            parameter.grad = None

        return take

    hooks = [
        one.register_post_accumulate_grad_hook(taking(place))
        for place, one in enumerate(parameters)
    ]
    try:
        for one in parameters:
            one.grad = None
        yield entries
    finally:
        for hook in hooks:
            hook.remove()
        for one, gradient in zip(parameters, before, strict=True):
            one.grad = gradient


def _weighted_only(groups: Sequence[Group], weights: Tensor) -> tuple[list[Group], Tensor]:
    """The groups without continuations of weight 0, and their weights; both padded to the same K'
    with empty continuations."""
    used = (weights != 0).any(0)  # [N, K]
    width = max(1, int(used.sum(-1).max()))
    columns = used.int().argsort(dim=-1, descending=True, stable=True)[:, :width]
    narrow = [
        Group(group.prefix_ids, [group.continuations[j] if used[row, j] else () for j in chosen])
        for row, (group, chosen) in enumerate(zip(groups, columns.tolist(), strict=True))
    ]
    return narrow, weights.gather(-1, columns.expand(len(weights), -1, -1))


def _kept_entries(parameters: Sequence[Tensor], limit: int) -> list[Any]:
    """Which entries of each flattened gradient are compared, as an index."""
    share = limit / sum(one.numel() for one in parameters)
    if share >= 1:
        return [torch.arange(one.numel(), device=one.device) for one in parameters]
    generator = torch.Generator().manual_seed(0)
    counts = [(one, math.ceil(share * one.numel())) for one in parameters]
    return [
        torch.randint(one.numel(), (count,), generator=generator).to(one.device)
        for one, count in counts
    ]


def _halves(mask: Tensor) -> Tensor:
    """Factors `[2, N, K]` for the negatives' advantages: either half alone has the expectation of
    the whole negative part.

    Usable negatives alternate between the halves. A single one stands in both, with its noise.
    Equation 2 couples the halves by their ranks: the expectation of their inner product is about
    1/K too small within a prompt, and exact between prompts.
    """
    negatives = mask.clone()
    negatives[:, 0] = False
    count, number = negatives.sum(-1, keepdim=True), negatives.cumsum(-1)
    odd = negatives & (number % 2 == 1)
    even = torch.where(count > 1, negatives & (number % 2 == 0), odd)
    halves = torch.stack([odd, even])
    return halves * count / halves.sum(-1, keepdim=True).clamp(min=1).double()


# --- Comparison -----------------------------------------------------------------------------------


def inner_products(vectors: Tensor) -> Array:
    """All inner products of V gradients in C chunks: `[V, C, D]` to `[V, C, V, C]` float64."""
    rows = vectors.flatten(0, 1)
    products = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for block in rows.split(ENTRIES_AT_ONCE, dim=1):
        products += block.double() @ block.double().T
    return products.view(*vectors.shape[:2], *vectors.shape[:2]).numpy()


def comparison(name: str, products: Array, n: int) -> dict[str, dict[str, Estimate]]:
    """The measures of `compare_gradients` for one kind, and the share for MLE.

    Args:
        name: of the kind.
        products: `inner_products` of four gradients: MLE's, the positive part, and two estimates of
            the negative part with independent noise.
        n: number of prompts.
    """

    def measures(kept: npt.NDArray[np.int64]) -> Array:
        inside = products[:, kept][:, :, :, kept]
        same, count = np.einsum("acbc->ab", inside), len(kept)
        batch = inside.sum((1, 3)) / count**2  # inner products of means over all chunks
        with np.errstate(divide="ignore", invalid="ignore"):
            other = (inside.sum((1, 3)) - same) / (count * (count - 1))  # of different chunks
            mle, squared = batch[0, 0], _squared(batch)
            along = batch[0, 1] + (batch[0, 2] + batch[0, 3]) / 2
            return np.array([
                along / np.sqrt(squared * mle),
                squared / mle,
                batch[2, 3] / mle,
                _squared(other) / squared,
                other[0, 0] / mle,
            ])  # fmt: skip

    cosine, length, negative, common, common_mle = jackknife(measures, products.shape[1], n)
    of_kind = {"cosine": cosine, "length": _root(length), "negative": _root(negative)}
    return {"MLE": {"common": common_mle}, name: of_kind | {"common": common}}


def _squared(products: Array) -> Any:
    """The squared length of a positive part p and a negative part, from two estimates a and b of
    the latter: (p + a) (p + b)."""
    return products[1, 1] + products[1, 2] + products[1, 3] + products[2, 3]


def _root(squared: Estimate) -> Estimate:
    value, low, high = np.sqrt(np.maximum([squared.value, squared.low, squared.high], 0)).tolist()
    return Estimate(value, low, high, squared.n)


def jackknife(
    measures: Callable[[npt.NDArray[np.int64]], Array], chunks: int, n: int
) -> list[Estimate]:
    """Values on all chunks, with 95 % intervals from leaving out one chunk at a time.

    The intervals are Student's, with `chunks - 1` degrees of freedom; NaN below three chunks.

    Args:
        measures: from the numbers of the chunks taken to M values, `[M]`.
        chunks: number of chunks, C.
        n: prompts, for the estimates.
    """
    every = np.arange(chunks)
    values = measures(every)
    half = np.full_like(values, math.nan)
    if chunks > 2:
        from scipy.stats import t

        without = np.array([measures(np.delete(every, chunk)) for chunk in every])
        error = without.std(0) * math.sqrt(chunks - 1)  # (C-1)/C sum of squares, Efron 1982
        half = error * t.ppf((1 + CONFIDENCE) / 2, chunks - 1)
    return [
        Estimate(float(value), float(value - by), float(value + by), n)
        for value, by in zip(values, half, strict=True)
    ]
