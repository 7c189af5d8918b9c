"""Questions to a chat model behind any server of OpenAI's chat completions.

Replies are paid for. So each is handed over before its worker sends again, every request is checked
against the budget, and what asking again cannot mend ends the run at once, with what to do. Pauses
and repeated requests are the openai client's. The workers are threads: it is the same in a script,
in a notebook's running event loop and in a thread.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from cpo.engine.progress import progress_bar
from cpo.evaluation.replies import (
    REFUSED,
    Reply,
    error_in,
    fault_of_prompt,
    is_used_up,
    read_completion,
    unsupported_parameter,
)

if TYPE_CHECKING:
    import openai

RETRIES = 15  # with the client's pauses, of 8 s at most, longer than a limit by the minute lasts
FEW_ATTEMPTS = 3  # where each may be paid for, or nobody may be there at all
PAUSE = 1.0  # seconds before a question is asked again whose answer was no chat completion
FIRST_REPLIES = 8  # at least so many are looked at before the rest is asked
TRIAL = "Answer with the letter A and nothing else."  # one short question, to try a server
AGAIN = "again"  # what `keep` returns to have a question asked once more

ADVICE = {
    401: "{key} is refused: set api_key_variable to the variable with one valid there",
    403: "{key} is not enough to use {model}: use another of either",
    404: "no model '{model}' or no chat completions there: check model and base_url, which mostly "
    "ends in /v1",
}
# Names of a query's parameters that hold a key; `api-version` and `max_tokens` do not.
_SECRET = re.compile(r"key|token(?!s)|secret|sig$|signature|passw|credential|auth|^code$", re.I)


class ChatError(RuntimeError):
    """A chat model cannot be asked; the message says what was wrong, where, and what to do."""


def secret_in(url: str) -> str:
    """What in an address is a secret, in words: `a user or password`, or the query's parameter that
    holds a key; "" where there is none."""
    address = urlsplit(url)
    if "@" in address.netloc or (not address.netloc and "@" in address.path):
        return "a user or password"
    names = [name for name, _ in parse_qsl(address.query, keep_blank_values=True)]
    return next((f"the query's `{name}`" for name in names if _SECRET.search(name)), "")


@dataclass(frozen=True)
class ChatServer:
    """A chat model, how it is asked, and what that may cost.

    `api_key_variable` names the environment variable that holds the key, "" where the server wants
    none. `parameters` are sent as they are (temperature, max_tokens, ...). `max_requests` bounds
    one call of `ask_all`, repeated requests included. `timeout` is how long the server may be
    silent, in seconds. Prices are in USD per million tokens; `max_usd` caps the cost of one call of
    `ask_all`, None for no cap. `setting` is what messages call it, by its place in a profile.
    """

    base_url: str
    model: str
    api_key_variable: str = "OPENAI_API_KEY"
    parameters: Mapping[str, float | int | str] = field(default_factory=dict)
    concurrency: int = 8
    max_requests: int = 10_000
    timeout: float = 60.0
    usd_per_million_input: float = 0.0
    usd_per_million_output: float = 0.0
    max_usd: float | None = None
    setting: str = "server"

    def question(self, prompt: str) -> dict[str, Any]:
        """All that is asked with a prompt, in plain types; a temperature of 0.0 is one of 0."""
        parameters = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in self.parameters.items()
        }
        asked = {"prompt": prompt, "model": self.model, "server": self.base_url}
        return asked | {"parameters": parameters}

    def reply_tokens(self, default: int) -> int:
        """The most tokens that a reply may have, or `default` where no parameter says."""
        limit = self.parameters.get("max_tokens", default)
        return int(self.parameters.get("max_completion_tokens", limit))

    def price(self, input_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost, in USD."""
        usd = input_tokens * self.usd_per_million_input
        return (usd + output_tokens * self.usd_per_million_output) / 1e6

    def exceeded(self, requests: int, usd: float) -> str:
        """Which bound so many requests and USD exceed, and what to do; "" for none."""
        if requests > self.max_requests:
            return f"max_requests is {self.max_requests:,}: raise it, or ask fewer"
        if self.max_usd and not self.price(1, 1):
            return (
                "max_usd caps nothing without prices: set usd_per_million_input and "
                "usd_per_million_output, or leave max_usd out"
            )
        # The sum of the parts may differ from the whole in the last digit.
        if self.max_usd is not None and usd > self.max_usd * (1 + 1e-9):
            cheaper = "ask fewer, or choose a cheaper model"
            return f"max_usd is ${self.max_usd:,.2f}: raise it, {cheaper}"
        return ""


