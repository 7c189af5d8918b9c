"""What a notebook says before it makes anything: what is missing, and how long it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cpo_suite import calibration
from cpo_suite.store import Recipe

if TYPE_CHECKING:
    from cpo_suite.suite import Suite


def announce(suite: Suite, wanted: Iterable[str | Recipe]) -> str:
    """One sentence: what is still to be made, and how long it takes.

    Args:
        wanted: rows by id, each with its model, negatives and generations over all seeds, or single
            recipes; what they are made from counts too.

    The minutes are the plan's estimate, by the speeds of this machine where they are measured
    (`calibration`), else by those that the profile states for the hardware that it names.

    Raises:
        KeyError: no such row.
    """
    keys: set[str] = set()
    for item in wanted:
        if isinstance(item, Recipe):
            keys |= _keys_within(item)
            continue
        row = suite.row(item)
        for seed in range(suite.profile.seeds):
            model = suite.model_recipe(row, seed)
            keys |= _keys_within(suite.generations_recipe(model, row.decoding, seed, row.task))
        # The judged prompts are those that fit every model: each one's tokenizer has to be there.
        keys |= {suite.base_recipe(name).key for name in suite.profile.models}
    lacking = [item for item in suite.plan() if item.key in keys and not item.made]
    if not lacking:
        return "Everything this notebook needs is made already: it takes seconds."
    minutes = sum(item.seconds for item in lacking) / 60
    plural = "s are" if len(lacking) > 1 else " is"
    profile = suite.profile
    measured = all(calibration.measurable(profile, model) for model in profile.models.values())
    where = "this machine" if measured else profile.hardware
    return (
        f"{len(lacking)} artifact{plural} still to be made, about {minutes:.0f} minutes on "
        f"{where}; what is made once is found again."
    )


def _keys_within(recipe: Recipe) -> set[str]:
    """The keys of a recipe and of all recipes that it is made from."""
    parts = (getattr(recipe, field.name) for field in dataclasses.fields(recipe))
    return {recipe.key}.union(*(_keys_within(part) for part in parts if isinstance(part, Recipe)))
