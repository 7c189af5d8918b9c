"""Cost of a profile's artifacts before any is built: seconds, memory, disk and money.

Each artifact computes its own cost, from data lengths and from speeds of this machine or of the
profile's hardware (`calibration`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cpo.data import Task
from cpo.evaluation.chat import ChatServer
from cpo_suite.corpora import Corpora
from cpo_suite.paper import ModelName
from cpo_suite.profile import JudgeSettings, ModelSettings, Profile, Server

CHARACTERS_A_TOKEN = 4.2
WITHOUT_MODEL = ("ensemble", "verdicts", "unhelpful")
# Overhead besides the tokens: per artifact with and without a model, per weight read or written,
# and per training step, in equivalent tokens.
OVERHEAD_SECONDS, OVERHEAD_WITHOUT_MODEL = 0.5, 0.1
SECONDS_A_WEIGHT = 8e-9
STEP_TOKENS = 900
LAUNCH_SECONDS = 15.0  # until several processes have started and connected
CHECKPOINT_BYTES = 2 * 12  # weights and moments; the previous one stays until the next is complete
QUESTION_TOKENS = 60  # of the template alone
REPLY_TOKENS = 2  # "A" and EOS, unless the judge's parameters set a limit
SECONDS_A_REQUEST = 1.0
SCORING_SPEEDUP = 3.0  # forward pass alone, relative to forward and backward
PACKING_SPEEDUP = 2.2  # blocks of equal length, relative to pairs of varying length
GENERATE_SLOWDOWN = 2.5  # transformers' `generate`, relative to our decoding
NOTEBOOK_SECONDS = 40.0  # of a notebook itself: start, tables, intervals, plots; measured at `tiny`
MAUVE_SECONDS = 0.0045  # clustering on CPU, per text and seed
ROUGE_SECONDS = 2e-7  # longest common subsequence on CPU, per pair of tokens


@dataclass(frozen=True)
class Speeds:
    """Tokens per second of one process with one model, by kind of work; `step` is the overhead of a
    training step in seconds."""

    training: float  # forward and backward, one continuation per prefix
    packing: float  # forward and backward, packed blocks, logits in the training's precision
    contrast: float  # forward and backward, many continuations per prefix
    scoring: float  # forward only
    decoding: float  # greedy and sampling, tokens of responses
    generate: float  # beams, by transformers' own `generate`; each beam counts
    step: float

    @classmethod
    def stated(cls, model: ModelSettings) -> Speeds:
        """Derived from the two speeds stated in a profile."""
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
    """Cost of one artifact on one process.

    Several processes divide `seconds`, but not `fixed`. The rest is for chat models: requests,
    tokens of questions and replies, and USD at the profile's prices.
    """

    seconds: float = 0.0
    fixed: float = 0.0
    requests: int = 0
    tokens: float = 0.0
    usd: float = 0.0


@dataclass(frozen=True)
class Planned:
    """An artifact of the plan: whether it is cached, and what building it takes.

    `memory_gb` is per process; `disk_gb` is permanent, `scratch_gb` holds checkpoints during
    training. `alone` is the time in seconds on one process, `gpu_hours` the sum over all processes.
    Requests, tokens and USD are as in `Cost`.
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
    """Inputs of every cost estimate: speeds of one process, and data lengths."""

    profile: Profile
    corpora: Corpora
    speeds: Callable[[ModelName], Speeds]
    embedded_texts_per_second: Callable[[], float]

    def tokens(self, task: Task) -> tuple[float, float]:
        """Mean tokens of a training prefix and continuation, from characters and length limits."""

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
        """Number of prompts in a validation or test split."""
        pairs, articles = self.profile.instructions, self.profile.articles
        validation, test = pairs.validation_rows, pairs.test_prompts
        if task == "articles":
            validation, test = articles.validation_articles, articles.test_articles
        return test if split == "test" else validation

    def judging(self, judge: JudgeSettings, prompts: int, prefix: float, response: float) -> Cost:
        """Cost of judging one model's responses: zero for a rule, and for a local model that is
        none of the profile's, since its speed is unknown.

        Replies of a server are assumed to use all the tokens allowed, since reasoning may need
        them.
        """
        if judge.kind == "local":
            for name, model in self.profile.models.items():
                if model.pretrained == judge.model:
                    tokens = prompts * judge.orders * (QUESTION_TOKENS + prefix + 2 * response)
                    return Cost(tokens / self.speeds(name).scoring)
        if judge.server is None or not judge.paid:
            return Cost()
        reply = ChatServer(**judge.server.model_dump()).reply_tokens(REPLY_TOKENS)
        return self.asking(judge.server, prompts * judge.orders, prefix + 2 * response, reply)

    def asking(self, server: Server, requests: int, question: float, reply: float) -> Cost:
        """Cost of requests with `question` tokens, besides the template, and `reply` tokens."""
        question += QUESTION_TOKENS
        usd = question * server.usd_per_million_input + reply * server.usd_per_million_output
        return Cost(
            fixed=requests / server.concurrency * SECONDS_A_REQUEST,
            requests=requests,
            tokens=requests * (question + reply),
            usd=requests * usd / 1e6,
        )
