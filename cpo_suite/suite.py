"""From recipes to artifacts: references, negatives, trained models, ensembles, generations,
verdicts.

A `Suite` is one profile over one store. Ask it for a row of the paper and it makes what is
missing, in any order, from any notebook; what is made once is found again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from cpo import data
from cpo.engine.files import hash_file, hash_folder
from cpo.engine.memory import keep_freed_memory
from cpo.engine.processes import process_count, shared_out
from cpo.engine.progress import progress_bar
from cpo.ensembling import interpolate
from cpo.evaluation import intervals, judging, metrics
from cpo.evaluation.unhelpful import write_unhelpful
from cpo.generation import generate, ids_without_token
from cpo.models.folders import dequantise, fetched, gguf_file, load_tokenizer
from cpo.negatives import Planned as PlannedRows
from cpo.negatives import draw_negatives, sampler_identity
from cpo.own_code import nearest
from cpo.plan import plan_batches
from cpo.ranking import embed_texts, minilm, rank_candidates
from cpo.scoring import Group, GroupScorer, collate_groups, order_by_length
from cpo.training import (
    RANKED_OBJECTIVES,
    TrainingExample,
    TrainingSettings,
    micro_batch,
    objective_identity,
    train,
)
from cpo_suite import calibration, costs, precision, world
from cpo_suite.artifacts import Artifact, Negatives
from cpo_suite.judges import REPLIES, chat_server, judge_identity, judge_of
from cpo_suite.launching import launch
from cpo_suite.paper import ModelName, ReferenceName, Row, Task, continued_mle, cpo_end
from cpo_suite.profile import (
    ROOT,
    Articles,
    Instructions,
    Judge,
    Profile,
    ProfileError,
    load_profile,
)
from cpo_suite.recipes import (
    BaseModelRecipe,
    EnsembleRecipe,
    ExamplesRecipe,
    ExternalModelRecipe,
    GenerationsRecipe,
    MeasuresRecipe,
    ModelRecipe,
    NegativesRecipe,
    UnhelpfulRecipe,
    VerdictsRecipe,
    WorldRecipe,
)
from cpo_suite.store import Recipe, Store

TASK_OF: dict[ReferenceName, Task] = {
    "reference": "instructions",
    "ablation_reference": "instructions",
    "articles_reference": "articles",
}


class Suite:
    """One profile over one store: every artifact of the paper's rows, made on demand."""

    def __init__(self, profile: Profile, store: Store, output: Path) -> None:
        # Recipes name the precision itself, never `auto`.
        self.profile = precision.resolved(profile, store.root)
        self.store = store
        self.output = output
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        keep_freed_memory()

    @classmethod
    def open(
        cls, profile: str = "tiny", overrides: Sequence[str] = (), output: str | Path = ""
    ) -> Suite:
        """A suite by profile name; `output` is where tables and figures go, by default a scratch
        folder.

        The store is `artifacts/` in the checkout, or what CPO_ARTIFACTS names.

        Raises:
            ProfileError: as `load_profile`, or there is no such file, folder or judge as it names.
        """
        loaded = load_profile(profile, overrides)
        for key, path in loaded.paths.items():
            if not os.path.exists(path):
                raise ProfileError(f"{key}: {path} does not exist")
        try:
            judge_identity(loaded.judge, "instructions")
        except judging.JudgeError as error:
            raise ProfileError(f"judge.kind: {error}") from None
        root = Path(os.environ.get("CPO_ARTIFACTS") or ROOT / "artifacts")
        folder = Path(output) if output else root / "figures" / loaded.name
        folder.mkdir(parents=True, exist_ok=True)
        return cls(loaded, Store(root), folder)

    def plan(self) -> list[costs.Planned]:
        """Every artifact that the profile's rows need, made or not, with what it costs."""
        return costs.plan(self)

    def steps(self) -> list[costs.Step]:
        """The same as steps that can be taken, one after the other or several at once."""
        return costs.steps(self)

    @cached_property
    def speeds(self) -> dict[str, costs.Speeds]:
        """How fast one process works with each model, for the plan; measured where it can be."""
        return calibration.speeds(self)

    @cached_property
    def embedded_texts_per_second(self) -> float:
        """How many texts one process embeds, for the plan."""
        return calibration.embedded_texts_per_second(self)

    # --- Data -------------------------------------------------------------------------------------

    @cached_property
    def instructions(self) -> data.InstructionTask:
        """The instruction pairs, split; the same split for every model and seed."""
        settings = self.profile.instructions
        return data.load_instructions(
            settings.source,
            self._path(settings),
            seed=0,
            validation_rows=settings.validation_rows,
            test_prompts=settings.test_prompts,
            train_rows=settings.train_rows,
            on_bad_row=settings.on_bad_row,
            columns=settings.columns,
        )

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """Characters of the prefixes, and of the continuations, of up to 1,000 training pairs."""
        sample = self.instructions.train[:1000]
        return [len(one.prefix) for one in sample], [len(one.continuation) for one in sample]

    @property
    def article_lengths(self) -> list[int]:
        """Characters of up to 1,000 training articles."""
        return [len(one.text) for one in self.articles.train[:1000]]

    @property
    def training_rows(self) -> int:
        """How many pairs there are to train on."""
        return len(self.instructions.train)

    @cached_property
    def articles(self) -> data.ArticleTask:
        """The articles, split."""
        settings = self.profile.articles
        return data.load_articles(
            settings.source,
            self._path(settings),
            seed=0,
            validation_articles=settings.validation_articles,
            test_articles=settings.test_articles,
            columns=settings.columns,
        )

    def _path(self, settings: Instructions | Articles) -> str | Path | None:
        if settings.source != "world":
            return settings.path
        recipe = WorldRecipe(hash_folder(Path(world.__file__).parent, "*.py"), seed=0)
        folder = self.store.get_or_make(
            recipe, lambda folder: world.build_world(seed=0).save(folder / "world.json")
        )
        return folder / "world.json"

    def tokenizer(self, model: ModelName) -> Any:
        """The tokenizer of a base model."""
        return load_tokenizer(self.base_model(model).path)

    def tokenized(
        self, model: ModelName, split: str, task: Task = "instructions"
    ) -> list[data.TokenizedExample]:
        """A split of the pairs, or of the articles, as ids for one model.

        Training rows follow the profile's `over_long`; in validation and test only an over-long
        prefix drops a row, so that the judged prompts do not depend on how long their recorded
        response is.
        """
        key = (model, split, task)
        if key in self._tokenized:
            pass
        elif task == "articles":
            self._tokenized[key], self.token_reports[key] = data.tokenize_articles(
                getattr(self.articles, split),
                self.tokenizer(model),
                max_tokens=self.profile.articles.max_tokens,
            )
        else:
            settings = self.profile.instructions
            self._tokenized[key], self.token_reports[key] = data.tokenize(
                getattr(self.instructions, split),
                self.tokenizer(model),
                max_prefix_tokens=settings.max_prefix_tokens,
                max_continuation_tokens=settings.max_continuation_tokens,
                over_long=settings.over_long if split == "train" else "truncate",
            )
        return self._tokenized[key]

    @cached_property
    def _tokenized(self) -> dict[tuple[str, str, str], list[data.TokenizedExample]]:
        return {}

    @cached_property
    def token_reports(self) -> dict[tuple[str, str, str], data.LoadReport]:
        """What tokenising dropped or cut, by (model, split, task), of what was asked for so far."""
        return {}

    @cached_property
    def test_examples(self) -> list[data.Example]:
        """The judged prompts: those of the test split that fit every model of the profile."""
        return self._fitting("test")

    @cached_property
    def validation_examples(self) -> list[data.Example]:
        """The validation prompts that fit every model; the only ones a setting is chosen on."""
        return self._fitting("validation")

    def prompts(
        self, model: ModelName, task: Task = "instructions", split: str = "test"
    ) -> list[data.Example]:
        """What a row is judged on: the prompts of a split, or the articles as prefix and rest.

        The rest of an article is as long as the profile caps it to.
        """
        if task == "instructions":
            return self.test_examples if split == "test" else self.validation_examples
        key = (model, split)
        if key not in self._continued_articles:
            tokenizer = self.tokenizer(model)
            sources = {one.id: one.source for one in getattr(self.articles, split)}
            self._continued_articles[key] = [
                data.Example(
                    one.id,
                    tokenizer.decode(one.prefix_ids, skip_special_tokens=True),
                    tokenizer.decode(one.continuation_ids, skip_special_tokens=True),
                    "article",
                    sources[one.id],
                )
                for one in self.tokenized(model, split, "articles")
            ]
        return self._continued_articles[key]

    @cached_property
    def _continued_articles(self) -> dict[tuple[str, str], list[data.Example]]:
        return {}

    def _fitting(self, split: str) -> list[data.Example]:
        kept = [{one.id for one in self.tokenized(model, split)} for model in self.profile.models]
        fitting = [
            one for one in getattr(self.instructions, split) if all(one.id in ids for ids in kept)
        ]
        if not fitting:
            reports = (
                f"{model}: {self.token_reports[model, split, 'instructions'].summary()}"
                for model in self.profile.models
            )
            raise data.DataError(
                f"no {split} prompt fits every model: raise instructions.max_prefix_tokens\n"
                + "\n".join(reports)
            )
        return fitting

    # --- Recipes ----------------------------------------------------------------------------------

    def base_recipe(self, name: ModelName) -> BaseModelRecipe | ExternalModelRecipe:
        """The recipe of a base model: pretrained here, or one from elsewhere."""
        if name not in self._base_recipes:
            self._base_recipes[name] = self._base_recipe(name)
        return self._base_recipes[name]

    @cached_property
    def _base_recipes(self) -> dict[str, BaseModelRecipe | ExternalModelRecipe]:
        return {}

    @cached_property
    def _data_hashes(self) -> dict[str, str]:
        """Content hash of each split of the pairs: every recipe asks for one, and hashing takes a
        while."""
        return {
            split: data.content_hash(getattr(self.instructions, split)) for split in data.SPLITS
        }

    @cached_property
    def _article_hashes(self) -> dict[str, str]:
        return {split: data.content_hash(getattr(self.articles, split)) for split in data.SPLITS}

    def _base_recipe(self, name: ModelName) -> BaseModelRecipe | ExternalModelRecipe:
        model, optimiser = self.profile.models[name], self.profile.optimiser
        if model.pretrained is not None:
            return ExternalModelRecipe(_external_content(model.pretrained))
        settings = model.pretraining
        assert settings is not None and model.config is not None  # the profile's own check
        digest = self._article_hashes["train"]
        if settings.instructions:
            digest += self._data_hashes["train"]
        return BaseModelRecipe(
            config=model.config,
            texts=digest,
            vocabulary=settings.vocabulary,
            steps=settings.steps,
            batch=settings.batch,
            block_tokens=settings.block_tokens,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            weight_decay=optimiser.weight_decay,
            betas=optimiser.betas,
            clip=optimiser.clip,
            precision=optimiser.precision,
            seed=0,
        )

    def examples_recipe(
        self, model: ModelName, split: str = "train", task: Task = "instructions"
    ) -> ExamplesRecipe:
        """What names a split of the pairs or articles, as one model tokenises it."""
        if task == "articles":
            return ExamplesRecipe(
                base=self.base_recipe(model),
                data=self._article_hashes[split],
                split=split,
                max_prefix_tokens=0,
                max_continuation_tokens=self.profile.articles.max_tokens,
                over_long="truncate",
            )
        settings = self.profile.instructions
        return ExamplesRecipe(
            base=self.base_recipe(model),
            data=self._data_hashes[split],
            split=split,
            max_prefix_tokens=settings.max_prefix_tokens,
            max_continuation_tokens=settings.max_continuation_tokens,
            over_long=settings.over_long,
        )

    def reference_recipe(
        self, model: ModelName, which: ReferenceName, seed: int = 0
    ) -> ModelRecipe:
        """MLE from the base model: the paper's 2,000 steps, or figure 1's 1,000."""
        stage = getattr(self.profile, which)
        return self._training_recipe(
            start=self.base_recipe(model),
            examples=self.examples_recipe(model, task=TASK_OF[which]),
            steps=stage.steps,
            batch=stage.batch,
            learning_rate=stage.learning_rate,
            schedule=stage.schedule,
            seed=seed,
        )

    def negatives_recipe(self, row: Row, seed: int = 0) -> NegativesRecipe:
        """The negatives of a CPO row, drawn from its reference on its batch plan."""
        assert row.negatives is not None
        mixture = self.profile.negatives[row.negatives]
        return NegativesRecipe(
            reference=self.reference_recipe(row.model, row.reference, seed),
            examples=self.examples_recipe(row.model, task=row.task),
            mixture={sampler_identity(kind): count for kind, count in mixture.items()},
            steps=self.profile.continuation.steps[row.steps],
            batch=self.profile.continuation.batch,
            embedder=self.profile.embedder,
            generation_batch=self.profile.generation_batch,
            precision=self.profile.optimiser.precision,
            seed=seed,
            unhelpful=self.unhelpful_recipe(row, seed) if "UN" in mixture else None,
        )

    def unhelpful_recipe(self, row: Row, seed: int) -> UnhelpfulRecipe:
        """The recipe of a DPO row's rejected responses."""
        settings = self.profile.unhelpful
        server = settings.server if settings.writer == "chat" else None
        return UnhelpfulRecipe(
            examples=self.examples_recipe(row.model),
            steps=self.profile.continuation.steps[row.steps],
            batch=self.profile.continuation.batch,
            writer=settings.writer,
            chat={
                "model": server.model,
                "base_url": server.base_url,
                "parameters": json.dumps(server.parameters, sort_keys=True),
            }
            if server
            else {},
            seed=seed,
        )

    def model_recipe(self, row: Row, seed: int = 0) -> ModelRecipe | EnsembleRecipe:
        """The recipe of a row's model: continued MLE, CPO, or an ensemble of the two."""
        if row.alpha:
            mle, cpo = (self.model_recipe(end, seed) for end in (continued_mle(row), cpo_end(row)))
            return EnsembleRecipe(mle, cpo, row.alpha)
        settings = self.profile.continuation
        recipe = self._training_recipe(
            start=self.reference_recipe(row.model, row.reference, seed),
            examples=self.examples_recipe(row.model, task=row.task),
            objective=objective_identity(row.objective),
            beta=settings.beta_of(row.objective),
            steps=settings.steps[row.steps],
            batch=settings.batch,
            learning_rate=settings.rate_of(row.objective),
            mle_weight=row.mle_weight,
            seed=seed,
        )
        if row.objective == "pss":
            sampling = settings.scheduled_sampling
            return dataclasses.replace(
                recipe,
                sampling_probability=sampling.probability,
                sampling_passes=sampling.passes,
            )
        if row.negatives is not None:
            return dataclasses.replace(recipe, negatives=self.negatives_recipe(row, seed))
        return recipe

    def _training_recipe(self, **settings: Any) -> ModelRecipe:
        optimiser = self.profile.optimiser
        defaults: dict[str, Any] = {"negatives": None, "objective": "mle", "beta": 0.0}
        return ModelRecipe(
            **(defaults | settings),
            weight_decay=optimiser.weight_decay,
            betas=optimiser.betas,
            clip=optimiser.clip,
            precision=optimiser.precision,
        )

    def generations_recipe(
        self,
        model: Recipe,
        decoding: str = "greedy",
        seed: int = 0,
        task: Task = "instructions",
        split: str = "test",
    ) -> GenerationsRecipe:
        """One continuation of each judged prompt, or article, by a model."""
        articles = task == "articles"
        longest = self.profile.instructions.max_continuation_tokens
        models = [] if articles else self.profile.models
        readers = {one.key: one for one in (self.examples_recipe(name, split) for name in models)}
        return GenerationsRecipe(
            model=model,
            prompts=(self._article_hashes if articles else self._data_hashes)[split],
            read_by=tuple(readers[key] for key in sorted(readers)),  # whatever they are called
            decoding=self.profile.decoding[decoding].model_dump(exclude_none=True),
            max_new_tokens=self.profile.articles.max_tokens if articles else longest,
            batch=self.profile.generation_batch,
            precision=self.profile.optimiser.precision,
            seed=seed,
        )

    # --- Models -----------------------------------------------------------------------------------

    def base_model(self, name: ModelName) -> Artifact:
        """A base model with its tokenizer, pretrained here unless the profile names one.

        Raises:
            FileNotFoundError, ModelFolderError: as `model_folders.fetched` and `load_model`.
        """
        recipe = self.base_recipe(name)
        if isinstance(recipe, ExternalModelRecipe):
            place = fetched(str(self.profile.models[name].pretrained))
            if file := gguf_file(place):
                # What reads a model reads a folder: a .gguf file is unpacked once.
                place = self.store.get_or_make(recipe, lambda folder: dequantise(file, folder))
            return Artifact(name, recipe, place)
        return Artifact(
            name,
            recipe,
            self.store.get_or_make(
                recipe, lambda folder: self._make_base_model(recipe, name, folder)
            ),
        )

    def reference(
        self, model: ModelName, which: ReferenceName = "reference", seed: int = 0
    ) -> Artifact:
        """The reference pi_ref: the base model after MLE on the training pairs."""
        recipe = self.reference_recipe(model, which, seed)
        name = f"{which}/{model}"
        return self._trained(recipe, name, model, lambda: self.base_model(model), TASK_OF[which])

    def model(self, row_id: str, seed: int = 0) -> Artifact:
        """The model of a row of the paper; also `reference/llama` and `ablation_reference/gpt2`.

        Raises:
            KeyError: no such row; the message names the nearest.
        """
        name, which, row = self._subject(row_id)
        if row is None:
            return self.reference(name, which, seed)
        recipe = self.model_recipe(row, seed)
        if isinstance(recipe, EnsembleRecipe):
            return self._ensemble(recipe, row, seed)
        return self._trained(
            recipe,
            row_id,
            name,
            lambda: self.reference(name, which, seed),
            row.task,
            row if recipe.negatives else None,
        )

    def row(self, row_id: str) -> Row:
        """A row of the paper, or one of your own, by its id."""
        rows = self.profile.every_row
        if row_id not in rows:
            raise KeyError(f"no row '{row_id}'.{nearest(row_id, rows)}")
        return rows[row_id]

    def add_row(self, row_id: str, like: str, **changes: Any) -> Row:
        """Add a row of your own to this suite: another row with something changed.

        It is made by the code that makes all others, and stands in `figures.table(suite, "own")`.
        A row added again by the same id stands for what it is then.

        Args:
            row_id: such as `own/SNR`.
            like: id of the row that it is like.
            changes: fields of `paper.Row`, such as `objective="hinge"`; `negatives` may be
                counts, `{"SN": 4}`, as well as the name of a mixture of the profile.

        Raises:
            KeyError: there is no row `like`.
            ProfileError: no such field, kind of negative or objective, or they do not go together.
        """
        fields = [field.name for field in dataclasses.fields(Row)]
        known = [name for name in fields if name not in ("id", "paper")]
        for name in changes:
            if name not in known:
                said = f"nothing of a row is called '{name}'.{nearest(name, known)} Known: "
                raise ProfileError(said + ", ".join(known) + ".")
        counts = changes.get("negatives")
        mixture = counts if isinstance(counts, Mapping) else None
        named = changes if mixture is None else changes | {"negatives": row_id}
        row = dataclasses.replace(self.row(like), id=row_id, paper=None, **named)
        self.profile = self.profile.with_row(row, mixture)
        return self.row(row_id)

    def judged_by(self, kind: str) -> Suite:
        """This suite, rows of your own included, with another registered judge.

        Raises:
            JudgeError: there is none of that name, or it needs settings of its own.
        """
        orders = self.profile.judge.orders
        try:
            judge = Judge.model_validate({"kind": kind, "orders": orders})
        except ValidationError as error:
            raise judging.JudgeError(
                f"the judge '{kind}' needs settings of its own: open the suite with `judge` set"
            ) from error
        judge_identity(judge, "instructions")
        changed = self.profile.model_copy(update={"judge": judge})
        return type(self)(changed, self.store, self.output)

    def _subject(self, row_id: str) -> tuple[ModelName, ReferenceName, Row | None]:
        """Model, reference and row that an id speaks of; no row for `reference/llama` and its
        like."""
        for which in get_args(ReferenceName):
            for name in self.profile.models:
                if row_id == f"{which}/{name}":
                    return name, which, None
        row = self.row(row_id)
        return row.model, row.reference, row

    def history(self, row_id: str, seed: int = 0) -> list[dict[str, float]]:
        """What training logged, a dict a step; for an ensemble, that of its CPO end."""
        _, _, row = self._subject(row_id)
        if row is not None and row.alpha:
            row_id = cpo_end(row).id
        path = self.model(row_id, seed).path / "history.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    def _make_base_model(self, recipe: BaseModelRecipe, name: ModelName, folder: Path) -> None:
        texts = [article.text for article in self.articles.train]
        pretraining = self.profile.models[name].pretraining
        if pretraining is not None and pretraining.instructions:
            texts += [one.prefix + one.continuation for one in self.instructions.train]
        tokenizer = data.train_tokenizer(texts, recipe.vocabulary)
        torch.manual_seed(recipe.seed)
        config = {key: value for key, value in recipe.config.items() if key != "model_type"}
        network = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                str(recipe.config["model_type"]),
                **config,
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            ),
            dtype=torch.float32,
        )
        tokenizer.save_pretrained(folder)
        blocks = data.pack_articles(texts, tokenizer, recipe.block_tokens)
        plan = plan_batches(len(blocks), recipe.steps, recipe.batch, recipe.seed)
        rows = [blocks[index].tolist() for index in plan.flatten()]
        examples = [TrainingExample(Group(row[:1], [row[1:]])) for row in rows]
        settings = self._settings(recipe, examples, f"pretraining {name}")
        settings = dataclasses.replace(settings, warmup_steps=recipe.warmup_steps, fp32_head=False)
        train(network, examples, settings, folder, self.store.partial(recipe))

    def _trained(
        self,
        recipe: ModelRecipe,
        name: str,
        model: ModelName,
        start: Any,
        task: Task,
        contrasted: Row | None = None,
    ) -> Artifact:
        def make(folder: Path) -> None:
            if contrasted is None:
                examples: Sequence[TrainingExample] = [
                    TrainingExample(Group(one.prefix_ids, [one.continuation_ids]))
                    for one in self._planned(model, task, recipe.steps, recipe.batch, recipe.seed)
                ]
            else:
                negatives = self.negatives(contrasted.id, recipe.seed)
                examples = negatives.training_examples(contrasted.objective in RANKED_OBJECTIVES)
            settings = self._settings(recipe, examples, f"training {name}")
            train(start().load(), examples, settings, folder, self.store.partial(recipe))
            self.tokenizer(model).save_pretrained(folder)

        def needs() -> None:
            start()
            if contrasted is not None:
                self.negatives(contrasted.id, recipe.seed)

        folder = self._made(recipe, make, needs, "model", name, recipe.seed)
        return Artifact(name, recipe, folder)

    def _made(
        self,
        recipe: Recipe,
        make: Callable[[Path], None],
        needs: Callable[[], object],
        *call: object,
    ) -> Path:
        """An artifact that is much work: here, or in the profile's processes.

        Those make what `call` names, a method of a suite and its arguments, and nothing else: what
        it `needs` has to be there before.
        """
        if self.profile.processes.count == 1:
            return self.store.get_or_make(recipe, make)

        def make_together(folder: Path) -> None:
            needs()
            launch(self.profile, self.store.root, call, recipe.key, folder)

        return self.store.get_or_make(recipe, make_together, self.profile.processes.count)

    def _settings(
        self,
        recipe: BaseModelRecipe | ModelRecipe,
        examples: Sequence[TrainingExample],
        description: str,
    ) -> TrainingSettings:
        optimiser = self.profile.optimiser
        contrast = recipe if isinstance(recipe, ModelRecipe) else None
        return TrainingSettings(
            # One of a user's own is known here by its name, without the hash of its source.
            contrast.objective.split(":")[0] if contrast else "mle",
            recipe.steps,
            recipe.batch,
            recipe.learning_rate,
            beta=contrast.beta if contrast else 0.0,
            mle_weight=contrast.mle_weight if contrast else 0.0,
            sampling_probability=contrast.sampling_probability if contrast else 0.0,
            sampling_passes=contrast.sampling_passes if contrast else 0,
            schedule=contrast.schedule if contrast else "cosine",
            weight_decay=recipe.weight_decay,
            betas=recipe.betas,
            clip=recipe.clip,
            precision=recipe.precision,
            seed=recipe.seed,
            micro_batch=_micro_batch(
                [one.group for one in examples], recipe.batch, optimiser.micro_batch_tokens
            ),
            tokens_at_once=optimiser.micro_batch_tokens,
            checkpoint_minutes=optimiser.checkpoint_minutes,
            description=description,
        )

    def _ensemble(self, recipe: EnsembleRecipe, row: Row, seed: int) -> Artifact:
        def make(folder: Path) -> None:
            cpo = self.model(cpo_end(row).id, seed).load()
            interpolate(self.model(continued_mle(row).id, seed).load(), cpo, recipe.alpha)
            cpo.save_pretrained(folder)
            self.tokenizer(row.model).save_pretrained(folder)

        return Artifact(row.id, recipe, self.store.get_or_make(recipe, make))

    # --- Negatives --------------------------------------------------------------------------------

    def negatives(self, row_id: str, seed: int = 0) -> Negatives:
        """The negatives of a CPO row: candidates, order and reference values, made once on the
        plan.

        Raises:
            ValueError: the row trains without negatives.
        """
        row = self.row(row_id)
        if row.negatives is None:
            raise ValueError(f"{row_id} is trained without negatives")
        recipe = self.negatives_recipe(row, seed)

        def needs() -> None:
            self.reference(row.model, row.reference, seed)
            if recipe.unhelpful:
                self.unhelpful(row, seed)

        folder = self._made(
            recipe,
            lambda path: self._make_negatives(recipe, row, seed, path),
            needs,
            *("negatives", row_id, seed),
        )
        rows = self._planned(row.model, row.task, recipe.steps, recipe.batch, recipe.seed)
        return Negatives(folder, [one.prefix_ids for one in rows], self.tokenizer(row.model))

    def _planned(
        self, model: ModelName, task: Task, steps: int, batch: int, seed: int
    ) -> list[data.TokenizedExample]:
        """The rows of a batch plan, `steps x batch` of them, in its order."""
        rows = self.tokenized(model, "train", task)
        try:
            plan = plan_batches(len(rows), steps, batch, seed)
        except ValueError as error:
            report = self.token_reports[model, "train", task]
            raise data.DataError(f"{error}\n{model}: {report.summary()}") from None
        return [rows[i] for i in plan.flatten()]

    def unhelpful(self, row: Row, seed: int) -> list[tuple[int, ...] | None]:
        """An unhelpful response to each planned row of a DPO training, as ids, EOS included; None
        where the writer had none."""
        recipe = self.unhelpful_recipe(row, seed)
        planned = self._planned(row.model, row.task, recipe.steps, recipe.batch, seed)

        def make(folder: Path) -> None:
            by_id = {one.id: one for one in self.instructions.train}
            settings = self.profile.unhelpful
            server = settings.server if settings.writer == "chat" else None
            texts = write_unhelpful(
                settings.writer,
                [by_id[one.id] for one in planned],
                seed=seed,
                store=self.store.root / REPLIES,
                others=self.instructions.train,
                server=chat_server(server, "unhelpful.server") if server else None,
            )
            lines = json.dumps(texts, ensure_ascii=False, indent=0)
            (folder / "unhelpful.json").write_text(lines, encoding="utf-8")

        path = self.store.get_or_make(recipe, make) / "unhelpful.json"
        tokenizer = self.tokenizer(row.model)
        limit = self.profile.instructions.max_continuation_tokens
        texts = json.loads(path.read_text("utf-8"))
        encoded = iter(data.encode([text for text in texts if text is not None], tokenizer))
        return [
            None if text is None else (*next(encoded), tokenizer.eos_token_id)[:limit]
            for text in texts
        ]

    def _make_negatives(self, recipe: NegativesRecipe, row: Row, seed: int, folder: Path) -> None:
        model = self.reference(row.model, row.reference, seed).load()
        tokenizer = self.tokenizer(row.model)
        rows = self._planned(row.model, row.task, recipe.steps, recipe.batch, recipe.seed)
        planned = PlannedRows(
            prefixes=[one.prefix_ids for one in rows],
            continuations=[one.continuation_ids for one in rows],
            has_eos=[one.has_eos for one in rows],
            unhelpful=self.unhelpful(row, seed) if recipe.unhelpful else None,
            batch=recipe.batch,
            model=model,
            eos_token_id=tokenizer.eos_token_id,
            max_continuation_tokens=recipe.examples.max_continuation_tokens,
            precision=recipe.precision,
            generation_batch=recipe.generation_batch,
            tokenizer=tokenizer,
        )
        drawn = draw_negatives(planned, self.profile.negatives[str(row.negatives)], seed)
        mask = torch.tensor(drawn.mask)
        texts = [
            text
            for group in drawn.candidates
            for text in tokenizer.batch_decode(group, skip_special_tokens=True)
        ]
        embeddings = embed_texts(texts, minilm(recipe.precision)).view(*mask.shape, -1)
        order, similarities = rank_candidates(embeddings, mask)
        groups = [Group(*pair) for pair in zip(planned.prefixes, drawn.candidates, strict=True)]
        tokens_at_once = self.profile.optimiser.micro_batch_tokens
        # The training's own micro-batches: the same shapes give the same values, and a first loss
        # of ln K.
        size = _micro_batch(groups, recipe.batch, tokens_at_once)
        by_length = order_by_length(groups, recipe.batch)
        scored = score_groups(
            model,
            [groups[i] for i in by_length],
            recipe.precision,
            size,
            "reference log-probabilities",
            tokens_at_once,
        )
        reference_logps = torch.empty_like(scored)
        reference_logps[by_length] = scored
        flat = [ids for group in drawn.candidates for ids in group]
        np.savez(
            folder / "negatives.npz",
            tokens=np.array([token for ids in flat for token in ids], dtype=np.int32),
            lengths=np.array([len(ids) for ids in flat], dtype=np.int32).reshape(mask.shape),
            mask=mask.numpy(),
            order=order.numpy().astype(np.int16),
            similarities=similarities.numpy(),
            reference_logps=reference_logps.numpy(),
        )
        ties = (similarities[:, 1:] > 1 - 1e-5) & mask[:, 1:]
        report = {
            "kinds": drawn.kinds,
            "by_kind": {kind: dataclasses.asdict(one) for kind, one in drawn.reports.items()},
            "tied_with_truth": float(ties.sum() / mask[:, 1:].sum().clamp(min=1)),
        }
        (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    # --- Generations, verdicts, measures ----------------------------------------------------------

    def generations(
        self, row_id: str, decoding: str | None = None, seed: int = 0, split: str = "test"
    ) -> list[str]:
        """What a row's model answers to the judged prompts, aligned with `prompts` of its task.

        Decoded as the row says, or as `decoding`. With `split="validation"` the prompts on which
        settings may be chosen.
        """
        return [one["text"] for one in self._generated(row_id, decoding, seed, split)]

    def verdicts(
        self, row_id: str, decoding: str | None = None, seed: int = 0, split: str = "test"
    ) -> judging.Verdicts | None:
        """The profile's judge on a row's generations against the recorded responses; None without
        one."""
        settings, task = self.profile.judge, self._task(row_id)
        if settings.kind == "none":
            return None
        recipe = self.verdicts_recipe(row_id, decoding, seed, split)

        def make(folder: Path) -> None:
            judge = self.judge(task)
            assert judge is not None
            verdicts = judging.judge_responses(
                judge,
                self.prompts(self._subject(row_id)[0], task, split),
                self.generations(row_id, decoding, seed, split),
                seed,
                settings.orders,
            )
            verdicts.to_jsonl(folder / "verdicts.jsonl")

        path = self.store.get_or_make(recipe, make) / "verdicts.jsonl"
        verdicts = judging.Verdicts.from_jsonl(path)
        self._check_prompts(path, verdicts.ids, row_id, split)
        return verdicts

    def judge(self, task: Task = "instructions") -> judging.Judge | None:
        """The profile's judge of a task; None without one. What a server is asked is kept
        beside the other artifacts (`judges.REPLIES`)."""
        return judge_of(self.profile.judge, task, self.store.root)

    def verdicts_recipe(
        self, row_id: str, decoding: str | None = None, seed: int = 0, split: str = "test"
    ) -> VerdictsRecipe:
        """The recipe of a row's verdicts."""
        generations = self.generations_recipe_of(row_id, decoding, seed, split)
        judge = judge_identity(self.profile.judge, self._task(row_id))
        return VerdictsRecipe(generations, judge, seed)

    def measures(self, row_id: str, seed: int = 0) -> dict[str, intervals.Estimate]:
        """The automatic measures of a row, each with its 95 % interval."""
        model, recipe = self._subject(row_id)[0], self.measures_recipe(row_id, seed)

        def make(folder: Path) -> None:
            measured = self._measure(row_id, model, recipe, seed)
            lines = {name: dataclasses.asdict(estimate) for name, estimate in measured.items()}
            (folder / "measures.json").write_text(json.dumps(lines, indent=1), encoding="utf-8")

        path = self.store.get_or_make(recipe, make) / "measures.json"
        return {
            name: intervals.Estimate(**one | {"replicates": tuple(one["replicates"])})
            for name, one in json.loads(path.read_text("utf-8")).items()
        }

    def measures_recipe(self, row_id: str, seed: int = 0) -> MeasuresRecipe:
        """The recipe of a row's measures."""
        model = self._subject(row_id)[0]
        return MeasuresRecipe(
            self.generations_recipe_of(row_id, None, seed, "test"),
            self.examples_recipe(model, "test", self._task(row_id)),
            self.base_recipe(model),
            self.profile.mauve.model_dump(),
            self.profile.judge.kind,
        )

    def _task(self, row_id: str) -> Task:
        _, which, row = self._subject(row_id)
        return TASK_OF[which] if row is None else row.task

    def generations_recipe_of(
        self, row_id: str, decoding: str | None, seed: int, split: str
    ) -> GenerationsRecipe:
        """The recipe of what a row, or a reference such as `reference/llama`, answers."""
        name, which, row = self._subject(row_id)
        recipe: Recipe = (
            self.reference_recipe(name, which, seed)
            if row is None
            else self.model_recipe(row, seed)
        )
        decoding = decoding or ("greedy" if row is None else row.decoding)
        return self.generations_recipe(recipe, decoding, seed, self._task(row_id), split)

    def _generated(
        self, row_id: str, decoding: str | None, seed: int, split: str = "test"
    ) -> list[dict[str, Any]]:
        """Lines of `generations.jsonl`: id, ids, text."""
        recipe = self.generations_recipe_of(row_id, decoding, seed, split)

        def make(folder: Path) -> None:
            artifact = self.model(row_id, seed)
            tokenizer = load_tokenizer(artifact.path)
            rows = self._judged(self._subject(row_id)[0], self._task(row_id), split)
            model = artifact.load()
            found = generate(
                model,
                [one.prefix_ids for one in rows],
                eos_token_id=tokenizer.eos_token_id,
                max_new_tokens=recipe.max_new_tokens,
                batch=recipe.batch,
                seed=recipe.seed,
                precision=recipe.precision,
                lengths=[len(one.continuation_ids) for one in rows],
                never=ids_without_token(model, tokenizer),
                description=f"generating {row_id}",
                **recipe.decoding,
            )
            with open(folder / "generations.jsonl", "w", encoding="utf-8") as file:
                for row, (ids,) in zip(rows, found, strict=True):
                    text = tokenizer.decode(ids, skip_special_tokens=True)
                    file.write(json.dumps({"id": row.id, "ids": ids, "text": text}) + "\n")

        def needs() -> None:
            self.model(row_id, seed)
            self.prompts(self._subject(row_id)[0], self._task(row_id), split)

        folder = self._made(recipe, make, needs, "generations", row_id, decoding, seed, split)
        path = folder / "generations.jsonl"
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        self._check_prompts(path, [line["id"] for line in lines], row_id, split)
        return lines

    def _check_prompts(self, path: Path, ids: Sequence[str], row_id: str, split: str) -> None:
        """Raises `DataError` where what was stored belongs to other prompts than a row's."""
        prompts = self.prompts(self._subject(row_id)[0], self._task(row_id), split)
        if list(ids) != [one.id for one in prompts]:
            raise data.DataError(
                f"{path} is of other prompts than {row_id} is judged on: remove its folder, and "
                "it is made again"
            )

    def _judged(
        self, model: ModelName, task: Task, split: str = "test"
    ) -> list[data.TokenizedExample]:
        """The judged prompts as one model's ids, aligned with `prompts`."""
        wanted = {example.id for example in self.prompts(model, task, split)}
        return [one for one in self.tokenized(model, split, task) if one.id in wanted]

    def _measure(
        self, row_id: str, model: ModelName, recipe: MeasuresRecipe, seed: int
    ) -> dict[str, intervals.Estimate]:
        task = self._task(row_id)
        lines = self._generated(row_id, None, seed)
        prompts = self.prompts(model, task)
        tokenizer = self.tokenizer(model)
        eos = tokenizer.eos_token_id
        generated = [[one for one in line["ids"] if one != eos] for line in lines]
        truths = self._judged(model, task)
        recorded = [[one for one in row.continuation_ids if one != eos] for row in truths]
        groups = [Group(row.prefix_ids, [row.continuation_ids]) for row in truths]
        scores = score_groups(
            self.model(row_id, seed).load(),
            groups,
            recipe.generations.precision,
            recipe.scoring_batch,
            "held-out loss",
        )[:, 0].numpy()
        tokens = np.array([len(row.continuation_ids) for row in truths])
        measured = {
            "held_out_loss": intervals.token_mean_loss(scores, tokens),
            "tokens": intervals.mean_estimate([len(ids) for ids in generated]),
            "repeated_4grams": intervals.mean_estimate(
                [metrics.repeated_ngrams(ids, 4) for ids in generated]
            ),
            "word_f1": intervals.mean_estimate(
                [
                    metrics.word_f1(line["text"], example.continuation)
                    for line, example in zip(lines, prompts, strict=True)
                ]
            ),
        }
        if self.profile.judge.kind == "oracle":
            measured["oracle_grade"] = intervals.mean_estimate(
                [
                    world.oracle_score(example.source, line["text"], example.prefix)
                    for line, example in zip(lines, prompts, strict=True)
                ]
            )
        if self.profile.mauve.features == "base_model" and task in self.profile.mauve.tasks:
            encoder, width = self.base_model(model).load(), self.profile.mauve.max_text_tokens
            # One length for all: an empty generation is a single EOS, not dropped.
            p, q = (
                metrics.last_token_features(encoder, [(ids or [eos])[:width] for ids in texts])
                for texts in (recorded, generated)
            )
            try:
                measured["mauve"] = metrics.mauve_score(
                    p, q, seeds=tuple(range(self.profile.mauve.seeds))
                )
            except intervals.MetricError as error:  # one row's degenerate texts, not the others'
                warnings.warn(f"{row_id} has no MAUVE: {error}", stacklevel=2)
        return measured


def score_groups(
    model: Any,
    groups: Sequence[Group],
    precision: str,
    batch: int,
    description: str,
    tokens_at_once: int | None = None,
) -> torch.Tensor:
    """Log-probabilities of groups of K continuations, `[N, K]`, fp32, on the CPU, without
    gradient."""
    scorer = GroupScorer(model, precision, tokens_at_once=tokens_at_once)

    def scored(start: int) -> torch.Tensor:
        part = collate_groups(groups[start : start + batch])
        bar.update(min(batch, len(groups) - start) * process_count())
        return scorer(**{name: one.to(model.device) for name, one in part.items()}).cpu()

    with progress_bar(len(groups), description, "prompt") as bar, torch.inference_mode():
        return torch.cat(shared_out(range(0, len(groups), batch), scored))


def _micro_batch(groups: Sequence[Group], batch: int, tokens: int) -> int:
    longest = max(len(group.prefix_ids) + sum(map(len, group.continuations)) for group in groups)
    return micro_batch(batch, longest, tokens, process_count())


def _external_content(name: str) -> str:
    place = fetched(name)
    if file := gguf_file(place):
        return f"gguf:{hash_file(file)}"
    return hash_folder(place) if Path(name).is_absolute() else place.name
