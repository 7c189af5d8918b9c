"""DPO's rejected responses: one *unhelpful* response per example (section 4 and A.4).

In the paper a chat model writes them (`chat`). Offline writers are `world`, for the embedded world,
and `other_response`, a stand-in for other data.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from cpo.data import Example
from cpo.evaluation.chat import ChatError, ChatServer
from cpo.evaluation.judge_prompts import query_of, template
from cpo.evaluation.replies import Reply
from cpo.evaluation.reply_store import Question, replies_to

# Offline writers: (examples, others, seed) -> a response to each example.
Writer = Callable[[Sequence[Example], Sequence[Example], int], Sequence[str]]
TRUE_RESPONSE = "the true response"  # the fault of a reply that repeats it
RESPONSE_TOKENS = 256  # reply length for cost estimates without max_tokens


class UnhelpfulError(RuntimeError):
    """Unhelpful responses are not available. The message gives the reason and the remedy."""


def write_unhelpful(
    writer: str,
    examples: Sequence[Example],
    *,
    seed: int,
    store: Path,
    others: Sequence[Example] = (),
    server: ChatServer | None = None,
) -> list[str | None]:
    """One unhelpful response per example, aligned with `examples`; equal ids share a response.

    A response is None if the chat model's reply was refused or cut, the prompt was too long, or two
    replies were empty or the true response.

    * `other_response`: the response of another example in `examples` or `others`; a stand-in, not
      the paper's method.
    * `chat`: the paper's method, with the template of A.4 (`templates/unhelpful.txt`); a context
      follows its instruction. Replies are kept in the file `store` (`reply_store`), so that later
      runs request only missing ones.

    Responses differ between seeds: a chat model, which takes no seed, is asked again.

    Raises:
        UnhelpfulError: an unknown writer, examples that it cannot write for, or a chat model that
            fails or whose first replies, or all of them, are unusable.
    """
    distinct = list({example.id: example for example in examples}.values())
    texts: Sequence[str | None]
    if writer in OFFLINE_WRITERS:
        texts = OFFLINE_WRITERS[writer](distinct, others, seed)
    elif writer != "chat":
        known = ", ".join((*OFFLINE_WRITERS, "chat"))
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
    """Response of a random example of the same category with another prompt and response.

    A stand-in, *not* the paper's method: the response is fluent and of the right kind but off the
    subject. The paper's unhelpful responses stay on it.
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
                "prompt and response; use more rows, or the writer 'chat'"
            )
    return responses


OFFLINE_WRITERS: dict[str, Writer] = {"other_response": _other_responses}


def _differ(text: str, other_text: str) -> bool:
    return text.split() != other_text.split()


def _chat_responses(
    examples: Sequence[Example], server: ChatServer, store: Path, seed: int
) -> list[str | None]:
    questions = []
    for example in examples:
        query = query_of(example, "instructions")
        prompt = template("unhelpful").format(query, example.continuation)
        asked = server.question(prompt) | {"response": example.continuation, "seed": seed}
        questions.append(Question("unhelpful response", example.id, asked))
    try:
        replies = replies_to(
            questions,
            server,
            store,
            _fault,
            again=("empty", TRUE_RESPONSE),
            reply_tokens=RESPONSE_TOKENS,
            description="writing unhelpful responses",
        )
    except ChatError as error:
        raise UnhelpfulError(str(error)) from None
    faults = list(map(_fault, questions, replies))
    if counts := Counter(filter(None, faults)):
        kinds = ", ".join(f"{count} {fault}" for fault, count in counts.items())
        missing = f"{counts.total()} of {len(examples)} unhelpful responses are missing ({kinds})"
        if all(faults):
            raise UnhelpfulError(
                f"{missing}: no reply of {server.model} is usable; they are kept in {store}. "
                "Choose another model, or other parameters, such as a higher max_tokens"
            )
        print(f"{missing}: their rows are masked", flush=True)
    return [
        None if fault else reply.text.strip() for fault, reply in zip(faults, replies, strict=True)
    ]


def _fault(question: Question, reply: Reply) -> str:
    """Why a reply is no unhelpful response, "" if it is one."""
    differs = _differ(reply.text, question.asked["response"])
    return reply.fault or ("" if differs else TRUE_RESPONSE)
