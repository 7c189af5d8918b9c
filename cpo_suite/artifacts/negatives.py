"""Negatives on a training schedule: candidates, their order, and reference values."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpo import data
from cpo.data import TokenizedExample
from cpo.evaluation.reply_store import STORE
from cpo.evaluation.unhelpful import write_unhelpful
from cpo.negatives import MOST_SEQUENCES, PlannedRows, draw_negatives
from cpo.plan import stream_seed
from cpo.ranking import best_first, embed_texts, minilm, rank_candidates
from cpo.scoring import Group, order_by_length, score_groups
from cpo.training import TrainingExample
from cpo_suite import world
from cpo_suite.artifacts.base_models import micro_batch_of
from cpo_suite.artifacts.examples import Examples
from cpo_suite.artifacts.step import Step
from cpo_suite.estimate import Cost, CostModel
from cpo_suite.judges import chat_server
from cpo_suite.profile import Server, UnhelpfulSettings
from cpo_suite.store import Store, how


@dataclass(frozen=True, kw_only=True)
class Unhelpful(Step):
    """One unhelpful response per row of a training schedule; `chat` identifies the chat model."""

    stage = "unhelpful"
    called = "unhelpful responses for {}"
    version = 1

    examples: Examples
    steps: int
    batch: int
    writer: str
    chat: dict[str, str | int | float | None]
    seed: int
    name: str = how()
    server: Server | None = how()

    @classmethod
    def by(cls, settings: UnhelpfulSettings, **fields: Any) -> Unhelpful:
        """The responses of the profile's writer; `fields` are the others of the artifact."""
        server = settings.server if settings.writer == "chat" else None
        chat = server.model_dump(include={"model", "base_url", "parameters"}) if server else {}
        if server:
            chat["parameters"] = json.dumps(server.parameters, sort_keys=True)
        return cls(writer=settings.writer, chat=chat, server=server, **fields)

    def build(self, folder: Path, store: Store) -> None:
        pairs = self.examples.corpora.split("instructions", self.examples.split)
        by_id = {pair.id: pair for pair in pairs}
        planned = self.examples.planned(self.steps, self.batch, self.seed)
        texts = write_unhelpful(
            self.writer,
            [by_id[row.id] for row in planned],
            seed=self.seed,
            store=store.root / STORE,
            others=pairs,
            server=chat_server(self.server, "unhelpful.server") if self.server else None,
        )
        lines = json.dumps(texts, ensure_ascii=False, indent=0)
        (folder / "unhelpful.json").write_text(lines, encoding="utf-8")

    def load(self, folder: Path) -> list[str | None]:
        """One response per row of the schedule, None where the writer has none."""
        return json.loads((folder / "unhelpful.json").read_text("utf-8"))

    def cost(self, costs: CostModel) -> Cost:
        if self.server is None:
            return Cost()
        prefix, continuation = costs.tokens(self.examples.task)
        written = self.steps * self.batch
        if self.examples.split == "train":
            written = min(written, self.examples.corpora.training_rows)
        return costs.asking(self.server, written, prefix + continuation, continuation)


