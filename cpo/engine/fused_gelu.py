"""GPT-2's GELU in one kernel.

transformers computes the tanh approximation in eight element-wise operations and keeps most of
their results for the backward pass. PyTorch's own kernel keeps the input alone.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation


def fuse_gelu(model: nn.Module) -> None:
    """Replace a model's tanh-approximated GELUs by PyTorch's kernel, in place.

    Values differ by rounding. Weights in half precision would round by more than the comparison of
    forward passes allows: such a model stays as it is, and so does a GELU with hooks.
    """
    if any(weight.dtype not in (torch.float32, torch.float64) for weight in model.parameters()):
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            plain = type(child) in (FastGELUActivation, NewGELUActivation)  # no class of others
            if plain and not (child._forward_hooks or child._forward_pre_hooks):
                setattr(module, name, nn.GELU(approximate="tanh"))
