"""Weight-space ensembles (section 4; Wortsman et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch


def interpolate(mle: Any, cpo: Any, alpha: float) -> Any:
    """theta = alpha * theta_MLE + (1 - alpha) * theta_CPO, written into `cpo`'s weights and
    returned.

    Alpha 0 gives exactly the CPO weights, alpha 1 the MLE weights. Both models must share
    architecture and vocabulary.

    Raises:
        ValueError: alpha is outside [0, 1], or the models' parameters differ in name or shape.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, but must lie between 0 and 1")
    weights, mle_weights = dict(cpo.named_parameters()), dict(mle.named_parameters())
    shapes = {name: value.shape for name, value in weights.items()}
    if shapes != {name: value.shape for name, value in mle_weights.items()}:
        raise ValueError("the models have different parameters: they must share one architecture")
    with torch.no_grad():
        for name, parameter in weights.items():
            if alpha == 1:
                parameter.copy_(mle_weights[name])
            elif alpha > 0:
                parameter.mul_(1 - alpha).add_(mle_weights[name], alpha=alpha)
    return cpo
