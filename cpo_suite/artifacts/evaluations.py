"""Evaluation of a model: generations, verdicts on them, and automatic measures."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cpo import data
from cpo.data import TokenizedExample
from cpo.engine.next_token import NextToken
from cpo.evaluation import judging, metrics, statistics
from cpo.generation import generate, ids_without_token
from cpo.models.folders import load_tokenizer
from cpo.scoring import Group, score_groups
from cpo_suite import world
from cpo_suite.artifacts.base_models import BaseModel, ExternalModel
from cpo_suite.artifacts.examples import Examples
from cpo_suite.artifacts.models import Ensemble, Model
from cpo_suite.artifacts.step import Step
from cpo_suite.estimate import MAUVE_SECONDS, ROUGE_SECONDS, Cost, CostModel
from cpo_suite.judges import judge_of
from cpo_suite.profile import SAMPLING, JudgeSettings
from cpo_suite.store import Store, how

SCORING_BATCH = 64
RESPONSES = "responses.npz"  # what `Measures` has of each response


@dataclass(frozen=True, kw_only=True)
class Generations(Step):
    """One continuation per judged prompt or article.

    Only prompts that fit every model of the profile are judged. `prompts` is the hash of the split,
    and `read_by` its tokenisations by all models, empty for articles.
    """

    stage = "generations"
    called = "generations of {}"
    version = 3
    shared = True

    model: Model | Ensemble
    prompts: str
    read_by: tuple[Examples, ...]
    decoding: dict[str, Any]
    max_new_tokens: int
    batch: int
    precision: str
    seed: int
    examples: Examples = how()  # the split, tokenised for the model

    @property
    def label(self) -> str:
        """The row, the split unless it is the test split, and the seed if it is sampled."""
        split = self.examples.split
        sampled = self.decoding == SAMPLING.model_dump(exclude_none=True)
        return (
            self.model.name
            + (f", {split}" if split != "test" else "")
            + (f", sampled with seed {self.seed}" if sampled else "")
        )

    def rows(self) -> list[TokenizedExample]:
        """The judged prompts as token ids."""
        fitting = [{row.id for row in examples.rows()} for examples in self.read_by]
        return [row for row in self.examples.rows() if all(row.id in ids for ids in fitting)]

    def judged(self) -> list[data.Example]:
        """The judged prompts as text; for articles, the prefix and the truncated continuation.

        Raises:
            DataError: no prompt fits every model.
        """
        examples, rows = self.examples, self.rows()
        corpora = examples.corpora
        originals = {row.id: row for row in corpora.split(examples.task, examples.split)}
        if examples.task == "articles":
            decode = partial(examples.tokenizer().decode, skip_special_tokens=True)
            return [
                data.Example(
                    row.id,
                    decode(row.prefix_ids),
                    decode(row.continuation_ids),
                    "article",
                    originals[row.id].source,
                )
                for row in rows
            ]
        if not rows:
            reports = "\n".join(
                f"{reader.base.name}: {reader.summary()}" for reader in self.read_by
            )
            raise data.DataError(
                f"no {examples.split} prompt fits every model: raise "
                f"instructions.max_prefix_tokens\n{reports}"
            )
        return [originals[row.id] for row in rows]

    def build(self, folder: Path, store: Store) -> None:
        place = store.get(self.model)
        model, tokenizer, rows = self.model.load(place), load_tokenizer(place), self.rows()
        continuations = generate(
            model,
            [row.prefix_ids for row in rows],
            eos_token_id=tokenizer.eos_token_id,
            max_new_tokens=self.max_new_tokens,
            batch=self.batch,
            seed=self.seed,
            precision=self.precision,
            lengths=[len(row.continuation_ids) for row in rows],
            never=ids_without_token(model, tokenizer),
            description=f"generating {self.model.name}",
            **self.decoding,
        )
        with open(folder / "generations.jsonl", "w", encoding="utf-8") as file:
            for row, (ids,) in zip(rows, continuations, strict=True):
                text = tokenizer.decode(ids, skip_special_tokens=True)
                file.write(json.dumps({"id": row.id, "ids": ids, "text": text}) + "\n")

    def load(self, folder: Path) -> list[dict[str, Any]]:
        """One dict per prompt: id, ids, text.

        Raises:
            DataError: the stored generations belong to other prompts.
        """
        path = folder / "generations.jsonl"
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        self.check(path, [line["id"] for line in lines])
        return lines

    def check(self, path: Path, ids: Sequence[str]) -> None:
        """Raise `DataError` if stored results belong to other prompts."""
        if list(ids) != [row.id for row in self.rows()]:
            raise data.DataError(
                f"{path} belongs to other prompts than those {self.model.name} is judged on: "
                "remove its folder to rebuild it"
            )

    def prompt_count(self, costs: CostModel) -> int:
        """Number of prompts, as stated in the profile."""
        return costs.prompts(self.examples.task, self.examples.split)

    def cost(self, costs: CostModel) -> Cost:
        speeds = costs.speeds(self.model_name)
        continuation = costs.tokens(self.examples.task)[1]
        beams = self.decoding["num_beams"]
        own = NextToken.of({"top_k": 0} | self.decoding) is not None
        speed = (speeds.decoding if own else speeds.generate) / beams
        return Cost(self.prompt_count(costs) * continuation / speed)


@dataclass(frozen=True, kw_only=True)
class StoredVerdicts(Step):
    """Verdicts on generations against the recorded responses. `judge` is `judge_identity`; `seed`
    determines the order of the two responses."""

    stage = "verdicts"
    called = "verdicts on {}"
    version = 2

    generations: Generations
    judge: dict[str, Any]
    seed: int
    settings: JudgeSettings = how()

    @property
    def label(self) -> str:
        return self.generations.label

    @property
    def examples(self) -> Examples:
        """The judged examples."""
        return self.generations.examples

    def build(self, folder: Path, store: Store) -> None:
        judge = judge_of(self.settings, self.examples.task, store.root)
        assert judge is not None
        texts = [line["text"] for line in store.load(self.generations)]
        prompts, orders = self.generations.judged(), self.settings.orders
        verdicts = judging.judge_responses(judge, prompts, texts, self.seed, orders)
        verdicts.to_jsonl(folder / "verdicts.jsonl")

    def load(self, folder: Path) -> judging.Verdicts:
        path = folder / "verdicts.jsonl"
        verdicts = judging.Verdicts.from_jsonl(path)
        self.generations.check(path, verdicts.ids)
        return verdicts

    def cost(self, costs: CostModel) -> Cost:
        prefix, continuation = costs.tokens(self.examples.task)
        prompts = self.generations.prompt_count(costs)
        return costs.judging(self.settings, prompts, prefix, continuation)


@dataclass(frozen=True, kw_only=True)
class Measures(Step):
    """Automatic measures of a model and its generations: of each response, and of all together."""

    stage = "measures"
    called = "measures of {}"
    version = 4

    generations: Generations
    examples: Examples
    base: BaseModel | ExternalModel
    mauve: dict[str, Any]
    judge: str = "none"

    @property
    def label(self) -> str:
        return self.generations.label

    def build(self, folder: Path, store: Store) -> None:
        lines = store.load(self.generations)
        eos = self.examples.tokenizer().eos_token_id
        generated = [[token for token in line["ids"] if token != eos] for line in lines]
        values = self._of_responses(lines, generated)
        losses, tokens = self._held_out(store)
        stored = {**values, "held_out_loss": losses, "recorded_tokens": tokens}
        np.savez(folder / RESPONSES, **stored)
        measured = {"held_out_loss": statistics.token_mean_loss(-losses * tokens, tokens)}
        measured |= {name: statistics.mean_estimate(of) for name, of in values.items()}
        measured |= self._of_all(store, generated, eos)
        fields = {name: dataclasses.asdict(value) for name, value in measured.items()}
        (folder / "measures.json").write_text(json.dumps(fields, indent=1), encoding="utf-8")

    def load(self, folder: Path) -> dict[str, statistics.Estimate]:
        """The measures, with 95 % intervals."""
        measures = json.loads((folder / "measures.json").read_text("utf-8"))
        return {
            name: statistics.Estimate(**fields | {"replicates": tuple(fields["replicates"])})
            for name, fields in measures.items()
        }

    def responses(self, folder: Path) -> dict[str, statistics.Array]:
        """What there is of each response, aligned with the prompts, `[n]`.

        `held_out_loss` is the mean loss per token of the recorded response, in nats, and
        `recorded_tokens` their number, its weight in the mean over prompts.
        """
        with np.load(folder / RESPONSES) as arrays:
            return {name: arrays[name].astype(float) for name in arrays.files}

    def _of_responses(
        self, lines: Sequence[dict[str, Any]], generated: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """Measures of each response: name -> [n]; `generated` are its tokens without EOS."""
        answered = [
            (line["text"], prompt)
            for line, prompt in zip(lines, self.generations.judged(), strict=True)
        ]
        values: dict[str, Any] = {
            "tokens": [len(ids) for ids in generated],
            "seq_rep_4": [metrics.repeated_ngrams(ids, 4) for ids in generated],
            "rouge_l": [metrics.rouge_l(text, one.continuation) for text, one in answered],
            "word_f1": [metrics.word_f1(text, one.continuation) for text, one in answered],
        }
        if self.judge == "oracle":
            values["oracle_grade"] = [
                world.oracle_score(one.source, text, one.prefix) for text, one in answered
            ]
        return values

    def _held_out(self, store: Store) -> tuple[statistics.Array, statistics.Array]:
        """The loss of each recorded response per token, and its number of tokens, `[n]` each."""
        truths = self.generations.rows()
        scores = score_groups(
            store.load(self.generations.model),
            [Group(row.prefix_ids, [row.continuation_ids]) for row in truths],
            self.generations.precision,
            SCORING_BATCH,
            "held-out loss",
        )[:, 0].numpy()
        tokens = np.array([len(row.continuation_ids) for row in truths], dtype=float)
        return -scores / tokens, tokens

    def _of_all(
        self, store: Store, generated: Sequence[list[int]], eos: int
    ) -> dict[str, statistics.Estimate]:
        """Measures of all responses together, each unless the responses are too degenerate."""
        measured: dict[str, Callable[[], statistics.Estimate]] = {
            "distinct_pieces": lambda: metrics.distinct_ngrams(generated, 1, share=False),
            "distinct_2": lambda: metrics.distinct_ngrams(generated, 2),
        }
        if self._with_mauve:
            measured["mauve"] = lambda: self._mauve(store, generated, eos)
        found = {}
        for name, measure in measured.items():
            try:
                found[name] = measure()
            except statistics.MetricError as error:  # degenerate texts must not stop other rows
                row = self.generations.model.name
                warnings.warn(f"{row} has no {name}: {error}", stacklevel=2)
        return found

    def _mauve(self, store: Store, generated: Sequence[list[int]], eos: int) -> statistics.Estimate:
        recorded = [
            [token for token in row.continuation_ids if token != eos]
            for row in self.generations.rows()
        ]
        encoder = self.base.load(self.base.folder(store))
        width = self.mauve["max_text_tokens"]
        # All texts count: an empty generation becomes a single EOS.
        p, q = (
            metrics.last_token_features(encoder, [(ids or [eos])[:width] for ids in texts])
            for texts in (recorded, generated)
        )
        return metrics.mauve_score(p, q, seeds=tuple(range(self.mauve["seeds"])))

    @property
    def _with_mauve(self) -> bool:
        mauve = self.mauve
        return mauve["features"] == "base_model" and self.examples.task in mauve["tasks"]

    def cost(self, costs: CostModel) -> Cost:
        prompts = self.generations.prompt_count(costs)
        tokens = prompts * sum(costs.tokens(self.examples.task))
        fixed = prompts * costs.tokens(self.examples.task)[1] ** 2 * ROUGE_SECONDS
        if self._with_mauve:
            fixed += prompts * self.mauve["seeds"] * MAUVE_SECONDS
        return Cost(tokens / costs.speeds(self.model_name).scoring, fixed=fixed)
