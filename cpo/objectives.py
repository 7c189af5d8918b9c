"""The objectives by name, and which inputs each takes besides log-probabilities.

An objective that compares continuations is a function
`(policy_logps, reference_logps, beta, mask) -> scalar`, the mean over its rows. It declares further
inputs by naming them as parameters, those of `EXTRA_INPUTS`, which training then passes by keyword.
To add one, write the function and give it a line in `OBJECTIVES`, or register it from a notebook.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from torch import Tensor

from cpo import losses, neighbours
from cpo.registry import Registry, RegistryError

# (policy_logps, reference_logps, beta, mask), all `[B, K]`, and any of EXTRA_INPUTS by keyword.
GroupLoss = Callable[..., Tensor]

# Per continuation, `[B, K]`: its number of tokens, and its score, which the order tau is taken
# from: its similarity to the ground truth, or the oracle's grade where a row is ranked by it.
EXTRA_INPUTS = ("lengths", "scores")

# Objectives without comparison: a mean over ground-truth tokens.
NEXT_TOKEN_OBJECTIVES = ("mle", "pss")

OBJECTIVES: Registry[GroupLoss] = Registry(
    "objective",
    {
        "cpo": losses.cpo_loss,
        "ranked_cpo": losses.ranked_cpo_loss,
        "dpo": losses.dpo_loss,
        "ranking_nce": lambda policy, _, beta, mask: losses.ranking_nce_loss(policy, beta, mask),
        # Neighbours of the paper's, see `cpo.neighbours`.
        "pairwise_dpo": neighbours.pairwise_dpo_loss,
        "spin": neighbours.spin_loss,
        "spin_hinge": neighbours.spin_hinge_loss,
        "slic": neighbours.slic_loss,
        "ipo": neighbours.ipo_loss,
        "robust_dpo": neighbours.robust_dpo_loss,
        "exo": neighbours.exo_loss,
        "info_nca": neighbours.info_nca_loss,
        "nca": neighbours.nca_loss,
        "bco": neighbours.bco_loss,
        "apo_zero": neighbours.apo_zero_loss,
        "apo_down": neighbours.apo_down_loss,
        "sppo_hard": neighbours.sppo_hard_loss,
        "dpop": neighbours.dpop_loss,
        "simpo": neighbours.simpo_loss,
        "orpo": neighbours.orpo_loss,
        "brio": neighbours.brio_loss,
        "rrhf": neighbours.rrhf_loss,
        "expected_risk": neighbours.expected_risk_loss,
        "soft_info_nca": neighbours.soft_info_nca_loss,
        "lipo_lambda": neighbours.lipo_lambda_loss,
        "swepo": neighbours.swepo_loss,
    },
    reserved=NEXT_TOKEN_OBJECTIVES,
)

# Objectives that take the columns in ranked order, best first.
RANKED_OBJECTIVES = {"ranked_cpo", "brio", "rrhf"}

# Training checks that the first loss is that of a policy equal to its reference. Of these the
# rewards are checked instead: LiPO-lambda depends on their order, which rounding decides there, and
# ranking NCE's loss, without a reference, is hundreds of nats with a rounding to match.
CHECKED_BY_REWARDS = {"lipo_lambda", "ranking_nce"}


def register_objective(name: str, ranked: bool = False) -> Callable[[GroupLoss], GroupLoss]:
    """Decorator that registers a loss, as `@register_objective("hinge")`; a row then trains with
    it.

    The loss takes `(policy_logps, reference_logps, beta, mask)` as `losses.cpo_loss` does, and
    returns a scalar, the mean over its rows. If it has parameters `lengths` or `scores`, it is
    also given the continuations' numbers of tokens or their scores, `[B, K]`.

    Args:
        ranked: pass the columns in ranked order, best first, instead of as drawn.

    Raises:
        RegistryError: the name is one of the project's, or the loss needs an argument that
            training does not have.
    """
    register = OBJECTIVES.register(name)

    def add(objective: GroupLoss) -> GroupLoss:
        further = list(inspect.signature(objective).parameters.values())[4:]
        needed = [one.name for one in further if one.default is one.empty and one.kind not in _REST]
        if unknown := sorted(set(needed) - set(EXTRA_INPUTS)):
            raise RegistryError(
                f"the objective '{name}' needs {' and '.join(unknown)}, which training does not "
                f"have: after its first four, it may name {' and '.join(EXTRA_INPUTS)}, and "
                "arguments with a default"
            )
        (RANKED_OBJECTIVES.add if ranked else RANKED_OBJECTIVES.discard)(name)
        return register(objective)

    return add


_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def objective_identity(name: str) -> str:
    """The identifier of an objective in a recipe: its name, and a user's source hash.

    Raises:
        RegistryError: no objective has this name, or as `registry.identity`.
    """
    identity = OBJECTIVES.identity(name)
    # The function's source does not show which column order it takes.
    return f"{identity}:ranked" if identity != name and name in RANKED_OBJECTIVES else identity


def objective_with(name: str, extras: Mapping[str, Tensor]) -> GroupLoss:
    """The objective as a function of `(policy_logps, reference_logps, beta, mask)`, given those of
    the extra inputs, `[B, K]` by name, that it takes.

    Raises:
        RegistryError: no objective has this name.
        ValueError: it takes an input that `extras` lacks.
    """
    objective = OBJECTIVES[name]
    parameters = inspect.signature(objective).parameters
    taken = [one for one in EXTRA_INPUTS if one in parameters]
    if missing := [one for one in taken if one not in extras]:
        raise ValueError(f"the objective '{name}' takes {missing[0]}, which its examples lack")
    given = {one: extras[one] for one in taken}
    return lambda *arguments: objective(*arguments, **given)
