"""Questions to a chat model behind any server of OpenAI's chat completions.

Replies are paid for. So each is handed over before its worker sends again, all workers wait
together after a fault, and what asking again cannot mend ends the run at once, with what to do. The
workers are threads: it is the same in a script, in a notebook's running event loop and in a thread.
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
from email.utils import parsedate_to_datetime
from random import uniform
from threading import Condition
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from cpo.engine.progress import progress_bar
from cpo.evaluation.replies import REFUSED, TOO_LONG, Message, read_message

if TYPE_CHECKING:
    import openai

MAX_PAUSE = 60.0  # seconds between two attempts, unless the server asks for more
MAX_RETRY_AFTER = 600.0  # seconds; a server that asks for more is left alone
FEW_ATTEMPTS = 3  # where each may be paid for, or nobody may be there at all
FIRST_REPLIES = 8  # at least so many are looked at before the rest is asked
UNSUPPORTED = (
    r"unsupported|not support|not allowed|not permitted|unrecogni|unknown|deprecated|only .*allowed"
)
# What servers say of a prompt that their filter refuses, and of one that is too long for the model.
FILTERED = (
    r"content.?(filter|management|policy|moderation)|responsible.?ai|flagged|moderation|safety"
    r"|data_inspection|content exists risk"
)
OVER_LONG = (
    r"context.?(length|size|window)|maximum (context|model) length|max_(seq|model)_len"
    r"|(prompt|input) is too long|too long to fit|too many tokens|input token count|inputs. tokens"
    r"|max_num_tokens|reduce the length|input length"
)
# Names of a query's parameters that hold a key; `api-version` and `max_tokens` do not.
_SECRET = re.compile(r"key|token(?!s)|secret|sig$|signature|passw|credential|auth|^code$", re.I)
TRIAL = "Answer with the letter A and nothing else."  # one short question, to try a server
USED_UP = r"exceeded your current quota|billing|credit"
FOR_ALL = rf"{USED_UP}|quota|api.?key|no models? |model .*not |not .*model"  # never one prompt's


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
    one call of `ask_all`, retries included, and `max_attempts` one question. `timeout` is how long
    the server may be silent and `backoff` the first pause after a fault, which doubles up to a
    minute, both in seconds. Prices are in USD per million tokens; `max_usd` caps the cost of one
    call of `ask_all`, None for no cap. `setting` is what messages call it, by its place in a
    profile.
    """

    base_url: str
    model: str
    api_key_variable: str = "OPENAI_API_KEY"
    parameters: Mapping[str, float | int | str] = field(default_factory=dict)
    concurrency: int = 8
    max_requests: int = 10_000
    max_attempts: int = 8
    timeout: float = 60.0
    backoff: float = 1.0
    usd_per_million_input: float = 0.0
    usd_per_million_output: float = 0.0
    max_usd: float | None = None
    setting: str = "server"

    def reply_tokens(self, default: int) -> int:
        """The most tokens that a reply may have, or `default` where no parameter says."""
        names = ("max_completion_tokens", "max_tokens")
        return int(next((self.parameters[one] for one in names if one in self.parameters), default))

    def price(self, input_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost, in USD."""
        usd = input_tokens * self.usd_per_million_input
        return (usd + output_tokens * self.usd_per_million_output) / 1e6


@dataclass(frozen=True)
class Reply(Message):
    """What a model answered, taken apart, and what it took.

    A prompt that was refused or is too long has a reply too: no text, and nothing to pay. `raw` is
    the whole message as JSON, or the error. Token counts are the server's, or where it gives none,
    estimates. `parameters` are those that were sent in the end, `seconds` those of the request that
    succeeded, `asked_at` is in UTC.
    """

    finish_reason: str
    raw: str
    model: str
    input_tokens: int
    output_tokens: int
    seconds: float
    parameters: dict[str, float | int | str]
    asked_at: str


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
    tokens = sum(_tokens(question) for question in questions)
    replies = reply_tokens * len(questions)
    return Estimate(len(questions), tokens, replies, server.price(tokens, replies))


def _tokens(text: str) -> int:
    # Four characters a token is a little more than English takes; bytes, for other scripts' sake.
    return math.ceil(len(text.encode(errors="replace")) / 4)


def ask_all(
    server: ChatServer,
    questions: Sequence[str],
    keep: Callable[[int, Reply], bool | None],
    *,
    reply_tokens: int,
    description: str,
    fault_of: Callable[[int, Reply], str] | None = None,
) -> None:
    """Asks every question and hands over each reply; says first what that will cost.

    Whatever ends it, Ctrl-C too, nothing more is sent, and the replies to what is under way, which
    are paid for, are waited for and kept.

    Args:
        server: who is asked, and within which bounds.
        questions: one user message each.
        keep: called as `keep(index, reply)` in the worker, before it sends again; where it returns
            True the question is asked once more. What it raises ends all, and comes out.
        reply_tokens: the longest reply expected, for the estimate.
        description: of the progress bar.
        fault_of: called as `fault_of(index, reply)`, says why a reply is of no use, "" where it is
            of use. Where none of the first replies is, the rest is not asked.

    Raises:
        ChatError: before anything is sent, where the key is missing, or the estimate is above
            `max_usd` or `max_requests`; later, where a bound is reached, the server refuses or
            fails for good, or all of the first replies, three at least, are of no use.
    """
    if not questions:
        return
    expected = estimate(server, questions, reply_tokens)
    if expected.requests > server.max_requests:
        raise ChatError(
            f"{description}: {expected.requests:,} questions to ask and max_requests is "
            f"{server.max_requests:,}: raise it, or ask fewer"
        )
    if server.max_usd and not server.price(1, 1):
        raise ChatError(
            f"{description}: max_usd caps nothing without prices: set usd_per_million_input and "
            "usd_per_million_output, or leave max_usd out"
        )
    if server.max_usd is not None and expected.usd > server.max_usd:
        raise ChatError(
            f"{description}: {expected}, and max_usd is ${server.max_usd:,.2f}: raise it, ask "
            "fewer, or choose a cheaper model. Nothing was sent."
        )
    asker = _Asker(server, reply_tokens)
    print(f"{description}: {expected}", flush=True)

    first = min(len(questions), max(server.concurrency, FIRST_REPLIES)) if fault_of else 0
    replies: list[tuple[str, Reply]] = []  # the first ones, each with its fault

    def answer(index: int) -> None:
        try:
            while reply := asker.ask(questions[index]):
                if not keep(index, reply):
                    if fault_of and index < first:
                        replies.append((fault_of(index, reply), reply))
                    return
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
            pool.submit(answer, 0).result()
            bar.update()
            for part in (range(1, first), range(max(1, first), len(questions))):
                for done in as_completed([pool.submit(answer, i) for i in part]):
                    done.result()
                    bar.update()
                if len(replies) >= FEW_ATTEMPTS and all(fault for fault, _ in replies):
                    raise ChatError(asker._final(f"{description}: {_of_no_use(server, replies)}"))
                replies.clear()
        finally:
            asker.stop()


def _of_no_use(server: ChatServer, replies: Sequence[tuple[str, Reply]]) -> str:
    counts = Counter(fault for fault, _ in replies)
    [(most, _)] = counts.most_common(1)
    first = next(reply for fault, reply in replies if fault == most)
    kinds = ", ".join(f"{count} {fault}" for fault, count in counts.items())
    cause, remedy = likely_cause(server, most, first)
    return (
        f"none of the first {len(replies)} replies is of use ({kinds}): {cause}. {remedy}. Nothing "
        "more was sent"
    )


def likely_cause(server: ChatServer, fault: str, reply: Reply) -> tuple[str, str]:
    """Why a reply has this fault, most likely, and what to do."""
    reason = f"finish_reason {reply.finish_reason or 'unknown'}"
    thought = f" after {len(reply.reasoning):,} characters of reasoning" if reply.reasoning else ""
    limits = [f"{key}: {value}" for key, value in reply.parameters.items() if "max" in key]
    limit = next((key for key in server.parameters if "max" in key), "max_tokens")
    raise_it = (
        f"Raise {server.setting}.parameters.{limit}: a reasoning model takes some thousands before "
        "it answers"
    )
    if fault == "cut":
        where = ", ".join(limits) or "the server's own limit"
        return f"its reply is cut{thought}, at {where} ({reason})", raise_it
    if fault == "empty":
        return (
            f"it answers with nothing{thought} ({reason})",
            f"{raise_it}. Or the server does not send the answer as `content`",
        )
    if fault == "refused":
        what = f"the prompt is refused ({reason}): {reply.raw[:300]}"
        return what, "Look at the prompts, and at the server's content filter"
    if fault == "too long":
        what = f"the prompt is too long for the model: {reply.raw[:300]}"
        return what, "Choose a model with a longer context, or make responses shorter"
    words = " ".join(reply.text.split())[:200]
    return f"it says “{words}”", "Choose a model that does as it is asked"


def try_out(server: ChatServer) -> Reply:
    """One short question, to see that address, key and model are right before there are thousands.

    Raises:
        ChatError: as `ask_all`, after few attempts.
    """
    few = min(server.max_attempts, FEW_ATTEMPTS)
    asker = _Asker(replace(server, max_attempts=few, timeout=min(server.timeout, 20.0)), 1)
    with asker.client:
        reply = asker.ask(TRIAL)
    assert reply is not None  # nobody else is there to stop it
    return reply


@dataclass(frozen=True)
class _Problem:
    """Why a request brought no reply. After `attempts` of its kind it is final.

    `wait` is what the server asks for, in seconds; `paid` says that the answer, of no use, is
    charged all the same; `refused` is a parameter that the model does not take.
    """

    what: str
    attempts: int = 1
    wait: float = 0.0
    paid: bool = False
    refused: str = ""


class _Asker:
    """What the workers share: the client, what was sent and spent, and one back-off.

    A fault makes all of them wait, for longer each time, and halves how many may be under way at
    once; replies raise that again one by one. Without it, workers that wait together would come
    back together, and a server that takes few requests at a time would refuse the same ones again.
    """

    def __init__(self, server: ChatServer, reply_tokens: int) -> None:
        self.server = server
        self.reply_tokens = reply_tokens
        self.client = _client(server)
        self.parameters = dict(server.parameters)
        self.tell: Callable[[str], object] = lambda text: None
        self.changed = Condition()
        self.stopped = False
        self.sent = self.replies = self.under_way = 0
        self.usd = 0.0  # spent, and reserved for what is under way
        self.allowed = float(server.concurrency)
        self.faults = 0  # since the last reply
        self.rejected = 0  # prompts refused for a reason that is not known, since the last answer
        self.pauses = 0
        self.resume_at = 0.0

    def stop(self) -> bool:
        """From now on nothing is sent; True for the first who says so."""
        with self.changed:
            first, self.stopped = not self.stopped, True
            self.changed.notify_all()
        return first

    def ask(self, question: str) -> Reply | None:
        """The reply, asked for as often as it takes, or None once all has stopped."""
        usd = estimate(self.server, [question], self.reply_tokens).usd
        tries: Counter[int] = Counter()
        while (pauses := self._turn(usd)) is not None:
            outcome = self._send(question, self.parameters)
            self._settle(outcome, usd, pauses)
            if isinstance(outcome, Reply):
                return outcome
            if outcome.refused:
                self._leave_out(outcome.refused)
                continue
            tries[outcome.attempts] += 1
            enough = tries[outcome.attempts] >= outcome.attempts
            if enough or tries.total() >= self.server.max_attempts:
                raise ChatError(self._final(outcome.what, tries.total()))
        return None

    def _turn(self, usd: float) -> int | None:
        """Waits until a request may be sent, and counts it; how many pauses there were so far."""
        server = self.server
        with self.changed:
            while not self.stopped:
                pause = self.resume_at - time.monotonic()
                if pause <= 0 and self.under_way < int(self.allowed):
                    break
                self.changed.wait(pause if pause > 0 else None)
            else:
                return None
            if self.sent >= server.max_requests:
                what = f"all {server.max_requests:,} requests (max_requests) were sent to"
                raise ChatError(self._final(f"{what} {server.base_url} and replies are missing"))
            # The sum of the parts may differ from the whole in the last digit.
            if server.max_usd is not None and self.usd + usd > server.max_usd * (1 + 1e-9):
                what = f"${self.usd:,.2f} are spent or under way at {server.base_url}"
                cap = f"one more reply may pass max_usd, ${server.max_usd:,.2f}: raise it"
                raise ChatError(self._final(f"{what}, and {cap}"))
            self.sent += 1
            self.under_way += 1
            self.usd += usd
            return self.pauses

    def _settle(self, outcome: Reply | _Problem, usd: float, pauses: int) -> None:
        """Counts what came of a request that was sent after `pauses`, with `usd` reserved."""
        server = self.server
        with self.changed:
            self.under_way -= 1
            if isinstance(outcome, Reply):
                self.usd += server.price(outcome.input_tokens, outcome.output_tokens) - usd
                self.replies += 1
                self.allowed = min(server.concurrency, self.allowed + 1 / self.allowed)
                if self.faults:
                    self.faults = 0
                    self.tell("")
            else:
                self.usd -= 0.0 if outcome.paid else usd
                pause = outcome.wait
                # Of requests sent together, the first to fail tells the others' news too.
                if outcome.attempts > 1 and pauses == self.pauses:
                    usual = server.backoff * 2.0 ** min(self.faults, 30)
                    pause = max(pause, min(usual, MAX_PAUSE) * uniform(1.0, 1.25))
                    self.faults += 1
                    self.pauses += 1
                    self.allowed = max(1.0, self.allowed / 2)
                    if pause >= 2.0:
                        self.tell(f"waiting {pause:.0f} s: {outcome.what[:80]}")
                self.resume_at = max(self.resume_at, time.monotonic() + pause)
            self.changed.notify_all()

    def _leave_out(self, name: str) -> None:
        """Later requests go without the parameter, or with the one that took its place."""
        with self.changed:
            if name not in self.parameters:
                return  # another worker was told the same
            left = {key: value for key, value in self.parameters.items() if key != name}
            instead = ""
            if name == "max_tokens":
                left["max_completion_tokens"] = self.parameters[name]
                instead = "; max_completion_tokens is sent in its place"
            self.parameters = left
        warnings.warn(f"{self.server.model} takes no {name}{instead}", stacklevel=2)

    def _final(self, what: str, tries: int = 1) -> str:
        asked = f" (asked {tries} times)" if tries > 1 else ""
        kept = f". The {self.replies:,} replies that came are kept" if self.replies else ""
        return f"{what}{asked}{kept}"

    def _send(self, question: str, parameters: dict[str, Any]) -> Reply | _Problem:
        """One request. Problems are returned, since what is raised here would hold the key."""
        import openai

        server = self.server
        asked_at = datetime.now(UTC).isoformat(timespec="seconds")
        started = time.perf_counter()
        try:
            answer = self.client.chat.completions.create(
                model=server.model,
                messages=[{"role": "user", "content": question}],
                extra_body=parameters,
            )
        except openai.APIStatusError as error:
            finish_reason = self._fault_of_prompt(error, parameters)
            if not finish_reason:
                return self._refusal(error, parameters)
            message: dict[str, Any] = {}
            raw = self._without_key(json.dumps({"error": error.body}, default=str))
            model = server.model
            tokens: list[int | None] = [0, 0]
        except openai.APITimeoutError:
            what = f"{server.base_url} did not answer within {server.timeout:g} s (timeout)"
            return _Problem(what, server.max_attempts)
        except openai.APIConnectionError:
            what = f"{server.base_url} cannot be reached or drops the connection: check base_url"
            return _Problem(what, server.max_attempts if self.replies else FEW_ATTEMPTS)
        except (json.JSONDecodeError, UnicodeDecodeError, openai.APIError) as error:
            return self._unusable(error)
        except Exception as error:
            return _Problem(f"a question cannot be sent: {self._words(repr(error))}")
        else:
            try:
                choice = answer.choices[0]
                finish_reason = str(choice.finish_reason or "")
                message = {}  # a filter may take all of it away
                if getattr(choice, "message", None) or not finish_reason.startswith(REFUSED):
                    message = choice.message.to_dict(mode="python", warnings=False)
            except (AttributeError, IndexError, TypeError):
                return self._unusable(answer)
            self.rejected = 0
            raw = json.dumps(message)
            model = answer.model or server.model
            names = ("prompt_tokens", "completion_tokens")
            tokens = [getattr(answer.usage, name, None) for name in names]
        read = read_message(message, finish_reason)
        return Reply(
            **vars(read),
            finish_reason=finish_reason,
            raw=raw,
            model=model,
            input_tokens=_tokens(question) if tokens[0] is None else tokens[0],
            output_tokens=_tokens(read.reasoning + read.text) if tokens[1] is None else tokens[1],
            seconds=time.perf_counter() - started,
            parameters=parameters,
            asked_at=asked_at,
        )

    def _unusable(self, answer: object) -> _Problem:
        """A status of 200 and no chat completion: HTML, an error's body, half an answer."""
        what = f"{self.server.base_url} sends no chat completion, but: {self._words(answer)}"
        return _Problem(f"{what}. base_url mostly ends in /v1", FEW_ATTEMPTS, paid=True)

    def _fault_of_prompt(self, error: openai.APIStatusError, parameters: Mapping[str, Any]) -> str:
        """The finish reason of a prompt that alone was refused, "" for what concerns all prompts.

        A refusal for a reason that is not known is the prompt's where others were answered; thrice
        in a row it is not.
        """
        status, told = error.status_code, _told(error)
        if status in (400, 403, 422) and _refused(error, self._words(told), parameters):
            return ""
        inner = error.body.get("innererror") if isinstance(error.body, dict) else ""
        told = f"{error.code} {error.type} {told} {inner}"
        if status == 413 or (status in (400, 422, 500) and re.search(OVER_LONG, told, re.I)):
            return TOO_LONG
        if status == 429 and re.search("request too large", told, re.I):
            return TOO_LONG
        if status in (400, 403, 422) and re.search(FILTERED, told, re.I):
            return REFUSED
        if status in (400, 422) and self.replies and not re.search(FOR_ALL, told, re.I):
            self.rejected += 1
            return REFUSED if self.rejected < FEW_ATTEMPTS else ""
        return ""

    def _refusal(self, error: openai.APIStatusError, parameters: Mapping[str, Any]) -> _Problem:
        server, status = self.server, error.status_code
        words = self._words(_told(error))
        if status in (400, 403, 422) and (name := _refused(error, words, parameters)):
            return _Problem("", refused=name)
        where = f"{server.base_url} answered {status}"
        variable = server.api_key_variable
        key = f"the key in {variable}" if variable else "to send no key (no api_key_variable)"
        if status in (408, 409, 425, 429) or status >= 500:
            wait = _retry_after(error.response.headers)
            spent = "insufficient_quota" in (error.code, error.type)
            if status == 429 and (spent or not wait and re.search(USED_UP, words, re.I)):
                what = f"the quota of {variable} is used up: add credit there and run again"
                return _Problem(f"{where}: {what} ({words})")
            if wait > MAX_RETRY_AFTER:
                return _Problem(f"{where}: it wants {wait:,.0f} s of rest: run again then")
            return _Problem(f"{where}: {words}", server.max_attempts, wait)
        advice = {
            401: f"{key} is refused: set api_key_variable to the variable with one valid there",
            403: f"{key} is not enough to use {server.model}: use another of either",
            404: f"no model '{server.model}' or no chat completions there: check model and "
            "base_url, which mostly ends in /v1",
        }
        told = f"{advice[status]} ({words})" if status in advice else words
        return _Problem(f"{where}: {told}")

    def _words(self, said: object) -> str:
        """A server's own words in one short line; they may quote the key."""
        words = " ".join(self._without_key(str(said)).split())
        return words if len(words) <= 300 else words[:300] + " ..."

    def _without_key(self, text: str) -> str:
        key = self.client.api_key
        return text.replace(key, "***").replace(json.dumps(key)[1:-1], "***")


def _told(error: openai.APIStatusError) -> str:
    """What a server says of an error; all of its answer where that has no message."""
    body = error.body
    return str(body.get("message", body) if isinstance(body, dict) else body)


def _refused(error: openai.APIStatusError, words: str, parameters: Mapping[str, Any]) -> str:
    """The parameter that is not supported, "" where something else is wrong."""
    if not re.search(UNSUPPORTED, f"{error.code} {words}", re.I):
        return ""
    if error.param in parameters:
        return str(error.param)
    named = (name for name in parameters if re.search(rf"\b{re.escape(name)}\b", words))
    return next(named, "")


def _retry_after(headers: Mapping[str, str]) -> float:
    """How long the server asks to wait, in seconds; 0 where it does not say."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        return max(0.0, seconds) if not math.isnan(seconds) else 0.0
    try:
        until = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return 0.0
    return max(0.0, until.timestamp() - time.time())


def _client(server: ChatServer) -> openai.OpenAI:
    """The openai client, without its own retries: they repeat even what a used-up quota refuses."""
    import openai

    address = urlsplit(server.base_url)
    if address.scheme not in ("http", "https") or secret_in(server.base_url):
        shown = re.sub("^.*@", "***@", server.base_url.partition("?")[0])
        raise ChatError(
            f"base_url starts with http:// or https:// and holds no key, unlike {shown}: a key "
            "stands in the environment variable that api_key_variable names"
        )
    key = "none wanted"
    if server.api_key_variable:
        key = os.environ.get(server.api_key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            what = "holds what cannot be a key" if key else "is not set"
            del key
            raise ChatError(
                f"the environment variable {server.api_key_variable} {what}: set it to the key of "
                f"{server.base_url}, or api_key_variable to the name of the one that holds it"
            )
    query = dict(parse_qsl(address.query, keep_blank_values=True))
    settings: dict[str, Any] = {
        "base_url": address._replace(query="").geturl(),
        "default_query": query,
        "api_key": key,
        "max_retries": 0,
        "timeout": server.timeout,
    }
    # Azure takes a key in a header of its own, but for its newer interface, which is OpenAI's.
    at_azure = ".openai.azure." in (address.hostname or "") and "/v1" not in address.path
    if not at_azure and "/openai/deployments/" not in address.path:
        return openai.OpenAI(**settings)
    if "api-version" not in query:
        raise ChatError(
            f"{server.base_url} is Azure's and names no version: add ?api-version=2024-10-21 to "
            "base_url, or one that the deployment's page names"
        )
    return openai.AzureOpenAI(**settings, api_version=query["api-version"])
