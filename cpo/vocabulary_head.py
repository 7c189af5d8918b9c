"""The vocabulary head: log-probabilities of tokens from hidden states, never all logits at once.

Logits are by far the largest tensor of a language model's step: 4,096 x 50,257 of them in fp32 are
0.8 GB, and a plain cross entropy holds them three times. Here they exist a chunk at a time, and the
backward pass computes them again. On a processor that is also the faster way, since a chunk stays
in its cache.

torch's own `linear_cross_entropy` keeps gradients instead of logits, which takes one weight for all
tokens beforehand. CPO's weights are known only when all K continuations are scored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# States whose logits exist at one time. Measured on a processor with 2,048, 8,192 and 50,257 words:
# fewer pass over the weights too often, more leave its cache.
CHUNK = 512


def token_logps(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    bf16_logits: bool = False,
    bf16_gradients: bool = False,
) -> Tensor:
    """log-softmax(states @ weight.T + bias) at `targets`, `[N]`.

    Args:
        states: `[N, H]`, any float dtype.
        weight: `[V, H]`, fp32 or fp64: the dtype of softmax, sums and result.
        bias: `[V]` or None.
        targets: `[N]`, int64.
        bf16_logits: matrix products of the forward pass in bf16. Their logits are rounded to three
            digits: good enough for pretraining, too coarse for log-ratios.
        bf16_gradients: matrix products of the backward pass in bf16, logits computed again
            included, as in autocast; softmax and sums are fp32 there too.
    """
    return _TokenLogps.apply(
        states.to(weight.dtype), weight, bias, targets, bf16_logits, bf16_logits or bf16_gradients
    )


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        bf16_logits: bool,
        bf16_gradients: bool,
    ) -> Tensor:
        logps = states.new_empty(len(states))
        log_normalisers = torch.empty_like(logps)
        logits_of = _Logits(weight, bias, bf16_logits, len(states))
        for rows in logits_of.chunks:
            logits = logits_of(states[rows])
            torch.logsumexp(logits, -1, out=log_normalisers[rows])
            logps[rows] = logits.gather(-1, targets[rows, None])[:, 0] - log_normalisers[rows]
        ctx.save_for_backward(states, weight, bias, targets, log_normalisers)
        ctx.bf16_gradients = bf16_gradients
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, log_normalisers = ctx.saved_tensors
        logits_of = _Logits(weight, bias, ctx.bf16_gradients, len(states))
        states_gradient = torch.empty_like(states)
        weight_gradient = torch.zeros_like(weight)
        bias_gradient = None if bias is None else torch.zeros_like(bias)
        for rows in logits_of.chunks:
            # d logp(y) / d logits = onehot(y) - softmax
            own = gradient[rows, None]
            logits = logits_of(states[rows])
            normaliser = log_normalisers[rows, None]
            if ctx.bf16_gradients:  # rounded, these logits have one of their own
                normaliser = logits.logsumexp(-1, keepdim=True)
            slopes = logits.sub_(normaliser).exp_().mul_(-own)
            slopes.scatter_add_(-1, targets[rows, None], own)
            if bias_gradient is not None:
                bias_gradient += slopes.sum(0)
            if ctx.bf16_gradients:
                slopes = slopes.bfloat16()
                states_gradient[rows] = slopes @ logits_of.weight
                weight_gradient += slopes.T @ states[rows].bfloat16()
            else:
                torch.mm(slopes, weight, out=states_gradient[rows])
                weight_gradient.addmm_(slopes.T, states[rows])
        return states_gradient, weight_gradient, bias_gradient, None, None, None


class _Logits:
    """Logits of `count` states, a chunk at a time, in the same memory each time."""

    def __init__(self, weight: Tensor, bias: Tensor | None, bf16: bool, count: int) -> None:
        size = max(1, min(count, CHUNK))
        self.chunks = [slice(start, start + size) for start in range(0, count, size)]
        self.buffer = weight.new_empty(size, len(weight))
        self.weight = weight.bfloat16() if bf16 else weight
        self.bias = bias
        self.bf16 = bf16

    def __call__(self, states: Tensor) -> Tensor:
        logits = self.buffer[: len(states)]
        if self.bf16:
            logits.copy_(states.bfloat16() @ self.weight.T)
        else:
            torch.mm(states, self.weight.T, out=logits)
        return logits if self.bias is None else logits.add_(self.bias)
