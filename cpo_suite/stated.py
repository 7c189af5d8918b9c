"""A suite by its profile alone: enough to say what a run would take where its data and models are
not at hand."""

from __future__ import annotations

from functools import cached_property

from cpo.data import SPLITS
from cpo_suite.profile import ModelName
from cpo_suite.recipes import BaseModelRecipe, ExternalModelRecipe
from cpo_suite.suite import Suite

DOLLY_TRAINING_ROWS = 7_505  # half of them, as in the paper
# Characters of its prompts, queries with their contexts, and of its responses: every tenth of them
# is about so long.
DOLLY_PREFIXES = (56, 67, 76, 85, 97, 115, 184, 545, 949, 1896)
DOLLY_RESPONSES = (15, 46, 76, 111, 156, 222, 311, 431, 623, 1161)


class StatedSuite(Suite):
    """Counts artifacts and makes none.

    In recipes, what is missing is named in place of its content's hash, so that nothing counts as
    made. Texts of any source are taken to be as long as Dolly's.
    """

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """Characters of Dolly's prefixes, and of its continuations, by tenths."""
        return list(DOLLY_PREFIXES), list(DOLLY_RESPONSES)

    @property
    def article_lengths(self) -> list[int]:
        """Characters of an article: more than any profile reads of it."""
        return [10**6]  # each fills what the profile caps it to

    @property
    def training_rows(self) -> int:
        """As many as the profile asks for, at most as many as Dolly has."""
        return min(self.profile.instructions.train_rows or DOLLY_TRAINING_ROWS, DOLLY_TRAINING_ROWS)

    @cached_property
    def _data_hashes(self) -> dict[str, str]:
        return {split: f"{self.profile.instructions.source} {split}" for split in SPLITS}

    @cached_property
    def _article_hashes(self) -> dict[str, str]:
        return {split: f"{self.profile.articles.source} {split}" for split in SPLITS}

    def _base_recipe(self, name: ModelName) -> BaseModelRecipe | ExternalModelRecipe:
        pretrained = self.profile.models[name].pretrained
        return ExternalModelRecipe(pretrained) if pretrained else super()._base_recipe(name)