class ContrastSets:
    """The training schedule of a CPO model: candidates, their order, and reference values.

    The schedule has N rows and K columns; column 0 is the ground truth. Arrays are `[N, K]`: `mask`
    (bool), `order` (int, best first), `similarities`, `reference_logps` and `scores` (float32). The
    scores are what the order is taken from, by default the similarities.
    """

    def __init__(self, folder: Path, prefixes: Sequence[Sequence[int]], tokenizer: Any) -> None:
        arrays = np.load(folder / "negatives.npz")
        self.mask, self.order = arrays["mask"], arrays["order"]
        self.similarities, self.reference_logps = arrays["similarities"], arrays["reference_logps"]
        self.scores = self.similarities
        self._tokens, self._lengths = arrays["tokens"], arrays["lengths"]
        self._ends = self._lengths.ravel().cumsum().reshape(self._lengths.shape)
        self.report: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
        self.kinds: list[str] = self.report["kinds"]
        self.prefixes = prefixes
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.mask)

    def select(self, counts: Mapping[str, int], rows: int | None = None) -> ContrastSets:
        """The ground truth and the first `counts[kind]` columns of each kind, on the first rows."""
        columns = [0]
        for kind, count in counts.items():
            columns += [column for column, name in enumerate(self.kinds) if name == kind][:count]
        selected = copy.copy(self)
        selected.kinds = [self.kinds[column] for column in columns]
        for name in ("mask", "similarities", "reference_logps", "scores", "_lengths", "_ends"):
            setattr(selected, name, getattr(self, name)[:rows, columns])
        places = np.full(len(self.kinds), -1)
        places[columns] = np.arange(len(columns))
        order = places[self.order[:rows]]
        selected.order = order[order >= 0].reshape(len(order), -1)  # still best first
        selected.prefixes = self.prefixes[:rows]
        return selected

    def kept(self, share: float, nearest: bool = False) -> ContrastSets:
        """A share of each row's usable negatives, rounded up; the others are masked.

        Those least similar to the ground truth stay, or with `nearest` those most similar.
        """
        usable = self.mask[:, 1:]
        keys = -self.similarities[:, 1:] if nearest else self.similarities[:, 1:]
        places = np.where(usable, keys, np.inf).argsort(-1, kind="stable").argsort(-1)
        # Rounded before the ceiling: 0.7 x 10 is a little more than 7.
        count = np.ceil(np.round(share * usable.sum(-1, keepdims=True), 6))
        chosen = copy.copy(self)
        chosen.mask = self.mask.copy()
        chosen.mask[:, 1:] = usable & (places < count)
        chosen._lengths = np.where(chosen.mask, self._lengths, 0)
        return chosen.ranked_by(self.scores)

    def ranked_by(self, scores: Any) -> ContrastSets:
        """The same candidates, ordered by `[N, K]` scores: ground truth first, masked last."""
        ranked = copy.copy(self)
        mask = torch.from_numpy(self.mask)
        ranked.scores = np.asarray(scores, dtype=np.float32)
        ranked.order = best_first(torch.as_tensor(scores), mask).numpy()
        return ranked

    def candidates(self, row: int) -> list[tuple[int, ...]]:
        """The K continuations of a row as token ids, in column order; empty where masked."""
        bounds = zip(self._ends[row] - self._lengths[row], self._ends[row], strict=True)
        return [tuple(self._tokens[start:end].tolist()) for start, end in bounds]

    def texts(self, row: int) -> list[str]:
        """The K continuations of a row as text, in column order."""
        return self.tokenizer.batch_decode(self.candidates(row), skip_special_tokens=True)

    def training_examples(self, ranked: bool) -> Sequence[TrainingExample]:
        """The training examples: columns best first if `ranked`, else as drawn."""
        columns = self.order if ranked else np.tile(np.arange(len(self.kinds)), (len(self), 1))
        examples = []
        for row, order in enumerate(columns):
            candidates = self.candidates(row)
            examples.append(
                TrainingExample(
                    Group(self.prefixes[row], [candidates[column] for column in order]),
                    self.mask[row, order].tolist(),
                    self.reference_logps[row, order].tolist(),
                    self.scores[row, order].tolist(),
                )
            )
        return examples


