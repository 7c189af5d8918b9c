"""The store of replies: what it holds is found again, and survives kills, full disks, company."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ScriptedServer, question_of

from cpo.evaluation.chat import ChatServer
from cpo.evaluation.judge_prompts import read_verdict
from cpo.evaluation.replies import Reply
from cpo.evaluation.reply_store import Question, ReplyStore, ReplyStoreError, replies_to

SERVER = ChatServer("http://127.0.0.1/v1", "judge-1", "", {"temperature": 0, "max_tokens": 8})
SHOWN = {"model_side": "A", "response_a": "One.", "response_b": "Two."}
QUESTION = Question("verdict", "dolly-7", SERVER.question("Which is better, A or B?") | SHOWN)
REPLY = Reply(
    raw='{"content": "A tie, \\u2018so\\u2019 it is\\u0000.\\n"}',
    finish_reason="stop",
    model="judge-1-2026",
    input_tokens=70,
    output_tokens=3,
    seconds=0.25,
    usd=0.001,
    asked_at="2026-11-21T10:00:00+00:00",
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ReplyStore]:
    with ReplyStore(tmp_path / "folder" / "replies.sqlite") as made:
        yield made


def asking(**changes: Any) -> Question:
    """The question, asked otherwise."""
    return replace(QUESTION, asked=QUESTION.asked | changes)


def put(store: ReplyStore, i: int, text: str = "A", purpose: str = "verdict") -> None:
    """A reply to the i-th question."""
    question = Question(purpose, f"item {i}", asking(prompt=f"prompt {i}").asked)
    store.put(question, replace(REPLY, raw=json.dumps({"content": text})))


def items(store: ReplyStore) -> list[str]:
    return [question.item for question, _ in store.rows("verdict")]


# --- what it holds --------------------------------------------------------------------------------


def test_a_key_holds_all_that_was_asked() -> None:
    changes: dict[str, Any] = {
        "prompt": "Which is better, B or A?", "model": "judge-2", "parameters": {"temperature": 0},
        "server": "http://127.0.0.2/v1", "model_side": "B", "response_a": "Three.",
        "response_b": "Four.",
    }  # fmt: skip
    others = [asking(**{name: value}) for name, value in changes.items()]
    assert len({question.key for question in [QUESTION, *others]}) == 8
    assert asking(response_a="Two.", response_b="One.").key != QUESTION.key
    same: dict[str, Any] = {"max_tokens": 8.0, "temperature": 0.0}  # another order, other types
    prompt = QUESTION.asked["prompt"]
    assert asking(**replace(SERVER, parameters=same).question(prompt)).key == QUESTION.key
    warmer = replace(SERVER, parameters={**same, "temperature": 0.5})
    assert asking(**warmer.question(prompt)).key != QUESTION.key
    # Were it another tomorrow, all replies that were paid for would be asked for again.
    canonical = (
        b'{"model":"judge-1","model_side":"A","parameters":{"max_tokens":8,"temperature":0},'
        b'"prompt":"Which is better, A or B?","response_a":"One.","response_b":"Two.",'
        b'"server":"http://127.0.0.1/v1"}'
    )
    assert QUESTION.key == hashlib.sha256(canonical).hexdigest()


def test_what_was_put_is_found_again(store: ReplyStore) -> None:
    store.put(QUESTION, REPLY)
    with ReplyStore(store.path) as again:
        assert again.get([QUESTION.key, "unknown"]) == {QUESTION.key: REPLY}
        # The first stands: what tables were made of does not change.
        again.put(QUESTION, replace(REPLY, raw='{"content": "A"}'))
        assert again.get([QUESTION.key]) == {QUESTION.key: REPLY}
        assert again.get([]) == {}
        [(question, reply)] = again.rows("verdict")
        assert (question, reply) == (QUESTION, REPLY) and question.key == QUESTION.key
        assert reply.text == "A tie, \u2018so\u2019 it is\0.\n"


def test_many_are_found_at_once(store: ReplyStore) -> None:
    for i in range(20):
        put(store, i)
    keys = [asking(prompt=f"prompt {i}").key for i in range(50_000)]
    assert set(store.get(keys)) == set(keys[:20])


def test_replies_are_kept_apart_by_purpose_and_can_be_forgotten(store: ReplyStore) -> None:
    for i in range(4):
        put(store, i)
    put(store, 4, purpose="unhelpful response")
    assert items(store) == [f"item {i}" for i in range(4)]
    store.forget([asking(prompt=f"prompt {i}").key for i in (0, 2, 9)])
    assert items(store) == ["item 1", "item 3"]
    assert [question.item for question, _ in store.rows("unhelpful response")] == ["item 4"]


def test_what_is_no_store_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    text, other, newer = tmp_path / "text", tmp_path / "other", tmp_path / "newer"
    text.write_text("a text of some length, " * 100)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE verdicts (key TEXT)")
    ReplyStore(newer).close()
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version = 7")
    for path, says in {
        text: "cannot open .*not a database. Is it a reply store",
        other: "is the database of another program, or a .*: give another path",
        newer: "reply store of the unknown version 7",
        tmp_path: "cannot open .*unable to open",
        text / "below": "cannot open .*(Not a directory|File exists)",
    }.items():
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(ReplyStoreError, match=says):
            ReplyStore(path)
        assert not path.is_file() or path.read_bytes() == before


def test_each_reply_is_on_the_disk_before_the_next_request(store: ReplyStore) -> None:
    # Of the file: a write-ahead log. Of a connection: each commit waits for the disk (2, FULL).
    (mode,) = sqlite3.connect(store.path).execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = store._connection.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)
    put(store, 1)
    assert sqlite3.connect(store.path).execute("SELECT count(*) FROM replies").fetchone() == (1,)


# --- stores of earlier versions -------------------------------------------------------------------

# As version 1 made it, and what it held of replies: text and verdict. Version 2 added a message.
VERSION_1 = """
CREATE TABLE verdicts (
    key TEXT PRIMARY KEY, item TEXT NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('A', 'B', 'tie', 'invalid')),
    text TEXT NOT NULL, reply_model TEXT NOT NULL, input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, seconds REAL NOT NULL, usd REAL NOT NULL,
    asked_at TEXT NOT NULL, prompt TEXT NOT NULL, model TEXT NOT NULL, parameters TEXT NOT NULL,
    server TEXT NOT NULL, model_side TEXT NOT NULL,
    response_a TEXT NOT NULL, response_b TEXT NOT NULL
)"""
VERSION_2 = """, why TEXT NOT NULL DEFAULT '', finish_reason TEXT NOT NULL DEFAULT '',
    raw TEXT NOT NULL DEFAULT '', parser INTEGER NOT NULL DEFAULT 1
)"""
OLD = [
    ("A", "A"),
    ("Perhaps.", "invalid"),
    ("", "invalid"),
    ("<think>Response A is more helpful at first glance.</think>B", "A"),
    ("<think>\nOkay, Response A is better than Response B on style. Now for fact", "A"),
    ("B\0", "invalid"),  # a text in which SQLite's own functions would see an end
]
READ_AGAIN = [
    ("A", ""), ("invalid", "unclear"), ("invalid", "empty"), ("B", ""), ("invalid", "cut"),
]  # fmt: skip


def of_version(version: int, path: Path, copies: int = 1) -> None:
    schema = VERSION_1 if version == 1 else VERSION_1.rstrip("\n)") + VERSION_2
    with sqlite3.connect(path) as database:
        database.execute(schema)
        database.execute(f"PRAGMA application_id = {0x43504F76}")
        database.execute(f"PRAGMA user_version = {version}")
        for number in range(copies * len(OLD)):
            text, verdict = OLD[number % len(OLD)]
            question = asking(prompt=f"prompt {number}")
            values = [
                question.key, f"item {number}", verdict, text, "judge-1-2026", 70, 3, 0.25, 0.001,
                "2026-11-21T10:00:00+00:00", f"prompt {number}", "judge-1",
                '{"temperature": 0, "max_tokens": 8}', SERVER.base_url, "A", "One.", "Two.",
            ]  # fmt: skip
            if version == 2:  # a store of version 1 that was brought up to date has some without
                raw = json.dumps({"content": text}) if number % 2 else ""
                values += ["", "length" if number == 5 else "", raw, 2]
            marks = ", ".join("?" * len(values))
            database.execute(f"INSERT INTO verdicts VALUES ({marks})", values)


@pytest.mark.parametrize("version", [1, 2])
def test_verdicts_of_earlier_versions_are_taken_over(version: int, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    of_version(version, path)
    for _ in range(2):  # once, and then it stays
        with ReplyStore(path.with_name("replies.sqlite")) as store:
            rows = list(store.rows("verdict"))
            read = [read_verdict(reply) for _, reply in rows]
            assert read == [*READ_AGAIN, ("invalid", "unclear" if version == 1 else "cut")]
            assert [json.loads(reply.raw)["content"] for _, reply in rows] == [
                text for text, _ in OLD
            ]
            # Nothing is paid for twice: each is found by what is asked today.
            key = asking(prompt="prompt 3").key
            [reply] = store.get([key]).values()
            assert (reply.text, reply.usd, reply.model) == ("B", 0.001, "judge-1-2026")
            assert rows[3][0] == Question("verdict", "item 3", asking(prompt="prompt 3").asked)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM verdicts").fetchone() == (len(OLD),)


def open_old(path: Path, barrier: Any) -> None:
    barrier.wait()
    with ReplyStore(path.with_name("replies.sqlite")) as store:
        assert [read_verdict(reply) for _, reply in store.rows("verdict")][:5] == READ_AGAIN


def test_several_processes_bring_a_store_up_to_date_together(tmp_path: Path) -> None:
    path, context = tmp_path / "verdicts.sqlite", multiprocessing.get_context("forkserver")
    of_version(1, path, copies=200)
    barrier = context.Barrier(3)
    openers = [context.Process(target=open_old, args=(path, barrier)) for _ in range(3)]
    for process in openers:
        process.start()
    for process in openers:
        process.join()
    assert [process.exitcode for process in openers] == [0] * 3


def test_a_failure_on_the_way_leaves_nothing_half_done(tmp_path: Path) -> None:
    old, path = tmp_path / "verdicts.sqlite", tmp_path / "replies.sqlite"
    of_version(1, old)
    with sqlite3.connect(old) as database:
        database.execute("UPDATE verdicts SET parameters = '{' WHERE item = 'item 3'")
    with pytest.raises(ReplyStoreError, match="cannot open .*malformed JSON"):
        ReplyStore(path)
    with sqlite3.connect(old) as database:
        database.execute("UPDATE verdicts SET parameters = '{}' WHERE item = 'item 3'")
    with ReplyStore(path) as store:
        assert len(items(store)) == len(OLD)


# --- company --------------------------------------------------------------------------------------


def write_some(path: Path, writer: int, n: int, barrier: Any) -> None:
    barrier.wait()
    with ReplyStore(path) as store:
        for i in range(n):
            put(store, writer * n + i)


def test_four_processes_write_1600_replies_into_a_new_file(tmp_path: Path) -> None:
    path, context = tmp_path / "replies.sqlite", multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    writers = [
        context.Process(target=write_some, args=(path, writer, 400, barrier)) for writer in range(4)
    ]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert [one.exitcode for one in writers] == [0] * 4
    with ReplyStore(path) as store:
        assert set(items(store)) == {f"item {i}" for i in range(1600)}


def test_opening_a_new_file_together(tmp_path: Path) -> None:
    for attempt in range(10):
        path, barrier = tmp_path / f"{attempt}.sqlite", threading.Barrier(8)
        threads = [
            threading.Thread(target=write_some, args=(path, i, 1, barrier)) for i in range(8)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        with ReplyStore(path) as store:
            assert len(items(store)) == 8


def test_threads_share_a_store(store: ReplyStore) -> None:
    def write(thread: int) -> None:
        for i in range(25):
            put(store, thread * 25 + i)
            assert len(store.get([asking(prompt=f"prompt {thread * 25 + i}").key])) == 1

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(items(store)) == 200


# --- kills and full disks -------------------------------------------------------------------------

FILLING = """
import resource, sys
from pathlib import Path
from test_reply_store import items, put
from cpo.evaluation.reply_store import ReplyStore, ReplyStoreError

