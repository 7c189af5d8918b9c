"""DPO's rejected responses: one *unhelpful* response to each example (section 4 and A.4).

The paper has a chat model write them (`chat`). Offline, the embedded world has a writer of its own
(`world`), and for other data there is a stand-in (`other_response`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from random import Random
from threading import Event, Lock, Semaphore

from cpo.data import Example
from cpo.progress import progress_bar
from cpo.world import WorldExample, unhelpful_answer

WRITERS = ("world", "other_response", "chat")
RETRIES = 5  # the openai client's own, of 429, 5xx and broken connections, with its back-off
TIMEOUT = 120.0  # seconds


class UnhelpfulError(RuntimeError):
    """Unhelpful responses cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class ChatWriter:
    """A chat model behind any server of OpenAI's chat completions.

    `api_key_variable` names the environment variable that holds the key, "" where the server wants
    none. `max_requests` bounds the questions of one run (the client's retries are not counted),
    `max_tokens` the length of one answer, `concurrency` the questions under way at once.
    """

    base_url: str
    model: str
    api_key_variable: str = "OPENAI_API_KEY"
    max_tokens: int = 256
    temperature: float = 1.0
    concurrency: int = 4
    max_requests: int = 10_000


def write_unhelpful(
    writer: str,
    examples: Sequence[Example],
    *,
    seed: int,
    partial: Path,
    others: Sequence[Example] = (),
    chat: ChatWriter | None = None,
) -> list[str]:
    """One unhelpful response to each example, aligned with `examples`; the same for an equal id.

    * `world`: by the embedded world's own writer, for its examples alone.
    * `other_response`: the response of another of `examples` or of `others`; a stand-in, not the
      paper's way.
    * `chat`: the paper's way, by the template of A.4 (`templates/unhelpful.txt`); a context follows
      its instruction. Every answer is kept in `partial/unhelpful.jsonl` as it comes, so that a run
      that was stopped, or a later one, asks for what is missing alone.

    `seed` is the offline writers'; a chat model's draws are not seeded, they repeat from the file.

    Raises:
        UnhelpfulError: an unknown writer; examples it cannot write for; a chat model that cannot
            be reached, refuses, or twice answers with nothing or with the true response.
    """
    distinct = list({example.id: example for example in examples}.values())
    if writer == "world":
        texts = [_world_response(example, seed) for example in distinct]
    elif writer == "other_response":
        texts = _other_responses(distinct, others, seed)
    elif writer != "chat":
        raise UnhelpfulError(f"unknown writer '{writer}': choose one of {', '.join(WRITERS)}")
    elif chat is None:
        raise UnhelpfulError("the writer 'chat' needs a server and a model: give a ChatWriter")
    else:
        texts = _chat_responses(distinct, partial / "unhelpful.jsonl", chat)
    responses = {example.id: text for example, text in zip(distinct, texts, strict=True)}
    return [responses[example.id] for example in examples]


def _world_response(example: Example, seed: int) -> str:
    if not isinstance(example.source, WorldExample):
        raise UnhelpfulError(
            f"the writer 'world' knows the embedded world alone, and {example.id} is not of it: "
            "use 'chat', or offline the stand-in 'other_response'"
        )
    return unhelpful_answer(example.source, seed)


def _other_responses(
    examples: Sequence[Example], others: Sequence[Example], seed: int
) -> list[str]:
    """A stand-in for want of a chat model, *not* the paper's way: the response of a random other
    example of the same category, never of an equal prompt, and never an equal response.

    It is fluent and of the right kind but beside the point altogether, which the paper's unhelpful
    responses are not: those stay on the prompt's subject.
    """
    by_category: dict[str, list[Example]] = defaultdict(list)
    for example in (*examples, *others):
        by_category[example.category].append(example)
    responses = []
    for example in examples:
        group = by_category[example.category]
        start = Random(f"other response {seed} {example.id}").randrange(len(group))
        for other in (group[(start + i) % len(group)] for i in range(len(group))):
            if _differ(other.prefix, example.prefix) and _differ(
                other.continuation, example.continuation
            ):
                responses.append(other.continuation)
                break
        else:
            raise UnhelpfulError(
                f"{example.id}: no other example of the category '{example.category}' has another "
                "prompt and another response; use more rows, or the writer 'chat'"
            )
    return responses


def _differ(one: str, other: str) -> bool:
    return one.split() != other.split()


def _question(example: Example, template: str) -> str:
    source = example.source if isinstance(example.source, dict) else vars(example.source)
    asked = "\n".join(part for part in (source["instruction"], source.get("context")) if part)
    return template.format(asked, example.continuation)


