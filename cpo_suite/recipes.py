"""The recipes: for each kind of artifact, all that determines it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from cpo_suite.store import Recipe, how


@dataclass(frozen=True)
class WorldRecipe(Recipe):
    """The embedded world, written down; `code` is the hash of the package that builds it."""

    stage: ClassVar[str] = "world"
    version: ClassVar[int] = 1

    code: str
    seed: int


@dataclass(frozen=True)
class BaseModelRecipe(Recipe):
    """A base model and its tokenizer, made from scratch on packed text with a cosine schedule."""

    stage: ClassVar[str] = "base_model"
    version: ClassVar[int] = 2

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


@dataclass(frozen=True)
class ExternalModelRecipe(Recipe):
    """A model from elsewhere: the hash of a local folder, the revision of a hub model, or the hash
    of a .gguf file after `gguf:`, whose artifact is the folder that it is unpacked into."""

    stage: ClassVar[str] = "external_model"
    version: ClassVar[int] = 1

    content: str


@dataclass(frozen=True)
class ExamplesRecipe(Recipe):
    """Which pairs, and how long they may be; the tokenizer is that of the base model.

    Not an artifact of its own: it names data inside other recipes.
    """

    stage: ClassVar[str] = "examples"
    version: ClassVar[int] = 1

    base: Recipe
    data: str
    split: str
    max_prefix_tokens: int
    max_continuation_tokens: int
    over_long: str


@dataclass(frozen=True)
class UnhelpfulRecipe(Recipe):
    """An unhelpful response to each planned row, as text; `chat` says who was asked, and how."""

    stage: ClassVar[str] = "unhelpful"
    version: ClassVar[int] = 1

    examples: ExamplesRecipe
    steps: int
    batch: int
    writer: str
    chat: dict[str, str | int | float | None]
    seed: int


@dataclass(frozen=True)
class NegativesRecipe(Recipe):
    """Candidates, their order and their reference log-probabilities, on a batch plan."""

    stage: ClassVar[str] = "negatives"
    version: ClassVar[int] = 4

    reference: Recipe
    examples: ExamplesRecipe
    mixture: dict[str, int]
    steps: int
    batch: int
    embedder: str
    generation_batch: int
    precision: str
    seed: int
    unhelpful: Recipe | None = None


@dataclass(frozen=True)
class ModelRecipe(Recipe):
    """A model trained from another one on a batch plan; `negatives` is None for MLE."""

    stage: ClassVar[str] = "model"
    version: ClassVar[int] = 3

    start: Recipe
    examples: ExamplesRecipe
    negatives: NegativesRecipe | None
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


@dataclass(frozen=True)
class EnsembleRecipe(Recipe):
    """theta = alpha * theta_MLE + (1 - alpha) * theta_CPO."""

    stage: ClassVar[str] = "ensemble"
    version: ClassVar[int] = 1

    mle: Recipe
    cpo: Recipe
    alpha: float


@dataclass(frozen=True)
class GenerationsRecipe(Recipe):
    """One continuation of each judged prompt, or article.

    Only prompts that fit every model of the profile are judged: `prompts` is the hash of the split,
    and `read_by` says how each model reads it. An article's prefix is its own model's alone.
    """

    stage: ClassVar[str] = "generations"
    version: ClassVar[int] = 3

    model: Recipe
    prompts: str
    read_by: tuple[ExamplesRecipe, ...]
    decoding: dict[str, Any]
    max_new_tokens: int
    batch: int
    precision: str
    seed: int


@dataclass(frozen=True)
class VerdictsRecipe(Recipe):
    """A judge's verdicts on generations against the recorded responses; `judge` is
    `model_judges.judge_identity`, `seed` that of the order in which it sees the two."""

    stage: ClassVar[str] = "verdicts"
    version: ClassVar[int] = 2

    generations: GenerationsRecipe
    judge: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class MeasuresRecipe(Recipe):
    """The automatic measures of one model and its generations."""

    stage: ClassVar[str] = "measures"
    version: ClassVar[int] = 3

    generations: GenerationsRecipe
    examples: ExamplesRecipe
    base: Recipe
    mauve: dict[str, str | int]
    judge: str = "none"
    scoring_batch: int = how(default=64)
