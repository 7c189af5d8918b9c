"""DPO's rejected responses: one *unhelpful* response to each example (section 4 and A.4).

The paper has a chat model write them (`chat`). Offline, the embedded world has a writer of its own
(`world`), and for other data there is a stand-in (`other_response`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from random import Random
from threading import Lock

from cpo.data import Example
from cpo.evaluation.chat import ChatError, ChatServer, Reply, ask_all
from cpo.evaluation.judge_prompts import query_of
from cpo.evaluation.replies import Message, read_message

# Offline writers: (examples, others, seed) -> a response to each example.
Writer = Callable[[Sequence[Example], Sequence[Example], int], Sequence[str]]
REPLIES = "unhelpful.jsonl"  # a chat model's replies, as they came
TRUE_RESPONSE = "the true response"  # what a reply may be that is asked to be unhelpful
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
) -> list[str | None]:
    """One unhelpful response to each example, aligned with `examples`; the same for an equal id.
    None where a chat model has none: its reply was refused, cut, or twice empty or the true
    response, or the question is too long for it.

    * `other_response`: the response of another of `examples` or of `others`; a stand-in, not the
      paper's way.
    * `chat`: the paper's way, by the template of A.4 (`templates/unhelpful.txt`); a context follows
      its instruction. Every reply is kept in `partial/unhelpful.jsonl` as it comes, so that a run
      that was stopped, or a later one, asks for what is missing alone.

    `seed` is the offline writers'; a chat model's draws are not seeded, they repeat from the file.

    Raises:
        UnhelpfulError: an unknown writer; examples it cannot write for; a chat model that cannot
            be reached or is of no use, for all of the first examples or for all there are.
    """
    distinct = list({example.id: example for example in examples}.values())
    texts: Sequence[str | None]
    if writer in WRITERS:
        texts = WRITERS[writer](distinct, others, seed)
    elif writer != "chat":
        known = ", ".join((*WRITERS, "chat"))
        raise UnhelpfulError(f"unknown writer '{writer}': choose one of {known}")
    elif server is None:
        raise UnhelpfulError("the writer 'chat' needs a server and a model: give a ChatServer")
    else:
        texts = _chat_responses(distinct, partial / REPLIES, server)
    responses = {example.id: text for example, text in zip(distinct, texts, strict=True)}
    return [responses[example.id] for example in examples]


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


WRITERS: dict[str, Writer] = {"other_response": _other_responses}


def _differ(one: str, other: str) -> bool:
    return one.split() != other.split()


def _question(example: Example, template: str) -> str:
    return template.format(query_of(example, "instructions"), example.continuation)


def _chat_responses(
    examples: Sequence[Example], path: Path, server: ChatServer
) -> list[str | None]:
    file = files("cpo.evaluation").joinpath("templates/unhelpful.txt")
    template = file.read_text(encoding="utf-8")
    questions = [_question(example, template.removesuffix("\n")) for example in examples]
    asked = [server.model, dict(server.parameters)]
    named = [json.dumps([question, *asked], sort_keys=True).encode() for question in questions]
    keys = [hashlib.sha256(name).hexdigest() for name in named]
    replies = _kept(path)

    def faults() -> list[str]:
        """Why an example has no response, of all examples with a reply."""
        pairs = zip(keys, examples, strict=True)
        return [_fault(replies[key], example) for key, example in pairs if key in replies]

    works = not all(faults())
    missing = {
        key: (example, question)
        for key, example, question in zip(keys, examples, questions, strict=True)
        if key not in replies
    }
    todo = [(key, example) for key, (example, _) in missing.items()]
    asked_again: set[str] = set()
    lock = Lock()
    path.parent.mkdir(parents=True, exist_ok=True)

    def fault_of(index: int, reply: Reply) -> str:
        return _fault(reply, todo[index][1])

    def keep(index: int, reply: Reply) -> bool:
        """Stores a reply; True asks once more where another one may serve."""
        key, example = todo[index]
        fault = fault_of(index, reply)
        if fault in ("empty", TRUE_RESPONSE) and key not in asked_again:
            asked_again.add(key)
            return True
        row = {
            "key": key, "id": example.id, "model": server.model, "response": reply.text.strip(),
            "fault": fault, "finish_reason": reply.finish_reason, "raw": reply.raw,
        }  # fmt: skip
        with lock, path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
            replies[key] = reply
        return False

    try:
        ask_all(
            server,
            [question for _, question in missing.values()],
            keep,
            reply_tokens=server.reply_tokens(REPLY_TOKENS),
            description="writing unhelpful responses",
            fault_of=None if works else fault_of,
        )
    except ChatError as error:
        raise UnhelpfulError(str(error)) from None
    counts = Counter(filter(None, faults()))
    if counts:
        kinds = ", ".join(f"{count} {fault}" for fault, count in counts.items())
        what = f"{counts.total()} of {len(examples)} unhelpful responses are missing ({kinds})"
        if counts.total() == len(examples):
            raise UnhelpfulError(
                f"{what}: {server.model} has none to offer. Its replies are kept in {path}. Choose "
                "another model, or other parameters, such as a higher max_tokens"
            )
        print(f"{what}: their rows are masked", flush=True)
    return [
        None if _fault(replies[key], example) else replies[key].text.strip()
        for key, example in zip(keys, examples, strict=True)
    ]


def _fault(reply: Message, example: Example) -> str:
    """Why a reply is no unhelpful response to an example; "" if it is one."""
    return reply.fault or ("" if _differ(reply.text, example.continuation) else TRUE_RESPONSE)


def _kept(path: Path) -> dict[str, Message]:
    """The replies in the file, by key; the line that a killed run left half written is dropped."""
    if not path.exists():
        return {}
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(path, whole)
    rows = [json.loads(line) for line in text[:whole].splitlines()]
    # Earlier versions kept the content alone.
    raw = [json.loads(row["raw"]) if "raw" in row else {"content": row["response"]} for row in rows]
    return {
        row["key"]: read_message(message, row.get("finish_reason", ""))
        for row, message in zip(rows, raw, strict=True)
    }
