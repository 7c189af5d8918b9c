"""Contrastive preference optimization (CPO, arXiv 2502.16433): the reference implementation.

Five names are public here. Each is imported on first use, so that the losses need only torch. TRL's
`CPOTrainer` is a different method with the same acronym (Xu et al. 2024).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpo.ensembling import interpolate
    from cpo.losses import cpo_loss, ranked_cpo_loss
    from cpo.negatives import draw_negatives
    from cpo.scoring import GroupScorer

__version__ = "0.1.0"
__all__ = ["GroupScorer", "cpo_loss", "draw_negatives", "interpolate", "ranked_cpo_loss"]

_MODULES = {
    "cpo_loss": "cpo.losses",
    "ranked_cpo_loss": "cpo.losses",
    "GroupScorer": "cpo.scoring",
    "draw_negatives": "cpo.negatives",
    "interpolate": "cpo.ensembling",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cpo' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
