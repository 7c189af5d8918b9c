"""The vocabulary head: log-probabilities of tokens from hidden states, never all logits at once.

Logits are by far the largest tensor of a training step: 4,096 x 50,257 in fp32 take 0.8 GB, and
plain cross entropy holds them three times. Here they exist one tile at a time, some states by some
vocabulary entries, and are recomputed in the backward pass. If that pass rounds them to bf16 and
the vocabulary exceeds a tile, it does so twice, since rounded logits have different sums. On a CPU
this is also faster, since a tile stays in cache.

torch's `linear_cross_entropy` keeps gradients instead of logits, which requires the tokens' weights
in advance. CPO's weights are known only once all K continuations are scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# States and vocabulary entries whose logits exist at once: 32 MB in fp32. Measured on a CPU with
# 2,048, 8,192 and 50,257 entries: as fast as tiles of 512 states and all entries, up to 103 MB. Not
# measured on a GPU.
TILE_STATES = 1024
TILE_ENTRIES = 8192


def token_logps(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    scale: float = 1.0,
    cap: float | None = None,
    bf16_logits: bool = False,
    bf16_gradients: bool = False,
) -> Tensor:
    """log-softmax(logits) at `targets`, `[N]`; logits are `scale (states @ weight.T + bias)`, and
    with a cap c `c tanh(logits / c)`.

    Args:
        states: `[N, H]`, any float dtype.
        weight: `[V, H]`, fp32 or fp64: the dtype of softmax, sums and result.
        bias: `[V]` or None.
        targets: `[N]`, int64; one outside the vocabulary gives NaN.
        bf16_logits: matrix products of the forward pass in bf16. Logits then have three digits:
            good enough for pretraining, too coarse for log-ratios.
        bf16_gradients: matrix products of the backward pass, recomputed logits included, in bf16,
            as in autocast; softmax and sums stay fp32.
    """
    states = states.to(weight.dtype)
    if scale != 1.0:  # scale the smaller factors
        states, bias = states * scale, None if bias is None else bias * scale
    return _TokenLogps.apply(
        states, weight, bias, targets, cap, bf16_logits, bf16_logits or bf16_gradients
    )


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        states, weight, bias, targets, cap, bf16_logits, bf16_gradients = arguments
        head = weight, bias, cap, bf16_logits
        own_logits, log_normalisers = _own_and_normaliser(states, targets, *head)
        ctx.save_for_backward(states, weight, bias, targets, log_normalisers)
        ctx.cap, ctx.bf16_gradients = cap, bf16_gradients
        ctx.rounded_anew = bf16_gradients and not bf16_logits
        return own_logits - log_normalisers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, log_normalisers = ctx.saved_tensors
        head = weight, bias, ctx.cap, ctx.bf16_gradients
        inputs = states.bfloat16() if ctx.bf16_gradients else states
        # With all entries in one tile, the newly rounded logits give their own sums.
        in_one_tile = ctx.rounded_anew and len(weight) <= TILE_ENTRIES
        if ctx.rounded_anew and not in_one_tile:
            _, log_normalisers = _own_and_normaliser(inputs, targets, *head)
        states_gradient = torch.zeros_like(states)
        weight_gradient = torch.zeros_like(weight)
        bias_gradient = None if bias is None else torch.zeros_like(bias)
        for rows, entries, tile_weight, logits in _tiles(inputs, *head):
            # d logp(y) / d logits = onehot(y) - softmax
            own_gradient = gradient[rows, None]
            # d (c tanh(l / c)) / d l = 1 - tanh(l / c)^2
            within_cap = None if ctx.cap is None else 1 - (logits / ctx.cap).square_()
            log_sums = logits.logsumexp(-1) if in_one_tile else log_normalisers[rows]
            slopes = logits.sub_(log_sums[:, None]).exp_().mul_(-own_gradient)
            position, here = _within(entries, targets[rows])
            slopes.scatter_add_(-1, position, own_gradient * here)
            if within_cap is not None:
                slopes.mul_(within_cap)
            if bias_gradient is not None:
                bias_gradient[entries] += slopes.sum(0)
            slopes = slopes.to(tile_weight.dtype)
            states_gradient[rows] += slopes @ tile_weight
            weight_gradient[entries] += slopes.T @ inputs[rows]
        return states_gradient, weight_gradient, bias_gradient, None, None, None, None


def _tiles(
    states: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, bf16: bool
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Every tile: its rows of `states`; its entries; their weights `[entries, H]`, in bf16 if the
    products are; and its logits `[rows, entries]`, in memory that the next tile overwrites."""
    buffer = weight.new_empty(min(len(states), TILE_STATES) * min(len(weight), TILE_ENTRIES))
    for entries in _slices(len(weight), TILE_ENTRIES):
        tile_weight = weight[entries].bfloat16() if bf16 else weight[entries]
        for rows in _slices(len(states), TILE_STATES):
            shape = rows.stop - rows.start, len(tile_weight)
            logits = buffer[: shape[0] * shape[1]].view(shape)
            if bf16:
                logits.copy_(states[rows].bfloat16() @ tile_weight.T)
            else:
                torch.mm(states[rows], tile_weight.T, out=logits)
            if bias is not None:
                logits.add_(bias[entries])
            if cap is not None:
                logits.div_(cap).tanh_().mul_(cap)
            yield rows, entries, tile_weight, logits


def _own_and_normaliser(states: Tensor, targets: Tensor, *head: Any) -> tuple[Tensor, Tensor]:
    """The logit at each state's target, NaN if outside the vocabulary, and the log of its softmax's
    sum; both `[N]`, in the weight's dtype. `head` as for `_tiles`."""
    own = head[0].new_full((len(states),), torch.nan)
    log_normalisers = torch.full_like(own, -torch.inf)
    for rows, entries, _, logits in _tiles(states, *head):
        position, here = _within(entries, targets[rows])
        own[rows] = torch.where(here, logits.gather(-1, position), own[rows, None])[:, 0]
        log_normalisers[rows] = log_normalisers[rows].logaddexp(logits.logsumexp(-1))
    return own, log_normalisers


def _within(entries: slice, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The targets' positions among `entries`, int64, clamped to existing ones, and whether they are
    among them, bool; both `[n, 1]`."""
    position = targets[:, None] - entries.start
    last = entries.stop - entries.start - 1
    return position.clamp(0, last), (position >= 0) & (position <= last)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(length, start + size)) for start in range(0, length, size)]
