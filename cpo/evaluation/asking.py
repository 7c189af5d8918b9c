"""Many questions to a chat model, several at once.

Replies are paid for. So each is handed over before its worker sends again, and the first ones are
looked at before the rest is asked. The workers are threads: it is the same in a script, in a
notebook's running event loop and in a thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

from cpo.engine.progress import progress_bar
from cpo.evaluation.chat import FEW_ATTEMPTS, ChatError, ChatServer, Session, estimate
from cpo.evaluation.replies import Reply

RETRIES = 15  # with the client's pauses, of 8 s at most, longer than a limit by the minute lasts
FIRST_REPLIES = 8  # at least so many are looked at before the rest is asked
TRIAL = "Answer with the letter A and nothing else."  # one short question, to try a server
AGAIN = "again"  # what `keep` returns to have a question asked once more


def ask_all(
    server: ChatServer,
    questions: Sequence[str],
    keep: Callable[[int, Reply], str | None],
    *,
    reply_tokens: int,
    description: str,
) -> None:
    """Asks every question and hands over each reply; says first what that will cost.

    Whatever ends it, Ctrl-C too, nothing more is sent, and the replies to what is under way, which
    are paid for, are waited for and kept.

    Args:
        server: who is asked, and within which bounds.
        questions: one user message each.
        keep: called as `keep(index, reply)` in the worker, before it sends again. Returns why the
            reply is of no use, "" or None where it is of use, or `AGAIN` to have the question asked
            once more. Where none of the first replies is of use, the rest is not asked. What it
            raises ends all, and comes out.
        reply_tokens: the longest reply expected, for the estimate.
        description: of the progress bar.

    Raises:
        ChatError: before anything is sent, where the key is missing, or the estimate is above
            `max_usd` or `max_requests`; later, where a bound is reached, the server refuses or
            fails for good, or all of the first replies, three at least, are of no use.
    """
    if not questions:
        return
    expected = estimate(server, questions, reply_tokens)
    if problem := server.exceeded(expected.requests, expected.usd):
        raise ChatError(f"{description}: {expected}, and {problem}. Nothing was sent")
    session = Session(server, reply_tokens, RETRIES)
    print(f"{description}: {expected}", flush=True)
    first = min(len(questions), max(server.concurrency, FIRST_REPLIES))
    first_replies: list[tuple[str, Reply]] = []  # each with its fault

    def answer(index: int) -> None:
        try:
            while (fault := keep(index, reply := session.ask(questions[index]))) == AGAIN:
                pass
            if index < first:
                first_replies.append((fault or "", reply))
        except BaseException:
            if session.stop():  # the first to fail says why; the others only find it out
                raise

    with (
        session.client,
        progress_bar(len(questions), description, "reply") as bar,
        ThreadPoolExecutor(server.concurrency) as pool,
    ):
        try:
            # One alone: with a wrong key, address or model there is not a second request.
            for part in (range(1), range(1, first), range(first, len(questions))):
                for done in as_completed([pool.submit(answer, index) for index in part]):
                    done.result()
                    bar.update()
                if len(first_replies) >= FEW_ATTEMPTS and all(fault for fault, _ in first_replies):
                    problem = _of_no_use(server, first_replies)
                    raise ChatError(f"{description}: {problem}{session.kept}")
        finally:
            session.stop()
            pool.shutdown(cancel_futures=True)


def _of_no_use(server: ChatServer, replies: Sequence[tuple[str, Reply]]) -> str:
    counts = Counter(fault for fault, _ in replies)
    [(most, _)] = counts.most_common(1)
    kinds = ", ".join(f"{count} {fault}" for fault, count in counts.items())
    cause, remedy = likely_cause(server, most, dict(reversed(replies))[most])
    return (
        f"none of the first {len(replies)} replies is of use ({kinds}): {cause}. {remedy}. Nothing "
        "more was sent"
    )


def likely_cause(server: ChatServer, fault: str, reply: Reply) -> tuple[str, str]:
    """Why a reply has this fault, most likely, and what to do."""
    reason = f"finish_reason {reply.finish_reason or 'unknown'}"
    thought = len(reply.message.reasoning)
    after = f" after {thought:,} characters of reasoning" if thought else ""
    limit = next((name for name in server.parameters if "max" in name), "max_tokens")
    where = f"{limit}: {server.parameters.get(limit, 'not set')}"
    raise_limit = (
        f"Raise {server.setting}.parameters.{limit}: a reasoning model takes some thousands before "
        "it answers"
    )
    if fault == "cut":
        return f"its reply is cut{after}, at {where} ({reason})", raise_limit
    if fault == "empty":
        remedy = f"{raise_limit}. Or the server does not send the answer as `content`"
        return f"it answers with nothing{after} ({reason})", remedy
    if fault == "refused":
        remedy = "Look at the prompts, and at the server's content filter"
        return f"the prompt is refused ({reason}): {reply.raw[:300]}", remedy
    if fault == "too long":
        remedy = "Choose a model with a longer context, or make responses shorter"
        return f"the prompt is too long for the model: {reply.raw[:300]}", remedy
    words = " ".join(reply.text.split())[:200]
    return f"it says “{words}”", "Choose a model that does as it is asked"


def try_out(server: ChatServer) -> Reply:
    """One short question, to see that address, key and model are right before there are thousands.

    Raises:
        ChatError: as `ask_all`, after few attempts.
    """
    session = Session(replace(server, timeout=min(server.timeout, 20.0)), 1, FEW_ATTEMPTS - 1)
    with session.client:
        return session.ask(TRIAL)
