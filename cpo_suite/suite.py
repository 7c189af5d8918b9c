"""From a row of the paper to its artifact and content, for one profile over one store.

A `Suite` builds missing artifacts on demand, in any order and from any notebook; built artifacts
are cached.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import chain, product
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import ValidationError
from transformers.utils import logging as transformers_logging

from cpo import data, held_out
from cpo.data import Task
from cpo.engine.memory import keep_freed_memory
from cpo.evaluation import exposure_bias, judging, statistics
from cpo.models.folders import load_tokenizer
from cpo.objectives import objective_identity
from cpo.ranking import embedder_name
from cpo.registry import nearest
from cpo_suite import calibration, draws, precision
from cpo_suite.artifacts import (
    BaseModel,
    ContrastSets,
    Ensemble,
    Examples,
    ExposureBias,
    ExternalModel,
    Generations,
    Gradients,
    MeasuredGradients,
    Measures,
    Model,
    Negatives,
    Step,
    StoredVerdicts,
    Unhelpful,
    measured_quality,
    planned_artifact,
)
from cpo_suite.corpora import Corpora, StatedCorpora
from cpo_suite.estimate import CostModel, Planned
from cpo_suite.iterations import iterated
from cpo_suite.judges import judge_identity, judge_of
from cpo_suite.launching import launch
from cpo_suite.paper import (
    EXPOSURE_LIMITS,
    EXPOSURE_ROWS,
    ModelName,
    ReferenceName,
    Row,
    chosen_among,
    continued_mle,
    cpo_end,
)
from cpo_suite.profile import JudgeSettings, Profile, ProfileError, load_profile, missing_paths
from cpo_suite.store import Artifact, Store, artifacts_folder, walk
from cpo_suite.training_memory import is_divided, training_fields

# Of `gradients`: rows with negatives AN, AN without truncation, and mixed; parts of the batch.
GRADIENT_ROWS = ("t2/ANR", "x/AN-untruncated", "t2/MixNR/0")
GRADIENT_CHUNKS = 8


@dataclass(frozen=True)
class ModelFolder:
    """A built model: its folder, loadable with `from_pretrained`, and its artifact."""

    name: str
    artifact: BaseModel | ExternalModel | Model | Ensemble
    path: Path

    def load(self) -> Any:
        """The causal language model, fp32, in evaluation mode, on the GPU where there is one."""
        return self.artifact.load(self.path)


class Suite:
    """One profile over one store: every artifact of the paper's rows, built on demand."""

    def __init__(
        self, profile: Profile, store: Store, output: Path, corpora: Corpora | None = None
    ) -> None:
        # Artifacts name the precision itself, never `auto`.
        self.profile = precision.resolved(profile, store.root)
        self._store = store
        self.corpora = corpora or Corpora(self.profile, store)
        self.output = output
        # Hashing an external model is slow.
        self.base_artifact = cache(self._base_artifact)
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        keep_freed_memory()

    @classmethod
    def open(
        cls, profile: str = "tiny", overrides: Sequence[str] = (), output: str | Path = ""
    ) -> Suite:
        """Open a suite by profile name.

        Args:
            output: folder of tables and figures; by default a folder in the store, which is
                `artifacts/` in the checkout or CPO_ARTIFACTS.

        Raises:
            ProfileError: as `load_profile`, or a file, folder or judge it names does not exist.
        """
        loaded = load_profile(profile, overrides)
        for key, missing in missing_paths(profile, overrides).items():
            raise ProfileError(f"{key}: {missing}")
        try:
            judge_identity(loaded.judge, "instructions")
        except judging.JudgeError as error:
            raise ProfileError(f"judge.kind: {error}") from None
        root = artifacts_folder()
        folder = Path(output) if output else root / "figures" / loaded.name
        folder.mkdir(parents=True, exist_ok=True)
        return cls(loaded, Store(root), folder)

    @classmethod
    def stated(cls, profile: Profile, store: Store, output: Path) -> Suite:
        """A suite from its profile alone, enough to plan without data or models."""
        return cls(profile, store, output, StatedCorpora(profile, store))

    @property
    def store(self) -> Store:
        """The store of artifacts. With several processes, it launches them for shared artifacts."""
        self._store.elsewhere = self._launched if self.profile.processes.count > 1 else None
        return self._store

    @store.setter
    def store(self, store: Store) -> None:
        self._store = self.corpora.store = store

    def _launched(self, artifact: Artifact) -> bool:
        """Build a shared artifact of the plan in launched processes; False for any other."""
        if not artifact.shared or artifact.key not in {step.key for step in self.artifacts()}:
            return False
        launch(self.profile, self._store.root, artifact)
        return True

    # --- Data -------------------------------------------------------------------------------------

    @property
    def instructions(self) -> data.InstructionTask:
        """The instruction pairs, with one split for all models and seeds."""
        return self.corpora.instructions

    @property
    def articles(self) -> data.ArticleTask:
        """The articles, with their splits."""
        return self.corpora.articles

    @property
    def token_reports(self) -> dict[tuple[str, str, Task], data.LoadReport]:
        """What tokenisation dropped or truncated so far, by (model, split, task)."""
        return self.corpora.reports

    def tokenizer(self, model: ModelName) -> Any:
        """The tokenizer of a base model."""
        return load_tokenizer(self.base_model(model).path)

    def tokenized(
        self, model: ModelName, split: str, task: Task = "instructions"
    ) -> list[data.TokenizedExample]:
        """A split of the pairs or articles as token ids of one model."""
        return self.examples(model, split, task).rows()

    def prompts(
        self, model: ModelName, task: Task = "instructions", split: str = "test"
    ) -> list[data.Example]:
        """The judged prompts of a split: those that fit every model of the profile, or articles as
        prefix and continuation, truncated as the profile says."""
        which: ReferenceName = "articles_reference" if task == "articles" else "reference"
        reference = self.reference_artifact(model, which)
        return self._generations(reference, "greedy", 0, split).judged()

    @property
    def test_examples(self) -> list[data.Example]:
        """The judged prompts: test prompts that fit every model of the profile."""
        return self.prompts(next(iter(self.profile.models)))

    @property
    def validation_examples(self) -> list[data.Example]:
        """Validation prompts that fit every model; settings are chosen on these only."""
        return self.prompts(next(iter(self.profile.models)), split="validation")

    # --- Artifacts --------------------------------------------------------------------------------

    def _base_artifact(self, name: ModelName) -> BaseModel | ExternalModel:
        """A base model, pretrained here or external."""
        model = self.profile.models[name]
        if model.pretrained is not None:
            content = self.corpora.content_of(model.pretrained)
            return ExternalModel(content=content, name=name, pretrained=model.pretrained)
        assert model.pretraining is not None and model.config is not None  # the profile's own check
        return BaseModel(
            config=model.config,
            texts=self.corpora.texts_hash(model.pretraining.instructions),
            seed=0,
            name=name,
            corpora=self.corpora,
            **dict(model.pretraining),
            **training_fields(self.profile, name),
        )

    def examples(
        self, model: ModelName, split: str = "train", task: Task = "instructions"
    ) -> Examples:
        """A split of the pairs or articles, tokenised for one model."""
        settings, articles = self.profile.instructions, task == "articles"
        limit = self.profile.articles.max_tokens if articles else settings.max_continuation_tokens
        return Examples(
            base=self.base_artifact(model),
            data=self.corpora.content_hash(task, split),
            split=split,
            max_prefix_tokens=0 if articles else settings.max_prefix_tokens,
            max_continuation_tokens=limit,
            over_long="truncate" if articles else settings.over_long,
            task=task,
            corpora=self.corpora,
        )

    def reference_artifact(
        self, model: ModelName, which: ReferenceName = "reference", seed: int = 0
    ) -> Model:
        """The reference: MLE from the base model (2,000 steps in the paper, 1,000 in figure 1)."""
        task: Task = "articles" if which == "articles_reference" else "instructions"
        stage = getattr(self.profile, which)
        validation = self.examples(model, "validation", task) if stage.held_out_every else None
        return Model(
            start=self.base_artifact(model),
            examples=self.examples(model, task=task),
            validation=validation,
            negatives=None,
            objective="mle",
            beta=0.0,
            seed=seed,
            name=f"{which}/{model}",
            **dict(stage),
            **training_fields(self.profile, model),
        )

    def negatives_artifact(self, row: Row, seed: int = 0, split: str = "train") -> Negatives:
        """The draw from which a CPO row takes its negatives, from its reference.

        Rows on the same reference that need the same kinds share the largest draw. With
        `split="validation"`, the draw on held-out prompts.

        Raises:
            ValueError: the row trains without negatives.
        """
        mixture, steps = draws.shared_draw(self.profile, row)
        if split == "validation":
            steps = draws.held_out_batches(self.profile, row.task)
        plan: dict[str, Any] = {
            "examples": self.examples(row.model, split, row.task),
            "steps": steps,
            "batch": self.profile.continuation.batch,
            "seed": seed,
        }
        writer = self.profile.unhelpful
        return Negatives(
            reference=self.reference_artifact(row.model, row.reference, seed),
            mixture=draws.identities(mixture),
            embedder=embedder_name("cuda" if self.profile.gpus else None),
            generation_batch=self.profile.generation_batch,
            precision=self.profile.optimiser.precision,
            unhelpful=Unhelpful.by(writer, name=row.id, **plan) if "UN" in mixture else None,
            name=row.id + (", held out" if split == "validation" else ""),
            counts=mixture,
            tokens_at_once=self.profile.optimiser.micro_batch_tokens,
            in_one_pass=is_divided(self.profile, row.model),
            **plan,
        )

    def model_artifact(self, row: Row | str, seed: int = 0) -> Model | Ensemble:
        """A row's model: continued MLE, CPO, or an ensemble of the two; also a reference, such as
        `reference/llama`.

        Raises:
            KeyError: unknown row; the message names the nearest.
        """
        if isinstance(row, str):
            if reference := self._reference(row):
                return self.reference_artifact(*reference, seed)
            row = self.row(row)
        if row.alpha:
            ends = continued_mle(row), cpo_end(row)
            mle, cpo = (self.model_artifact(end, seed) for end in ends)
            assert isinstance(mle, Model) and isinstance(cpo, Model)
            return Ensemble(mle=mle, cpo=cpo, alpha=row.alpha, name=row.id)
        settings, extra = self.profile.continuation, dict[str, Any]()
        if row.objective == "pss":
            extra = {f"sampling_{name}": value for name, value in settings.scheduled_sampling}
        if row.negatives:
            extra = {
                "mixture": draws.identities(draws.mixture_of(self.profile, row)),
                "ranking": row.ranking,
                "keep": row.keep,
                "keep_nearest": row.keep_nearest,
                "held_out": self.negatives_artifact(row, seed, "validation")
                if draws.held_out_batches(self.profile, row.task)
                else None,
            }
        model = Model(
            start=self.reference_artifact(row.model, row.reference, seed),
            examples=self.examples(row.model, task=row.task),
            negatives=self.negatives_artifact(row, seed) if row.negatives else None,
            objective=objective_identity(row.objective),
            beta=row.beta or settings.beta_of(row.objective),
            steps=settings.steps[row.steps],
            steps_per_pass=settings.steps_per_pass(row.steps),
            batch=settings.batch,
            learning_rate=row.learning_rate or settings.rate_of(row.objective),
            schedule=settings.schedule,
            warmup_steps=settings.warmup_steps,
            mle_weight=row.mle_weight,
            seed=seed,
            name=row.id,
            **extra,
            **training_fields(self.profile, row.model),
        )
        return iterated(model, row) if row.redraw else model

    def generations_artifact(
        self, row_id: str, decoding: str | None = None, seed: int = 0, split: str = "test"
    ) -> Generations:
        """Responses of a row's model, or of a reference such as `reference/llama`, to the judged
        prompts; `decoding` replaces the row's decoding method, also by `sampling/SEED`."""
        if decoding is None:
            decoding = "greedy" if self._reference(row_id) else self.row(row_id).decoding
        return self._generations(self.model_artifact(row_id, seed), decoding, seed, split)

    def _generations(
        self, model: Model | Ensemble, decoding: str, seed: int, split: str
    ) -> Generations:
        profile, task = self.profile, model.examples.task
        examples = self.examples(model.model_name, split, task)
        names = profile.models if task == "instructions" else ()
        readers = {reader.key: reader for reader in (self.examples(name, split) for name in names)}
        method, seed = profile.decoding_of(decoding, seed)
        return Generations(
            model=model,
            prompts=self.corpora.content_hash(task, split),
            read_by=tuple(readers[key] for key in sorted(readers)),  # independent of model names
            decoding=method.model_dump(exclude_none=True),
            max_new_tokens=examples.max_continuation_tokens,
            batch=profile.generation_batch,
            precision=profile.optimiser.precision,
            seed=seed,
            examples=examples,
        )

    def verdicts_artifact(
        self, row_id: str, decoding: str | None = None, seed: int = 0, split: str = "test"
    ) -> StoredVerdicts:
        """Verdicts of the profile's judge on a row's generations."""
        generations = self.generations_artifact(row_id, decoding, seed, split)
        judge = judge_identity(self.profile.judge, generations.examples.task)
        return StoredVerdicts(
            generations=generations, judge=judge, seed=seed, settings=self.profile.judge
        )

    def measures_artifact(
        self, row_id: str, seed: int = 0, decoding: str | None = None
    ) -> Measures:
        """The automatic measures of a row's generations."""
        generations = self.generations_artifact(row_id, decoding, seed)
        return Measures(
            generations=generations,
            examples=generations.examples,
            base=generations.examples.base,
            mauve=self.profile.mauve.model_dump(),
            judge=self.profile.judge.kind,
        )

    def exposure_bias_artifact(self, row_id: str, seed: int = 0) -> ExposureBias:
        """A row's sentences after true text and after its own, decoded greedily."""
        generations = self.generations_artifact(row_id, "greedy", seed)
        most, fewest, last = EXPOSURE_LIMITS[generations.examples.task]
        return ExposureBias(
            generations=generations,
            most=most,
            fewest=fewest,
            last=last,
            examples=generations.examples,
        )

    def gradients_artifact(self, seed: int = 0) -> Gradients | None:
        """The gradients of the kinds of negatives at the Llama's reference; None where the profile
        trains no row with such negatives."""
        trained = {row.id: row for row in self.profile.trained_rows}
        rows = [trained.get(row_id) for row_id in GRADIENT_ROWS]
        made = [self.negatives_artifact(row, seed) if row else None for row in rows]
        first = next((row for row in rows if row), None)
        if first is None:
            return None
        autoregressive, untruncated, mixed = made
        return Gradients(
            reference=self.reference_artifact(first.model, first.reference, seed),
            autoregressive=autoregressive,
            untruncated=untruncated,
            mixed=mixed,
            prompts=self.profile.gradient_prompts,
            chunks=GRADIENT_CHUNKS,
            micro_batch_tokens=self.profile.optimiser.micro_batch_tokens,
        )

    # --- The plan ---------------------------------------------------------------------------------

    def artifacts(self, some: Sequence[Row] | None = None) -> list[Step]:
        """All artifacts of the profile's rows, or of some rows, built or not, in build order."""
        return cast(list[Step], walk(*self._roots(some)))

    def plan(self, *roots: Artifact) -> list[Planned]:
        """The cost of building each artifact of the suite, or of `roots` and their dependencies."""
        steps = cast(list[Step], walk(*roots)) if roots else self.artifacts()
        return [planned_artifact(step, self.store, self.cost_model) for step in steps]

    @cached_property
    def cost_model(self) -> CostModel:
        """The cost model: speeds of this machine or as stated, and data lengths."""
        here = self.profile, self.corpora, self._store.root
        speeds = cache(partial(calibration.speeds, *here))
        embedded = cache(partial(calibration.embedded_texts_per_second, *here))
        return CostModel(self.profile, self.corpora, speeds, embedded)

    def _roots(self, some: Sequence[Row] | None) -> Iterator[Artifact]:
        rows = self.profile.trained_rows if some is None else some
        judged = self.profile.judge.kind != "none"
        chosen = chosen_among(chain(*self.profile.claims.values()))
        for seed in range(self.profile.seeds):
            for row, sampling in product(self.profile.sampled_rows, self.profile.samplings):
                if row in rows:
                    yield self.measures_artifact(row.id, seed, sampling)
            for row in rows:
                both = (f"{row.reference}/{row.model}", row.id)
                yield from (self.measures_artifact(row_id, seed) for row_id in both)
                if judged and row.measure == "win_rate":
                    yield self.verdicts_artifact(row.id, None, seed)
                if judged and row.id in chosen:
                    yield self.verdicts_artifact(row.id, None, seed, "validation")
                if row.id in EXPOSURE_ROWS and self.profile.judge.kind == "oracle":
                    yield from (self.exposure_bias_artifact(row_id, seed) for row_id in both)
        if some is None and (gradients := self.gradients_artifact()):
            yield gradients

    # --- Rows -------------------------------------------------------------------------------------

    def row(self, row_id: str) -> Row:
        """A row of the paper, or a custom row, by id."""
        rows = self.profile.every_row
        if row_id not in rows:
            raise KeyError(f"no row '{row_id}'.{nearest(row_id, rows)}")
        return rows[row_id]

    def _reference(self, name: str) -> tuple[ModelName, ReferenceName] | None:
        """Model and kind of reference in a name such as `reference/llama`; None for rows."""
        which, _, model = name.partition("/")
        if which in get_args(ReferenceName) and model in self.profile.models:
            return cast(ModelName, model), cast(ReferenceName, which)
        return None

    def add_row(self, row_id: str, like: str, **changes: Any) -> Row:
        """Add a custom row to this suite: an existing row with some fields changed.

        It is built like any other row and appears in `report.tables.table(suite, "own")`. Adding a
        row with the same id replaces it.

        Args:
            row_id: such as `own/SNR`.
            like: id of the row to start from.
            changes: fields of `paper.Row`, such as `objective="hinge"`; `negatives` is the name of
                a mixture of the profile, or counts such as `{"SN": 4}`.

        Raises:
            KeyError: there is no row `like`.
            ProfileError: unknown field, kind of negative or objective, or an invalid combination.
        """
        fields = [field.name for field in dataclasses.fields(Row)]
        known = [name for name in fields if name not in ("id", "paper")]
        for name in changes:
            if name not in known:
                message = f"a row has no field '{name}'.{nearest(name, known)} Known: "
                raise ProfileError(message + ", ".join(known) + ".")
        counts = changes.get("negatives")
        mixture = counts if isinstance(counts, Mapping) else None
        named = changes if mixture is None else changes | {"negatives": row_id}
        row = dataclasses.replace(self.row(like), id=row_id, paper=None, **named)
        self.profile = self.profile.with_row(row, mixture)
        return self.row(row_id)

    def judged_by(self, kind: str) -> Suite:
        """This suite, including custom rows, with another registered judge.

        Raises:
            JudgeError: unknown judge, or one that needs further settings.
        """
        orders = self.profile.judge.orders
        try:
            judge = JudgeSettings.model_validate({"kind": kind, "orders": orders})
        except ValidationError as error:
            raise judging.JudgeError(
                f"the judge '{kind}' needs further settings: open the suite with `judge` set"
            ) from error
        judge_identity(judge, "instructions")
        changed = self.profile.model_copy(update={"judge": judge})
        return type(self)(changed, self._store, self.output, self.corpora)

    # --- Content of artifacts ---------------------------------------------------------------------

    def base_model(self, name: ModelName) -> ModelFolder:
        """A base model with its tokenizer, external or pretrained here.

        Raises:
            FileNotFoundError, ModelFolderError: as `cpo.models.folders.fetched` and `load_model`.
        """
        artifact = self.base_artifact(name)
        return ModelFolder(name, artifact, artifact.folder(self.store))

    def reference(
        self, model: ModelName, which: ReferenceName = "reference", seed: int = 0
    ) -> ModelFolder:
        """The reference pi_ref: the base model after MLE on the training split."""
        return self.model(f"{which}/{model}", seed)

    def model(self, row_id: str, seed: int = 0) -> ModelFolder:
        """The model of a row, or a reference such as `ablation_reference/gpt2`."""
        artifact = self.model_artifact(row_id, seed)
        return ModelFolder(row_id, artifact, self.store.get(artifact))

    def history(self, row_id: str, seed: int = 0) -> list[dict[str, float]]:
        """The training log, one dict per step; for an ensemble, that of its CPO end."""
        return self._log(row_id, seed, "history.jsonl")

    def held_out(self, row_id: str, seed: int = 0) -> list[dict[str, float]]:
        """A row's objective on held-out prompts at the start, middle and end of its training, or of
        each piece where negatives are drawn anew, as `cpo.held_out.contrast_on` with the `step`; of
        a reference that is so stopped, the `loss` as often as it was measured; otherwise empty."""
        return self._log(row_id, seed, held_out.FILE)

    def _log(self, row_id: str, seed: int, file: str) -> list[dict[str, float]]:
        """The lines of a log by step, through the pieces of its training."""
        lines: list[dict[str, float]] = []
        begun = 0
        for piece in self._trained(row_id, seed).pieces:
            path = self.store.get(piece) / file
            for text in path.read_text("utf-8").splitlines() if path.is_file() else ():
                line = json.loads(text)
                if line["step"] or not begun:  # where a later piece starts, the last one ended
                    lines.append(line | {"step": begun + line["step"]})
            begun += piece.steps
        return lines

    def negatives(self, row_id: str, seed: int = 0) -> ContrastSets:
        """The candidates of a CPO row on its training schedule, with order and reference values;
        where they were drawn anew, the last ones.

        Raises:
            ValueError: the row trains without negatives.
        """
        trained = self._trained(row_id, seed)
        if trained.negatives is None:
            raise ValueError(f"{row_id} trains without negatives")
        self.store.get(trained.negatives)
        return trained.contrast_sets(self.store)

    def _trained(self, row_id: str, seed: int) -> Model:
        """A row's model; of an ensemble, its CPO end."""
        artifact = self.model_artifact(row_id, seed)
        return artifact.cpo if isinstance(artifact, Ensemble) else artifact

    def generations(
        self, row_id: str, decoding: str | None = None, seed: int = 0, split: str = "test"
    ) -> list[str]:
        """Responses of a row's model to the judged prompts, aligned with `prompts` of its task.

        `decoding` replaces the row's decoding method. Settings may only be chosen on
        `split="validation"`.
        """
        lines = self.store.load(self.generations_artifact(row_id, decoding, seed, split))
        return [line["text"] for line in lines]

    def verdicts(
        self, row_id: str, decoding: str | None = None, seed: int = 0, split: str = "test"
    ) -> judging.Verdicts | None:
        """Verdicts on a row's generations against the recorded responses; None without a judge."""
        if self.profile.judge.kind == "none":
            return None
        return self.store.load(self.verdicts_artifact(row_id, decoding, seed, split))

    def measures(
        self, row_id: str, seed: int = 0, decoding: str | None = None
    ) -> dict[str, statistics.Estimate]:
        """The automatic measures of a row, with 95 % intervals."""
        return self.store.load(self.measures_artifact(row_id, seed, decoding))

    def responses(
        self, row_id: str, seed: int = 0, decoding: str | None = None
    ) -> dict[str, statistics.Array]:
        """The measures of each response of a row, aligned with the prompts: name -> [n]."""
        artifact = self.measures_artifact(row_id, seed, decoding)
        return artifact.responses(self.store.get(artifact))

    def exposure_bias(self, row_id: str, seed: int = 0) -> exposure_bias.SentenceGrades:
        """Grades of a row's sentences after true text and after its own; of the embedded world
        alone, whose true texts are known."""
        return self.store.load(self.exposure_bias_artifact(row_id, seed))

    def gradients(self, seed: int = 0) -> MeasuredGradients | None:
        """The gradients of the kinds of negatives against MLE's, on one batch at the reference;
        None where the profile trains no row with such negatives."""
        artifact = self.gradients_artifact(seed)
        return None if artifact is None else self.store.load(artifact)

    def judge_quality(self) -> list[dict[str, Any]]:
        """The measured agreement of the profile's judge with people, then that of the baselines;
        empty where `judge-quality` has not measured it."""
        judge = self.profile.judge
        return [] if judge.kind == "none" else measured_quality(judge, self._store)

    def judge(self, task: Task = "instructions") -> judging.Judge | None:
        """The profile's judge for a task, or None. Replies of a server are stored in
        `replies.sqlite` beside the artifacts."""
        return judge_of(self.profile.judge, task, self.store.root)