@dataclass(frozen=True)
class PriceEstimate:
    """What questions will take, if none has to be asked twice; `usd` is 0 where no price is set."""

    requests: int
    input_tokens: int
    output_tokens: int
    usd: float

    def __str__(self) -> str:
        tokens = f"about {self.input_tokens:,} tokens in and at most {self.output_tokens:,} out"
        usd = f"${self.usd:,.2f}" if self.usd >= 0.01 else "less than $0.01"
        return f"{self.requests:,} requests, {tokens}, {usd if self.usd else 'no price set'}"


def estimate(server: ChatServer, questions: Sequence[str], reply_tokens: int) -> PriceEstimate:
    """What `questions` will cost at `reply_tokens` each, on the high side; nothing is sent."""
    tokens = sum(map(_tokens, questions))
    replies = reply_tokens * len(questions)
    return PriceEstimate(len(questions), tokens, replies, server.price(tokens, replies))


def _tokens(text: str) -> int:
    # Four characters a token is a little more than English takes; bytes, for other scripts' sake.
    return math.ceil(len(text.encode(errors="replace")) / 4)


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
    asker = _Asker(server, reply_tokens, RETRIES)
    print(f"{description}: {expected}", flush=True)
    first = min(len(questions), max(server.concurrency, FIRST_REPLIES))
    first_replies: list[tuple[str, Reply]] = []  # each with its fault

    def answer(index: int) -> None:
        try:
            while (fault := keep(index, reply := asker.ask(questions[index]))) == AGAIN:
                pass
            if index < first:
                first_replies.append((fault or "", reply))
        except BaseException:
            if asker.stop():  # the first to fail says why; the others only find it out
                raise

    with (
        asker.client,
        progress_bar(len(questions), description, "reply") as bar,
        ThreadPoolExecutor(server.concurrency) as pool,
    ):
        asker.tell = bar.set_postfix_str
        try:
            # One alone: with a wrong key, address or model there is not a second request.
            for part in (range(1), range(1, first), range(first, len(questions))):
                for done in as_completed([pool.submit(answer, index) for index in part]):
                    done.result()
                    bar.update()
                if len(first_replies) >= FEW_ATTEMPTS and all(fault for fault, _ in first_replies):
                    problem = _of_no_use(server, first_replies)
                    raise ChatError(f"{description}: {problem}{asker.kept}")
        finally:
            asker.stop()


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
    words = " ".join(reply.text.split())[:200]
    return {
        "cut": (f"its reply is cut{after}, at {where} ({reason})", raise_limit),
        "empty": (
            f"it answers with nothing{after} ({reason})",
            f"{raise_limit}. Or the server does not send the answer as `content`",
        ),
        "refused": (
            f"the prompt is refused ({reason}): {reply.raw[:300]}",
            "Look at the prompts, and at the server's content filter",
        ),
        "too long": (
            f"the prompt is too long for the model: {reply.raw[:300]}",
            "Choose a model with a longer context, or make responses shorter",
        ),
    }.get(fault, (f"it says “{words}”", "Choose a model that does as it is asked"))


def try_out(server: ChatServer) -> Reply:
    """One short question, to see that address, key and model are right before there are thousands.

    Raises:
        ChatError: as `ask_all`, after few attempts.
    """
    asker = _Asker(replace(server, timeout=min(server.timeout, 20.0)), 1, FEW_ATTEMPTS - 1)
    with asker.client:
        return asker.ask(TRIAL)