@dataclass(frozen=True, kw_only=True)
class Negatives(Step):
    """Candidates, their order, and reference log-probabilities, on a training schedule: a draw, of
    which each row takes the first columns of each kind and the first steps.

    By default drawn from the reference, once. A later `iteration` is drawn from a `policy`, or from
    the reference again, for the prompts of the schedule from `first_step` on.
    """

    stage = "negatives"
    called = "negatives of {}"
    version = 4
    shared = True

    reference: Step
    examples: Examples
    mixture: dict[str, int]
    steps: int
    batch: int
    embedder: str
    generation_batch: int
    precision: str
    seed: int
    unhelpful: Unhelpful | None = None
    policy: Step | None = None
    iteration: int = 0
    first_step: int = 0
    name: str = how()
    counts: dict[str, int] = how()  # the mixture, by registered names
    tokens_at_once: int = how()
    in_one_pass: bool = how(default=False)  # the reference of policies that are divided

    def describe(self) -> dict[str, Any]:
        """The hashed fields. What a later iteration is drawn from stands there by its key: each
        iteration would double the description otherwise."""
        described = super().describe()
        if self.iteration > 1:
            for name in {"reference", "policy"} & described.keys():
                described[name] = described[name].key
        return described

    def _planned(self) -> list[TokenizedExample]:
        end = self.first_step + self.steps
        return self.examples.planned(end, self.batch, self.seed)[self.first_step * self.batch :]

    def _planned_rows(self, store: Store, tokenizer: Any) -> PlannedRows:
        rows = self._planned()
        return PlannedRows(
            prefixes=[row.prefix_ids for row in rows],
            continuations=[row.continuation_ids for row in rows],
            unhelpful=self._unhelpful_ids(store, tokenizer),
            batch=self.batch,
            model=store.load(self.policy or self.reference),
            eos_token_id=tokenizer.eos_token_id,
            max_continuation_tokens=self.examples.max_continuation_tokens,
            precision=self.precision,
            generation_batch=self.generation_batch,
            tokenizer=tokenizer,
        )

    def build(self, folder: Path, store: Store) -> None:
        tokenizer = self.examples.tokenizer()
        planned = self._planned_rows(store, tokenizer)
        seed = self.seed if not self.iteration else stream_seed(self.seed, "draw", self.iteration)
        drawn = draw_negatives(planned, self.counts, seed)
        reference = planned.model
        if self.policy is not None:
            planned = dataclasses.replace(planned, model=None)  # one model at a time
            reference = store.load(self.reference)
        mask = torch.tensor(drawn.mask)
        texts = [
            text
            for group in drawn.candidates
            for text in tokenizer.batch_decode(group, skip_special_tokens=True)
        ]
        embeddings = embed_texts(texts, minilm(self.precision, self.embedder)).view(*mask.shape, -1)
        order, similarities = rank_candidates(embeddings, mask)
        groups = [Group(*pair) for pair in zip(planned.prefixes, drawn.candidates, strict=True)]
        flat = [ids for group in drawn.candidates for ids in group]
        np.savez(
            folder / "negatives.npz",
            tokens=np.array([token for ids in flat for token in ids], dtype=np.int32),
            lengths=np.array([len(ids) for ids in flat], dtype=np.int32).reshape(mask.shape),
            mask=mask.numpy(),
            order=order.numpy().astype(np.int16),
            similarities=similarities.numpy(),
            reference_logps=self._reference_logps(reference, groups).numpy(),
        )
        ties = (similarities[:, 1:] > 1 - 1e-5) & mask[:, 1:]
        report = {
            "kinds": drawn.kinds,
            "by_kind": {kind: dataclasses.asdict(part) for kind, part in drawn.reports.items()},
            "tied_with_truth": float(ties.sum() / mask[:, 1:].sum().clamp(min=1)),
        }
        (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    def _unhelpful_ids(self, store: Store, tokenizer: Any) -> list[tuple[int, ...] | None] | None:
        """The unhelpful responses as token ids with EOS; None for a row without response."""
        if self.unhelpful is None:
            return None
        texts: list[str | None] = store.load(self.unhelpful)[self.first_step * self.batch :]
        encoded = iter(data.encode([text for text in texts if text is not None], tokenizer))
        end, limit = tokenizer.eos_token_id, self.examples.max_continuation_tokens
        return [None if text is None else (*next(encoded), end)[:limit] for text in texts]

    def _reference_logps(self, reference: Any, groups: Sequence[Group]) -> torch.Tensor:
        """`[N, K]`, in micro-batches and the kind of pass as in training: equal shapes give equal
        values, and a first loss of ln K."""
        by_length = order_by_length(groups, self.batch)
        scored = score_groups(
            reference,
            [groups[row] for row in by_length],
            self.precision,
            micro_batch_of(groups, self.batch, self.tokens_at_once),
            "reference log-probabilities",
            self.tokens_at_once,
            self.in_one_pass,
        )
        reference_logps = torch.empty_like(scored)
        reference_logps[by_length] = scored
        return reference_logps

    def oracle_grades(self, sets: ContrastSets) -> list[list[float]]:
        """The grades `[N][K]` that the embedded world's oracle gives the candidates of a selection
        of this draw."""
        split = self.examples.corpora.split(self.examples.task, self.examples.split)
        sources = {example.id: example.source for example in split}
        rows = self._planned()[: len(sets)]
        return [
            [world.oracle_score(sources[row.id], text) for text in sets.texts(number)]
            for number, row in enumerate(rows)
        ]

    def load(self, folder: Path) -> ContrastSets:
        prefixes = [row.prefix_ids for row in self._planned()]
        return ContrastSets(folder, prefixes, self.examples.tokenizer())

    def cost(self, costs: CostModel) -> Cost:
        speeds = costs.speeds(self.model_name)
        prefix, continuation = costs.tokens(self.examples.task)
        rows, k = self.steps * self.batch, 1 + sum(self.counts.values())
        scoring = rows * (prefix + k * continuation) / speeds.scoring
        decoded = self.counts.get("AN", 0) + self.counts.get("AN-greedy", 0)
        sampling = rows * decoded * continuation / speeds.decoding
        if "AN-beam" in self.counts:
            sampling += rows * MOST_SEQUENCES["AN-beam"] * continuation / speeds.generate
        return Cost(scoring + sampling + rows * k / costs.embedded_texts_per_second())
