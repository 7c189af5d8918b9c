"""Language models as judges: behind a server, or local.

Both use the paper's templates (`judge_prompts`). A server's replies cost money, so each is stored
before the next question is sent (`reply_store`).
"""

from __future__ import annotations

import inspect
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
from torch import Tensor
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

VERDICT_TOKENS = 8  # reply length for cost estimates
MINIMUM_MASS = 0.5  # of P("A") + P("B") for a valid verdict of a local model, by default


def _filled_prompt(pair: Pair, task: Task) -> str:
    return judge_prompt(task, query_of(pair.example, task), pair.response_a, pair.response_b)


@dataclass(frozen=True)
class ChatJudge:
    """A chat model behind any server with OpenAI's chat completions API.

    Only questions without a stored reply are sent, and replies are stored as they arrive. A later
    run therefore pays for no question twice.
    """

    server: ChatServer
    store: Path
    task: Task

    @property
    def name(self) -> str:
        """Model and host, as shown in tables."""
        host = urlsplit(self.server.base_url).netloc.rpartition("@")[2]
        return f"{self.server.model} at {host}"

    @property
    def prompt(self) -> str:
        """Hash of the template."""
        return template_hash(self.task)

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """The verdicts; unparsable replies are invalid, for the reason in `why_invalid`.

        Raises `ChatError` if the server fails or none of its first replies is a verdict, and
        `ReplyStoreError` for the store. Earlier replies stay stored.
        """
        return [read_verdict(reply)[0] for reply in self._replies(pairs)]

    def why_invalid(self, pairs: Sequence[Pair]) -> list[str]:
        """Kind of each invalid verdict (`judge_prompts.INVALID_KINDS`), "" for valid ones."""
        return [read_verdict(reply)[1] for reply in self._replies(pairs)]

    def _replies(self, pairs: Sequence[Pair]) -> list[Reply]:
        questions = []
        for pair in pairs:
            asked = self.server.question(_filled_prompt(pair, self.task))
            asked |= {"response_a": pair.response_a, "response_b": pair.response_b}
            asked["model_side"] = pair.model_side
            questions.append(Question("verdict", pair.example.id, asked))
        return replies_to(
            questions,
            self.server,
            self.store,
            lambda question, reply: read_verdict(reply)[1],
            reply_tokens=VERDICT_TOKENS,
            description=f"verdicts of {self.name}",
        )