store = ReplyStore(Path(sys.argv[1]))
for i in range(20):
    put(store, i)
size = Path(sys.argv[1] + "-wal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, resource.RLIM_INFINITY))
try:
    for i in range(20, 10_000):
        put(store, i, "long " * 1000)
        print(i, flush=True)
except ReplyStoreError as error:
    print(error, file=sys.stderr)
    assert len(items(store)) == i
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    put(store, i)  # there is room again
"""


def test_a_disk_that_fills_up_leaves_old_replies_intact(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    stored = int(done.stdout.split()[-1]) + 1
    assert f"cannot write {path}" in done.stderr
    assert f"The {stored} stored replies are safe: free some space and run again" in done.stderr
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with ReplyStore(path) as store:
        rows = list(store.rows("verdict"))
    assert [question.item for question, _ in rows] == [f"item {i}" for i in range(stored + 1)]
    assert all(reply.text == "long " * 1000 for _, reply in rows[20:-1])


N = 400
CONCURRENCY = 4


def judge_all(path: Path, url: str) -> None:
    """What a judge does: asks what the store does not hold, and stores each reply as it comes."""
    server = ChatServer(url, "judge-1", "", concurrency=CONCURRENCY)
    prompts = [f"prompt {i}" for i in range(N)]
    questions = [Question("verdict", prompt, server.question(prompt)) for prompt in prompts]
    replies = replies_to(
        questions, server, path, lambda question, reply: "", reply_tokens=1, description=""
    )
    assert [reply.text for reply in replies] == ["A"] * N


def test_twenty_kills_lose_only_what_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    path, draw = tmp_path / "replies.sqlite", random.Random(0)
    context = multiprocessing.get_context("forkserver")  # which imports once, for all of them
    own = ["cpo.evaluation.chat", "cpo.evaluation.reply_store"]
    context.set_forkserver_preload(["openai", "pytest", *own])
    asked_again: Counter[str] = Counter()
    kills_at_work = 0
    ReplyStore(path).close()

    def stored() -> set[str]:
        with ReplyStore(path) as store:
            return set(items(store))

    with ScriptedServer(lambda request: Answer("A", delay=0.02)) as server:
        for life in range(21):
            before, asked = stored(), len(server.requests)
            client = context.Process(target=judge_all, args=(path, server.url))
            client.start()
            if life < 20:
                # From the first request on: not while Python starts.
                while len(server.requests) == asked and client.is_alive():
                    time.sleep(0.002)
                time.sleep(draw.uniform(0.0, 0.15))
                kills_at_work += client.is_alive()
                os.kill(client.pid or 0, signal.SIGKILL)
            client.join()
            while server.under_way:  # answers to nobody
                time.sleep(0.002)
            again = Counter(question_of(one) for one in server.requests[asked:])
            # Nothing that was stored is asked for, nothing twice within one life, and of what was
            # answered no more is missing than was under way.
            assert not before & set(again)
            assert not again or max(again.values()) == 1
            lost = set(again) - stored()
            assert len(lost) <= (CONCURRENCY if life < 20 else 0)
            asked_again.update(lost)
        assert kills_at_work == 20
        assert client.exitcode == 0 and stored() == {f"prompt {i}" for i in range(N)}
        # Each was asked once, and once more for each time that its answer was lost.
        assert Counter(server.questions) == {f"prompt {i}": 1 + asked_again[f"prompt {i}"]
                                             for i in range(N)}  # fmt: skip