def _chat_responses(examples: Sequence[Example], path: Path, chat: ChatWriter) -> list[str]:
    template = files("cpo").joinpath("templates/unhelpful.txt").read_text(encoding="utf-8")
    questions = [_question(example, template.removesuffix("\n")) for example in examples]
    parameters = [chat.model, chat.max_tokens, chat.temperature]
    named = [json.dumps([question, *parameters]).encode() for question in questions]
    keys = [hashlib.sha256(name).hexdigest() for name in named]
    answers = _kept(path)
    missing = {
        key: (example, question)
        for key, example, question in zip(keys, examples, questions, strict=True)
        if key not in answers
    }
    if len(missing) > chat.max_requests:
        raise UnhelpfulError(
            f"{len(missing):,} responses are missing and max_requests is {chat.max_requests:,}: "
            "raise it, or train on fewer rows"
        )
    if not missing:
        return [answers[key] for key in keys]
    ask = _asker(chat)
    lock, failed = Lock(), Event()
    path.parent.mkdir(parents=True, exist_ok=True)

    def answer(key: str, example: Example, question: str) -> None:
        if failed.is_set():
            return
        try:
            text = ask_twice(example, question)
        except BaseException:
            failed.set()
            raise
        row = {"key": key, "id": example.id, "model": chat.model, "response": text}
        with lock, path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
            answers[key] = text

    def ask_twice(example: Example, question: str) -> str:
        for _ in range(2):
            text = ask(question)
            if text and _differ(text, example.continuation):
                return text
        what = "the true response" if text else "nothing"
        raise UnhelpfulError(
            f"{example.id}: {chat.model} answered twice, the second time with {what}. Leave the "
            "example out, or choose another model, temperature or max_tokens."
        )

    todo = [(key, *one) for key, one in missing.items()]
    with progress_bar(len(todo), "writing unhelpful responses", "prompt") as bar:
        # One alone: with a wrong key, address or model there is not a second request.
        answer(*todo[0])
        bar.update()
        pool = ThreadPoolExecutor(chat.concurrency)
        try:
            for done in as_completed([pool.submit(answer, *one) for one in todo[1:]]):
                done.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    return [answers[key] for key in keys]


def _kept(path: Path) -> dict[str, str]:
    """The answers in the file, by key; the line that a killed run left half written is dropped."""
    if not path.exists():
        return {}
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(path, whole)
    rows = [json.loads(line) for line in text[:whole].splitlines()]
    return {row["key"]: row["response"] for row in rows}


def _asker(chat: ChatWriter) -> Callable[[str], str]:
    """A function that sends one question and returns the answer, "" for none; thread-safe."""
    import openai

    key = os.environ.get(chat.api_key_variable, "") if chat.api_key_variable else "none wanted"
    if not key:
        raise UnhelpfulError(
            f"the environment variable {chat.api_key_variable} is not set: set it to the key of "
            f"{chat.base_url}, or api_key_variable to the name of the one that holds it"
        )
    client = openai.OpenAI(
        base_url=chat.base_url, api_key=key, max_retries=RETRIES, timeout=TIMEOUT
    )
    left = Semaphore(chat.max_requests)
    no_model = f"no model '{chat.model}' or no chat completions there: check model and base_url"
    advice = {
        401: f"the key in {chat.api_key_variable} is refused: set it to one that is valid there",
        403: f"the key in {chat.api_key_variable} may not use {chat.model}: use another of either",
        404: f"{no_model}, which mostly ends in /v1",
    }

    def ask(question: str) -> str:
        if not left.acquire(blocking=False):
            raise UnhelpfulError(
                f"all {chat.max_requests:,} requests (max_requests) were sent and responses are "
                "missing still: those that came are kept; raise it and run again"
            )
        try:
            reply = client.chat.completions.create(
                model=chat.model,
                messages=[{"role": "user", "content": question}],
                max_tokens=chat.max_tokens,
                temperature=chat.temperature,
            )
        except openai.APIStatusError as error:
            # The server's own words may quote the key.
            why = advice.get(error.status_code, error.message.replace(key, "***"))
            raise UnhelpfulError(f"{chat.base_url} answered {error.status_code}: {why}") from None
        except openai.APIConnectionError:
            raise UnhelpfulError(
                f"{chat.base_url} cannot be reached or does not answer: check the address and run "
                "again; the responses that came are kept"
            ) from None
        if not getattr(reply, "choices", None):
            raise UnhelpfulError(f"{chat.base_url} sent no chat completion: {no_model}")
        return (reply.choices[0].message.content or "").strip()

    return ask
