"""A profile's data: loaded once, hashed by content, and read by each model's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cpo import data
from cpo.data import Task, TokenizedExample
from cpo.engine.files import hash_file, hash_folder
from cpo.models.folders import fetched, gguf_file
from cpo_suite import world
from cpo_suite.profile import Articles, Instructions, Profile
from cpo_suite.store import Artifact, Store

DOLLY_TRAINING_ROWS = 7_505  # half of them, as in the paper
# Characters of its prompts, queries with their contexts, and of its responses: every tenth of them
# is about so long.
DOLLY_PREFIXES = (56, 67, 76, 85, 97, 115, 184, 545, 949, 1896)
DOLLY_RESPONSES = (15, 46, 76, 111, 156, 222, 311, 431, 623, 1161)


@dataclass(frozen=True)
class WorldFile(Artifact):
    """The embedded world, written down; `code` is the hash of the package that makes it."""

    stage = "world"
    version = 1

    code: str
    seed: int

    def build(self, folder: Path, store: Store) -> None:
        """Write `world.json`."""
        world.build_world(self.seed).save(folder / "world.json")

    def load(self, folder: Path) -> Path:
        """Where it is written down."""
        return folder / "world.json"


class Corpora:
    """The instruction pairs and articles of a profile, over a store."""

    def __init__(self, profile: Profile, store: Store) -> None:
        self.settings = profile
        self.store = store
        self.reports: dict[tuple[str, str, Task], data.LoadReport] = {}  # model, split, task
        self.tokenized: dict[tuple[str, str], list[TokenizedExample]] = {}  # by key and split
        self._hashes: dict[tuple[Task, str], str] = {}

    @cached_property
    def instructions(self) -> data.InstructionTask:
        """The instruction pairs, split; the same split for every model and seed."""
        settings = self.settings.instructions
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

    @cached_property
    def articles(self) -> data.ArticleTask:
        """The articles, split."""
        settings = self.settings.articles
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
        code = hash_folder(Path(world.__file__).parent, "*.py")
        return self.store.load(WorldFile(code, seed=0))

    def content_hash(self, task: Task, split: str) -> str:
        """Content hash of a split. Hashing takes a while, and every artifact asks."""
        if (task, split) not in self._hashes:
            self._hashes[task, split] = data.content_hash(self.split(task, split))
        return self._hashes[task, split]

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """Characters of the prefixes, and of the continuations, of up to 1,000 training pairs."""
        sample = self.instructions.train[:1000]
        return [len(pair.prefix) for pair in sample], [len(pair.continuation) for pair in sample]

    @property
    def article_lengths(self) -> list[int]:
        """Characters of up to 1,000 training articles."""
        return [len(article.text) for article in self.articles.train[:1000]]

    @property
    def training_rows(self) -> int:
        """How many pairs there are to train on."""
        return len(self.instructions.train)

    def content_of(self, pretrained: str) -> str:
        """What names the weights of a model from elsewhere: the hash of a folder or .gguf file, or
        the revision of a hub model."""
        place = fetched(pretrained)
        if file := gguf_file(place):
            return f"gguf:{hash_file(file)}"
        return hash_folder(place) if Path(pretrained).is_absolute() else place.name

    def split(self, task: Task, split: str) -> Sequence[Any]:
        """The pairs or articles of a split."""
        return getattr(self.articles if task == "articles" else self.instructions, split)

    def texts(self, instructions: bool) -> list[str]:
        """What a base model is pretrained on: the training articles, and the training pairs where
        they are asked for."""
        texts = [article.text for article in self.articles.train]
        if instructions:
            texts += [pair.prefix + pair.continuation for pair in self.instructions.train]
        return texts


class StatedCorpora(Corpora):
    """The same by the profile alone, where data and models are not at hand: enough to plan.

    What is missing is named in place of its content's hash, so that nothing counts as built. Texts
    of any source are taken to be as long as Dolly's.
    """

    lengths = (list(DOLLY_PREFIXES), list(DOLLY_RESPONSES))
    article_lengths = [10**6]  # more than any profile reads of one: each fills the profile's cap

    @property
    def training_rows(self) -> int:
        """As many as the profile asks for, at most as many as Dolly has."""
        asked = self.settings.instructions.train_rows or DOLLY_TRAINING_ROWS
        return min(asked, DOLLY_TRAINING_ROWS)

    def content_hash(self, task: Task, split: str) -> str:
        """The source's name, in place of its content."""
        return f"{getattr(self.settings, task).source} {split}"

    def content_of(self, pretrained: str) -> str:
        """The model's name, in place of its content."""
        return pretrained
