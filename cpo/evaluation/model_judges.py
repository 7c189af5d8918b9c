"""Judges that are language models: one behind a server, and one on this machine.

Both are asked with the paper's templates (`judge_prompts`). What a server answers is paid for, so
each reply is in the store before the next question leaves (`reply_store`).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence

from cpo.data import Task
from cpo.engine.progress import progress_bar
from cpo.evaluation.chat import ChatServer
from cpo.evaluation.judge_prompts import (
    Verdict,
    judge_prompt,
    query_of,
    read_verdict,
    template_hash,
)
from cpo.evaluation.judging import JudgeError, Pair
from cpo.evaluation.replies import Reply
from cpo.evaluation.reply_store import Question, replies_to

REPLY_TOKENS = 8  # what a verdict takes, for the estimate of a cost
MINIMUM_MASS = 0.5  # of P("A") + P("B"), with which a local model answers at all


def _prompt(pair: Pair, task: Task) -> str:
    return judge_prompt(task, query_of(pair.example, task), pair.response_a, pair.response_b)


@dataclass(frozen=True)
class ChatJudge:
    """A chat model behind any server of OpenAI's chat completions.

    Asks only what the store does not hold, and keeps every answer there as it comes: a run that was
    stopped, or another one, goes on from what was paid for.
    """

    server: ChatServer
    store: Path
    task: Task

    @property
    def name(self) -> str:
        """Model and server, as tables show them."""
        host = urlsplit(self.server.base_url).netloc.rpartition("@")[2]
        return f"{self.server.model} at {host}"

    @property
    def prompt(self) -> str:
        """Hash of the template."""
        return template_hash(self.task)

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """What is no verdict is invalid; `why_invalid` says why.

        Raises `ChatError` where the server does not answer, or where none of its first replies is a
        verdict, and `ReplyStoreError` for the store; what was answered before is kept.
        """
        return [read_verdict(reply)[0] for reply in self._replies(pairs)]

    def why_invalid(self, pairs: Sequence[Pair]) -> list[str]:
        """For pairs that were judged, why a verdict is invalid, one of
        `judge_prompts.INVALID_KINDS`; "" for those that are not."""
        return [read_verdict(reply)[1] for reply in self._replies(pairs)]

    def _replies(self, pairs: Sequence[Pair]) -> list[Reply]:
        questions = []
        for pair in pairs:
            asked = self.server.question(_prompt(pair, self.task))
            asked |= {"response_a": pair.response_a, "response_b": pair.response_b}
            asked["model_side"] = pair.model_side
            questions.append(Question("verdict", pair.example.id, asked))
        return replies_to(
            questions,
            self.server,
            self.store,
            lambda question, reply: read_verdict(reply)[1],
            reply_tokens=REPLY_TOKENS,
            description=f"verdicts of {self.name}",
        )


@dataclass(frozen=True)
class LocalJudge:
    """A causal language model of this machine: the more probable of "A" and "B" as the next token.

    Nothing is sampled or parsed. A verdict is invalid where both labels together are less probable
    than `MINIMUM_MASS`, as the model would say something else, and where the question is longer
    than what the model reads; a tie is two equal probabilities. A tokenizer's chat template is used
    where it has one.

    Args:
        model, tokenizer: of transformers; the model is left in the mode that it came in.
        name: what stands in the tables.
        batch: prompts a forward pass.
    """

    model: Any
    tokenizer: Any
    name: str
    task: Task
    batch: int = 16
    _warned: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def prompt(self) -> str:
        """Hash of the template."""
        return template_hash(self.task)

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Warns, once each, of questions that are too long and of many improbable labels."""
        probabilities = self.probabilities(pairs)
        mass = probabilities.sum(axis=1)
        too_long, improbable = np.isnan(mass), mass < MINIMUM_MASS
        if too_long.any():
            self._warn_once(
                "too long",
                f"{too_long.sum()} of {len(pairs)} questions are longer than the {self._limit} "
                f"tokens that {self.name} reads: their verdicts are invalid. Use a judge with a "
                "longer context, or shorter responses.",
            )
        if improbable.sum() > len(pairs) / 10:
            self._warn_once(
                "improbable",
                f"{improbable.sum()} of {len(pairs)} verdicts of {self.name} are invalid: its next "
                f"token is A or B with a probability of {np.nanmean(mass):.2g} on average, and "
                f"less than {MINIMUM_MASS:g} is no answer. Likely it says something else first: a "
                "reasoning model thinks, and a base model was never taught to answer. Use an "
                "instruction-tuned model that answers at once.",
            )
        return [
            "invalid" if not a + b >= MINIMUM_MASS else "tie" if a == b else "A" if a > b else "B"
            for a, b in probabilities.tolist()
        ]

    def why_invalid(self, pairs: Sequence[Pair]) -> list[str]:
        """Of pairs that were judged: "too long" where the question was, "" for the others."""
        lengths = [len(self._ids(_prompt(pair, self.task))) for pair in pairs]
        return ["too long" if length > self._limit else "" for length in lengths]

    @torch.inference_mode()
    def probabilities(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float64]:
        """P("A") and P("B") as the next token of each question, `[n, 2]`, of the whole vocabulary.

        Their sum is the mass on the labels. NaN where a question is too long.

        Raises:
            JudgeError: the tokenizer has no token for a label, or the model gives NaN.
        """
        prompts = [self._ids(_prompt(pair, self.task)) for pair in pairs]
        labels = [self._label(letter) for letter in "AB"]
        was_training = self.model.training
        self.model.eval()
        probabilities = np.full((len(prompts), 2), math.nan)
        order = [row for row, ids in enumerate(prompts) if len(ids) <= self._limit]
        order.sort(key=lambda row: len(prompts[row]))
        try:
            with progress_bar(len(order), f"verdicts of {self.name}", "pair") as bar:
                for start in range(0, len(order), self.batch):
                    rows = order[start : start + self.batch]
                    # Padded on the right, where a causal model never looks from the last token.
                    ids = [torch.tensor(prompts[row]) for row in rows]
                    padded = pad_sequence(ids, batch_first=True).to(self.model.device)
                    logits = self.model(padded, use_cache=False).logits
                    for row, row_logits in zip(rows, logits, strict=True):
                        p = row_logits[len(prompts[row]) - 1].float().softmax(-1)
                        probabilities[row] = [p[tokens].sum().item() for tokens in labels]
                    bar.update(len(rows))
        finally:
            self.model.train(was_training)
        if np.isnan(probabilities[order]).any():
            raise JudgeError(f"{self.name} gives NaN instead of probabilities: load it in fp32")
        return probabilities

    @property
    def _limit(self) -> float:
        return getattr(self.model.config, "max_position_embeddings", math.inf)

    def _ids(self, prompt: str) -> list[int]:
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": prompt}]
            # Not every template knows this switch, by which some leave a reasoning block out.
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
            # A block that a template opens all the same is closed: the next token is the answer's.
            if opened := re.search(r"<(think|thinking|reasoning)>\s*$", text):
                text = f"{text.rstrip()}\n\n</{opened[1]}>\n\n"
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(prompt)["input_ids"])

    def _label(self, letter: str) -> list[int]:
        """The tokens that an answer `letter` may begin with: the letter, and the letter behind a
        blank, which byte-level BPE writes as Ġ and SentencePiece as ▁."""
        vocabulary, pieces = self.tokenizer.get_vocab(), (letter, f"Ġ{letter}", f"▁{letter}")
        tokens = [vocabulary[piece] for piece in pieces if piece in vocabulary]
        if not tokens:
            raise JudgeError(f"the tokenizer of {self.name} has no token for '{letter}'")
        return tokens

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=3)
