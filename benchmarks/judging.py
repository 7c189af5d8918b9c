"""Seconds for 1,000 verdicts, 8 requests at once, from a server with a latency of 50 ms.

The ideal is 1,000 / 8 x 50 ms = 6.25 s. `cpo` is our chat client with its reply store: every
verdict is on disk before its worker asks again. The peer is the plain `openai` client in a
`ThreadPoolExecutor(8)`, which stores nothing. They alternate in one process, the server in another.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai

from benchmarks.measurements import Line
from cpo.evaluation.chat import ChatServer
from cpo.evaluation.reply_store import Question, replies_to
from tests.chat_server import ChatServerProcess

VERDICTS, CONCURRENCY, LATENCY, REPEATS = 1_000, 8, 0.05, 2
IDEAL = VERDICTS / CONCURRENCY * LATENCY
TARGET = 1 / 1.3
RESPONSE = "A response of a usual length, some sixty words in all. " * 6


# As long as the paper's prompt with two of Dolly's responses.
PROMPTS = [
    f"For the following query {i}, which response is more helpful?\n{RESPONSE * 2}"
    for i in range(VERDICTS)
]


def with_cpo(url: str) -> None:
    """Ask for and store every verdict, starting from an empty store."""
    server = ChatServer(url, "judge", "", {"temperature": 0, "max_tokens": 8}, CONCURRENCY)
    questions = [Question("verdict", "", server.question(prompt)) for prompt in PROMPTS]
    with tempfile.TemporaryDirectory() as folder:
        replies = replies_to(
            questions,
            server,
            Path(folder) / "replies.sqlite",
            lambda question, reply: reply.fault,
            reply_tokens=8,
            description="verdicts",
        )
    assert [reply.text for reply in replies] == ["A"] * VERDICTS


def with_openai(url: str) -> None:
    """Ask with the plain client, storing nothing."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)

    def ask(prompt: str) -> str | None:
        messages = [{"role": "user", "content": prompt}]
        reply = client.chat.completions.create(
            model="judge", messages=messages, temperature=0, max_tokens=8
        )
        return reply.choices[0].message.content

    with client, ThreadPoolExecutor(CONCURRENCY) as pool:
        replies = list(pool.map(ask, PROMPTS))
    assert replies == ["A"] * VERDICTS


def run() -> list[Line]:
    """Measure against the ideal and against the plain client."""
    os.environ["NO_PROXY"] = "127.0.0.1"
    subjects = {"cpo": with_cpo, "openai": with_openai}
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    with ChatServerProcess(LATENCY) as server:
        for _ in range(REPEATS):
            for name, subject in subjects.items():
                began = time.perf_counter()
                subject(server.url)
                seconds[name].append(time.perf_counter() - began)
    case = f"{VERDICTS:,} verdicts, {CONCURRENCY} at once, {LATENCY * 1e3:.0f} ms each"
    lines = [
        Line("judging", case, "the ideal", "s", seconds["cpo"], [IDEAL], bound=1.0, target=TARGET),
        Line("judging", case, "openai, nothing stored", "s", seconds["cpo"], seconds["openai"]),
    ]
    for line in lines:
        print(line, flush=True)
    return lines
