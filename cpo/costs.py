"""What a profile's artifacts will cost, before any is made: seconds, memory, disk and money.

Estimates from the profile's own measured speeds (tokens a second on its hardware) and from the
lengths of the data; the store says which artifacts are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cpo.comparison import Comparison
from cpo.paper import ModelName, Row, Task
from cpo.recipes import ExternalModelRecipe

if TYPE_CHECKING:
    from cpo.experiments import Suite
    from cpo.profiles import Profile, Server
    from cpo.store import Recipe

CHARACTERS_A_TOKEN = 4.2
OVERHEAD_SECONDS = 3.0  # loading, saving and starting, for each artifact
BYTES_A_WEIGHT = 16  # fp32 weight, gradient and Adam's two moments
BYTES_EXCHANGED = 4  # a second gradient, which processes that train together exchange
QUESTION_TOKENS = 60  # of a template itself
REPLY_TOKENS = 2  # "A" and an end
SECONDS_A_REQUEST = 1.0
SCORING_SPEEDUP = 3.0  # a forward pass alone against forward and backward


@dataclass(frozen=True)
class Cost:
    """Of one artifact: seconds, and what it asks of a chat model."""

    seconds: float
    requests: int = 0
    tokens: float = 0.0
    usd: float = 0.0


@dataclass(frozen=True)
class Planned:
    """One artifact of a profile and what it costs; `seconds` is 0 where it is made already.

    `requests` to a chat model, with the `tokens` of questions and answers, `usd` at the prices that
    the profile gives. `cost` is what it takes to make, or would take again.
    """

    name: str
    stage: str
    key: str
    made: bool
    seconds: float
    memory_gb: float
    disk_gb: float
    usd: float = 0.0
    requests: int = 0
    tokens: float = 0.0
    cost: Cost = Cost(0.0)


@dataclass(frozen=True)
class Step:
    """An artifact to be: what it is called, of which model, its recipe, and what makes it."""

    name: str
    model: ModelName
    recipe: Recipe
    cost: Cost
    make: Callable[[], object]


def plan(suite: Suite) -> list[Planned]:
    """Every artifact that the profile's rows need, in the order of making, each once."""
    planned = []
    several = suite.profile.processes.count > 1
    training_bytes = BYTES_A_WEIGHT + (BYTES_EXCHANGED if several else 0)
    for step in steps(suite):
        recipe, cost = step.recipe, step.cost
        made = suite.store.find(recipe) is not None
        parameters = suite.profile.models[step.model].parameters
        keeps_weights = recipe.stage in ("base_model", "model", "ensemble")
        trains = recipe.stage in ("base_model", "model")
        planned.append(
            Planned(
                step.name,
                recipe.stage,
                recipe.key,
                made,
                0.0 if made else cost.seconds + OVERHEAD_SECONDS,
                parameters * (training_bytes if trains else 4) / 1e9 + 1.0,
                parameters * 4 / 1e9 if keeps_weights else 0.001,
                *((0.0, 0, 0.0) if made else (cost.usd, cost.requests, cost.tokens)),
                cost,
            )
        )
    return planned


def steps(suite: Suite) -> list[Step]:
    """The same as steps that can be taken: what an artifact is made of comes before it."""
    seen: dict[str, Step] = {}
    for step in _steps(suite):
        if not isinstance(step.recipe, ExternalModelRecipe):
            seen.setdefault(step.recipe.key, step)
    return list(seen.values())


def _steps(suite: Suite) -> Iterator[Step]:
    profile = suite.profile
    of_task = _mean_tokens(suite)
    chosen = {
        row
        for texts in profile.claims.values()
        for text in texts
        for choice in Comparison.parse(text).choices.values()
        for row in choice
    }
    for seed in range(profile.seeds):
        for row in profile.trained_rows:
            lengths = prefix, continuation = of_task[row.task]
            model = profile.models[row.model]
            trained = model.training_tokens_per_second
            if model.pretraining is not None:
                settings = model.pretraining
                tokens = settings.steps * settings.batch * settings.block_tokens
                yield Step(
                    f"base model {row.model}", row.model, suite.base_recipe(row.model),
                    Cost(tokens / trained), partial(suite.base_model, row.model),
                )  # fmt: skip
            stage = getattr(profile, row.reference)
            seen = stage.steps * stage.batch * (prefix + continuation)
            name = f"{row.reference}/{row.model}"
            yield Step(
                name, row.model, suite.reference_recipe(row.model, row.reference, seed),
                Cost(seen / trained), partial(suite.reference, row.model, row.reference, seed),
            )  # fmt: skip
            yield from _judged_steps(suite, name, row, lengths, seed, verdicts=False)
            yield from _row_steps(suite, row, seed, prefix, continuation)
            yield from _judged_steps(
                suite, row.id, row, lengths, seed, verdicts=row.measure == "win_rate"
            )
            if row.id in chosen and profile.judge.kind != "none":
                yield from _judged_steps(suite, row.id, row, lengths, seed, True, "validation")


