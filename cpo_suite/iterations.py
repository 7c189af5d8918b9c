"""A training in pieces, each on negatives drawn anew: iterated negatives.

The paper draws a row's negatives once, from the reference, and the policy leaves them behind as it
learns. Here they are drawn every `row.redraw` steps; where the reference moves along, these are
SPIN's iterations (Chen et al. 2024, arXiv 2401.01335). Each piece is an ordinary training that
starts where the last one ended, with a schedule and an optimiser of its own.
"""

from __future__ import annotations

from dataclasses import replace

from cpo_suite.artifacts import Model
from cpo_suite.paper import Row


def iterated(model: Model, row: Row) -> Model:
    """The last piece of a row's training, whose `pieces` are all of them.

    Args:
        model: the row's training with its negatives drawn once.
    """
    start, steps_per_pass = model.start, model.steps_per_pass
    assert model.negatives is not None and steps_per_pass is not None and isinstance(start, Model)
    policy = start
    for iteration, begin in enumerate(range(0, model.steps, row.redraw)):
        is_first = iteration == 0
        from_policy = row.redraw_from == "policy" and not row.moving_reference and not is_first
        draw = replace(
            model.negatives,
            reference=policy if row.moving_reference else start,
            policy=policy if from_policy else None,
            steps=min(row.redraw, steps_per_pass),
            first_step=begin % steps_per_pass,
            iteration=iteration,
            name=f"{row.id}, from step {begin}",
        )
        policy = replace(
            model,
            start=policy,
            negatives=draw,
            steps=row.redraw,
            steps_per_pass=draw.steps,
        )
    return policy
