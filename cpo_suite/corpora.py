"""A profile's data: loaded once, hashed by content, tokenised per model."""

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

DOLLY_TRAINING_ROWS = 7_505  # half of Dolly, as in the paper
# Lengths in characters, by deciles: prompts (instruction and context), and responses.
DOLLY_PREFIXES = (56, 67, 76, 85, 97, 115, 184, 545, 949, 1896)
DOLLY_RESPONSES = (15, 46, 76, 111, 156, 222, 311, 431, 623, 1161)


@dataclass(frozen=True)
class WorldFile(Artifact):
    """The embedded world as a file; `code` is the hash of the package that generates it."""

    stage = "world"
    version = 1

    code: str
    seed: int

    def build(self, folder: Path, store: Store) -> None:
        """Write `world.json`."""
        world.build_world(self.seed).save(folder / "world.json")

    def load(self, folder: Path) -> Path:
        """Path of `world.json`."""
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
        """The instruction pairs, with one split for all models and seeds."""
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
        """The articles, with their splits."""
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
        """Content hash of a split, computed once: hashing is slow, and every artifact needs it."""
        if (task, split) not in self._hashes:
            self._hashes[task, split] = data.content_hash(self.split(task, split))
        return self._hashes[task, split]

    def texts_hash(self, instructions: bool) -> str:
        """Content hash of the pretraining texts, as `texts`."""
        splits: list[Task] = ["articles", "instructions"] if instructions else ["articles"]
        return "".join(self.content_hash(task, "train") for task in splits)

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """Characters of prefixes and of continuations, for up to 1,000 training pairs."""
        sample = self.instructions.train[:1000]
        return [len(pair.prefix) for pair in sample], [len(pair.continuation) for pair in sample]

    @property
    def article_lengths(self) -> list[int]:
        """Characters of up to 1,000 training articles."""
        return [len(article.text) for article in self.articles.train[:1000]]

    @property
    def training_rows(self) -> int:
        """Number of training pairs."""
        return len(self.instructions.train)

    def content_of(self, pretrained: str) -> str:
        """Identity of external weights: the hash of a folder or .gguf file, or a hub revision."""
        place = fetched(pretrained)
        if file := gguf_file(place):
            return f"gguf:{hash_file(file)}"
        return hash_folder(place) if Path(pretrained).is_absolute() else place.name

    def split(self, task: Task, split: str) -> Sequence[Any]:
        """The pairs or articles of a split."""
        return getattr(self.articles if task == "articles" else self.instructions, split)

    def texts(self, instructions: bool) -> list[str]:
        """Pretraining texts: the training articles, plus the training pairs if `instructions`."""
        texts = [article.text for article in self.articles.train]
        if instructions:
            texts += [pair.prefix + pair.continuation for pair in self.instructions.train]
        return texts


class StatedCorpora(Corpora):
    """Corpora as the profile states them, enough to plan without data or models.

    Names stand in for content hashes, so that no artifact counts as cached. Texts of any source are
    assumed to be as long as Dolly's.
    """

    lengths = (list(DOLLY_PREFIXES), list(DOLLY_RESPONSES))
    article_lengths = [10**6]  # beyond every cap: each article fills the profile's limit

    @property
    def training_rows(self) -> int:
        """The number the profile asks for, at most that of Dolly."""
        asked = self.settings.instructions.train_rows or DOLLY_TRAINING_ROWS
        return min(asked, DOLLY_TRAINING_ROWS)

    def content_hash(self, task: Task, split: str) -> str:
        """The source's name, in place of a hash."""
        return f"{getattr(self.settings, task).source} {split}"

    def content_of(self, pretrained: str) -> str:
        """The model's name, in place of a hash."""
        return pretrained