@dataclass(frozen=True)
class LocalJudge:
    """A local causal language model; its verdict is the more probable next token, "A" or "B".

    Nothing is sampled or parsed. Equal probabilities are a tie. A verdict is invalid if both labels
    together are less probable than `minimum_mass`, or if the prompt exceeds the model's context.
    The tokenizer's chat template is used if it has one.

    Args:
        model, tokenizer: from transformers; training or evaluation mode is restored.
        name: shown in tables.
        batch: prompts per forward pass.
        minimum_mass: of P("A") + P("B") for a valid verdict. A small model may need less than the
            default to give any; then only its measured agreement says what they are worth.
        precision: of the forward pass, "fp32" (the model's own dtype) or "bf16" (autocast).
    """

    model: Any
    tokenizer: Any
    name: str
    task: Task
    batch: int = 16
    minimum_mass: float = MINIMUM_MASS
    precision: str = "fp32"
    _warned: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def prompt(self) -> str:
        """Hash of the template."""
        return template_hash(self.task)

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """The verdicts; warns once of long prompts and once of many improbable labels."""
        probabilities = self.probabilities(pairs)
        mass = probabilities.sum(axis=1)
        too_long, improbable = np.isnan(mass), mass < self.minimum_mass
        if too_long.any():
            self._warn_once(
                "too long",
                f"{too_long.sum()} of {len(pairs)} prompts exceed the {self._limit} tokens of "
                f"{self.name}: their verdicts are invalid. Use a judge with a longer context, or "
                "shorter responses.",
            )
        if improbable.sum() > len(pairs) / 10:
            self._warn_once(
                "improbable",
                f"{improbable.sum()} of {len(pairs)} verdicts of {self.name} are invalid: its next "
                f"token is A or B with a mean probability of {np.nanmean(mass):.2g}, and a verdict "
                f"needs {self.minimum_mass:g}. A reasoning model thinks first, and a base model is "
                "not trained to answer. Use an instruction-tuned model without reasoning.",
            )
        return [
            "invalid"
            if not a + b >= self.minimum_mass
            else "tie"
            if a == b
            else "A"
            if a > b
            else "B"
            for a, b in probabilities.tolist()
        ]

    def why_invalid(self, pairs: Sequence[Pair]) -> list[str]:
        """Kind "too long" for pairs whose prompt exceeds the context, "" for the others."""
        lengths = [len(self._ids(_filled_prompt(pair, self.task))) for pair in pairs]
        return ["too long" if length > self._limit else "" for length in lengths]

    @torch.inference_mode()
    def probabilities(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float64]:
        """P("A") and P("B") of the next token after each prompt, `[n, 2]`; NaN if it is too long.

        The softmax is over the whole vocabulary.

        Raises:
            JudgeError: the tokenizer has no token for a label, or the model returns NaN.
        """
        prompts = [self._ids(_filled_prompt(pair, self.task)) for pair in pairs]
        labels = [self._label(letter) for letter in "AB"]
        was_training = self.model.training
        self.model.eval()
        probabilities = np.full((len(prompts), 2), math.nan)
        order = [row for row, ids in enumerate(prompts) if len(ids) <= self._limit]
        order.sort(key=lambda row: len(prompts[row]))
        try:
            with (
                progress_bar(len(order), f"verdicts of {self.name}", "pair") as bar,
                torch.autocast(
                    self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"
                ),
            ):
                for start in range(0, len(order), self.batch):
                    rows = order[start : start + self.batch]
                    # Right padding is invisible to a causal model at the last token.
                    ids = [torch.tensor(prompts[row]) for row in rows]
                    padded = pad_sequence(ids, batch_first=True).to(self.model.device)
                    last = torch.tensor([len(prompts[row]) - 1 for row in rows])
                    for row, logits in zip(rows, self._logits_at(padded, last), strict=True):
                        p = logits.float().softmax(-1)
                        probabilities[row] = [p[tokens].sum().item() for tokens in labels]
                    bar.update(len(rows))
        finally:
            self.model.train(was_training)
        if np.isnan(probabilities[order]).any():
            raise JudgeError(f"{self.name} returns NaN probabilities: load it in fp32")
        return probabilities

    def _logits_at(self, padded: Tensor, last: Tensor) -> Tensor:
        """Logits of each row's last token, `[rows, V]`.

        Those of all positions would be the largest tensor of the pass, so a model that can leaves
        them out.
        """
        rows = torch.arange(len(padded))
        if "logits_to_keep" not in inspect.signature(self.model.forward).parameters:
            return self.model(padded, use_cache=False).logits[rows, last]
        positions, where = last.unique(return_inverse=True)
        kept = positions.to(padded.device)
        return self.model(padded, use_cache=False, logits_to_keep=kept).logits[rows, where]

    @property
    def _limit(self) -> float:
        return getattr(self.model.config, "max_position_embeddings", math.inf)

    def _ids(self, prompt: str) -> list[int]:
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": prompt}]
            # Some templates omit the reasoning block with this switch; others ignore it.
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
            # An opened block is closed, so that the next token belongs to the answer.
            if opening := re.search(r"<(think|thinking|reasoning)>\s*$", text):
                text = f"{text.rstrip()}\n\n</{opening[1]}>\n\n"
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(prompt)["input_ids"])

    def _label(self, letter: str) -> list[int]:
        """Tokens that may start the answer `letter`: the letter with and without a leading space.

        Byte-level BPE writes the space as Ġ, SentencePiece as ▁.
        """
        vocabulary, pieces = self.tokenizer.get_vocab(), (letter, f"Ġ{letter}", f"▁{letter}")
        tokens = [vocabulary[piece] for piece in pieces if piece in vocabulary]
        if not tokens:
            raise JudgeError(f"the tokenizer of {self.name} has no token for '{letter}'")
        return tokens

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=3)
