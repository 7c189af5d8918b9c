"""Tokenised splits of the data, and the rows of a training schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cpo import data
from cpo.data import DataError, Task, TokenizedExample
from cpo.models.folders import load_tokenizer
from cpo.plan import plan_batches
from cpo_suite.artifacts.base_models import BaseModel, ExternalModel
from cpo_suite.corpora import Corpora
from cpo_suite.store import Identity, how


@dataclass(frozen=True, kw_only=True)
class Examples(Identity):
    """A split of the pairs or articles, tokenised for a base model under length limits. Not an
    artifact itself: it identifies data inside artifacts."""

    stage = "examples"
    version = 1

    base: BaseModel | ExternalModel
    data: str  # the content hash
    split: str
    max_prefix_tokens: int
    max_continuation_tokens: int
    over_long: Literal["truncate", "drop", "refuse"]
    task: Task = how()
    corpora: Corpora = how()

    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return load_tokenizer(self.base.folder(self.corpora.store))

    def rows(self) -> list[TokenizedExample]:
        """The examples as token ids; `Corpora.reports` records what was dropped or truncated.

        Training rows follow the profile's `over_long`. In validation and test, only an over-long
        prefix drops a row, so that judged prompts do not depend on the recorded responses.
        """
        corpora, key, limit = self.corpora, (self.key, self.split), self.max_continuation_tokens
        if key in corpora.tokenized:
            return corpora.tokenized[key]
        examples, tokenizer = corpora.split(self.task, self.split), self.tokenizer()
        if self.task == "articles":
            rows, report = data.tokenize_articles(examples, tokenizer, max_tokens=limit)
        else:
            rows, report = data.tokenize(
                examples,
                tokenizer,
                max_prefix_tokens=self.max_prefix_tokens,
                max_continuation_tokens=limit,
                over_long=self.over_long if self.split == "train" else "truncate",
            )
        corpora.tokenized[key] = rows
        corpora.reports[self.base.name, self.split, self.task] = report
        return rows

    def summary(self) -> str:
        """What tokenisation dropped or truncated, available after `rows`."""
        return self.corpora.reports[self.base.name, self.split, self.task].summary()

    def planned(self, steps: int, batch: int, seed: int) -> list[TokenizedExample]:
        """The `steps x batch` rows of a training schedule, in order.

        Raises:
            DataError: there are fewer rows than in a global batch.
        """
        rows = self.rows()
        try:
            plan = plan_batches(len(rows), steps, batch, seed)
        except ValueError as error:
            raise DataError(f"{error}\n{self.base.name}: {self.summary()}") from None
        return [rows[index] for index in plan.flatten()]
