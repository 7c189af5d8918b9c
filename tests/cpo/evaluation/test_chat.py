"""The chat client against a real server on loopback: what it asks, what it keeps, what stops it."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import signal
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from chat_server import Answer, ScriptedServer, question_of, short_pauses

from cpo.evaluation import chat as chat_module
from cpo.evaluation.chat import (
    AGAIN,
    FEW_ATTEMPTS,
    RETRIES,
    ChatError,
    ChatServer,
    ask_all,
    estimate,
)
from cpo.evaluation.replies import Reply
from cpo_suite.profile import Server

KEY_VARIABLE, KEY = "CPO_TEST_KEY", "sk-secret-of-the-test"
QUOTING = {"message": f"no: {KEY}"}  # servers that refuse may quote the key


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n")  # with the newline that files of keys end in
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    short_pauses(monkeypatch)
    with ScriptedServer(lambda request: f"re: {question_of(request)}") as scripted:
        yield scripted


def chat(server: ScriptedServer, **changes: Any) -> ChatServer:
    settings: dict[str, Any] = {"concurrency": 4, "timeout": 5.0, **changes}
    return ChatServer(server.url, "model-1", KEY_VARIABLE, **settings)


def ask(
    server: ChatServer, questions: list[str], kept: dict[int, Reply] | None = None
) -> dict[int, Reply]:
    """All replies by index; `kept` holds them if it does not end well."""
    replies = {} if kept is None else kept

    def keep(index: int, reply: Reply) -> None:
        assert index not in replies, "kept twice"
        replies[index] = reply

    ask_all(server, questions, keep, reply_tokens=10, description="asking")
    return replies


def texts(n: int) -> list[str]:
    return [f"question {i}" for i in range(n)]


# --- what is asked and what is kept ---------------------------------------------------------------


def test_each_reply_is_kept_with_its_question(server: ScriptedServer) -> None:
    server.answer = lambda request: Answer(
        f"re: {question_of(request)}", usage=(11, 2), delay=0.02, finish_reason="length"
    )
    parameters = {"temperature": 0, "max_tokens": 5, "top_k": 3}
    replies = ask(chat(server, parameters=parameters), texts(20))
    assert {i: reply.text for i, reply in replies.items()} == {
        i: f"re: question {i}" for i in range(20)
    }
    assert len(server.requests) == 20 and set(server.authorizations) == {f"Bearer {KEY}"}
    assert server.most_under_way == 4
    # As they are, also what OpenAI's own API does not know (top_k).
    messages = [{"role": "user", "content": "question 0"}]
    assert server.requests[0] == {"model": "model-1", "messages": messages, **parameters}
    reply = replies[3]
    assert (reply.input_tokens, reply.output_tokens, reply.finish_reason) == (11, 2, "length")
    assert reply.model == "model-1-2026"
    assert 0.02 <= reply.seconds < 60  # seconds, and not thousandths of them
    age = datetime.now(UTC) - datetime.fromisoformat(reply.asked_at)
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_no_question_needs_neither_key_nor_server(capsys: pytest.CaptureFixture[str]) -> None:
    ask(ChatServer("http://127.0.0.1:1/v1", "m", "CPO_UNSET"), [])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [None, ""])
def test_an_empty_reply_is_a_reply(server: ScriptedServer, content: str | None) -> None:
    server.answer = lambda request: Answer(content, usage=None)
    reply = ask(chat(server), ["12345678"])[0]  # 8 characters: about 2 tokens where none are told
    assert (reply.text, reply.input_tokens, reply.output_tokens) == ("", 2, 0)
    assert len(server.requests) == 1


def test_a_reply_is_text_that_can_be_stored(server: ScriptedServer) -> None:
    half = Answer("A\ud83d")  # an emoji of two code units, cut
    server.answer = lambda request: half
    assert ask(chat(server), ["?"])[0].text.encode() == b"A?"


def test_a_question_is_asked_again_where_keep_says_so(server: ScriptedServer) -> None:
    seen: Counter[int] = Counter()

    def keep(index: int, reply: Reply) -> str:
        seen[index] += 1
        return AGAIN if index == 2 and seen[index] < 3 else ""

    ask_all(chat(server), texts(5), keep, reply_tokens=1, description="")
    assert seen == {0: 1, 1: 1, 2: 3, 3: 1, 4: 1}
    assert server.questions.count("question 2") == 3


def test_it_works_in_a_running_event_loop_and_in_a_thread(server: ScriptedServer) -> None:
    async def cell() -> dict[int, Reply]:
        return ask(chat(server), texts(6))

    assert len(asyncio.run(cell())) == 6
    found: dict[int, Reply] = {}
    thread = threading.Thread(target=ask, args=(chat(server), texts(6), found))
    thread.start()
    thread.join()
    assert len(found) == 6


def test_answer_reasoning_and_the_message_as_it_came(server: ScriptedServer) -> None:
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "A"}]
    server.answer = lambda request: Answer(parts, message={"reasoning_content": "\ud83d"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the client's own types know no parts
        reply = ask(chat(server), ["?"])[0]
    assert (reply.text, reply.fault, reply.finish_reason) == ("A", "", "stop")
    assert reply.message.reasoning.startswith("Hm.")
    kept = json.loads(reply.raw)
    assert kept["content"] == parts and kept["reasoning_content"] == "\ud83d"
    assert reply.raw.isascii()  # half a character can be stored too


# --- prompts that alone are refused ---------------------------------------------------------------

AZURE_FILTER = {
    "message": "The response was filtered due to the prompt triggering Azure OpenAI's content "
    "management policy. Please modify your prompt and retry.",
    "type": None, "param": "prompt", "code": "content_filter", "status": 400,
    "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}},
}  # fmt: skip
ONE_PROMPT = {
    "Azure's filter": ("refused", Answer(status=400, error=AZURE_FILTER)),
    "code alone": ("refused", Answer(status=400, error={"code": "content_filter"})),
    "inner code alone": (
        "refused",
        Answer(status=400, error={"innererror": {"code": "ResponsibleAIPolicyViolation"}}),
    ),
    "OpenAI's": (
        "refused",
        Answer(status=400, error={
            "code": "invalid_prompt",
            "message": "Invalid prompt: your prompt was flagged as potentially violating our usage "
            "policy.",
        }),
    ),
    "OpenRouter's": (
        "refused",
        Answer(status=403, error={"code": 403, "message": "Input flagged by moderation"}),
    ),
    "a finish reason": ("refused", Answer(None, finish_reason="content_filter")),
    "no message at all": (
        "refused",
        Answer(body='{"model": "m", "choices": [{"index": 0, "finish_reason": "content_filter"}]}'),
    ),
    "context by code": ("too long", Answer(status=400, error={"code": "context_length_exceeded"})),
    "vLLM's": (
        "too long",
        Answer(status=400, body=json.dumps({
            "object": "error", "type": "BadRequestError", "param": None, "code": 400,
            "message": "This model's maximum context length is 4096 tokens. However, you requested "
            "5008 tokens (5000 in the messages, 8 in the completion). Please reduce the length of "
            "the messages or completion.",
        })),
    ),
    "vLLM's other": (
        "too long",
        Answer(status=400, error={"message": "The decoder prompt (length 5000) is longer than the "
                                             "maximum model length of 4096."}),
    ),
    "llama.cpp's": (
        "too long",
        Answer(status=400, error={
            "code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 5000,
            "message": "the request exceeds the available context size. try increasing the context "
            "size or enable context shift",
        }),
    ),
    "llama.cpp's, older": (
        "too long",
        Answer(status=500, error={"message": "the request exceeds the available context size"}),
    ),
    "too large": ("too long", Answer(status=413, body="<html>Request Entity Too Large</html>")),
    "for the minute": (
        "too long",
        Answer(status=429, error={"message": "Request too large for m on tokens per min (TPM)"}),
    ),
    "a reason of its own": ("refused", Answer(status=400, error={"message": "invalid byte 0x1b"})),
}  # fmt: skip


@pytest.mark.parametrize("which", ONE_PROMPT)
def test_a_prompt_that_is_refused_alone_stops_nothing(server: ScriptedServer, which: str) -> None:
    fault, refusal = ONE_PROMPT[which]
    server.answer = lambda request: refusal if question_of(request) == "question 3" else "A"
    dear = chat(server, parameters={"max_tokens": 8}, concurrency=2, usd_per_million_output=1e6)
    replies = ask(dear, texts(12))
    assert [replies[i].fault for i in range(12)] == [""] * 3 + [fault] + [""] * 8
    assert server.questions.count("question 3") == 1  # asking again mends nothing
    assert replies[3].text == ""
    if refusal.status != 200:
        assert (replies[3].input_tokens, replies[3].output_tokens) == (0, 0)
        assert set(json.loads(replies[3].raw)) == {"error"}


def test_the_first_prompt_may_be_the_one(server: ScriptedServer) -> None:
    refusal = ONE_PROMPT["Azure's filter"][1]
    server.answer = lambda request: refusal if question_of(request) == "question 0" else "A"
    assert [ask(chat(server), texts(4))[i].fault for i in range(4)] == ["refused", "", "", ""]


def test_what_refuses_one_prompt_after_another_is_no_prompt_s_fault(server: ScriptedServer) -> None:
    def answer(request: dict[str, Any]) -> Answer:
        late = int(question_of(request).split()[1]) >= 4
        return Answer(status=400, error={"message": "out of order"}) if late else Answer("A")

    server.answer = answer
    kept: dict[int, Reply] = {}
    with pytest.raises(ChatError, match="answered 400: out of order"):
        ask(chat(server, concurrency=1), texts(30), kept)
    assert len(server.requests) == 7 and [kept[4].fault, kept[5].fault] == ["refused"] * 2


@pytest.mark.parametrize(
    "message", ["Billing hard limit has been reached", "API key not valid.", "No models loaded"]
)
def test_what_concerns_all_stops_in_the_middle_too(server: ScriptedServer, message: str) -> None:
    def answer(request: dict[str, Any]) -> Answer:
        late = int(question_of(request).split()[1]) >= 4
        return Answer(status=400, error={"message": message}) if late else Answer("A")

    server.answer = answer
    kept: dict[int, Reply] = {}
    with pytest.raises(ChatError, match=message):
        ask(chat(server, concurrency=1), texts(30), kept)
    assert len(server.requests) == 5 and sorted(kept) == [0, 1, 2, 3]


def test_the_key_is_not_in_the_error_that_is_kept(server: ScriptedServer) -> None:
    refusal = Answer(status=400, error={**AZURE_FILTER, "message": f"no: {KEY}"})
    server.answer = lambda request: refusal
    assert KEY not in ask(chat(server), ["?"])[0].raw


# --- first replies of no use ----------------------------------------------------------------------


def ask_usefully(server: ChatServer, count: int, kept: dict[int, Reply]) -> None:
    def keep(index: int, reply: Reply) -> str:
        kept[index] = reply
        return reply.fault or ("" if reply.text == "A" else "unclear")

    ask_all(server, texts(count), keep, reply_tokens=1, description="asking")


THOUGHT = {"reasoning_content": "Let me think " * 100}
NO_USE = {
    "cut": (
        Answer(None, finish_reason="length", message=THOUGHT),
        r"\(8 cut\).*after 1,300 characters of reasoning, at max_tokens: 8 \(finish_reason length\)"
        r"\. Raise judge\.server\.parameters\.max_tokens: a reasoning model",
    ),
    "cut text": (
        Answer("Response A is better in terms of style,", finish_reason="length"),
        "8 cut",
    ),
    "empty": (Answer(""), r"\(8 empty\).*its reply is empty .*Raise judge.server.parameters"),
    "refused": (Answer(status=400, error=AZURE_FILTER), "8 refused.*filtered due to the prompt"),
    "too long": (ONE_PROMPT["vLLM's"][1], "8 too long.*maximum context length.*longer context"),
    "unclear": (
        Answer("As a language model, I"),
        "8 unclear.*its reply is “As a language model, I”",
    ),
}


@pytest.mark.parametrize("fault", NO_USE)
def test_first_replies_that_are_all_of_no_use_stop_it(server: ScriptedServer, fault: str) -> None:
    answer, says = NO_USE[fault]
    server.answer = lambda request: answer
    kept: dict[int, Reply] = {}
    asked = chat(server, parameters={"max_tokens": 8}, setting="judge.server")
    with pytest.raises(
        ChatError, match=f"(?s)asking: none of the first 8 replies .*{says}"
    ) as said:
        ask_usefully(asked, 30, kept)
    assert len(server.requests) == len(kept) == 8  # and not one more, with four at once
    assert str(said.value).endswith("The 8 replies received are kept")


def test_a_reply_of_use_among_the_first_is_enough(server: ScriptedServer) -> None:
    server.answer = lambda request: "A" if question_of(request) == "question 7" else ""
    kept: dict[int, Reply] = {}
    ask_usefully(chat(server), 30, kept)
    assert len(kept) == len(server.requests) == 30


@pytest.mark.parametrize(
    ("count", "concurrency", "asked", "stops"),
    [(2, 4, 2, False), (3, 4, 3, True), (12, 4, 8, True), (30, 10, 10, True)],
)
def test_how_many_are_the_first(
    server: ScriptedServer, count: int, concurrency: int, asked: int, stops: bool
) -> None:
    server.answer = lambda request: ""
    kept: dict[int, Reply] = {}
    try:
        ask_usefully(chat(server, concurrency=concurrency), count, kept)
    except ChatError:
        assert stops
    else:
        assert not stops
    assert len(server.requests) == asked


# --- bounds ---------------------------------------------------------------------------------------


def test_the_estimate(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    priced = chat(server, usd_per_million_input=1000.0, usd_per_million_output=10_000.0)
    # 9 characters: 3 tokens; 8: 2; three of Chinese are 9 bytes: 3. In: 8 tokens, $0.008; out:
    # 3 x 50 = 150 tokens, $1.50.
    expected = estimate(priced, ["a" * 9, "b" * 8, "\u6587" * 3], 50)
    assert (expected.requests, expected.input_tokens, expected.output_tokens) == (3, 8, 150)
    assert expected.usd == pytest.approx(1.508)
    assert str(expected) == "3 requests, about 8 tokens in and at most 150 out, $1.51"
    assert str(estimate(chat(server), ["?"], 1)).endswith("no price set")
    assert not server.requests  # estimating sends nothing
    ask(priced, texts(3))
    assert "asking: 3 requests, about 9 tokens in and at most 30 out, $0.31" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"max_requests": 4}, "5 requests, .* and max_requests is 4: raise it"),
        # 5 questions x 10 tokens at $0.02 are $1.
        ({"usd_per_million_output": 2e4, "max_usd": 0.99}, r"\$1.00, and max_usd is \$0.99: raise"),
        ({"max_usd": 5.0}, "max_usd has no effect without prices"),
    ],
)
def test_bounds_are_checked_before_anything_is_sent(
    server: ScriptedServer, changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(ChatError, match=what):
        ask(chat(server, **changes), texts(5))
    assert not server.requests


def test_what_was_really_spent_stops_it_too(server: ScriptedServer) -> None:
    # A dollar a token. Ten replies of 10 tokens are estimated at $100, and that is the cap. But
    # each takes 30: after three, $90, a fourth of $10 still fits; after it $120, and no fifth.
    server.answer = lambda request: Answer(usage=(0, 30))
    dear = chat(server, concurrency=1, usd_per_million_output=1e6, max_usd=100.0)
    kept: dict[int, Reply] = {}
    with pytest.raises(ChatError, match=r"\$130.00 are spent or reserved|\$120.00 are spent"):
        ask(dear, texts(10), kept)
    assert len(server.requests) == len(kept) == 4


def test_what_is_under_way_counts_as_spent(server: ScriptedServer) -> None:
    # As above with four at once: the first alone costs $30, then $10 each are reserved for those
    # under way. Never more than $100 + 4 x $20, the part of four replies that was not foreseen.
    server.answer = lambda request: Answer(usage=(0, 30), delay=0.01)
    dear = chat(server, usd_per_million_output=1e6, max_usd=100.0)
    kept: dict[int, Reply] = {}
    with pytest.raises(ChatError, match="max_usd"):
        ask(dear, texts(10), kept)
    assert len(server.requests) == len(kept) <= 6


def test_unusable_answers_are_charged(server: ScriptedServer) -> None:
    # $10 a reply and a cap of $20 for two: the second half answer leaves nothing for a third.
    half = Answer(body="{")
    server.first.extend([half, half])
    dear = chat(server, usd_per_million_output=1e6, max_usd=20.0)
    with pytest.raises(ChatError, match=r"\$20.00 are spent"):
        ask(dear, ["1", "2"])
    assert len(server.requests) == 2


def test_refusals_are_not_charged(server: ScriptedServer) -> None:
    # $10 a reply and $20 for two of them: what is refused three times leaves room for both.
    server.first.extend([Answer(status=429)] * 3)
    server.answer = lambda request: Answer(usage=(0, 10))
    dear = chat(server, usd_per_million_output=1e6, max_usd=20.0)
    assert len(ask(dear, ["1", "2"])) == 2


def test_requests_are_bounded_retries_included(server: ScriptedServer) -> None:
    server.answer = lambda request: Answer(status=500)
    with pytest.raises(ChatError, match=r"^5 requests to .* max_requests is 5"):
        ask(chat(server, max_requests=5), texts(2))
    assert len(server.requests) == 5


# --- faults that pass -----------------------------------------------------------------------------


def patience(answer: Answer) -> float:
    """Seconds to wait for an answer: short where it is to run out, else for a busy machine."""
    return 1.0 if answer.delay else 30.0


PASSING = {
    **{str(status): Answer(status=status) for status in (408, 409, 429, 500, 502, 503, 529)},
    "time-out": Answer(delay=4.0),
    "dropped before": Answer(drop="before"),
    "dropped within": Answer(drop="within"),
    "truncated JSON": Answer(body='{"choices": [{"message": {"content": "A'),
    "not UTF-8": Answer(body=b'{"choices": "\xff"}'),
    "HTML": Answer(body="<html>Bad gateway</html>", headers={"Content-Type": "text/html"}),
    "error body": Answer(body='{"error": {"message": "overloaded"}}'),
    "empty choices": Answer(body='{"object": "chat.completion", "choices": []}'),
    "null choices": Answer(body='{"choices": null}'),
    "no message": Answer(body='{"choices": [{"index": 0}]}'),
    "null": Answer(body="null"),
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_asked_again(server: ScriptedServer, fault: str) -> None:
    server.first.extend([PASSING[fault]] * 2)
    replies = ask(chat(server, timeout=patience(PASSING[fault])), texts(3))
    # Nothing of the faulty answers is kept, and every question has its own reply.
    assert [replies[i].text for i in range(3)] == [f"re: question {i}" for i in range(3)]
    assert server.questions[:3] == ["question 0"] * 3 and len(server.requests) == 5


@pytest.mark.parametrize(
    "fault, says",
    {
        "500": "answered 500: no",
        "dropped within": "cannot be reached, drops the connection",
        "time-out": "does not answer within 1 s",
        "truncated JSON": 'sends no chat completion, but: {"choices": [{"message"',
        "HTML": "but: <html>Bad gateway",
        "error body": "overloaded",
        "empty choices": '"choices": []',
    }.items(),
)
def test_what_does_not_pass_ends_in_words(
    server: ScriptedServer, fault: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_module, "RETRIES", 4)
    bad = PASSING[fault]
    server.answer = lambda request: bad if question_of(request) == "question 2" else Answer("B")
    kept: dict[int, Reply] = {}
    times = 5 if bad.body is None else FEW_ATTEMPTS  # what came with status 200 may be paid for
    with pytest.raises(ChatError) as caught:
        ask(chat(server, concurrency=1, timeout=patience(bad)), texts(9), kept)
    message = str(caught.value)
    assert message.startswith(server.url) and says in message
    assert "The 2 replies received are kept" in message
    assert sorted(kept) == [0, 1] and server.questions.count("question 2") == times


def test_nobody_there_is_said_soon() -> None:
    began = time.monotonic()
    with pytest.raises(ChatError, match="cannot be reached"):
        ask(ChatServer("http://127.0.0.1:1/v1", "m", ""), texts(9))
    assert time.monotonic() - began < 4  # with the client's real pauses, of 0.5, 1 and 2 s


def test_after_a_storm_of_429_everything_is_there(server: ScriptedServer) -> None:
    # From the tenth request on the server refuses for 0.4 s, which is 20 s with real pauses.
    began: list[float] = []

    def answer(request: dict[str, Any]) -> Answer:
        if len(server.requests) < 10:
            return Answer("A")
        began.append(time.monotonic())
        return Answer("A") if time.monotonic() - began[0] > 0.4 else Answer(status=429)

    server.answer = answer
    replies = ask(chat(server, concurrency=8), texts(60))
    assert len(replies) == 60
    # Each of the eight workers waits 0.01, 0.02, 0.04, 0.08, 0.16 s, 0.16 s: seven times at most.
    assert 60 < len(server.requests) <= 60 + 8 * 7


def test_the_client_waits_longer_than_a_limit_by_the_minute() -> None:
    # 0.5, 1, 2, 4, and 8 s from then on, all of them up to a quarter shorter.
    pauses = [min(8.0, 0.5 * 2**attempt) for attempt in range(RETRIES)]
    assert 0.75 * sum(pauses) > 60


def test_a_server_that_takes_two_at_a_time(server: ScriptedServer) -> None:
    def answer(request: dict[str, Any]) -> Answer:
        return Answer(status=429) if server.under_way > 2 else Answer("A", delay=0.01)

    server.answer = answer
    assert len(ask(chat(server, concurrency=8), texts(80))) == 80
    assert len(server.requests) > 80


@pytest.mark.parametrize("header, value", [("Retry-After", "0.3"), ("retry-after-ms", "300")])
def test_retry_after_is_the_pause(server: ScriptedServer, header: str, value: str) -> None:
    server.first.append(Answer(status=429, headers={header: value}))
    ask(chat(server), texts(1))
    assert 0.3 <= server.times[1] - server.times[0] < 1.5


def test_a_server_that_wants_an_hour_is_left_alone(server: ScriptedServer) -> None:
    server.answer = lambda request: Answer(status=429, headers={"Retry-After": "3600"})
    with pytest.raises(
        ChatError, match=r"asks to wait \(Retry-After: 3600\): run again after that"
    ):
        ask(chat(server), texts(9))
    assert len(server.requests) == 1


def test_nothing_is_sent_by_those_who_wait_while_another_fails(server: ScriptedServer) -> None:
    def answer(request: dict[str, Any]) -> Answer:
        number = int(question_of(request).split()[1])
        if number == 10:
            return Answer(status=429, headers={"Retry-After": "0.5"})
        if number == 11:
            return Answer(status=429, error={"code": "insufficient_quota"}, delay=0.1)
        return Answer("A")

    server.answer = answer
    kept: dict[int, Reply] = {}
    with pytest.raises(ChatError, match="is used up"):
        ask(chat(server, concurrency=2), texts(40), kept)
    assert sorted(kept) == list(range(10))
    assert server.questions.count("question 10") == server.questions.count("question 11") == 1


# --- faults that do not ---------------------------------------------------------------------------

QUOTA = "You exceeded your current quota, please check your plan and billing details."
FINAL = {
    "401": (Answer(status=401), f"the key in {KEY_VARIABLE} is refused: set"),
    "403": (Answer(status=403), "does not give access to model-1"),
    "404": (Answer(status=404), "no model 'model-1' or no chat completions there: check model"),
    "404 of HTML": (Answer(status=404, body="<html>nginx"), "which usually ends in /v1"),
    "400": (Answer(status=400, error={"message": "too long"}), "answered 400: too long"),
    "402": (Answer(status=402, error={"message": "no credit"}), "answered 402: no credit"),
    "too large": (
        Answer(status=400, error={"message": "max_tokens is too large", "param": "max_tokens"}),
        "answered 400: max_tokens is too large",
    ),
    "quota by code": (
        Answer(status=429, error={"code": "insufficient_quota"}),
        f"the quota of {KEY_VARIABLE} is used up: add credit",
    ),
    "quota by type": (Answer(status=429, error={"type": "insufficient_quota"}), "is used up"),
    "quota by word": (Answer(status=429, error={"message": QUOTA}), "is used up: add credit"),
}


@pytest.mark.parametrize("fault", FINAL)
def test_what_asking_again_cannot_mend_takes_one_request(
    server: ScriptedServer, fault: str
) -> None:
    answer, says = FINAL[fault]
    server.answer = lambda request: answer
    with pytest.raises(ChatError, match=re.escape(says)) as caught:
        ask(chat(server, parameters={"max_tokens": 10**6}), texts(20))
    assert str(caught.value).startswith(server.url)
    assert len(server.requests) == 1


def test_a_rate_limit_that_names_the_quota_passes(server: ScriptedServer) -> None:
    # Some servers say so of a limit by the minute, and when to come again.
    server.first.append(
        Answer(status=429, error={"message": QUOTA}, headers={"retry-after-ms": "20"})
    )
    assert len(ask(chat(server), texts(2))) == 2


def test_in_the_middle_too_it_ends_at_once_and_keeps_what_was_under_way(
    server: ScriptedServer,
) -> None:
    before = {f"question {i}" for i in range(11)}

    def answer(request: dict[str, Any]) -> Answer:
        if question_of(request) == "question 11":
            # On a slow machine, it could be heard of before those under way with it are sent.
            deadline = time.monotonic() + 30
            while not before <= set(server.questions):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            return Answer(status=429, error={"code": "insufficient_quota"})
        return Answer("A", delay=0.05)  # the refusal overtakes the answers under way

    server.answer = answer
    kept: dict[int, Reply] = {}
    with pytest.raises(ChatError, match="is used up"):
        ask(chat(server), texts(60), kept)
    # 8 to 11 before it and 3 under way with it; a few more if this machine is slow to hear of it.
    assert 11 <= len(kept) <= 30
    assert len(server.requests) == len(kept) + 1
    assert server.answered == {f"question {i}": 1 for i in kept}


@pytest.mark.parametrize(
    "refused, said, left",
    [
        (
            "max_tokens",
            {
                "code": "unsupported_parameter",
                "param": "max_tokens",
                "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead.",
            },
            {"temperature": 0, "max_completion_tokens": 5},
        ),
        (
            "temperature",
            {
                "code": "unsupported_value",
                "param": "temperature",
                "message": "Unsupported value: 'temperature' does not support 0 with this model.",
            },
            {"max_tokens": 5},
        ),
        # Named beside the message alone, and in it alone.
        (
            "temperature",
            {
                "code": "unsupported_value",
                "param": "temperature",
                "message": "Unsupported value: only the default is allowed.",
            },
            {"max_tokens": 5},
        ),
        (
            "temperature",
            {"message": "temperature: Extra inputs are not permitted"},
            {"max_tokens": 5},
        ),
    ],
)
def test_a_parameter_that_the_model_refuses(
    server: ScriptedServer, refused: str, said: dict[str, Any], left: dict[str, Any]
) -> None:
    server.answer = lambda request: Answer(status=400, error=said) if refused in request else "B"
    asked = chat(server, parameters={"temperature": 0, "max_tokens": 5})
    with pytest.warns(UserWarning) as warned:
        replies = ask(asked, texts(12))
    assert [str(one.message) for one in warned if one.category is UserWarning] == [
        f"model-1 does not accept {refused}"
        + ("; max_completion_tokens is sent instead" if refused == "max_tokens" else "")
    ]
    assert len(server.requests) == 13  # found out once
    assert len(replies) == 12
    assert all({**request, **left} == request for request in server.requests[1:])
    assert not any(refused in request for request in server.requests[1:])


def test_a_model_that_refuses_everything_is_asked_without(server: ScriptedServer) -> None:
    def answer(request: dict[str, Any]) -> Answer:
        for name in ("logprobs", "max_tokens", "temperature"):
            if name in request:
                status = 403 if name == "logprobs" else 400
                return Answer(status=status, error={"message": f"You are not allowed {name}"})
        return Answer("B")

    server.answer = answer
    parameters = {"temperature": 0, "max_tokens": 5, "logprobs": True}
    with pytest.warns(UserWarning) as warned:
        replies = ask(chat(server, parameters=parameters), texts(2))
    assert [str(one.message).split(";")[0] for one in warned] == [
        f"model-1 does not accept {name}" for name in ("logprobs", "max_tokens", "temperature")
    ]
    assert len(replies) == 2 and len(server.requests) == 5
    assert set(server.requests[-1]) == {"model", "messages", "max_completion_tokens"}
    assert server.requests[-1]["max_completion_tokens"] == 5


# --- what stops it from within --------------------------------------------------------------------


def test_what_keep_raises_ends_it(server: ScriptedServer) -> None:
    kept = []

    def keep(index: int, reply: Reply) -> None:
        if index == 10:
            raise OSError(errno.ENOSPC, "disk full")
        kept.append(index)

    server.answer = lambda request: Answer("A", delay=0.01)
    with pytest.raises(OSError, match="disk full"):
        ask_all(chat(server), texts(60), keep, reply_tokens=1, description="")
    # 7 to 10 before it and 3 under way with it; a few more if this machine is slow to hear of it.
    assert 10 <= len(kept) <= 30 and len(server.requests) == len(kept) + 1


def test_the_interrupt_key_keeps_what_is_under_way(server: ScriptedServer) -> None:
    def answer(request: dict[str, Any]) -> Answer:
        if question_of(request) == "question 11":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return Answer("A", delay=0.1)

    server.answer = answer
    kept: dict[int, Reply] = {}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(chat(server), texts(60), kept)
    finally:
        signal.signal(signal.SIGINT, before)
    assert 12 <= len(kept) == len(server.requests) <= 30


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", " \n", "sk-\u201cquoted\u201d", "sk-a\tb"])
def test_a_key_that_is_none_is_named_before_any_request(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    if value is not None:
        monkeypatch.setenv(KEY_VARIABLE, value)
    with pytest.raises(ChatError, match=f"the environment variable {KEY_VARIABLE} ") as caught:
        ask(chat(server), texts(2))
    assert not server.requests
    assert value is None or not value.strip() or value not in str(caught.value)


def test_a_server_without_keys(server: ScriptedServer) -> None:
    assert len(ask(ChatServer(server.url, "m", ""), texts(2))) == 2
    assert KEY not in str(server.authorizations)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        f"https://me:{KEY}@host/v1",
        f"https://{KEY}@host/v1",
        f"me:{KEY}@host/v1",
        *(
            f"https://host/v1?{name}={KEY}"
            for name in ("key", "api-key", "api_key", "subscription-key", "access_token", "sig",
                         "client_secret", "v=1&code")
        ),
    ],
)  # fmt: skip
def test_an_address_is_an_address_and_holds_no_key(url: str) -> None:
    with pytest.raises(ChatError, match="base_url must start with http") as caught:
        ask(ChatServer(url, "m", ""), texts(1))
    assert KEY not in str(caught.value)
    if KEY in url:
        with pytest.raises(ValueError, match="the address holds .* api_key_variable") as refused:
            Server(model="m", base_url=url)
        assert KEY not in str(refused.value)


def test_a_query_goes_along(server: ScriptedServer) -> None:
    # Of an address of Azure's kind the query names the version, and the key has its own header.
    base = server.url.removesuffix("/v1")
    plain = ChatServer(f"{base}/v1/?team=a%20b&max_tokens=5&empty=", "m", KEY_VARIABLE)
    assert len(ask(plain, texts(1))) == 1
    assert server.paths == ["/v1/chat/completions?team=a+b&max_tokens=5&empty="]
    assert (server.authorizations, server.api_keys) == ([f"Bearer {KEY}"], [None])
    azure = f"{base}/openai/deployments/gpt-4o?api-version=2024-10-21"
    Server(model="gpt-4o", base_url=azure)
    assert len(ask(ChatServer(azure, "gpt-4o", KEY_VARIABLE), texts(1))) == 1
    assert server.paths[1] == "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
    assert (server.authorizations[1], server.api_keys[1]) == (None, KEY)


@pytest.mark.parametrize(
    ("url", "azure"),
    [
        ("https://NAME.openai.azure.com/openai/deployments/gpt-4o?api-version=2024-10-21", True),
        ("https://name.openai.azure.com/openai?api-version=2024-10-21", True),
        ("https://gateway.example/openai/deployments/gpt-4o?api-version=2024-10-21", True),
        ("https://name.openai.azure.com/openai/v1/", False),  # as OpenAI's own
        ("https://api.openai.com/v1", False),
        ("https://host/v1?api-version=2", False),
    ],
)
def test_which_addresses_are_azure_s(server: ScriptedServer, url: str, azure: bool) -> None:
    with chat_module._client(ChatServer(url, "m", KEY_VARIABLE)) as client:
        assert isinstance(client, openai.AzureOpenAI) == azure


def test_azure_s_address_needs_a_version(server: ScriptedServer) -> None:
    url = f"{server.url.removesuffix('/v1')}/openai/deployments/gpt-4o"
    with pytest.raises(ChatError, match=r"without a version: add \?api-version="):
        ask(ChatServer(url, "gpt-4o", KEY_VARIABLE), texts(1))


@pytest.mark.parametrize(
    "answer",
    [
        *(Answer(status=status, error=QUOTING) for status in (400, 401, 403, 404, 422, 429, 500)),
        Answer(status=429, error={**QUOTING, "code": "insufficient_quota"}),
        Answer(status=500, body=f"<html>Bearer {KEY}</html>"),
        Answer(body=f"<html>Bearer {KEY}</html>", headers={"Content-Type": "text/html"}),
        Answer(body=json.dumps({"error": {"message": f"Bearer {KEY}"}})),
        Answer(body=f'"{KEY}'),
        Answer(drop="before"),
        Answer(delay=4.0),
    ],
)
def test_the_key_is_in_no_error_and_no_log(
    server: ScriptedServer,
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(chat_module, "RETRIES", 1)
    server.answer = lambda request: answer
    with pytest.raises(ChatError) as caught:
        ask(chat(server, timeout=patience(answer)), texts(2))
    error: BaseException | None = caught.value
    assert error.__cause__ is None and error.__context__ is None
    # Notebooks and testers may print the variables of every frame, all but this one here.
    frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack
    variables = str([frame.locals for frame in frames if frame.filename != __file__])
    assert "asker" in variables
    said = capfd.readouterr()
    for text in (variables, repr(error), caplog.text, said.out, said.err):
        assert KEY not in text and "Bearer" not in text.replace("Bearer ***", "")
