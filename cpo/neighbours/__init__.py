"""Neighbouring objectives, as pure functions of the same `[B, K]` log-probabilities as CPO's.

What the field proposes for pairs is taken to K continuations as the mean over a row's usable
negatives; all return the mean over rows, and a pair has its source's loss. All take
`(policy_logps, reference_logps, beta, mask=None)` as `losses.cpo_loss` does, and some need more:

    lengths  `[B, K]` int, tokens of each continuation, EOS included; at least 1 where usable
    scores   `[B, K]` float, how good a continuation is, such as its similarity to the ground truth

    contrast   differences of rewards: SPIN, InfoNCA, pairwise DPO, IPO, SLiC, robust DPO, EXO
    anchored   each reward by itself: NCA, APO, BCO, SPPO; also DPOP
    lengths    per-token log-probabilities without a reference: SimPO, ORPO, BRIO, RRHF
    graded     degrees of quality: expected risk, soft InfoNCA, LiPO-lambda, SWEPO

Masks, shapes and errors are those of `losses`: a masked column affects neither loss nor gradient,
whatever it holds, and a `ValueError` is raised for unequal shapes, a masked ground truth or a beta
that is not positive. A row whose negatives are all masked contributes 0, or, where an objective
has a term of the ground truth alone, that term. No loss depends on other rows of its batch, so
that micro-batches do not change it. Reference values, lengths and scores take no gradient.

This package needs only torch.
"""

from cpo.neighbours.anchored import (
    apo_down_loss,
    apo_zero_loss,
    bco_loss,
    dpop_loss,
    nca_loss,
    sppo_hard_loss,
)
from cpo.neighbours.contrast import (
    exo_loss,
    info_nca_loss,
    ipo_loss,
    pairwise_dpo_loss,
    robust_dpo_loss,
    slic_loss,
    spin_hinge_loss,
    spin_loss,
)
from cpo.neighbours.graded import (
    expected_risk_loss,
    lipo_lambda_loss,
    soft_info_nca_loss,
    swepo_loss,
)
from cpo.neighbours.lengths import brio_loss, orpo_loss, rrhf_loss, simpo_loss

__all__ = [
    "apo_down_loss",
    "apo_zero_loss",
    "bco_loss",
    "brio_loss",
    "dpop_loss",
    "exo_loss",
    "expected_risk_loss",
    "info_nca_loss",
    "ipo_loss",
    "lipo_lambda_loss",
    "nca_loss",
    "orpo_loss",
    "pairwise_dpo_loss",
    "robust_dpo_loss",
    "rrhf_loss",
    "simpo_loss",
    "slic_loss",
    "soft_info_nca_loss",
    "spin_hinge_loss",
    "spin_loss",
    "sppo_hard_loss",
    "swepo_loss",
]
