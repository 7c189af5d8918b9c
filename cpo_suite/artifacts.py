"""Every kind of artifact: what determines it, how it is built and loaded, and what it costs.

The fields of a class are what determines the artifact, other artifacts among them. Those made by
`how()` are what it takes to build it: where data are, sizes of work, settings of a server.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cpo import data
from cpo.data import TokenizedExample
from cpo.engine import machine
from cpo.engine.processes import process_count
from cpo.ensembling import interpolate
from cpo.evaluation import intervals, judging, metrics
from cpo.evaluation.unhelpful import REPLIES, write_unhelpful
from cpo.generation import generate, ids_without_token
from cpo.models.folders import dequantise, fetched, gguf_file, load_model, load_tokenizer
from cpo.negatives import Planned as PlannedRows
from cpo.negatives import draw_negatives
from cpo.plan import plan_batches
from cpo.ranking import embed_texts, minilm, rank_candidates
from cpo.scoring import Group, order_by_length, score_groups
from cpo.training import (
    RANKED_OBJECTIVES,
    TrainingExample,
    TrainingSettings,
    micro_batch,
    train,
)
from cpo_suite import world
from cpo_suite.corpora import Corpora, Examples
from cpo_suite.estimate import Cost, Estimate
from cpo_suite.judges import chat_server, judge_of
from cpo_suite.paper import ModelName
from cpo_suite.profile import Judge, Mauve, Optimiser, Server
from cpo_suite.store import Artifact, Identity, Store, how


class Step(Artifact):
    """An artifact of the plan: it has a title, belongs to a model, and knows its cost."""

    @property
    def title(self) -> str:
        """What the plan calls it."""
        raise NotImplementedError

    @property
    def model_name(self) -> ModelName:
        """The base model, by its name in the profile, whose size and speed its cost goes by."""
        return self.examples.base.name  # type: ignore[attr-defined]

    def cost(self, estimate: Estimate) -> Cost:
        """What building it takes, on one process."""
        raise NotImplementedError


class _Loadable:
    """A folder with a model and its tokenizer."""

    def load(self, folder: Path) -> Any:
        """The causal language model, fp32, in evaluation mode, on the GPU where there is one.

        Raises:
            ModelFolderError: as `load_model`.
        """
        return load_model(folder).to(machine.device()).eval()


@dataclass(frozen=True, kw_only=True)
class BaseModel(_Loadable, Step):
    """A base model and its tokenizer, made from scratch on packed text with a cosine schedule."""

    stage = "base_model"
    version = 2
    shared = True

    config: dict[str, str | int | float | bool]
    texts: str
    vocabulary: int
    steps: int
    batch: int
    block_tokens: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    betas: tuple[float, float]
    clip: float
    precision: str
    seed: int
    name: ModelName = how()
    instructions: bool = how()
    corpora: Corpora = how()
    optimiser: Optimiser = how()

    @property
    def title(self) -> str:
        return f"base model {self.name}"

    @property
    def model_name(self) -> ModelName:
        return self.name

    def folder(self, store: Store) -> Path:
        """Where the model is, built first where it is missing."""
        return store.get(self)

    def build(self, folder: Path, store: Store) -> None:
        texts = self.corpora.texts(self.instructions)
        tokenizer = data.train_tokenizer(texts, self.vocabulary)
        torch.manual_seed(self.seed)
        config = {key: value for key, value in self.config.items() if key != "model_type"}
        network = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                str(self.config["model_type"]),
                **config,
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            ),
            dtype=torch.float32,
        )
        tokenizer.save_pretrained(folder)
        blocks = data.pack_articles(texts, tokenizer, self.block_tokens)
        plan = plan_batches(len(blocks), self.steps, self.batch, self.seed)
        rows = [blocks[index].tolist() for index in plan.flatten()]
        examples = [TrainingExample(Group(row[:1], [row[1:]])) for row in rows]
        settings = _training_settings(
            self,
            examples,
            objective="mle",
            schedule="cosine",
            warmup_steps=self.warmup_steps,
            fp32_head=False,
            description=f"pretraining {self.name}",
        )
        train(network, examples, settings, folder, store.partial(self))

    def cost(self, estimate: Estimate) -> Cost:
        speeds = estimate.speeds(self.model_name)
        tokens = self.batch * self.block_tokens
        return Cost(self.steps * (tokens / speeds.packing + speeds.step))


@dataclass(frozen=True)
class UnpackedModel(_Loadable, Artifact):
    """The fp32 folder that a .gguf file is unpacked into, once."""

    stage = "external_model"
    version = 1

    content: str
    file: Path | None = how(default=None)

    def build(self, folder: Path, store: Store) -> None:
        assert self.file is not None
        dequantise(self.file, folder)


@dataclass(frozen=True, kw_only=True)
class ExternalModel(Identity):
    """A model from elsewhere: the hash of a local folder or, after `gguf:`, of a .gguf file, or the
    revision of a hub model."""

    stage = "external_model"
    version = 1

    content: str
    name: ModelName = how()
    pretrained: str = how()

    def folder(self, store: Store) -> Path:
        """Where the model is: the user's folder, the hub's cache, or an unpacked .gguf file.

        Raises:
            FileNotFoundError, ModelFolderError: as `fetched` and `dequantise`.
        """
        place = fetched(self.pretrained)
        if file := gguf_file(place):
            return store.get(UnpackedModel(self.content, file))
        return place

    def load(self, folder: Path) -> Any:
        """As other models."""
        return load_model(folder).to(machine.device()).eval()


@dataclass(frozen=True, kw_only=True)
class Unhelpful(Step):
    """An unhelpful response to each planned row, as text; `chat` says who was asked, and how."""

    stage = "unhelpful"
    version = 1

    examples: Examples
    steps: int
    batch: int
    writer: str
    chat: dict[str, str | int | float | None]
    seed: int
    name: str = how()
    server: Server | None = how()

    @property
    def title(self) -> str:
        return f"unhelpful responses for {self.name}"

    def build(self, folder: Path, store: Store) -> None:
        pairs = self.examples.corpora.instructions.train
        by_id = {pair.id: pair for pair in pairs}
        planned = self.examples.planned(self.steps, self.batch, self.seed)
        partial = store.partial(self)
        texts = write_unhelpful(
            self.writer,
            [by_id[row.id] for row in planned],
            seed=self.seed,
            partial=partial,
            others=pairs,
            server=chat_server(self.server, "unhelpful.server") if self.server else None,
        )
        lines = json.dumps(texts, ensure_ascii=False, indent=0)
        (folder / "unhelpful.json").write_text(lines, encoding="utf-8")
        if self.server:  # whole replies, which were paid for, outlive what was made of them
            shutil.copy(partial / REPLIES, folder)

    def load(self, folder: Path) -> list[str | None]:
        """A response to each planned row, None where the writer had none."""
        return json.loads((folder / "unhelpful.json").read_text("utf-8"))

    def cost(self, estimate: Estimate) -> Cost:
        if self.server is None:
            return Cost(0.0)
        prefix, continuation = estimate.tokens(self.examples.task)
        written = min(self.steps * self.batch, self.examples.corpora.training_rows)
        return estimate.asking(self.server, written, prefix + continuation, continuation)


class ContrastSets:
    """The planned rows of one CPO training, with their candidates, order and reference values.

    N planned rows, K columns, column 0 the ground truth. Arrays: `mask` bool, `order` int, best
    first, `similarities` and `reference_logps` float32, all `[N, K]`.
    """

    def __init__(self, folder: Path, prefixes: Sequence[Sequence[int]], tokenizer: Any) -> None:
        arrays = np.load(folder / "negatives.npz")
        self.mask, self.order = arrays["mask"], arrays["order"]
        self.similarities, self.reference_logps = arrays["similarities"], arrays["reference_logps"]
        self._tokens, self._lengths = arrays["tokens"], arrays["lengths"]
        self._starts = np.concatenate([[0], self._lengths.ravel().cumsum()])
        self.report: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
        self.kinds: list[str] = self.report["kinds"]
        self.prefixes = prefixes
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.mask)

    def candidates(self, row: int) -> list[tuple[int, ...]]:
        """The K continuations of a planned row as ids, in column order; a masked one is empty."""
        k = len(self.kinds)
        bounds = self._starts[row * k : row * k + k + 1]
        return [
            tuple(self._tokens[start:end].tolist())
            for start, end in zip(bounds[:-1], bounds[1:], strict=True)
        ]

    def texts(self, row: int) -> list[str]:
        """The K continuations of a planned row as text, in column order."""
        return self.tokenizer.batch_decode(self.candidates(row), skip_special_tokens=True)

    def training_examples(self, ranked: bool) -> Sequence[TrainingExample]:
        """What a training sees: the columns in their order, best first when ranked."""
        columns = self.order if ranked else np.tile(np.arange(len(self.kinds)), (len(self), 1))
        examples = []
        for row, order in enumerate(columns):
            candidates = self.candidates(row)
            examples.append(
                TrainingExample(
                    Group(self.prefixes[row], [candidates[column] for column in order]),
                    self.mask[row, order].tolist(),
                    self.reference_logps[row, order].tolist(),
                )
            )
        return examples


@dataclass(frozen=True, kw_only=True)
class Negatives(Step):
    """Candidates, their order and their reference log-probabilities, on a batch plan."""

    stage = "negatives"
    version = 4
    shared = True

    reference: Model
    examples: Examples
    mixture: dict[str, int]
    steps: int
    batch: int
    embedder: str
    generation_batch: int
    precision: str
    seed: int
    unhelpful: Unhelpful | None = None
    name: str = how()
    counts: dict[str, int] = how()  # the mixture by registered names
    tokens_at_once: int = how()

    @property
    def title(self) -> str:
        return f"negatives of {self.name}"

    def _planned(self) -> list[TokenizedExample]:
        return self.examples.planned(self.steps, self.batch, self.seed)

    def build(self, folder: Path, store: Store) -> None:
        model, tokenizer = store.load(self.reference), self.examples.tokenizer()
        rows = self._planned()
        planned = PlannedRows(
            prefixes=[row.prefix_ids for row in rows],
            continuations=[row.continuation_ids for row in rows],
            has_eos=[row.has_eos for row in rows],
            unhelpful=self._unhelpful_ids(store, tokenizer),
            batch=self.batch,
            model=model,
            eos_token_id=tokenizer.eos_token_id,
            max_continuation_tokens=self.examples.max_continuation_tokens,
            precision=self.precision,
            generation_batch=self.generation_batch,
            tokenizer=tokenizer,
        )
        drawn = draw_negatives(planned, self.counts, self.seed)
        mask = torch.tensor(drawn.mask)
        texts = [
            text
            for group in drawn.candidates
            for text in tokenizer.batch_decode(group, skip_special_tokens=True)
        ]
        embeddings = embed_texts(texts, minilm(self.precision)).view(*mask.shape, -1)
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
            reference_logps=self._reference_logps(model, groups).numpy(),
        )
        ties = (similarities[:, 1:] > 1 - 1e-5) & mask[:, 1:]
        report = {
            "kinds": drawn.kinds,
            "by_kind": {kind: dataclasses.asdict(part) for kind, part in drawn.reports.items()},
            "tied_with_truth": float(ties.sum() / mask[:, 1:].sum().clamp(min=1)),
        }
        (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    def _unhelpful_ids(self, store: Store, tokenizer: Any) -> list[tuple[int, ...] | None] | None:
        """The unhelpful responses as ids, EOS included; None without them, or for one without."""
        if self.unhelpful is None:
            return None
        texts: list[str | None] = store.load(self.unhelpful)
        encoded = iter(data.encode([text for text in texts if text is not None], tokenizer))
        end, limit = tokenizer.eos_token_id, self.examples.max_continuation_tokens
        return [None if text is None else (*next(encoded), end)[:limit] for text in texts]

    def _reference_logps(self, model: Any, groups: Sequence[Group]) -> torch.Tensor:
        """`[N, K]`, in the training's own micro-batches: the same shapes give the same values, and
        a first loss of ln K."""
        by_length = order_by_length(groups, self.batch)
        scored = score_groups(
            model,
            [groups[row] for row in by_length],
            self.precision,
            _micro_batch(groups, self.batch, self.tokens_at_once),
            "reference log-probabilities",
            self.tokens_at_once,
        )
        reference_logps = torch.empty_like(scored)
        reference_logps[by_length] = scored
        return reference_logps

    def load(self, folder: Path) -> ContrastSets:
        prefixes = [row.prefix_ids for row in self._planned()]
        return ContrastSets(folder, prefixes, self.examples.tokenizer())

    def cost(self, estimate: Estimate) -> Cost:
        speeds = estimate.speeds(self.model_name)
        prefix, continuation = estimate.tokens(self.examples.task)
        rows, k = self.steps * self.batch, 1 + sum(self.counts.values())
        scoring = rows * (prefix + k * continuation) / speeds.scoring
        sampling = rows * self.counts.get("AN", 0) * continuation / speeds.decoding
        return Cost(scoring + sampling + rows * k / estimate.embedded_texts_per_second)


@dataclass(frozen=True, kw_only=True)
class Model(_Loadable, Step):
    """A model trained from another one on a batch plan; `negatives` is None for MLE and PSS."""

    stage = "model"
    version = 3
    shared = True

    start: BaseModel | ExternalModel | Model
    examples: Examples
    negatives: Negatives | None = dataclasses.field()
    objective: str
    beta: float
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    clip: float
    precision: str
    seed: int
    schedule: str = "constant"
    mle_weight: float = 0.0
    sampling_probability: float = 0.0
    sampling_passes: int = 0
    name: str = how()
    optimiser: Optimiser = how()

    @property
    def title(self) -> str:
        of_row = isinstance(self.start, Model)
        return f"model {self.name}" if of_row else self.name

    def build(self, folder: Path, store: Store) -> None:
        # A user's own objective is known here by its name, without the hash of its source.
        objective = self.objective.split(":")[0]
        if self.negatives is None:
            examples: Sequence[TrainingExample] = [
                TrainingExample(Group(row.prefix_ids, [row.continuation_ids]))
                for row in self.examples.planned(self.steps, self.batch, self.seed)
            ]
        else:
            sets: ContrastSets = store.load(self.negatives)
            examples = sets.training_examples(objective in RANKED_OBJECTIVES)
        settings = _training_settings(
            self,
            examples,
            objective=objective,
            beta=self.beta,
            mle_weight=self.mle_weight,
            sampling_probability=self.sampling_probability,
            sampling_passes=self.sampling_passes,
            schedule=self.schedule,
            description=f"training {self.name}",
        )
        start = self.start.load(folder_of(self.start, store))
        train(start, examples, settings, folder, store.partial(self))
        self.examples.tokenizer().save_pretrained(folder)

    def cost(self, estimate: Estimate) -> Cost:
        speeds = estimate.speeds(self.model_name)
        prefix, continuation = estimate.tokens(self.examples.task)
        k = 1 + sum(self.negatives.counts.values()) if self.negatives else 1
        tokens = self.steps * self.batch * (prefix + k * continuation)
        seconds = tokens / (speeds.contrast if k > 1 else speeds.training)
        # PSS: passes without gradient before the one that counts.
        seconds += self.sampling_passes * tokens / speeds.scoring
        return Cost(seconds + self.steps * speeds.step)


@dataclass(frozen=True, kw_only=True)
class Ensemble(_Loadable, Step):
    """theta = alpha * theta_MLE + (1 - alpha) * theta_CPO (section 4)."""

    stage = "ensemble"
    version = 1

    mle: Model
    cpo: Model
    alpha: float
    name: str = how()

    @property
    def title(self) -> str:
        return f"model {self.name}"

    @property
    def examples(self) -> Examples:
        """Those of both ends."""
        return self.cpo.examples

    def build(self, folder: Path, store: Store) -> None:
        policy = store.load(self.cpo)
        interpolate(store.load(self.mle), policy, self.alpha).save_pretrained(folder)
        self.examples.tokenizer().save_pretrained(folder)

    def cost(self, estimate: Estimate) -> Cost:
        return Cost(0.0)


@dataclass(frozen=True, kw_only=True)
class Generations(Step):
    """One continuation of each judged prompt, or article.

    Only prompts that fit every model of the profile are judged: `prompts` is the hash of the split,
    and `read_by` says how each model reads it. An article's prefix is its own model's alone.
    """

    stage = "generations"
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
    examples: Examples = how()  # the split as the model reads it
    asked: int = how()  # prompts, for the estimate

    @property
    def title(self) -> str:
        return f"generations of {self.label}"

    @property
    def label(self) -> str:
        """The row, and the split where it is not the test's."""
        split = self.examples.split
        return self.model.name + (f", {split}" if split != "test" else "")

    def rows(self) -> list[TokenizedExample]:
        """The judged prompts as the model's ids."""
        fitting = [{row.id for row in examples.rows()} for examples in self.read_by]
        return [row for row in self.examples.rows() if all(row.id in ids for ids in fitting)]

    def judged(self) -> list[data.Example]:
        """The judged prompts as text; of an article, its prefix and as much of its rest as is read.

        Raises:
            DataError: no prompt fits every model.
        """
        examples, rows = self.examples, self.rows()
        originals = {row.id: row for row in examples.corpora.split(examples.task, examples.split)}
        if examples.task == "articles":
            tokenizer = examples.tokenizer()

            def text(ids: Sequence[int]) -> str:
                return tokenizer.decode(ids, skip_special_tokens=True)

            return [
                data.Example(
                    row.id,
                    text(row.prefix_ids),
                    text(row.continuation_ids),
                    "article",
                    originals[row.id].source,
                )
                for row in rows
            ]
        if not rows:
            reports = examples.corpora.reports
            lines = (
                f"{reader.base.name}: "
                f"{reports[reader.base.name, reader.split, reader.task].summary()}"
                for reader in self.read_by
            )
            raise data.DataError(
                f"no {examples.split} prompt fits every model: raise "
                "instructions.max_prefix_tokens\n" + "\n".join(lines)
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
        """A dict for each prompt: id, ids, text.

        Raises:
            DataError: they are of other prompts.
        """
        path = folder / "generations.jsonl"
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        self.check(path, [line["id"] for line in lines])
        return lines

    def check(self, path: Path, ids: Sequence[str]) -> None:
        """Raises `DataError` where what was stored belongs to other prompts."""
        if list(ids) != [example.id for example in self.judged()]:
            raise data.DataError(
                f"{path} is of other prompts than {self.model.name} is judged on: remove its "
                "folder, and it is built again"
            )

    def cost(self, estimate: Estimate) -> Cost:
        speeds = estimate.speeds(self.model_name)
        continuation = estimate.tokens(self.examples.task)[1]
        beams = self.decoding["num_beams"]
        # Greedy and top-k decoding are our own, the rest transformers' `generate`.
        own = beams == 1 and not (self.decoding["do_sample"] and "top_p" in self.decoding)
        speed = (speeds.decoding if own else speeds.generate) / beams
        return Cost(self.asked * continuation / speed)


@dataclass(frozen=True, kw_only=True)
class Verdicts(Step):
    """A judge's verdicts on generations against the recorded responses; `judge` is
    `judge_identity`, `seed` that of the order in which it sees the two."""

    stage = "verdicts"
    version = 2

    generations: Generations
    judge: dict[str, Any]
    seed: int
    settings: Judge = how()

    @property
    def title(self) -> str:
        return f"verdicts on {self.generations.label}"

    @property
    def examples(self) -> Examples:
        """Those that were judged."""
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

    def cost(self, estimate: Estimate) -> Cost:
        prefix, continuation = estimate.tokens(self.examples.task)
        return estimate.judging(self.settings, self.generations.asked, prefix, continuation)


@dataclass(frozen=True, kw_only=True)
class Measures(Step):
    """The automatic measures of one model and its generations."""

    stage = "measures"
    version = 3

    generations: Generations
    examples: Examples
    base: BaseModel | ExternalModel
    mauve: dict[str, Any]
    judge: str = "none"
    scoring_batch: int = how(default=64)
    settings: Mauve = how()

    @property
    def title(self) -> str:
        return f"measures of {self.generations.label}"

    def build(self, folder: Path, store: Store) -> None:
        measures = {name: dataclasses.asdict(value) for name, value in self._measure(store).items()}
        (folder / "measures.json").write_text(json.dumps(measures, indent=1), encoding="utf-8")

    def load(self, folder: Path) -> dict[str, intervals.Estimate]:
        """Each measure with its 95 % interval."""
        measures = json.loads((folder / "measures.json").read_text("utf-8"))
        return {
            name: intervals.Estimate(**fields | {"replicates": tuple(fields["replicates"])})
            for name, fields in measures.items()
        }

    def _measure(self, store: Store) -> dict[str, intervals.Estimate]:
        lines, prompts = store.load(self.generations), self.generations.judged()
        answered = list(zip(lines, prompts, strict=True))
        eos = self.examples.tokenizer().eos_token_id
        generated = [[token for token in line["ids"] if token != eos] for line in lines]
        truths = self.generations.rows()
        scores = score_groups(
            store.load(self.generations.model),
            [Group(row.prefix_ids, [row.continuation_ids]) for row in truths],
            self.generations.precision,
            self.scoring_batch,
            "held-out loss",
        )[:, 0].numpy()
        tokens = np.array([len(row.continuation_ids) for row in truths])
        mean = intervals.mean_estimate
        measured = {
            "held_out_loss": intervals.token_mean_loss(scores, tokens),
            "tokens": mean([len(ids) for ids in generated]),
            "repeated_4grams": mean([metrics.repeated_ngrams(ids, 4) for ids in generated]),
            "word_f1": mean(
                [metrics.word_f1(line["text"], prompt.continuation) for line, prompt in answered]
            ),
        }
        if self.judge == "oracle":
            measured["oracle_grade"] = mean(
                [
                    world.oracle_score(prompt.source, line["text"], prompt.prefix)
                    for line, prompt in answered
                ]
            )
        if self._with_mauve:
            recorded = [[token for token in row.continuation_ids if token != eos] for row in truths]
            encoder, width = self.base.load(self.base.folder(store)), self.settings.max_text_tokens
            # One length for all: an empty generation is a single EOS, not dropped.
            p, q = (
                metrics.last_token_features(encoder, [(ids or [eos])[:width] for ids in texts])
                for texts in (recorded, generated)
            )
            try:
                seeds = tuple(range(self.settings.seeds))
                measured["mauve"] = metrics.mauve_score(p, q, seeds=seeds)
            except intervals.MetricError as error:  # one row's degenerate texts, not the others'
                name = self.generations.model.name
                warnings.warn(f"{name} has no MAUVE: {error}", stacklevel=2)
        return measured

    @property
    def _with_mauve(self) -> bool:
        settings = self.settings
        return settings.features == "base_model" and self.examples.task in settings.tasks

    def cost(self, estimate: Estimate) -> Cost:
        speeds, asked = estimate.speeds(self.model_name), self.generations.asked
        seconds = asked * sum(estimate.tokens(self.examples.task)) / speeds.scoring
        return Cost(seconds, fixed=estimate.clustering(asked, self.settings, self._with_mauve))


def folder_of(model: BaseModel | ExternalModel | Model | Ensemble, store: Store) -> Path:
    """Where a model is, built first where it is missing."""
    return model.folder(store) if isinstance(model, ExternalModel) else store.get(model)


def _training_settings(
    artifact: BaseModel | Model, examples: Sequence[TrainingExample], **settings: Any
) -> TrainingSettings:
    optimiser = artifact.optimiser
    return TrainingSettings(
        steps=artifact.steps,
        batch=artifact.batch,
        learning_rate=artifact.learning_rate,
        weight_decay=artifact.weight_decay,
        betas=artifact.betas,
        clip=artifact.clip,
        precision=artifact.precision,
        seed=artifact.seed,
        micro_batch=_micro_batch(
            [example.group for example in examples], artifact.batch, optimiser.micro_batch_tokens
        ),
        tokens_at_once=optimiser.micro_batch_tokens,
        checkpoint_minutes=optimiser.checkpoint_minutes,
        **settings,
    )


def _micro_batch(groups: Sequence[Group], batch: int, tokens: int) -> int:
    longest = max(len(group.prefix_ids) + sum(map(len, group.continuations)) for group in groups)
    return micro_batch(batch, longest, tokens, process_count())
