"""What a profile's artifacts will cost, before any is made: seconds, memory, disk and money.

Estimates from the profile's own measured speeds (tokens a second on its hardware) and from the
lengths of the data; the store says which artifacts are there already.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cpo.evaluation.chat import ChatServer
from cpo_suite.comparison import Comparison
from cpo_suite.paper import ModelName, Row, Task
from cpo_suite.recipes import ExternalModelRecipe

if TYPE_CHECKING:
    from cpo_suite.profile import Model, Profile, Server
    from cpo_suite.store import Recipe
    from cpo_suite.suite import Suite

CHARACTERS_A_TOKEN = 4.2
SHARED_OUT = ("model", "negatives", "generations")  # among the profile's processes
WITHOUT_MODEL = ("ensemble", "verdicts", "unhelpful")
OF_A_PROCESS = 1.0  # GB, before there is a model
# Beside the tokens: for each artifact that uses a model or only reads and writes, for each weight
# that is read and written, and for each step of a training, in tokens that take as long.
OVERHEAD_SECONDS = {"with a model": 0.5, "without": 0.1}
SECONDS_A_WEIGHT = 8e-9
STEP_TOKENS = 900
LAUNCH_SECONDS = 15.0  # until several processes have started and found each other
BYTES_A_WEIGHT = 16  # fp32 weight, gradient and Adam's two moments
BYTES_OF_COPY = 2  # of a weight in bf16, which autocast keeps until the backward pass
# What a layer keeps of each token for the backward pass, in bytes for each unit of its width, by
# precision. Measured on groups of 4 and 12: 70 and 130 with GPT-2's layers, 63 and 95 with Llama's;
# here the larger of the first and what is between the second, where large models are not trained.
# Twice the 34 of Korthikanti et al. (2022): autocast leaves norms and residuals in fp32.
BYTES_A_UNIT = {"bf16": 70, "fp32": 118}
CHECKPOINT_BYTES = 2 * 12  # weights and both moments, and until it is sealed the one before it
QUESTION_TOKENS = 60  # of a template itself
REPLY_TOKENS = 2  # "A" and an end, where the judge's parameters do not say
SECONDS_A_REQUEST = 1.0
SCORING_SPEEDUP = 3.0  # a forward pass alone against forward and backward
PACKING_SPEEDUP = 2.2  # blocks of one length against pairs of many
GENERATE_SLOWDOWN = 2.5  # transformers' `generate` against our own greedy and top-k decoding
MAUVE_SECONDS = 0.0045  # for each text and seed: clustering, on a processor


@dataclass(frozen=True)
class Speeds:
    """Of one process with one model: tokens a second of each kind of work, and the seconds that a
    training step takes beside its tokens."""

    training: float  # forward and backward, prefixes with one continuation
    packing: float  # the same, blocks of one length, logits in the training's precision
    contrast: float  # the same, a prefix with many continuations
    scoring: float  # forward alone
    decoding: float  # greedy and top-k, new tokens
    generate: float  # top-p and beams, by transformers' own `generate`; each beam counts
    step: float

    @classmethod
    def stated(cls, model: Model) -> Speeds:
        """By the two speeds that a profile states."""
        training, decoding = model.training_tokens_per_second, model.generated_tokens_per_second
        return cls(
            training,
            PACKING_SPEEDUP * training,
            training,
            SCORING_SPEEDUP * training,
            decoding,
            decoding / GENERATE_SLOWDOWN,
            STEP_TOKENS / training,
        )

    def times(self, speedup: float) -> Speeds:
        """The same on cores that are so much faster together than the one that was measured; what a
        step takes beside its tokens, they do not share."""
        rates = {name: rate * speedup for name, rate in dataclasses.asdict(self).items()}
        return Speeds(**rates | {"step": self.step})


@dataclass(frozen=True)
class Cost:
    """Of one artifact: seconds on one process, `fixed` ones that more processes do not shorten, and
    what it asks of a chat model, `waiting` seconds for the answers."""

    seconds: float
    waiting: float = 0.0
    requests: int = 0
    tokens: float = 0.0
    usd: float = 0.0
    fixed: float = 0.0


@dataclass(frozen=True)
class Planned:
    """One artifact of a profile and what it costs; `seconds` is 0 where it is made already.

    `memory_gb` is of each process; `disk_gb` stays, `scratch_gb` is taken by checkpoints meanwhile;
    `alone` are the seconds it would take on one GPU, `gpu_hours` those of all that make it.
    `requests` go to a chat model, with the `tokens` of questions and answers, `usd` at the prices
    that the profile gives. `again` are the seconds on one process that it takes or, made already,
    would take again, and `cost` what it is reckoned from.
    """

    name: str
    stage: str
    key: str
    made: bool
    seconds: float
    memory_gb: float
    disk_gb: float
    scratch_gb: float = 0.0
    alone: float = 0.0
    gpu_hours: float = 0.0
    usd: float = 0.0
    requests: int = 0
    tokens: float = 0.0
    again: float = 0.0
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
    profile = suite.profile
    planned: list[Planned] = []
    for step in steps(suite):
        recipe, cost = step.recipe, step.cost
        made = suite.store.find(recipe) is not None
        parameters = profile.models[step.model].parameters
        trains = recipe.stage in ("base_model", "model")
        held = parameters * 4 / 1e9
        memory = training_memory_gb(profile, step.model) if trains else held + OF_A_PROCESS
        processes = profile.processes.count if recipe.stage in SHARED_OUT else 1
        used = "without" if recipe.stage in WITHOUT_MODEL else "with a model"
        fixed = cost.waiting + OVERHEAD_SECONDS[used] + cost.fixed
        if recipe.stage not in ("verdicts", "unhelpful"):
            fixed += parameters * SECONDS_A_WEIGHT
        launching = LAUNCH_SECONDS if processes > 1 else 0.0
        seconds = cost.seconds / processes + fixed + launching
        spent: dict[str, Any] = {}
        if not made:
            spent = {
                "alone": cost.seconds + fixed,
                "gpu_hours": seconds * processes / 3600 if profile.gpus else 0.0,
                "usd": cost.usd,
                "requests": cost.requests,
                "tokens": cost.tokens,
            }
        planned.append(
            Planned(
                step.name,
                recipe.stage,
                recipe.key,
                made,
                0.0 if made else seconds,
                memory,
                held if trains or recipe.stage == "ensemble" else 0.001,
                parameters * CHECKPOINT_BYTES / 1e9 if trains else 0.0,
                again=cost.seconds + fixed,
                cost=cost,
                **spent,
            )
        )
    return planned


def training_memory_gb(profile: Profile, name: ModelName) -> float:
    """Of each process that trains a model: weights, gradients, moments, and the activations of a
    micro-batch, where the model's width and layers are known."""
    model = profile.models[name]
    copy = BYTES_OF_COPY if profile.optimiser.precision == "bf16" else 0
    weights = model.parameters * (BYTES_A_WEIGHT + copy) / 1e9
    return weights + _activations_gb(profile, name) + OF_A_PROCESS


