"""A chat model behind any server of OpenAI's chat completions, and one question to it.

Every request is checked against the budget, and what asking again cannot mend is said at once, with
what to do. Pauses and repeated requests are the openai client's.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from cpo.evaluation.replies import (
    FOR_ALL,
    REFUSED,
    USED_UP,
    Reply,
    fault_of_prompt,
    read_completion,
    read_message,
)

if TYPE_CHECKING:
    import openai

FEW_ATTEMPTS = 3  # where each may be paid for, or nobody may be there at all
NO_COMPLETION = 599  # our status for an answer of status 200 that holds no chat completion

ADVICE = {
    400: "look at {setting}.parameters",
    401: "{key} is refused: set api_key_variable to the variable with one valid there",
    403: "{key} is not enough to use {model}: use another of either",
    404: "no model '{model}' or no chat completions there: check model and base_url, which mostly "
    "ends in /v1",
    NO_COMPLETION: "check base_url, which mostly ends in /v1",
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
            return f"max_usd is ${self.max_usd:,.2f}: raise it, ask fewer, or take a cheaper model"
        return ""


@dataclass(frozen=True)
class Estimate:
    """What questions will take, if none has to be asked twice; `usd` is 0 where no price is set."""

    requests: int
    input_tokens: int
    output_tokens: int
    usd: float

    def __str__(self) -> str:
        tokens = f"about {self.input_tokens:,} tokens in and at most {self.output_tokens:,} out"
        usd = f"${self.usd:,.2f}" if self.usd >= 0.01 else "less than $0.01"
        return f"{self.requests:,} requests, {tokens}, {usd if self.usd else 'no price set'}"


def estimate(server: ChatServer, questions: Sequence[str], reply_tokens: int) -> Estimate:
    """What `questions` will cost at `reply_tokens` each, on the high side; nothing is sent."""
    tokens = sum(tokens_of(question) for question in questions)
    replies = reply_tokens * len(questions)
    return Estimate(len(questions), tokens, replies, server.price(tokens, replies))


def tokens_of(text: str) -> int:
    # Four characters a token is a little more than English takes; bytes, for other scripts' sake.
    return math.ceil(len(text.encode(errors="replace")) / 4)


class Session:
    """What workers share who ask one server: the client, and what was sent and spent.

    The client sends a request again after a time-out, a lost connection and the statuses 408, 409,
    429 and 5xx; `before` and `after` are called around each of these requests.
    """

    def __init__(self, server: ChatServer, reply_tokens: int, retries: int) -> None:
        self.server = server
        self.reply_tokens = reply_tokens
        self.client = _client(server, retries, {"request": [self.before], "response": [self.after]})
        self.lock = Lock()
        self.stopped = False
        self.sent = self.answers = self.replies = 0
        self.usd = 0.0  # spent, and reserved for what is under way
        self.unusable = self.rejected = 0  # answers and prompts since the last reply

    def stop(self) -> bool:
        """From now on nothing is sent; True for the first who says so."""
        with self.lock:
            first, self.stopped = not self.stopped, True
        return first

    def ask(self, question: str) -> Reply:
        """The reply to a question. Raises `ChatError` where there will be none."""
        outcome = self.send(question)
        if isinstance(outcome, str):
            raise ChatError(outcome + self.kept)
        with self.lock:
            self.replies += 1
        return outcome

    @property
    def kept(self) -> str:
        return f". The {self.replies:,} replies that came are kept" if self.replies else ""

    def reserved(self, request: Any) -> float:
        """What a request may cost, in USD."""
        body = request.content  # empty where a redirection made it a GET
        question = json.loads(body)["messages"][0]["content"] if body else ""
        return estimate(self.server, [question], self.reply_tokens).usd

    def before(self, request: Any) -> None:
        """Counts a request, or raises `ChatError` where it may not be sent."""
        with self.lock:
            usd = self.usd + self.reserved(request)
            if self.stopped:
                raise ChatError("all has stopped")
            if self.sent >= FEW_ATTEMPTS and not self.answers:
                raise ChatError(self.silence())
            if problem := self.server.exceeded(self.sent + 1, usd):
                spent = f"{self.sent:,} requests and ${self.usd:,.2f} are spent or under way"
                raise ChatError(f"{spent} at {self.server.base_url}, and {problem}")
            self.sent += 1
            self.usd = usd

    def after(self, response: Any) -> None:
        """Tells the client which answers are errors, and which of them asking again cannot mend.

        What is refused costs nothing. What gets no answer, or an unusable one, may be charged all
        the same: its reservation stands.
        """
        response.read()
        final = bool(_is_used_up(response) or fault_of_prompt(response.status_code, response.text))
        with self.lock:
            self.answers += 1
            if response.status_code != 200:
                self.usd -= self.reserved(response.request)
            elif not read_completion(response.content):
                response.status_code = NO_COMPLETION
                self.unusable += 1
                final = self.unusable >= FEW_ATTEMPTS
        if final:
            response.headers["x-should-retry"] = "false"

    def send(self, question: str) -> Reply | str:
        """The reply, or why there is none: what was raised here would hold the key."""
        import openai

        try:
            answer = self.client.chat.completions.with_raw_response.create(
                model=self.server.model,
                messages=[{"role": "user", "content": question}],
                extra_body=dict(self.server.parameters),
            )
        except openai.APIStatusError as error:
            return self.refusal(error)
        except openai.APIConnectionError:
            return self.silence()
        except ChatError as error:
            return str(error)
        except Exception as error:
            return f"a question cannot be sent: {self.words(repr(error))}"
        return self.reply(question, answer.http_response)

    def reply(self, question: str, response: Any) -> Reply:
        """The reply in a chat completion."""
        message, finish_reason = read_completion(response.content) or ({}, "")
        read, completion = read_message(message, finish_reason), response.json()
        usage = completion.get("usage") or {}
        tokens_in, tokens_out = (usage.get(f"{part}_tokens") for part in ("prompt", "completion"))
        if tokens_in is None:
            tokens_in = tokens_of(question)
        if tokens_out is None:
            tokens_out = tokens_of(read.reasoning + read.text)
        usd = self.server.price(tokens_in, tokens_out)
        with self.lock:
            self.usd += usd - self.reserved(response.request)
            self.unusable = self.rejected = 0
        model = completion.get("model") or self.server.model
        seconds, asked_at = _took(response)
        raw = json.dumps(message)
        return Reply(raw, finish_reason, model, tokens_in, tokens_out, seconds, usd, asked_at)

    def refusal(self, error: openai.APIStatusError) -> Reply | str:
        """The reply to a prompt that alone was refused, or what ends the run.

        A refusal for a reason that is not known is the prompt's where others were answered; thrice
        in a row it is not.
        """
        server, status, body = self.server, error.status_code, error.body
        words = self.words(body.get("message", body) if isinstance(body, dict) else body)
        finish_reason = fault_of_prompt(status, error.response.text)
        if not finish_reason and status in (400, 422) and not re.search(FOR_ALL, words, re.I):
            with self.lock:
                self.rejected += 1
                finish_reason = REFUSED if self.replies and self.rejected < FEW_ATTEMPTS else ""
        if finish_reason:
            raw = self.without_key(json.dumps({"error": body}, default=str))
            seconds, asked_at = _took(error.response)
            return Reply(raw, finish_reason, server.model, 0, 0, seconds, 0.0, asked_at)
        advice, variable = ADVICE.get(status, ""), server.api_key_variable
        if _is_used_up(error.response):
            advice = f"the quota of {variable} is used up: add credit there and run again"
        elif wait := error.response.headers.get("retry-after"):
            advice = f"it asks to wait (Retry-After: {wait}): run again then"
        key = f"the key in {variable}" if variable else "to send no key (no api_key_variable)"
        advice = advice.format(key=key, model=server.model, setting=server.setting)
        what = "without a chat completion" if status == NO_COMPLETION else status
        return f"{server.base_url} answered {what}: {words}" + (f" ({advice})" if advice else "")

    def silence(self) -> str:
        return (
            f"{self.server.base_url} cannot be reached, drops the connection, or does not answer "
            f"within {self.server.timeout:g} s (timeout): check base_url"
        )

    def words(self, told: object) -> str:
        """A server's own words in one short line; they may quote the key."""
        words = " ".join(self.without_key(str(told)).split())
        return words if len(words) <= 300 else words[:300] + " ..."

    def without_key(self, text: str) -> str:
        key = self.client.api_key
        return text.replace(key, "***").replace(json.dumps(key)[1:-1], "***")


def _is_used_up(response: Any) -> bool:
    """Whether the account is empty. A limit by the minute may say so, and when to come again."""
    pause = {"retry-after", "retry-after-ms"} & set(response.headers)
    pattern = "insufficient_quota" if pause else f"insufficient_quota|{USED_UP}"
    return response.status_code == 429 and bool(re.search(pattern, response.text, re.I))


def _took(response: Any) -> tuple[float, str]:
    """How many seconds an answer took, and when it was asked for, in UTC."""
    asked_at = datetime.now(UTC) - response.elapsed
    return response.elapsed.total_seconds(), asked_at.isoformat(timespec="seconds")


def _client(server: ChatServer, retries: int = 0, hooks: Any = None) -> openai.OpenAI:
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