class _Asker:
    """What the workers share: the client, what was sent and spent, and the parameters that the
    model takes.

    The client sends a request again after a time-out, a lost connection and the statuses 408, 409,
    429 and 5xx; `_before` and `_after` are called around each of these requests.
    """

    def __init__(self, server: ChatServer, reply_tokens: int, retries: int) -> None:
        self.server = server
        self.reply_tokens = reply_tokens
        self.client = _client(server, retries, request=[self._before], response=[self._after])
        self.parameters = dict(server.parameters)
        self.tell: Callable[[str], object] = lambda text: None
        self.lock = Lock()
        self.stopped = False
        self.sent = self.answers = self.replies = 0
        self.usd = 0.0  # spent, and reserved for what is under way
        self.rejected = 0  # prompts refused for a reason that is not known, since the last answer

    def stop(self) -> bool:
        """From now on nothing is sent; True for the first who says so."""
        with self.lock:
            first, self.stopped = not self.stopped, True
        return first

    @property
    def kept(self) -> str:
        return f". The {self.replies:,} replies that came are kept" if self.replies else ""

    def ask(self, question: str) -> Reply:
        """The reply to a question. Raises `ChatError` where there will be none."""
        usd = estimate(self.server, [question], self.reply_tokens).usd
        unusable = 0
        while True:
            self._reserve(usd)
            parameters = self.parameters
            response = self._send(question, parameters)
            if not isinstance(response, str) and response.status_code == 200:
                if reply := self._reply(question, response):
                    self._settle(usd, reply)
                    return reply
                unusable += 1  # and may be charged: what was reserved stays so
                if unusable < FEW_ATTEMPTS:
                    time.sleep(PAUSE)
                    continue
                problem = (
                    f"{self.server.base_url} sends no chat completion, but: "
                    f"{self._words(response.text)}. base_url mostly ends in /v1"
                )
            else:
                self._settle(usd)
                if isinstance(response, str):
                    problem = response
                elif name := unsupported_parameter(response, parameters):
                    self._leave_out(name)
                    continue
                elif finish_reason := self._fault_of_prompt(response):
                    self._settle(0.0, reply := self._refused(response, finish_reason))
                    return reply
                else:
                    problem = self._refusal(response)
            raise ChatError(problem + self.kept)

    def _reserve(self, usd: float) -> None:
        """Sets the cost of a question aside, or raises `ChatError` where it is above `max_usd`."""
        with self.lock:
            if problem := self.server.exceeded(0, self.usd + usd):
                spent = f"${self.usd:,.2f} are spent or under way at {self.server.base_url}"
                raise ChatError(f"{spent}, and {problem}{self.kept}")
            self.usd += usd

    def _settle(self, usd: float, reply: Reply | None = None) -> None:
        """Puts the real cost in the place of what was reserved; errors cost nothing."""
        with self.lock:
            self.usd += (reply.usd if reply else 0.0) - usd
            self.replies += reply is not None

    def _before(self, request: Any) -> None:
        """Counts a request, or raises `ChatError` where it may not be sent."""
        with self.lock:
            if self.stopped:
                raise ChatError("nothing more is sent")
            if self.sent >= FEW_ATTEMPTS and not self.answers:
                raise ChatError(self._silence())
            if problem := self.server.exceeded(self.sent + 1, 0.0):
                raise ChatError(f"{self.sent:,} requests to {self.server.base_url}, and {problem}")
            self.sent += 1

    def _after(self, response: Any) -> None:
        """Tells the client which errors asking again cannot mend."""
        response.read()
        status = response.status_code
        if is_used_up(response) or fault_of_prompt(response):
            response.headers["x-should-retry"] = "false"
        with self.lock:
            self.answers += 1
        self.tell("" if status == 200 else f"answered {status}: {self._words(response.text)[:80]}")

    def _send(self, question: str, parameters: dict[str, Any]) -> Any:
        """The server's answer, of whatever status, or why there is none. Nothing is raised, since
        what is raised here would hold the key."""
        import openai

        try:
            return self.client.chat.completions.with_raw_response.create(
                model=self.server.model,
                messages=[{"role": "user", "content": question}],
                extra_body=parameters,
            ).http_response
        except openai.APIStatusError as error:
            return error.response
        except openai.APIConnectionError:
            return self._silence()
        except ChatError as error:
            return str(error)
        except Exception as error:
            return f"a question cannot be sent: {self._words(repr(error))}"

    def _reply(self, question: str, response: Any) -> Reply | None:
        """The reply in a chat completion, None where an answer is none."""
        completion = read_completion(response.content)
        if completion is None:
            return None
        raw, finish_reason, model, tokens_in, tokens_out = completion
        reply = Reply(raw, finish_reason, model or self.server.model, 0, 0, *_took(response))
        if tokens_in is None:
            tokens_in = _tokens(question)
        if tokens_out is None:
            tokens_out = _tokens(reply.message.reasoning + reply.text)
        with self.lock:
            self.rejected = 0
        usd = self.server.price(tokens_in, tokens_out)
        return replace(reply, input_tokens=tokens_in, output_tokens=tokens_out, usd=usd)

    def _refused(self, response: Any, finish_reason: str) -> Reply:
        """The reply to a prompt that alone was refused: the error, for nothing."""
        raw = self._without_key(json.dumps({"error": error_in(response)}, default=str))
        return Reply(raw, finish_reason, self.server.model, 0, 0, *_took(response))

    def _fault_of_prompt(self, response: Any) -> str:
        """The finish reason of a prompt that alone was refused, "" for what concerns all prompts.

        A refusal for a reason that is not known is the prompt's where others were answered; thrice
        in a row it is not.
        """
        finish_reason = fault_of_prompt(response)
        if finish_reason != "unknown":
            return finish_reason
        with self.lock:
            self.rejected += self.replies > 0
            return REFUSED if 0 < self.rejected < FEW_ATTEMPTS else ""

    def _refusal(self, response: Any) -> str:
        """What ends the run, in words: where, what the server says, and what to do."""
        server, variable = self.server, self.server.api_key_variable
        key = f"the key in {variable}" if variable else "to send no key (no api_key_variable)"
        advice = ADVICE.get(response.status_code, "").format(key=key, model=server.model)
        if is_used_up(response):
            advice = f"the quota of {variable} is used up: add credit there and run again"
        elif wait := response.headers.get("retry-after"):
            advice = f"it asks to wait (Retry-After: {wait}): run again then"
        error = error_in(response)
        words = self._words(error.get("message", error))
        what = f"{advice} ({words})" if advice else words
        return f"{server.base_url} answered {response.status_code}: {what}"

    def _leave_out(self, name: str) -> None:
        """Later requests go without the parameter, or with the one that took its place."""
        with self.lock:
            if name not in self.parameters:
                return  # another worker was told the same
            left = {key: value for key, value in self.parameters.items() if key != name}
            instead = ""
            if name == "max_tokens":
                left["max_completion_tokens"] = self.parameters[name]
                instead = "; max_completion_tokens is sent in its place"
            self.parameters = left
        warnings.warn(f"{self.server.model} takes no {name}{instead}", stacklevel=2)

    def _silence(self) -> str:
        return (
            f"{self.server.base_url} cannot be reached, drops the connection, or does not answer "
            f"within {self.server.timeout:g} s (timeout): check base_url"
        )

    def _words(self, text: object) -> str:
        """A server's own words in one short line; they may quote the key."""
        words = " ".join(self._without_key(str(text)).split())
        return words if len(words) <= 300 else words[:300] + " ..."

    def _without_key(self, text: str) -> str:
        key = self.client.api_key
        return text.replace(key, "***").replace(json.dumps(key)[1:-1], "***")


