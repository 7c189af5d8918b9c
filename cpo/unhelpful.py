"""DPO's rejected responses: one *unhelpful* response to each example (section 4 and A.4).

The paper has a chat model write them (`chat`). Offline, the embedded world has a writer of its own
(`world`), and for other data there is a stand-in (`other_response`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from random import Random
from threading import Lock

from cpo.chat import ChatError, ChatServer, Reply, ask_all
from cpo.data import Example
from cpo.judge_prompts import query_of
from cpo.world import WorldExample, unhelpful_answer

WRITERS = ("world", "other_response", "chat")
REPLY_TOKENS = 256  # for the estimate of a cost, where max_tokens does not say


class UnhelpfulError(RuntimeError):
    """Unhelpful responses cannot be had; the message says why and what to do."""


def write_unhelpful(
    writer: str,
    examples: Sequence[Example],
    *,
    seed: int,
    partial: Path,
    others: Sequence[Example] = (),
    server: ChatServer | None = None,
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
    elif server is None:
        raise UnhelpfulError("the writer 'chat' needs a server and a model: give a ChatServer")
    else:
        texts = _chat_responses(distinct, partial / "unhelpful.jsonl", server)
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
    return template.format(query_of(example, "instructions"), example.continuation)


def _chat_responses(examples: Sequence[Example], path: Path, server: ChatServer) -> list[str]:
    template = files("cpo").joinpath("templates/unhelpful.txt").read_text(encoding="utf-8")
    questions = [_question(example, template.removesuffix("\n")) for example in examples]
    asked = [server.model, dict(server.parameters)]
    named = [json.dumps([question, *asked], sort_keys=True).encode() for question in questions]
    keys = [hashlib.sha256(name).hexdigest() for name in named]
    answers = _kept(path)
    missing = {
        key: (example, question)
        for key, example, question in zip(keys, examples, questions, strict=True)
        if key not in answers
    }
    todo = [(key, example) for key, (example, _) in missing.items()]
    asked_again: set[str] = set()
    lock = Lock()
    path.parent.mkdir(parents=True, exist_ok=True)

    def keep(index: int, reply: Reply) -> bool:
        """Stores an answer; True asks once more for one that cannot serve."""
        (key, example), text = todo[index], reply.text.strip()
        if not text or not _differ(text, example.continuation):
            if key not in asked_again:
                asked_again.add(key)
                return True
            what = "the true response" if text else "nothing"
            raise UnhelpfulError(
                f"{example.id}: {server.model} answered twice, the second time with {what}. Leave "
                "the example out, or choose another model, temperature or max_tokens."
            )
        row = {"key": key, "id": example.id, "model": server.model, "response": text}
        with lock, path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
            answers[key] = text
        return False

    try:
        ask_all(
            server,
            [question for _, question in missing.values()],
            keep,
            reply_tokens=int(server.parameters.get("max_tokens", REPLY_TOKENS)),
            description="writing unhelpful responses",
        )
    except ChatError as error:
        raise UnhelpfulError(str(error)) from None
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
