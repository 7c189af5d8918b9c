"""Requests to a chat model behind any server with OpenAI's chat completions API.

Replies cost money. Each is therefore handed over before its worker sends again, and every request
is checked against the budget. An error that a retry cannot fix ends the run at once and names the
remedy. Retries and back-off are the openai client's. The workers are threads, so this also works in
a thread or in a notebook's running event loop.
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

RETRIES = 15  # with pauses of up to 8 s, they outlast a per-minute rate limit
FEW_ATTEMPTS = 3  # where an attempt may be charged, or no server may be running
PAUSE = 1.0  # seconds before a retry after an answer that is no chat completion
FIRST_REPLIES = 8  # at least this many are checked before the rest is sent
TRIAL = "Answer with the letter A and nothing else."  # tests a server
AGAIN = "again"  # returned by `keep` to have a question asked once more

ADVICE = {
    401: "{key} is refused: set api_key_variable to a variable that holds a valid key",
    403: "{key} does not give access to {model}: use another key or model",
    404: "no model '{model}' or no chat completions there: check model and base_url, which "
    "usually ends in /v1",
}
# Query parameters that hold a key; `api-version` and `max_tokens` do not.
_SECRET = re.compile(r"key|token(?!s)|secret|sig$|signature|passw|credential|auth|^code$", re.I)


class ChatError(RuntimeError):
    """A chat model cannot be asked. The message gives the server, the problem and the remedy."""


def secret_in(url: str) -> str:
    """Name of the secret in an address: a user or password, or a query parameter; "" if none."""
    address = urlsplit(url)
    if "@" in address.netloc or (not address.netloc and "@" in address.path):
        return "a user or password"
    names = [name for name, _ in parse_qsl(address.query, keep_blank_values=True)]
    return next((f"the query's `{name}`" for name in names if _SECRET.search(name)), "")


@dataclass(frozen=True)
class ChatServer:
    """A chat model, its request settings and its cost limits.

    `api_key_variable` names the environment variable with the key, "" if the server needs none.
    `parameters` (temperature, max_tokens, ...) are sent unchanged. `timeout` is the longest silence
    of the server, in seconds. Prices are in USD per million tokens. `max_requests`, retries
    included, and `max_usd`, None for no cap, limit one call of `ask_all`. `setting` is the
    profile key that messages use.
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
        """All that determines the reply to a prompt, in plain types; 0.0 and 0 are equal."""
        parameters = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in self.parameters.items()
        }
        question = {"prompt": prompt, "model": self.model, "server": self.base_url}
        return question | {"parameters": parameters}

    def reply_tokens(self, default: int) -> int:
        """Token limit of a reply, or `default` if no parameter sets one."""
        limit = self.parameters.get("max_tokens", default)
        return int(self.parameters.get("max_completion_tokens", limit))

    def price(self, input_tokens: int, output_tokens: int) -> float:
        """Cost of these tokens in USD."""
        usd = input_tokens * self.usd_per_million_input
        return (usd + output_tokens * self.usd_per_million_output) / 1e6

    def exceeded(self, requests: int, usd: float) -> str:
        """The limit that this use exceeds and the remedy, or ""."""
        if requests > self.max_requests:
            return f"max_requests is {self.max_requests:,}: raise it, or ask fewer questions"
        if self.max_usd and not self.price(1, 1):
            return (
                "max_usd has no effect without prices: set usd_per_million_input and "
                "usd_per_million_output, or leave max_usd out"
            )
        # A sum of parts may differ from the whole in the last digit.
        if self.max_usd is not None and usd > self.max_usd * (1 + 1e-9):
            remedy = "raise it, ask fewer questions, or choose a cheaper model"
            return f"max_usd is ${self.max_usd:,.2f}: {remedy}"
        return ""


@dataclass(frozen=True)
class PriceEstimate:
    """Cost of questions without retries; `usd` is 0 if no price is set."""

    requests: int
    input_tokens: int
    output_tokens: int
    usd: float

    def __str__(self) -> str:
        tokens = f"about {self.input_tokens:,} tokens in and at most {self.output_tokens:,} out"
        usd = f"${self.usd:,.2f}" if self.usd >= 0.01 else "less than $0.01"
        return f"{self.requests:,} requests, {tokens}, {usd if self.usd else 'no price set'}"