def micro_batch_that_fits(profile: Profile, name: ModelName) -> int:
    """The largest power of two for `optimiser.micro_batch_tokens` with which a model's training
    fits into the profile's GPUs; 0 if none does."""
    now = profile.optimiser.micro_batch_tokens
    a_token = _activations_gb(profile, name) / now
    room = (profile.gpu_memory_gb or 0.0) - training_memory_gb(profile, name) + a_token * now
    return 2 ** int(math.log2(room / a_token)) if a_token and room / a_token >= 64 else 0


def _activations_gb(profile: Profile, name: ModelName) -> float:
    """Of one micro-batch; 0 where the model's width and layers are not known."""
    model = profile.models[name]
    bytes_a_unit = BYTES_A_UNIT[profile.optimiser.precision]
    return bytes_a_unit * model.size * profile.optimiser.micro_batch_tokens / 1e9


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
            speeds = suite.speeds[row.model]
            if model.pretraining is not None:
                settings = model.pretraining
                tokens = settings.batch * settings.block_tokens
                yield Step(
                    f"base model {row.model}", row.model, suite.base_recipe(row.model),
                    Cost(settings.steps * (tokens / speeds.packing + speeds.step)),
                    partial(suite.base_model, row.model),
                )  # fmt: skip
            stage = getattr(profile, row.reference)
            tokens = stage.batch * (prefix + continuation)
            name = f"{row.reference}/{row.model}"
            yield Step(
                name, row.model, suite.reference_recipe(row.model, row.reference, seed),
                Cost(stage.steps * (tokens / speeds.training + speeds.step)),
                partial(suite.reference, row.model, row.reference, seed),
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
    profile, speeds = suite.profile, suite.speeds[row.model]
    prefix, continuation = lengths
    instructions, articles = profile.instructions, profile.articles
    if row.task == "articles":
        asked = articles.test_articles if split == "test" else articles.validation_articles
    else:
        asked = instructions.test_prompts if split == "test" else instructions.validation_rows
    # A reference answers greedily.
    decoding = profile.decoding[row.decoding if name == row.id else "greedy"]
    ours = decoding.num_beams == 1 and not (decoding.do_sample and decoding.top_p is not None)
    speed = (speeds.decoding if ours else speeds.generate) / decoding.num_beams
    label = f"{name}, validation" if split == "validation" else name
    yield Step(
        f"generations of {label}", row.model,
        suite.generations_recipe_of(name, None, seed, split),
        Cost(asked * continuation / speed),
        partial(suite.generations, name, None, seed, split),
    )  # fmt: skip
    if verdicts and profile.judge.kind != "none":
        yield Step(
            f"verdicts on {label}", row.model, suite.verdicts_recipe(name, None, seed, split),
            judging_cost(profile, asked, prefix, continuation),
            partial(suite.verdicts, name, None, seed, split),
        )  # fmt: skip
    if split == "test":
        seconds = asked * (prefix + continuation) / speeds.scoring
        mauve = profile.mauve
        clustered = mauve.features == "base_model" and row.task in mauve.tasks
        clustering = asked * mauve.seeds * MAUVE_SECONDS if clustered else 0.0
        yield Step(
            f"measures of {label}", row.model, suite.measures_recipe(name, seed),
            Cost(seconds, fixed=clustering),
            partial(suite.measures, name, seed),
        )  # fmt: skip


def _row_steps(
    suite: Suite, row: Row, seed: int, prefix: float, continuation: float
) -> Iterator[Step]:
    profile = suite.profile
    speeds = suite.speeds[row.model]
    step_count = profile.continuation.steps[row.steps]
    rows = step_count * profile.continuation.batch
    k = 1
    if row.negatives is not None:
        mixture = profile.negatives[row.negatives]
        k = 1 + sum(mixture.values())
        seconds = rows * (prefix + k * continuation) / speeds.scoring
        seconds += rows * mixture.get("AN", 0) * continuation / speeds.decoding
        seconds += rows * k / suite.embedded_texts_per_second
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
    tokens = rows * (prefix + k * continuation)
    seconds = tokens / (speeds.contrast if k > 1 else speeds.training) + step_count * speeds.step
    if row.objective == "pss":  # passes without gradient before the one that counts
        seconds += profile.continuation.scheduled_sampling.passes * tokens / speeds.scoring
    yield Step(
        f"model {row.id}", row.model, suite.model_recipe(row, seed),
        Cost(0.0 if row.alpha else seconds), partial(suite.model, row.id, seed),
    )  # fmt: skip


def judging_cost(profile: Profile, prompts: int, prefix: float, continuation: float) -> Cost:
    """What a profile's judge takes for one model's responses; nothing where it asks no server.

    A reply is as long as the server's parameters allow, as reasoning may need all of it.
    """
    server = profile.judge.server if profile.judge.paid else None
    if server is None:
        return Cost(0.0)
    question = QUESTION_TOKENS + prefix + 2 * continuation
    reply = ChatServer(**server.model_dump()).reply_tokens(REPLY_TOKENS)
    return asking(server, prompts * profile.judge.orders, question, reply)


def asking(server: Server, requests: int, question: float, reply: float) -> Cost:
    """What `requests` questions and replies of so many tokens each take."""
    usd = question * server.usd_per_million_input + reply * server.usd_per_million_output
    return Cost(
        0.0,
        requests / server.concurrency * SECONDS_A_REQUEST,
        requests,
        requests * (question + reply),
        requests * usd / 1e6,
    )


def _mean_tokens(suite: Suite) -> dict[Task, tuple[float, float]]:
    """Of each task the mean tokens of a training prefix and continuation, by their characters and
    the limits."""
    settings, cap = suite.profile.instructions, suite.profile.articles.max_tokens
    prefixes, continuations = suite.lengths

    def mean(lengths: list[int], limit: int) -> float:
        return sum(min(one / CHARACTERS_A_TOKEN, limit) for one in lengths) / len(lengths)

    read = any(row.task == "articles" for row in suite.profile.trained_rows)
    article = mean(suite.article_lengths, cap) if read else 0.0
    return {
        "instructions": (
            mean(prefixes, settings.max_prefix_tokens),
            mean(continuations, settings.max_continuation_tokens),
        ),
        "articles": (0.15 * article, 0.85 * article),
    }
