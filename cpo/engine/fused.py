"""GPT-2's GELU and Llama's norm in fewer kernels.

transformers computes the tanh approximation in eight element-wise operations and a root mean square
norm in six, with more in the backward pass, and keeps most of their results. Here the GELU is
PyTorch's own kernel, which keeps its input alone; the norm keeps its input and a number per token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import FastGELUActivation, NewGELUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

GELUS = (FastGELUActivation, NewGELUActivation)
NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)


def fuse(model: nn.Module) -> None:
    """Replace a model's tanh-approximated GELUs and its root mean square norms, in place.

    Values differ by rounding. Weights in half precision would round by more than the comparison of
    forward passes allows: such a model stays as it is, and so does a module with hooks.
    """
    if any(weight.dtype not in (torch.float32, torch.float64) for weight in model.parameters()):
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if child._forward_hooks or child._forward_pre_hooks:
                continue
            if type(child) in GELUS:  # no class of others
                setattr(module, name, nn.GELU(approximate="tanh"))
            elif type(child) in NORMS:
                setattr(module, name, FusedRMSNorm(child))


class FusedRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension (Zhang and Sennrich, 2019).

    It has the weight of the norm that it replaces, and computes as that one does whatever is not
    fp32.
    """

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.weight: nn.Parameter = plain.weight
        self.variance_epsilon: float = plain.variance_epsilon
        self._plain_forward = type(plain).forward
        self.train(plain.training)

    def forward(self, states: Tensor) -> Tensor:
        if not states.dtype == self.weight.dtype == torch.float32:
            return self._plain_forward(self, states)
        normed: Tensor = _RMSNorm.apply(states, self.weight, self.variance_epsilon)
        return normed


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norms = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        scale = norms.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(states, weight, scale)
        return (states * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        states, weight, scale = ctx.saved_tensors
        width = states.shape[-1]
        # With s the scale: d y_i / d x_j = s w_i ([i = j] - s^2 x_i x_j / width).
        products = (gradient * states).reshape(-1, width)
        with torch.autocast(states.device.type, enabled=False):
            along = (products @ weight).view(scale.shape)
            weight_gradient = scale.reshape(-1) @ products
        along.mul_(scale.pow(3)).div_(-width)
        return (gradient * weight).mul_(scale).addcmul_(states, along), weight_gradient, None