def estimate(server: ChatServer, questions: Sequence[str], reply_tokens: int) -> PriceEstimate:
    """Upper estimate for `questions` with `reply_tokens` per reply; nothing is sent."""
    tokens = sum(map(_tokens, questions))
    replies = reply_tokens * len(questions)
    return PriceEstimate(len(questions), tokens, replies, server.price(tokens, replies))


def _tokens(text: str) -> int:
    # English needs slightly fewer tokens than one per four characters; bytes cover other scripts.
    return math.ceil(len(text.encode(errors="replace")) / 4)


def ask_all(
    server: ChatServer,
    questions: Sequence[str],
    keep: Callable[[int, Reply], str | None],
    *,
    reply_tokens: int,
    description: str,
) -> None:
    """Print the estimated cost, ask every question and hand over each reply.

    On any error or Ctrl-C, nothing more is sent. Replies to requests already sent are paid for, so
    they are awaited and kept.

    Args:
        server: the model, its settings and limits.
        questions: one user message each.
        keep: called as `keep(index, reply)` in the worker, before it sends again. Returns the fault
            that makes a reply unusable, "" or None for a usable reply, or `AGAIN` to repeat the
            question. Exceptions end the run and propagate.
        reply_tokens: the longest reply expected, for the estimate.
        description: label of the progress bar.

    Raises:
        ChatError: before sending, if the key is missing or the estimate exceeds `max_usd` or
            `max_requests`. Later, if a limit is reached, the server fails permanently, or all of
            the first replies, at least three, are unusable.
    """
    if not questions:
        return
    expected = estimate(server, questions, reply_tokens)
    if problem := server.exceeded(expected.requests, expected.usd):
        raise ChatError(f"{description}: {expected}, and {problem}. Nothing was sent")
    asker = _Asker(server, reply_tokens, RETRIES)
    print(f"{description}: {expected}", flush=True)
    first = min(len(questions), max(server.concurrency, FIRST_REPLIES))
    first_replies: list[tuple[str, Reply]] = []  # fault and reply

    def answer(index: int) -> None:
        try:
            while (fault := keep(index, reply := asker.ask(questions[index]))) == AGAIN:
                pass
            if index < first:
                first_replies.append((fault or "", reply))
        except BaseException:
            if asker.stop():  # only the first failure is the cause
                raise

    with (
        asker.client,
        progress_bar(len(questions), description, "reply") as bar,
        ThreadPoolExecutor(server.concurrency) as pool,
    ):
        asker.tell = bar.set_postfix_str
        try:
            # A single request first: a wrong key, address or model costs no second one.
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
        f"none of the first {len(replies)} replies is usable ({kinds}): {cause}. {remedy}. Nothing "
        "more was sent"
    )


def likely_cause(server: ChatServer, fault: str, reply: Reply) -> tuple[str, str]:
    """Likely cause of a reply's fault, and the remedy."""
    reason = f"finish_reason {reply.finish_reason or 'unknown'}"
    thought = len(reply.message.reasoning)
    after = f" after {thought:,} characters of reasoning" if thought else ""
    limit = next((name for name in server.parameters if "max" in name), "max_tokens")
    where = f"{limit}: {server.parameters.get(limit, 'not set')}"
    raise_limit = (
        f"Raise {server.setting}.parameters.{limit}: a reasoning model needs thousands of tokens "
        "before it answers"
    )
    words = " ".join(reply.text.split())[:200]
    return {
        "cut": (f"its reply is cut off{after}, at {where} ({reason})", raise_limit),
        "empty": (
            f"its reply is empty{after} ({reason})",
            f"{raise_limit}. Or the server sends the answer outside `content`",
        ),
        "refused": (
            f"the prompt is refused ({reason}): {reply.raw[:300]}",
            "Look at the prompts, and at the server's content filter",
        ),
        "too long": (
            f"the prompt is too long for the model: {reply.raw[:300]}",
            "Choose a model with a longer context, or shorten the responses",
        ),
    }.get(fault, (f"its reply is “{words}”", "Choose a model that follows the instruction"))


