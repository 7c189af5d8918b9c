"""Base models: pretrained here from scratch, or external."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from cpo import data
from cpo.engine import machine
from cpo.engine.processes import is_main_process, process_count
from cpo.held_out import HeldOutContrast, HeldOutLoss
from cpo.models.folders import dequantise, fetched, gguf_file, load_model
from cpo.plan import plan_batches
from cpo.scoring import Group, longest
from cpo.training import TrainingExample, TrainingSettings, micro_batch, train
from cpo_suite.artifacts.step import Step
from cpo_suite.corpora import Corpora
from cpo_suite.estimate import Cost, CostModel
from cpo_suite.paper import ModelName
from cpo_suite.profile import Profile
from cpo_suite.store import Artifact, Identity, Store, how
from cpo_suite.training_memory import training_memory_gb


class Loadable:
    """An identity whose content is a folder with a model and its tokenizer."""

    def folder(self, store: Store) -> Path:
        """The model's folder, built first if missing.

        Raises:
            FileNotFoundError, ModelFolderError: as `fetched` and `dequantise`.
        """
        assert isinstance(self, Artifact)
        return store.get(self)

    def load(self, folder: Path, device: str | None = None) -> Any:
        """The causal language model, fp32, in evaluation mode, by default on the GPU where there is
        one.

        Raises:
            ModelFolderError: as `load_model`.
        """
        return load_model(folder).to(device or machine.device()).eval()


@dataclass(frozen=True, kw_only=True)
class Trained(Loadable, Step):
    """A model that is trained here; the fields are settings common to all trainings."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    clip: float
    precision: str
    seed: int
    micro_batch_tokens: int = how()
    checkpoint_minutes: float = how()
    divided: bool = how(default=False)

    @property
    def divides(self) -> bool:
        """Whether its model is divided among the processes of this launch, if there are several."""
        return self.divided and process_count() > 1

    def memory_gb(self, profile: Profile) -> float:
        return training_memory_gb(profile, self.model_name)

    def train(
        self,
        network: Any,
        examples: Sequence[TrainingExample],
        folder: Path,
        store: Store,
        held_out: Sequence[TrainingExample] = (),
        held_out_every: int = 0,
        **settings: Any,
    ) -> None:
        """Train a model in place and save it. `TrainingSettings` default to the artifact's fields
        of the same names; `held_out` examples are measured, never trained on: their contrast, or
        with `held_out_every` their loss, that often in steps."""
        groups = [example.group for example in examples]
        fields = {field.name for field in dataclasses.fields(self)}
        settings = {
            "micro_batch": micro_batch_of(groups, self.batch, self.micro_batch_tokens),
            "tokens_at_once": self.micro_batch_tokens,
            "divided": self.divides,
        } | settings
        for field in dataclasses.fields(TrainingSettings):
            if field.name in fields:
                settings.setdefault(field.name, getattr(self, field.name))
        chosen, partial = TrainingSettings(**settings), store.partial(self)
        if self.divides and is_main_process():
            among = f"divided among {process_count()} processes"
            print(f"{chosen.description}: {among}", flush=True)
        callbacks: list[TrainerCallback] = []
        if held_out and held_out_every:
            callbacks = [HeldOutLoss(held_out, chosen, folder, held_out_every)]
        elif held_out:
            callbacks = [HeldOutContrast(held_out, chosen, folder)]
        train(network, examples, chosen, folder, partial, callbacks)


def micro_batch_of(groups: Sequence[Group], batch: int, tokens: int) -> int:
    """Groups per micro-batch: as many as fit into `tokens` at the longest group's length."""
    return micro_batch(batch, longest(groups), tokens, process_count())


@dataclass(frozen=True, kw_only=True)
class BaseModel(Trained):
    """A base model and its tokenizer, pretrained on packed text with a cosine schedule."""

    stage = "base_model"
    called = "base model {}"
    version = 2
    shared = True

    config: dict[str, str | int | float | bool]
    texts: str
    vocabulary: int
    block_tokens: int
    warmup_steps: int
    name: ModelName = how()
    instructions: bool = how()
    corpora: Corpora = how()

    @property
    def model_name(self) -> ModelName:
        return self.name

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
        self.train(
            network,
            examples,
            folder,
            store,
            objective="mle",
            schedule="cosine",
            fp32_head=False,
            description=f"pretraining {self.name}",
        )

    def cost(self, costs: CostModel) -> Cost:
        speeds = costs.speeds(self.model_name)
        tokens = self.batch * self.block_tokens
        return Cost(self.steps * (tokens / speeds.packing + speeds.step))


@dataclass(frozen=True)
class UnpackedModel(Loadable, Artifact):
    """The fp32 folder into which a .gguf file is dequantised, once."""

    stage = "external_model"
    version = 1

    content: str
    file: Path | None = how(default=None)

    def build(self, folder: Path, store: Store) -> None:
        assert self.file is not None
        dequantise(self.file, folder)


@dataclass(frozen=True, kw_only=True)
class ExternalModel(Loadable, Identity):
    """An external model. `content` is the hash of a local folder, `gguf:` and the hash of a .gguf
    file, or the revision of a hub model."""

    stage = "external_model"
    version = 1

    content: str
    name: ModelName = how()
    pretrained: str = how()

    def folder(self, store: Store) -> Path:
        """The model's folder: the user's, the hub's cache, or a dequantised .gguf file.

        Raises:
            FileNotFoundError, ModelFolderError: as `fetched` and `dequantise`.
        """
        place = fetched(self.pretrained)
        if file := gguf_file(place):
            return store.get(UnpackedModel(self.content, file))
        return place
