"""GPT-2's GELU in one kernel.

transformers computes the tanh approximation in eight element-wise operations and keeps most of
their results for the backward pass. PyTorch's own kernel keeps the input alone.
"""

from __future__ import annotations

from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation


def fuse_gelu(model: nn.Module) -> None:
    """Replace a model's GELUs of tanh by PyTorch's kernel, in place; values differ by rounding."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, FastGELUActivation | NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