def try_out(server: ChatServer) -> Reply:
    """Send one short question to check address, key and model.

    Raises:
        ChatError: as `ask_all`, after three attempts of at most 20 s each.
    """
    asker = _Asker(replace(server, timeout=min(server.timeout, 20.0)), 1, FEW_ATTEMPTS - 1)
    with asker.client:
        return asker.ask(TRIAL)


class _Asker:
    """State shared by the workers: client, requests, spending, and the parameters still in use.

    The client retries after a time-out, a lost connection, and statuses 408, 409, 429 and 5xx.
    `_before` and `_after` run around every request, retries included.
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
        self.usd = 0.0  # spent, or reserved for pending requests
        self.rejected = 0  # refusals for an unknown reason since the last answer

    def stop(self) -> bool:
        """Stop all sending; True on the first call."""
        with self.lock:
            first, self.stopped = not self.stopped, True
        return first

    @property
    def kept(self) -> str:
        return f". The {self.replies:,} replies received are kept" if self.replies else ""

    def ask(self, question: str) -> Reply:
        """The reply to a question. Raises `ChatError` if there is none."""
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
                unusable += 1  # may be charged: its reservation stays
                if unusable < FEW_ATTEMPTS:
                    time.sleep(PAUSE)
                    continue
                problem = (
                    f"{self.server.base_url} sends no chat completion, but: "
                    f"{self._words(response.text)}. base_url usually ends in /v1"
                )
            else:
                self._settle(usd)
                if isinstance(response, str):
                    problem = response
                elif name := unsupported_parameter(response, parameters):
                    self._leave_out(name)
                    continue
                elif finish_reason := self._fault_of_prompt(response):
                    raw = self._without_key(json.dumps({"error": error_in(response)}, default=str))
                    reply = Reply(raw, finish_reason, self.server.model, 0, 0, *_took(response))
                    self._settle(0.0, reply)
                    return reply
                else:
                    problem = self._refusal(response)
            raise ChatError(problem + self.kept)

    def _reserve(self, usd: float) -> None:
        """Reserve the cost of a question; raises `ChatError` if it would exceed `max_usd`."""
        with self.lock:
            if problem := self.server.exceeded(0, self.usd + usd):
                spent = f"${self.usd:,.2f} are spent or reserved at {self.server.base_url}"
                raise ChatError(f"{spent}, and {problem}{self.kept}")
            self.usd += usd

    def _settle(self, usd: float, reply: Reply | None = None) -> None:
        """Replace a reservation by the actual cost; errors cost nothing."""
        with self.lock:
            self.usd += (reply.usd if reply else 0.0) - usd
            self.replies += reply is not None

    def _before(self, request: Any) -> None:
        """Count a request; raises `ChatError` if it must not be sent."""
        with self.lock:
            if self.stopped:
                raise ChatError("nothing more is sent")
            if self.sent >= FEW_ATTEMPTS and not self.answers:
                raise ChatError(self._silence())
            if problem := self.server.exceeded(self.sent + 1, 0.0):
                raise ChatError(f"{self.sent:,} requests to {self.server.base_url}, and {problem}")
            self.sent += 1

    def _after(self, response: Any) -> None:
        """Tell the client which errors are not worth a retry."""
        response.read()
        status = response.status_code
        if is_used_up(response) or fault_of_prompt(response):
            response.headers["x-should-retry"] = "false"
        with self.lock:
            self.answers += 1
        self.tell("" if status == 200 else f"answered {status}: {self._words(response.text)[:80]}")

    def _send(self, question: str, parameters: dict[str, Any]) -> Any:
        """The server's response of any status, or the reason why there is none.

        Nothing is raised: a traceback from here would contain the key.
        """
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
            return f"the question could not be sent: {self._words(repr(error))}"

    def _reply(self, question: str, response: Any) -> Reply | None:
        """The reply in a chat completion, None for any other response."""
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

    def _fault_of_prompt(self, response: Any) -> str:
        """Finish reason if only this prompt was refused, "" if the error concerns all prompts.

        An unknown refusal is the prompt's own if other prompts were answered, unless it is the
        third in a row.
        """
        finish_reason = fault_of_prompt(response)
        if finish_reason != "unknown":
            return finish_reason
        with self.lock:
            self.rejected += self.replies > 0
            return REFUSED if 0 < self.rejected < FEW_ATTEMPTS else ""

    def _refusal(self, response: Any) -> str:
        """Error message of a fatal response: address, status, remedy and the server's own words."""
        server, variable = self.server, self.server.api_key_variable
        key = f"the key in {variable}" if variable else "to send no key (no api_key_variable)"
        advice = ADVICE.get(response.status_code, "").format(key=key, model=server.model)
        if is_used_up(response):
            advice = f"the quota of {variable} is used up: add credit there and run again"
        elif wait := response.headers.get("retry-after"):
            advice = f"it asks to wait (Retry-After: {wait}): run again after that"
        error = error_in(response)
        words = self._words(error.get("message", error))
        reason = f"{advice} ({words})" if advice else words
        return f"{server.base_url} answered {response.status_code}: {reason}"

    def _leave_out(self, name: str) -> None:
        """Drop a parameter from later requests, or send its successor instead."""
        with self.lock:
            if name not in self.parameters:
                return  # another worker dropped it
            parameters = {key: value for key, value in self.parameters.items() if key != name}
            instead = ""
            if name == "max_tokens":
                parameters["max_completion_tokens"] = self.parameters[name]
                instead = "; max_completion_tokens is sent instead"
            self.parameters = parameters
        warnings.warn(f"{self.server.model} does not accept {name}{instead}", stacklevel=2)

    def _silence(self) -> str:
        return (
            f"{self.server.base_url} cannot be reached, drops the connection, or does not answer "
            f"within {self.server.timeout:g} s (timeout): check base_url"
        )

    def _words(self, text: object) -> str:
        """A server's message as one short line, without the key that it may quote."""
        words = " ".join(self._without_key(str(text)).split())
        return words if len(words) <= 300 else words[:300] + " ..."

    def _without_key(self, text: str) -> str:
        key = self.client.api_key
        return text.replace(key, "***").replace(json.dumps(key)[1:-1], "***")


