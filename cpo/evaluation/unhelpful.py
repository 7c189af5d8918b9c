"""DPO's rejected responses: one *unhelpful* response to each example (section 4 and A.4).

The paper has a chat model write them (`chat`). Offline, the embedded world has a writer of its own
(`world`), and for other data there is a stand-in (`other_response`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from random import Random

from cpo.data import Example
from cpo.evaluation.chat import ChatError, ChatServer
from cpo.evaluation.judge_prompts import query_of
from cpo.evaluation.replies import Reply
from cpo.evaluation.reply_store import Question, replies_to

# Offline writers: (examples, others, seed) -> a response to each example.
Writer = Callable[[Sequence[Example], Sequence[Example], int], Sequence[str]]
TRUE_RESPONSE = "the true response"  # what a reply may be that is asked to be unhelpful
REPLY_TOKENS = 256  # for the estimate of a cost, where max_tokens does not say


class UnhelpfulError(RuntimeError):
    """Unhelpful responses cannot be had; the message says why and what to do."""


def write_unhelpful(
    writer: str,
    examples: Sequence[Example],
    *,
    seed: int,
    store: Path,
    others: Sequence[Example] = (),
    server: ChatServer | None = None,
) -> list[str | None]:
    """One unhelpful response to each example, aligned with `examples`; the same for an equal id.
    None where a chat model has none: its reply was refused, cut, or twice empty or the true
    response, or the question is too long for it.

    * `other_response`: the response of another of `examples` or of `others`; a stand-in, not the
      paper's way.
    * `chat`: the paper's way, by the template of A.4 (`templates/unhelpful.txt`); a context follows
      its instruction. Every reply is kept in the file `store` as it comes (`reply_store`), so that
      a run that was stopped, or a later one, asks for what is missing alone.

    Another `seed` has other responses: a chat model, whose draws are not seeded, is asked anew.

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
        texts = _chat_responses(distinct, server, store, seed)
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


def _differ(text: str, other_text: str) -> bool:
    return text.split() != other_text.split()


def _chat_responses(
    examples: Sequence[Example], server: ChatServer, store: Path, seed: int
) -> list[str | None]:
    file = files("cpo.evaluation").joinpath("templates/unhelpful.txt")
    template = file.read_text(encoding="utf-8").removesuffix("\n")
    questions = []
    for example in examples:
        prompt = template.format(query_of(example, "instructions"), example.continuation)
        asked = server.question(prompt) | {"response": example.continuation, "seed": seed}
        questions.append(Question("unhelpful response", example.id, asked))
    try:
        replies = replies_to(
            questions,
            server,
            store,
            _fault,
            again=("empty", TRUE_RESPONSE),
            reply_tokens=REPLY_TOKENS,
            description="writing unhelpful responses",
        )
    except ChatError as error:
        raise UnhelpfulError(str(error)) from None
    faults = list(map(_fault, questions, replies))
    if counts := Counter(filter(None, faults)):
        kinds = ", ".join(f"{count} {fault}" for fault, count in counts.items())
        what = f"{counts.total()} of {len(examples)} unhelpful responses are missing ({kinds})"
        if all(faults):
            raise UnhelpfulError(
                f"{what}: {server.model} has none to offer. Its replies are kept in {store}. "
                "Choose another model, or other parameters, such as a higher max_tokens"
            )
        print(f"{what}: their rows are masked", flush=True)
    return [
        None if fault else reply.text.strip() for fault, reply in zip(faults, replies, strict=True)
    ]


def _fault(question: Question, reply: Reply) -> str:
    """Why a reply is no unhelpful response; "" if it is one."""
    differs = _differ(reply.text, question.asked["response"])
    return reply.fault or ("" if differs else TRUE_RESPONSE)
