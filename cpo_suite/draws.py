"""Which draw of negatives a row takes its own from, and how large it is."""

from __future__ import annotations

from collections.abc import Mapping

from cpo.data import Task
from cpo.negatives import SAMPLERS
from cpo_suite.paper import Row
from cpo_suite.profile import Profile


def mixture_of(profile: Profile, row: Row) -> Mapping[str, int]:
    """The number of negatives of each kind of a row.

    Raises:
        ValueError: the row trains without negatives.
    """
    if row.negatives is None:
        raise ValueError(f"{row.id} trains without negatives")
    return profile.negatives[row.negatives]


def identities(mixture: Mapping[str, int]) -> dict[str, int]:
    """A mixture by the identities of its samplers, which hold a custom one's source hash."""
    return {SAMPLERS.identity(kind): count for kind, count in mixture.items()}


def shared_draw(profile: Profile, row: Row) -> tuple[dict[str, int], int]:
    """Counts and steps of a row's draw: the largest of the trained rows that can share it, those on
    the same reference that need the same kinds.

    A custom row never enlarges a draw, which would rebuild the paper's rows.
    """
    mine, settings = mixture_of(profile, row), profile.continuation
    kinds, steps = identities(mine).keys(), settings.steps_per_pass(row.steps)
    sharing = [
        other
        for other in profile.trained_rows
        if other.id not in profile.own_rows
        and other.negatives is not None
        and (other.model, other.reference, other.task) == (row.model, row.reference, row.task)
        and identities(mixture_of(profile, other)).keys() == kinds
    ]
    mixtures = [mixture_of(profile, other) for other in sharing]
    counts = {kind: max((mixture[kind] for mixture in mixtures), default=0) for kind in mine}
    longest = max((settings.steps_per_pass(other.steps) for other in sharing), default=0)
    if longest < steps or any(counts[kind] < count for kind, count in mine.items()):
        return dict(mine), steps
    return counts, longest


def held_out_batches(profile: Profile, task: Task) -> int:
    """Batches of held-out prompts; a quarter of the prompts may be too long for a model."""
    prompts = profile.instructions.validation_rows
    if task == "articles":
        prompts = profile.articles.validation_articles
    return min(
        profile.continuation.held_out_batches, prompts * 3 // 4 // profile.continuation.batch
    )