def _took(response: Any) -> tuple[float, float, str]:
    """The last fields of a `Reply`: seconds, zero cost, and the time of the request in UTC."""
    asked_at = datetime.now(UTC) - response.elapsed
    return response.elapsed.total_seconds(), 0.0, asked_at.isoformat(timespec="seconds")


def _client(server: ChatServer, retries: int = 0, **hooks: Any) -> openai.OpenAI:
    """The openai client of a server, with event hooks for every request."""
    import openai

    address = urlsplit(server.base_url)
    if address.scheme not in ("http", "https") or secret_in(server.base_url):
        shown = re.sub("^.*@", "***@", server.base_url.partition("?")[0])
        raise ChatError(
            f"base_url must start with http:// or https:// and hold no key, unlike {shown}: put "
            "the key into the environment variable that api_key_variable names"
        )
    query = dict(parse_qsl(address.query, keep_blank_values=True))
    # Azure takes the key in its own header, except in its newer API, which is OpenAI's.
    at_azure = ".openai.azure." in (address.hostname or "") and "/v1" not in address.path
    at_azure = at_azure or "/openai/deployments/" in address.path
    if at_azure and "api-version" not in query:
        raise ChatError(
            f"{server.base_url} is an Azure address without a version: add ?api-version=2024-10-21 "
            "to base_url, or the version on the deployment's page"
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
    problem = "does not hold a valid key" if key else "is not set"
    del key  # a traceback may show variables
    raise ChatError(
        f"the environment variable {variable} {problem}: set it to the key of {server.base_url}, "
        "or set api_key_variable to the variable that holds the key"
    )
