"""Splits of the data as one model reads them, and the rows of a training schedule."""

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
    """A split of the pairs or articles, and how long they may be; the tokenizer is the base
    model's. Not an artifact of its own: it names data inside others."""

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
        """The examples as ids. What was dropped or cut stands in the `reports` of `Corpora`.

        Training rows follow the profile's `over_long`. In validation and test only an over-long
        prefix drops a row, so that the judged prompts do not depend on the recorded responses.
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
        """What tokenising dropped or cut, once there are `rows`."""
        return self.corpora.reports[self.base.name, self.split, self.task].summary()

    def planned(self, steps: int, batch: int, seed: int) -> list[TokenizedExample]:
        """The rows of a training schedule, `steps x batch` of them, in its order.

        Raises:
            DataError: there are fewer rows than a global batch has.
        """
        rows = self.rows()
        try:
            plan = plan_batches(len(rows), steps, batch, seed)
        except ValueError as error:
            raise DataError(f"{error}\n{self.base.name}: {self.summary()}") from None
        return [rows[index] for index in plan.flatten()]
