"""Exposure bias of a model: its n-th sentence after true sentences and after its own, graded by the
oracle of the embedded world."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cpo import data
from cpo.data.tokens import encode
from cpo.evaluation.exposure_bias import SentenceGrades
from cpo.generation import generate, ids_without_token
from cpo.models.folders import load_tokenizer
from cpo_suite import world
from cpo_suite.artifacts.evaluations import Generations
from cpo_suite.artifacts.examples import Examples
from cpo_suite.artifacts.step import Step
from cpo_suite.estimate import Cost, CostModel
from cpo_suite.store import Store, how
from cpo_suite.world.grammar import cut_sentences
from cpo_suite.world.sentences import grades_in_turn, lead_of, true_sentences

SENTENCE_TOKENS = 40  # a sentence of the world has at most 20 words


class Context(NamedTuple):
    """What stands before the n-th sentence of an example: n - 1 true sentences.

    `before` is the text that the oracle reads first, `ids` all that the model reads.
    """

    row: int
    n: int
    before: str
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ExposureBias(Step):
    """Grades of a model's n-th sentence after n - 1 true ones and after its own n - 1.

    Its own sentences are those of its greedy `generations`; a true context is continued greedily by
    one sentence. The `most` examples with the longest true texts count, of at least `fewest`
    sentences, up to the sentence number `last`.
    """

    stage = "exposure_bias"
    called = "exposure bias of {}"
    version = 1

    generations: Generations
    most: int
    fewest: int
    last: int
    examples: Examples = how()

    @property
    def label(self) -> str:
        return self.generations.label

    def build(self, folder: Path, store: Store) -> None:
        lines, prompts = store.load(self.generations), self.generations.judged()
        place = store.get(self.generations.model)
        model, tokenizer = self.generations.model.load(place), load_tokenizer(place)
        true_texts = [true_sentences(one.source, one.prefix) for one in prompts]
        chosen = longest(true_texts, self.most, self.fewest)
        prompts = [prompts[index] for index in chosen]
        shape = len(chosen), self.last
        true, own, asked = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, bool)
        for row, index in enumerate(chosen):
            sentences = written(lines[index]["ids"], tokenizer)[: self.last]
            grades = grades_in_turn(prompts[row].source, prompts[row].prefix, sentences)
            own[row, : len(grades)] = grades
        # No true sentence stands before the first one: it is the same in both.
        true[:, 0], asked[:, 0] = own[:, 0], True
        all_rows = self.generations.rows()
        contexts = [
            context
            for row, index in enumerate(chosen)
            for context in self._contexts(
                row, prompts[row], true_texts[index], all_rows[index].prefix_ids, tokenizer
            )
            if len(context.ids) + SENTENCE_TOKENS <= _positions(model)
        ]
        for context, sentence in self._continued(contexts, model, tokenizer):
            asked[context.row, context.n - 1] = True
            if sentence is not None:
                source = prompts[context.row].source
                grade = world.sentence_grade(source, context.before, sentence)
                true[context.row, context.n - 1] = grade
        ids = tuple(one.id for one in prompts)
        _write(folder / "grades.jsonl", SentenceGrades(ids, true, own, asked))

    def load(self, folder: Path) -> SentenceGrades:
        """The grades, `[examples, last]`."""
        path = folder / "grades.jsonl"
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        shape = len(lines), self.last
        true, own, asked = (
            np.array([line[name] for line in lines], dtype=kind).reshape(shape)
            for name, kind in (("true", float), ("own", float), ("asked", bool))
        )
        return SentenceGrades(tuple(line["id"] for line in lines), true, own, asked)

    def _contexts(
        self,
        row: int,
        prompt: data.Example,
        sentences: Sequence[str],
        prefix_ids: tuple[int, ...],
        tokenizer: Any,
    ) -> Iterator[Context]:
        """The true contexts of the second to the last sentence that a generation may reach."""
        lead = lead_of(prompt.source, prompt.prefix)
        # An article is one text with its prefix, an answer is tokenised separately.
        bos = prefix_ids if not lead else prefix_ids[: prefix_ids[0] == tokenizer.bos_token_id]
        for n in range(2, min(len(sentences), self.last) + 1):
            before = lead + "".join(sentences[: n - 1])
            ids = (*bos, *encode([before], tokenizer)[0])
            length = len(ids) - len(prefix_ids)
            if ids[: len(prefix_ids)] == prefix_ids and length < self.generations.max_new_tokens:
                yield Context(row, n, before, ids)

    def _continued(
        self, contexts: Sequence[Context], model: Any, tokenizer: Any
    ) -> Iterator[tuple[Context, str | None]]:
        """Each context with the sentence that the model writes next, None if it stops."""
        continuations = generate(
            model,
            [context.ids for context in contexts],
            eos_token_id=tokenizer.eos_token_id,
            max_new_tokens=SENTENCE_TOKENS,
            batch=self.generations.batch,
            precision=self.generations.precision,
            never=ids_without_token(model, tokenizer),
            description=f"sentences of {self.generations.model.name}",
        )
        for context, (ids,) in zip(contexts, continuations, strict=True):
            yield context, next(iter(written(ids, tokenizer)), None)

    def cost(self, costs: CostModel) -> Cost:
        prompts = min(self.most, self.generations.prompt_count(costs))
        tokens = prompts * (self.last - 1) * SENTENCE_TOKENS
        return Cost(tokens / costs.speeds(self.model_name).decoding)


def longest(texts: Sequence[Sequence[str]], most: int, fewest: int) -> list[int]:
    """Indices, in order, of the `most` texts with most sentences, of at least `fewest` each; of
    equal ones the first."""
    long_enough = [index for index, text in enumerate(texts) if len(text) >= fewest]
    return sorted(sorted(long_enough, key=lambda index: -len(texts[index]))[:most])


def written(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The sentences that a model wrote, without a last one that only the length limit cut off.

    One that has not ended after `SENTENCE_TOKENS` tokens is the model's fault and stays.
    """
    sentences = cut_sentences(tokenizer.decode(ids, skip_special_tokens=True))
    if not sentences or ids[-1] == tokenizer.eos_token_id:
        return sentences
    last = sentences[-1]
    tokens = len(ids) if len(sentences) == 1 else len(encode([last], tokenizer)[0])
    if last.endswith((".", "!", "?")) or tokens >= SENTENCE_TOKENS:
        return sentences
    return sentences[:-1]


def _positions(model: Any) -> float:
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    return math.inf if limit is None else limit


def _write(path: Path, grades: SentenceGrades) -> None:
    """One line per example; null where the model wrote no sentence."""
    with open(path, "w", encoding="utf-8") as file:
        for row, id_ in enumerate(grades.ids):
            true, own = (
                [None if math.isnan(grade) else grade for grade in side[row].tolist()]
                for side in (grades.true, grades.own)
            )
            line = {"id": id_, "true": true, "own": own, "asked": grades.asked[row].tolist()}
            file.write(json.dumps(line) + "\n")
