"""A server of OpenAI's chat completions on loopback, whose every answer a test chooses.

`python tests/chat_server.py 0.05` runs one as a process of its own that answers "A" after 50 ms.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal


@dataclass(frozen=True)
class Answer:
    """One answer: a chat completion with `text`, an error where `status` is not 200, or `body`.

    `text` may be a list of parts, and `message` holds further fields of the message. `error` are
    the fields of the error's body, `usage` the tokens in and out (None: not told), `delay` seconds
    before anything is sent, `drop` cuts the connection before or within the answer.
    """

    text: str | list[Any] | None = "Fine."
    status: int = 200
    error: Mapping[str, Any] = field(default_factory=dict)
    body: str | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    usage: tuple[int, int] | None = (7, 3)
    finish_reason: str = "stop"
    delay: float = 0.0
    drop: Literal["", "before", "within"] = ""
    message: Mapping[str, Any] = field(default_factory=dict)

    def bytes(self, model: str) -> bytes:
        """The answer's body."""
        if self.body is not None:
            return self.body if isinstance(self.body, bytes) else self.body.encode()
        if self.status != 200:
            return json.dumps({"error": {"message": "no", **self.error}}).encode()
        message = {"role": "assistant", "content": self.text, **self.message}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        reply: dict[str, Any] = {
            "id": "1", "object": "chat.completion", "created": 0, "model": f"{model}-2026",
            "choices": [choice],
        }  # fmt: skip
        if self.usage:
            tokens = dict(zip(("prompt_tokens", "completion_tokens"), self.usage, strict=True))
            reply["usage"] = {**tokens, "total_tokens": sum(self.usage)}
        return json.dumps(reply).encode()


class ScriptedServer:
    """Answers each request with what `answer(request)` says: an `Answer`, or just its text.

    `request` is the body as it came, `question_of(request)` its one message. What stands in `first`
    is answered first, one request each. Everything that comes is recorded.
    """

    def __init__(
        self, answer: Callable[[dict[str, Any]], Answer | str | None] = lambda request: "Fine."
    ) -> None:
        self.answer = answer
        self.first: deque[Answer] = deque()
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.api_keys: list[str | None] = []  # Azure's header
        self.paths: list[str] = []  # with their queries
        self.times: list[float] = []  # when each came, monotonic
        self.answered: Counter[str] = Counter()  # by question: chat completions sent whole
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are kept, as real servers do

            def do_POST(self) -> None:
                outer.serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that was killed leaves broken pipes

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        poll = {"poll_interval": 0.01}
        threading.Thread(target=self.http.serve_forever, kwargs=poll, daemon=True).start()

    @property
    def questions(self) -> list[str]:
        """Of all requests, in the order in which they came."""
        return [question_of(request) for request in self.requests]

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        assert handler.path.partition("?")[0].endswith("/chat/completions"), handler.path
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.requests.append(request)
            self.authorizations.append(handler.headers["Authorization"])
            self.api_keys.append(handler.headers["api-key"])
            self.paths.append(handler.path)
            self.times.append(time.monotonic())
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            scripted = self.first.popleft() if self.first else None
        said = self.answer(request) if scripted is None else scripted
        answer = said if isinstance(said, Answer) else Answer(said)
        time.sleep(answer.delay)
        with self.lock:  # before sending: whoever reads the answer finds it counted
            self.under_way -= 1
            if answer.status == 200 and answer.body is None and not answer.drop:
                self.answered[question_of(request)] += 1
        self._send(handler, answer, answer.bytes(request["model"]))

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, answer: Answer, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "Content-Length": len(body)}
        lines = [f"{name}: {value}\r\n" for name, value in {**headers, **answer.headers}.items()]
        head = f"HTTP/1.1 {answer.status} Scripted\r\n{''.join(lines)}\r\n".encode()
        # In one write, and so in one packet: two would wait for an acknowledgement.
        whole = head + body
        kept = {"": len(whole), "before": 0, "within": len(head) + len(body) // 2}[answer.drop]
        handler.wfile.write(whole[:kept])
        if answer.drop:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def short_pauses(monkeypatch: Any) -> None:
    """Pauses between two requests, made some fifty times as short."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.16)
    monkeypatch.setattr("cpo.evaluation.chat.PAUSE", 0.01)


def question_of(request: Mapping[str, Any]) -> str:
    """The text of a request's one message."""
    (message,) = request["messages"]
    assert message["role"] == "user"
    return message["content"]


class ChatServerProcess:
    """A server that answers "A" after `delay` seconds, in a process of its own: for measurements,
    in which it must not share the client's interpreter."""

    def __init__(self, delay: float = 0.0) -> None:
        command = [sys.executable, __file__, str(delay)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def __enter__(self) -> ChatServerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    answer_after = float(sys.argv[1])
    print(ScriptedServer(lambda request: Answer("A", delay=answer_after)).url, flush=True)
    threading.Event().wait()
