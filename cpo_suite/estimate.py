"""What a profile's artifacts will cost, before any is built: seconds, memory, disk and money.

Each artifact knows its own cost, by speeds of this machine or of the profile's hardware
(`calibration`) and by the lengths of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cpo.data import Task
from cpo.evaluation.chat import ChatServer
from cpo_suite.corpora import Corpora
from cpo_suite.paper import ModelName
from cpo_suite.profile import JudgeSettings, ModelSettings, Profile, Server

CHARACTERS_A_TOKEN = 4.2
WITHOUT_MODEL = ("ensemble", "verdicts", "unhelpful")
OF_A_PROCESS = 1.0  # GB, before there is a model
# Beside the tokens: for each artifact that computes with a model or only reads and writes, for each
# weight that is read and written, and for each step of a training, in tokens that take as long.
OVERHEAD_SECONDS, OVERHEAD_WITHOUT_MODEL = 0.5, 0.1
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
    def stated(cls, model: ModelSettings) -> Speeds:
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


@dataclass(frozen=True)
class Cost:
    """Of one artifact on one process: `seconds` that several processes share out, `fixed` ones that
    they do not shorten, and what is asked of a chat model: requests, the tokens of questions and
    replies, and USD at the prices that the profile gives."""

    seconds: float = 0.0
    fixed: float = 0.0
    requests: int = 0
    tokens: float = 0.0
    usd: float = 0.0


@dataclass(frozen=True)
class Planned:
    """One artifact of a profile, whether it is made already, and what making it takes.

    `memory_gb` is of each process; `disk_gb` stays, `scratch_gb` is taken by checkpoints meanwhile;
    `alone` are the seconds that it takes on one process, `gpu_hours` those of all that make it;
    requests, tokens and USD as in `Cost`.
    """

    name: str
    stage: str
    key: str
    cached: bool
    seconds: float
    memory_gb: float
    disk_gb: float
    scratch_gb: float = 0.0
    alone: float = 0.0
    gpu_hours: float = 0.0
    usd: float = 0.0
    requests: int = 0
    tokens: float = 0.0


@dataclass(frozen=True)
class CostModel:
    """What costs are reckoned from: speeds of one process, and the lengths of the data."""

    profile: Profile
    corpora: Corpora
    speeds: Callable[[ModelName], Speeds]
    embedded_texts_per_second: Callable[[], float]

    def tokens(self, task: Task) -> tuple[float, float]:
        """Mean tokens of a training prefix and continuation, by their characters and the limits."""

        def mean(lengths: list[int], limit: int) -> float:
            return sum(min(length / CHARACTERS_A_TOKEN, limit) for length in lengths) / len(lengths)

        if task == "articles":
            article = mean(self.corpora.article_lengths, self.profile.articles.max_tokens)
            return 0.15 * article, 0.85 * article
        prefixes, continuations = self.corpora.lengths
        settings = self.profile.instructions
        return (
            mean(prefixes, settings.max_prefix_tokens),
            mean(continuations, settings.max_continuation_tokens),
        )

    def prompts(self, task: Task, split: str) -> int:
        """How many prompts of a validation or test split are answered."""
        pairs, articles = self.profile.instructions, self.profile.articles
        validation, test = pairs.validation_rows, pairs.test_prompts
        if task == "articles":
            validation, test = articles.validation_articles, articles.test_articles
        return test if split == "test" else validation

    def judging(self, judge: JudgeSettings, prompts: int, prefix: float, response: float) -> Cost:
        """What a judge takes for one model's responses; nothing where it asks no server.

        A reply is as long as the server's parameters allow, as reasoning may need all of it.
        """
        if judge.server is None or not judge.paid:
            return Cost()
        reply = ChatServer(**judge.server.model_dump()).reply_tokens(REPLY_TOKENS)
        return self.asking(judge.server, prompts * judge.orders, prefix + 2 * response, reply)

    def asking(self, server: Server, requests: int, question: float, reply: float) -> Cost:
        """What questions of so many tokens, the template's beside them, and their replies take."""
        question += QUESTION_TOKENS
        usd = question * server.usd_per_million_input + reply * server.usd_per_million_output
        return Cost(
            fixed=requests / server.concurrency * SECONDS_A_REQUEST,
            requests=requests,
            tokens=requests * (question + reply),
            usd=requests * usd / 1e6,
        )


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
    return bytes_a_unit * math.prod(model.shape) * profile.optimiser.micro_batch_tokens / 1e9