def _took(response: Any) -> tuple[float, float, str]:
    """Seconds, no cost, and when it was asked for, in UTC: how a `Reply` ends."""
    asked_at = datetime.now(UTC) - response.elapsed
    return response.elapsed.total_seconds(), 0.0, asked_at.isoformat(timespec="seconds")


def _client(server: ChatServer, retries: int = 0, **hooks: Any) -> openai.OpenAI:
    """The openai client of a server, with functions to call around each of its requests."""
    import openai

    address = urlsplit(server.base_url)
    if address.scheme not in ("http", "https") or secret_in(server.base_url):
        shown = re.sub("^.*@", "***@", server.base_url.partition("?")[0])
        raise ChatError(
            f"base_url starts with http:// or https:// and holds no key, unlike {shown}: a key "
            "stands in the environment variable that api_key_variable names"
        )
    query = dict(parse_qsl(address.query, keep_blank_values=True))
    # Azure takes a key in a header of its own, but for its newer interface, which is OpenAI's.
    at_azure = ".openai.azure." in (address.hostname or "") and "/v1" not in address.path
    at_azure = at_azure or "/openai/deployments/" in address.path
    if at_azure and "api-version" not in query:
        raise ChatError(
            f"{server.base_url} is Azure's and names no version: add ?api-version=2024-10-21 to "
            "base_url, or one that the deployment's page names"
        )
    settings: dict[str, Any] = {
        "base_url": address._replace(query="").geturl(),
        "default_query": query,
        "api_key": _key(server),
        "max_retries": retries,
        "timeout": server.timeout,
        "http_client": openai.DefaultHttpxClient(event_hooks=hooks),
    }
    if at_azure:
        return openai.AzureOpenAI(**settings, api_version=query["api-version"])
    return openai.OpenAI(**settings)


def _key(server: ChatServer) -> str:
    variable = server.api_key_variable
    if not variable:
        return "none wanted"
    key = os.environ.get(variable, "").strip()
    if key and key.isascii() and key.isprintable():
        return key
    what = "holds what cannot be a key" if key else "is not set"
    del key  # a traceback may show variables
    raise ChatError(
        f"the environment variable {variable} {what}: set it to the key of {server.base_url}, or "
        "api_key_variable to the name of the one that holds it"
    )
