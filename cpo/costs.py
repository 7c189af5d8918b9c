"""What a profile's artifacts will cost, before any is made: seconds, memory, disk and money.

Estimates from the profile's own measured speeds (tokens a second on its hardware) and from the
lengths of the data; the store says which artifacts are there already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cpo.paper import ModelName, Row, Task
from cpo.recipes import ExternalModelRecipe

if TYPE_CHECKING:
    from cpo.experiments import Suite
    from cpo.store import Recipe

CHARACTERS_A_TOKEN = 4.2
OVERHEAD_SECONDS = 3.0  # loading, saving and starting, for each artifact
BYTES_A_WEIGHT = 16  # fp32 weight, gradient and Adam's two moments
SCORING_SPEEDUP = 3.0  # a forward pass alone against forward and backward


@dataclass(frozen=True)
class Planned:
    """One artifact of a profile and what it costs; `seconds` is 0 where it is made already."""

    name: str
    stage: str
    key: str
    made: bool
    seconds: float
    memory_gb: float
    disk_gb: float
    usd: float = 0.0


def plan(suite: Suite) -> list[Planned]:
    """Every artifact that the profile's rows need, in the order of making, each once."""
    seen: dict[str, Planned] = {}
    for name, model, recipe, seconds in _artifacts(suite):
        if isinstance(recipe, ExternalModelRecipe) or recipe.key in seen:
            continue
        made = suite.store.find(recipe) is not None
        parameters = suite.profile.models[model].parameters
        keeps_weights = recipe.stage in ("base_model", "model", "ensemble")
        trains = recipe.stage in ("base_model", "model")
        seen[recipe.key] = Planned(
            name,
            recipe.stage,
            recipe.key,
            made,
            0.0 if made else seconds + OVERHEAD_SECONDS,
            parameters * (BYTES_A_WEIGHT if trains else 4) / 1e9 + 1.0,
            parameters * 4 / 1e9 if keeps_weights else 0.001,
        )
    return list(seen.values())


def _artifacts(suite: Suite) -> Iterator[tuple[str, ModelName, Recipe, float]]:
    profile = suite.profile
    of_task = _mean_tokens(suite)
    for seed in range(profile.seeds):
        for row in profile.trained_rows:
            prefix, continuation = of_task[row.task]
            model = profile.models[row.model]
            trained, generated = model.training_tokens_per_second, model.generated_tokens_per_second
            if model.pretraining is not None:
                tokens = (
                    model.pretraining.steps
                    * model.pretraining.batch
                    * model.pretraining.block_tokens
                )
                base = suite.base_recipe(row.model)
                yield f"base model {row.model}", row.model, base, tokens / trained
            stage = getattr(profile, row.reference)
            seen = stage.steps * stage.batch * (prefix + continuation)
            reference = suite.reference_recipe(row.model, row.reference, seed)
            yield f"{row.reference}/{row.model}", row.model, reference, seen / trained
            yield from _row_artifacts(suite, row, seed, prefix, continuation)
            recipe = suite.generations_recipe(
                suite.model_recipe(row, seed), row.decoding, seed, row.task
            )
            articles = row.task == "articles"
            asked = (
                profile.articles.test_articles if articles else profile.instructions.test_prompts
            )
            written = asked * continuation * profile.decoding[row.decoding].num_beams
            yield f"generations of {row.id}", row.model, recipe, written / generated


def _row_artifacts(
    suite: Suite, row: Row, seed: int, prefix: float, continuation: float
) -> Iterator[tuple[str, ModelName, Recipe, float]]:
    profile = suite.profile
    model = profile.models[row.model]
    rows = profile.continuation.steps[row.steps] * profile.continuation.batch
    recipe = suite.model_recipe(row, seed)
    k = 1
    if row.negatives is not None:
        mixture = profile.negatives[row.negatives]
        k = 1 + sum(mixture.values())
        seconds = (
            rows
            * (prefix + k * continuation)
            / (SCORING_SPEEDUP * model.training_tokens_per_second)
        )
        seconds += rows * mixture.get("AN", 0) * continuation / model.generated_tokens_per_second
        yield f"negatives of {row.id}", row.model, suite.negatives_recipe(row, seed), seconds
    tokens = 0 if row.alpha else rows * (prefix + k * continuation)
    if row.objective == "pss":  # passes without gradient before the one that counts
        tokens *= 1 + profile.continuation.scheduled_sampling.passes / SCORING_SPEEDUP
    yield f"model {row.id}", row.model, recipe, tokens / model.training_tokens_per_second


def _mean_tokens(suite: Suite) -> dict[Task, tuple[float, float]]:
    """Of each task the mean tokens of a training prefix and continuation, by their characters and
    the limits; articles are taken to fill their cap."""
    settings, cap = suite.profile.instructions, suite.profile.articles.max_tokens
    sample = suite.instructions.train[:1000]

    def mean(lengths: list[int], limit: int) -> float:
        return sum(min(one / CHARACTERS_A_TOKEN, limit) for one in lengths) / len(lengths)

    return {
        "instructions": (
            mean([len(one.prefix) for one in sample], settings.max_prefix_tokens),
            mean([len(one.continuation) for one in sample], settings.max_continuation_tokens),
        ),
        "articles": (0.15 * cap, 0.85 * cap),
    }