def _judged_steps(
    suite: Suite,
    name: str,
    row: Row,
    lengths: tuple[float, float],
    seed: int,
    verdicts: bool,
    split: str = "test",
) -> Iterator[Step]:
    """What becomes of a model's answers: generations, verdicts, measures."""
    profile, model = suite.profile, suite.profile.models[row.model]
    prefix, continuation = lengths
    instructions, articles = profile.instructions, profile.articles
    if row.task == "articles":
        asked = articles.test_articles if split == "test" else articles.validation_articles
    else:
        asked = instructions.test_prompts if split == "test" else instructions.validation_rows
    beams = profile.decoding[row.decoding].num_beams if name == row.id else 1
    label = f"{name}, validation" if split == "validation" else name
    yield Step(
        f"generations of {label}", row.model,
        suite.generations_recipe_of(name, None, seed, split),
        Cost(asked * continuation * beams / model.generated_tokens_per_second),
        partial(suite.generations, name, None, seed, split),
    )  # fmt: skip
    if verdicts and profile.judge.kind != "none":
        yield Step(
            f"verdicts on {label}", row.model, suite.verdicts_recipe(name, None, seed, split),
            judging_cost(profile, asked, prefix, continuation),
            partial(suite.verdicts, name, None, seed, split),
        )  # fmt: skip
    if split == "test":
        seconds = asked * (prefix + continuation) / model.training_tokens_per_second
        yield Step(
            f"measures of {label}", row.model, suite.measures_recipe(name, seed), Cost(seconds),
            partial(suite.measures, name, seed),
        )  # fmt: skip


def _row_steps(
    suite: Suite, row: Row, seed: int, prefix: float, continuation: float
) -> Iterator[Step]:
    profile = suite.profile
    model = profile.models[row.model]
    rows = profile.continuation.steps[row.steps] * profile.continuation.batch
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
        writer = profile.unhelpful.server if profile.unhelpful.writer == "chat" else None
        if "UN" in mixture:
            cost = Cost(0.0)
            if writer is not None:
                written = min(rows, suite.training_rows)
                question = QUESTION_TOKENS + prefix + continuation
                cost = asking(writer, written, question, continuation)
            yield Step(
                f"unhelpful responses for {row.id}", row.model, suite.unhelpful_recipe(row, seed),
                cost, partial(suite.unhelpful, row, seed),
            )  # fmt: skip
        yield Step(
            f"negatives of {row.id}", row.model, suite.negatives_recipe(row, seed), Cost(seconds),
            partial(suite.negatives, row.id, seed),
        )  # fmt: skip
    tokens = 0 if row.alpha else rows * (prefix + k * continuation)
    if row.objective == "pss":  # passes without gradient before the one that counts
        tokens *= 1 + profile.continuation.scheduled_sampling.passes / SCORING_SPEEDUP
    yield Step(
        f"model {row.id}", row.model, suite.model_recipe(row, seed),
        Cost(tokens / model.training_tokens_per_second), partial(suite.model, row.id, seed),
    )  # fmt: skip


def judging_cost(profile: Profile, prompts: int, prefix: float, continuation: float) -> Cost:
    """What a profile's judge takes for one model's responses; nothing where it asks no server."""
    server = profile.judge.server if profile.judge.paid else None
    if server is None:
        return Cost(0.0)
    question = QUESTION_TOKENS + prefix + 2 * continuation
    return asking(server, prompts * profile.judge.orders, question, REPLY_TOKENS)


def asking(server: Server, requests: int, question: float, reply: float) -> Cost:
    """What `requests` questions and replies of so many tokens each take."""
    usd = question * server.usd_per_million_input + reply * server.usd_per_million_output
    return Cost(
        requests / server.concurrency * SECONDS_A_REQUEST,
        requests,
        requests * (question + reply),
        requests * usd / 1e6,
    )


def _mean_tokens(suite: Suite) -> dict[Task, tuple[float, float]]:
    """Of each task the mean tokens of a training prefix and continuation, by their characters and
    the limits; articles are taken to fill their cap."""
    settings, cap = suite.profile.instructions, suite.profile.articles.max_tokens
    prefixes, continuations = suite.lengths

    def mean(lengths: list[int], limit: int) -> float:
        return sum(min(one / CHARACTERS_A_TOKEN, limit) for one in lengths) / len(lengths)

    return {
        "instructions": (
            mean(prefixes, settings.max_prefix_tokens),
            mean(continuations, settings.max_continuation_tokens),
        ),
        "articles": (0.15 * cap, 0.85 * cap),
    }
