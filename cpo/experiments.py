"""From recipes to artifacts: base models, references, negatives, trained models, ensembles, generations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cpo import data
from cpo.logprobs import Group
from cpo.memory import keep_freed_memory
from cpo.plan import plan_batches
from cpo.profiles import ROOT, Profile, load_profile
from cpo.store import Recipe, Store
from cpo.training import TrainingExample, TrainingSettings, micro_batch, train


@dataclass(frozen=True)
class BaseModelRecipe(Recipe):
    """A base model and its tokenizer, made from scratch on packed text with a cosine schedule."""

    stage: ClassVar[str] = "base_model"
    version: ClassVar[int] = 1

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


class Suite:
    def __init__(self, profile: Profile, store: Store) -> None:
        self.profile = profile
        self.store = store
        self.seed = 0
        keep_freed_memory()

    @cached_property
    def articles(self) -> data.ArticleTask:
        settings = self.profile.articles
        return data.load_articles(
            settings.source, settings.path, seed=0,
            validation_articles=settings.validation_articles, test_articles=settings.test_articles,
        )

    def base_model(self, name: str) -> tuple[Recipe, Path]:
        """The base model `name` of the profile."""
        model = self.profile.models[name]
        settings, optimiser = model.pretraining, self.profile.optimiser
        assert settings is not None and model.config is not None
        texts = [article.text for article in self.articles.train]
        digest = data.content_hash(self.articles.train)
        recipe = BaseModelRecipe(
            config=model.config, texts=digest, vocabulary=settings.vocabulary, steps=settings.steps,
            batch=settings.batch, block_tokens=settings.block_tokens,
            learning_rate=settings.learning_rate, warmup_steps=settings.warmup_steps,
            weight_decay=optimiser.weight_decay, betas=optimiser.betas, clip=optimiser.clip,
            precision=optimiser.precision, seed=self.seed,
        )

        def make(folder: Path) -> None:
            tokenizer = data.train_tokenizer(texts, settings.vocabulary)
            config = {**model.config}  # type: ignore[dict-item]
            torch.manual_seed(self.seed)
            network = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(
                    config.pop("model_type"), **config, vocab_size=len(tokenizer),
                    bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                ),
                dtype=torch.float32,
            )
            tokenizer.save_pretrained(folder)
            blocks = data.pack_articles(texts, tokenizer, settings.block_tokens)
            plan = plan_batches(len(blocks), settings.steps, settings.batch, self.seed)
            rows = [blocks[index].tolist() for index in plan.flatten()]
            examples = [TrainingExample(Group(row[:1], [row[1:]])) for row in rows]
            train(
                network, examples,
                TrainingSettings(
                    "mle", settings.steps, settings.batch, settings.learning_rate,
                    weight_decay=optimiser.weight_decay, betas=optimiser.betas, clip=optimiser.clip,
                    schedule="cosine", warmup_steps=settings.warmup_steps,
                    precision=optimiser.precision, fp32_head=False, seed=self.seed,
                    micro_batch=micro_batch(
                        settings.batch, 1, settings.block_tokens, optimiser.micro_batch_tokens
                    ),
                    checkpoint_minutes=optimiser.checkpoint_minutes,
                    description=f"pretraining {name}",
                ),
                folder, self.store.partial(recipe),
            )

        return recipe, self.store.get_or_make(recipe, make)
