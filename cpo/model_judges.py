"""Judges that are language models: one behind a server, and one on this machine.

Both are asked with the paper's templates (`judge_prompts`). What a server answers is paid for, so
each answer is in the verdict store before the next question leaves (`verdict_store`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpo.chat import ChatServer, Reply, ask_all
from cpo.judge_prompts import Verdict, judge_prompt, parse_verdict, query_of, template_hash
from cpo.judging import Judge, JudgeError, Pair, judge_named, rule_identity
from cpo.paper import Task
from cpo.profiles import Judge as Settings
from cpo.profiles import Server
from cpo.progress import progress_bar
from cpo.store import hash_folder
from cpo.verdict_store import Question, StoredVerdict, VerdictStore

REPLY_TOKENS = 8  # what a verdict takes, for the estimate of a cost


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
        return f"{self.server.model} at {urlsplit(self.server.base_url).netloc}"

    @property
    def prompt(self) -> str:
        """Hash of the template."""
        return template_hash(self.task)

    def questions(self, pairs: Sequence[Pair]) -> list[Question]:
        """What would be asked, one for each pair."""
        return [
            Question(
                prompt=_prompt(pair, self.task),
                model=self.server.model,
                parameters=self.server.parameters,
                server=self.server.base_url,
                model_side=pair.model_side,
                response_a=pair.response_a,
                response_b=pair.response_b,
            )
            for pair in pairs
        ]

    def missing(self, pairs: Sequence[Pair]) -> list[Question]:
        """What of it the store does not hold, each once."""
        questions = {question.key: question for question in self.questions(pairs)}
        with VerdictStore(self.store) as store:
            stored = store.get(list(questions))
        return [question for key, question in questions.items() if key not in stored]

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Raises `ChatError` where the server does not answer, `VerdictStoreError` for the store;
        what was answered before is kept."""
        questions = self.questions(pairs)
        items = {one.key: pair.example.id for one, pair in zip(questions, pairs, strict=True)}
        missing = self.missing(pairs)
        server = self.server

        with VerdictStore(self.store) as store:

            def keep(index: int, reply: Reply) -> None:
                question = missing[index]
                verdict = StoredVerdict(
                    key=question.key,
                    item=items[question.key],
                    verdict=parse_verdict(reply.text),
                    text=reply.text,
                    model=reply.model,
                    input_tokens=reply.input_tokens,
                    output_tokens=reply.output_tokens,
                    seconds=reply.seconds,
                    usd=server.price(reply.input_tokens, reply.output_tokens),
                    asked_at=reply.asked_at,
                )
                store.put(question, verdict)

            if missing:
                ask_all(
                    server,
                    [question.prompt for question in missing],
                    keep,
                    reply_tokens=REPLY_TOKENS,
                    description=f"verdicts of {self.name}",
                )
            stored = store.get([question.key for question in questions])
        return [stored[question.key].verdict for question in questions]


@dataclass(frozen=True)
class LocalJudge:
    """A causal language model of this machine: the more probable of "A" and "B" as the next token.

    Nothing is sampled or parsed, so no verdict is invalid; a tie is two equal probabilities. A
    tokenizer's chat template is used where it has one.

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

    @property
    def prompt(self) -> str:
        """Hash of the template."""
        return template_hash(self.task)

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Raises `JudgeError` for a prompt that the model's positions do not hold."""
        verdicts: list[Verdict] = []
        for p_a in self.probabilities(pairs):
            verdicts.append("tie" if p_a == 0.5 else "A" if p_a > 0.5 else "B")
        return verdicts

    @torch.inference_mode()
    def probabilities(self, pairs: Sequence[Pair]) -> list[float]:
        """P("A") of each pair among "A" and "B", in [0, 1]."""
        prompts = [self._ids(_prompt(pair, self.task)) for pair in pairs]
        labels = [self._label(prompts[0], letter) for letter in "AB"] if prompts else []
        limit = getattr(self.model.config, "max_position_embeddings", math.inf)
        for pair, ids in zip(pairs, prompts, strict=True):
            if len(ids) > limit:
                raise JudgeError(
                    f"{pair.example.id}: the question has {len(ids)} tokens and {self.name} reads "
                    f"{limit}: use a judge with a longer context, or shorter responses"
                )
        was_training = self.model.training
        self.model.eval()
        found = [math.nan] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        try:
            with progress_bar(len(prompts), f"verdicts of {self.name}", "pair") as bar:
                for start in range(0, len(order), self.batch):
                    rows = order[start : start + self.batch]
                    # Padded on the right, where a causal model never looks from the last token.
                    padded = torch.zeros(len(rows), len(prompts[rows[-1]]), dtype=torch.long)
                    for place, row in enumerate(rows):
                        padded[place, : len(prompts[row])] = torch.tensor(prompts[row])
                    logits = self.model(padded.to(self.model.device), use_cache=False).logits
                    for place, row in enumerate(rows):
                        a, b = logits[place, len(prompts[row]) - 1, labels].float().tolist()
                        found[row] = 1 / (1 + math.exp(min(700.0, b - a)))
                    bar.update(len(rows))
        finally:
            self.model.train(was_training)
        return found

    def _ids(self, prompt: str) -> list[int]:
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(prompt)["input_ids"])

    def _label(self, prompt_ids: list[int], letter: str) -> int:
        """The token with which an answer `letter` begins: after a blank where the prompt ends in
        text, as in "More helpful: A"."""
        chat = getattr(self.tokenizer, "chat_template", None)
        text = letter if chat else f" {letter}"
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = [one for one in ids if self.tokenizer.decode([one]).strip() == letter]
        if not whole:
            raise JudgeError(f"the tokenizer of {self.name} has no token for '{letter}'")
        return int(whole[0])


# --- From a profile -------------------------------------------------------------------------------


def judge_of(settings: Settings, task: Task, folder: Path) -> Judge | None:
    """The judge that a profile chooses; None without one.

    Args:
        folder: where the verdict store `verdicts.sqlite` lies, or is made.

    Raises:
        JudgeError: no such judge.
    """
    if settings.kind == "none":
        return None
    if settings.server is not None and settings.kind == "openai":
        return ChatJudge(chat_server(settings.server), folder / "verdicts.sqlite", task)
    if settings.model is not None and settings.kind == "local":
        return _local(settings.model, settings.batch, task)
    return judge_named(settings.kind)


def judge_identity(settings: Settings, task: Task) -> dict[str, Any]:
    """All of a judge that determines its verdicts, for a recipe."""
    named: dict[str, Any] = {"kind": settings.kind, "orders": settings.orders}
    if settings.server is not None and settings.kind == "openai":
        one = settings.server
        asked = {"model": one.model, "base_url": one.base_url, "parameters": one.parameters}
        return named | asked | {"prompt": template_hash(task)}
    if settings.kind == "local":
        return named | {"model": _content(str(settings.model)), "prompt": template_hash(task)}
    if settings.kind != "none":
        named["kind"] = rule_identity(settings.kind)
    return named


@cache
def _content(name: str) -> str:
    """What a judging model is: the hash of its folder, wherever that lies, or its hub name."""
    return hash_folder(Path(name)) if Path(name).is_dir() else name


def chat_server(settings: Server) -> ChatServer:
    """A profile's server as the client takes it."""
    return ChatServer(**settings.model_dump())


@cache
def _local(name: str, batch: int, task: Task) -> LocalJudge:
    """A judging model of this machine, loaded once."""
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        name, use_safetensors=True, dtype="auto", trust_remote_code=False
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return LocalJudge(model, tokenizer, Path(name).name, task, batch)
