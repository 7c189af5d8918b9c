"""The verdict store: what it holds is found again, and survives kills, full disks and company."""

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

from cpo.evaluation import verdict_store
from cpo.evaluation.chat import ChatServer, Reply, ask_all
from cpo.evaluation.verdict_store import Question, StoredVerdict, VerdictStore, VerdictStoreError

QUESTION = Question(
    prompt="Which is better, A or B?",
    model="judge-1",
    parameters={"temperature": 0, "max_tokens": 8},
    server="http://127.0.0.1/v1",
    model_side="A",
    response_a="One.",
    response_b="Two.",
)
VERDICT = StoredVerdict(
    key=QUESTION.key,
    item="dolly-7",
    verdict="tie",
    text="A tie, \u2018so\u2019 it is\0.\n",
    model="judge-1-2026",
    input_tokens=70,
    output_tokens=3,
    seconds=0.25,
    usd=0.001,
    asked_at="2026-11-21T10:00:00+00:00",
    finish_reason="stop",
    raw='{"content": "A tie, \\u2018so\\u2019 it is\\u0000.\\n"}',
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VerdictStore]:
    with VerdictStore(tmp_path / "folder" / "verdicts.sqlite") as made:
        yield made


def put(store: VerdictStore, i: int, **changes: Any) -> None:
    """A verdict on the i-th question, some of whose fields may differ."""
    asked = {name: changes.pop(name) for name in list(changes) if hasattr(QUESTION, name)}
    question = replace(QUESTION, **{"prompt": f"prompt {i}", **asked})
    store.put(question, replace(VERDICT, key=question.key, item=f"item {i}", **changes))


# --- what it holds --------------------------------------------------------------------------------


def test_a_key_holds_all_that_was_asked() -> None:
    changes: dict[str, Any] = {
        "prompt": "Which is better, B or A?", "model": "judge-2", "parameters": {"temperature": 0},
        "server": "http://127.0.0.2/v1", "model_side": "B", "response_a": "Three.",
        "response_b": "Four.",
    }  # fmt: skip
    others = [replace(QUESTION, **{name: value}) for name, value in changes.items()]
    assert len({one.key for one in [QUESTION, *others]}) == 8
    swapped = replace(QUESTION, response_a="Two.", response_b="One.")
    assert swapped.key != QUESTION.key
    same: dict[str, Any] = {"max_tokens": 8.0, "temperature": 0.0}  # another order, other types
    assert replace(QUESTION, parameters=same).key == QUESTION.key
    assert replace(QUESTION, parameters={**same, "temperature": 0.5}).key != QUESTION.key
    # Were it another tomorrow, all verdicts that were paid for would be asked again.
    canonical = (
        b'{"model":"judge-1","model_side":"A","parameters":{"max_tokens":8,"temperature":0},'
        b'"prompt":"Which is better, A or B?","response_a":"One.","response_b":"Two.",'
        b'"server":"http://127.0.0.1/v1"}'
    )
    assert QUESTION.key == hashlib.sha256(canonical).hexdigest()


def test_what_was_put_is_found_again(store: VerdictStore) -> None:
    store.put(QUESTION, VERDICT)
    with VerdictStore(store.path) as again:
        assert again.get([QUESTION.key, "unknown"]) == {QUESTION.key: VERDICT}
        # The first stands: what tables were made of does not change.
        again.put(QUESTION, replace(VERDICT, verdict="A"))
        assert again.get([QUESTION.key]) == {QUESTION.key: VERDICT}
        assert again.get([]) == {}


def test_many_are_found_at_once(store: VerdictStore) -> None:
    for i in range(20):
        put(store, i)
    keys = [replace(QUESTION, prompt=f"prompt {i}").key for i in range(50_000)]
    assert sorted(one.item for one in store.get(keys).values()) == sorted(
        f"item {i}" for i in range(20)
    )


def test_rows_and_summary(store: VerdictStore) -> None:
    put(store, 0, verdict="A", usd=0.5, asked_at="2026-11-02T00:00:00+00:00")
    put(store, 1, verdict="invalid", usd=0.25, text="", why="empty")
    put(store, 2, verdict="B", usd=2.0, output_tokens=30, asked_at="2026-11-01T00:00:00+00:00")
    put(store, 3, verdict="B", model="judge-0")
    (row,) = store.rows(verdict="invalid")
    assert row["prompt"] == "prompt 1" and row["response_b"] == "Two." and row["text"] == ""
    assert row["parameters"] == {"temperature": 0, "max_tokens": 8}
    assert (row["model"], row["reply_model"]) == ("judge-1", "judge-1-2026")
    assert [one["item"] for one in store.rows()] == [f"item {i}" for i in range(4)]
    assert [one["item"] for one in store.rows(verdict="B", model="judge-1")] == ["item 2"]
    with pytest.raises(VerdictStoreError, match="no column 'modell'; they have key, item"):
        list(store.rows(modell="judge-1"))
    lines = store.summary()
    assert [line["model"] for line in lines] == ["judge-0", "judge-1"]
    assert store.summary(model="judge-1") == lines[1:]
    assert lines[1] == {
        "server": "http://127.0.0.1/v1", "model": "judge-1", "verdicts": 3,
        "A": 1, "B": 1, "tie": 0, "invalid": 1,
        "unclear": 0, "cut": 0, "empty": 1, "refused": 0, "too long": 0,
        "input_tokens": 210, "output_tokens": 36, "tokens": 246, "usd": 2.75,
        "first": "2026-11-01T00:00:00+00:00", "last": "2026-11-21T10:00:00+00:00",
    }  # fmt: skip


def test_only_verdicts_of_their_own_question_are_stored(store: VerdictStore) -> None:
    # "INSERT OR IGNORE" would drop this one and say nothing.
    with pytest.raises(VerdictStoreError, match="CHECK constraint"):
        store.put(QUESTION, replace(VERDICT, verdict="C"))  # type: ignore[arg-type]
    with pytest.raises(VerdictStoreError, match="dolly-7: its verdict is of another question"):
        store.put(replace(QUESTION, prompt="?"), VERDICT)
    assert not list(store.rows())


def test_what_is_no_store_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    text, other, newer = tmp_path / "text", tmp_path / "other", tmp_path / "newer"
    text.write_text("a text of some length, " * 100)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE verdicts (key TEXT)")
    VerdictStore(newer).close()
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version = 7")
    for path, says in {
        text: "cannot open .*not a database. Is it a verdict store",
        other: "is the database of another program: give another path",
        newer: "is a verdict store of version 7, which this program does not know",
        tmp_path: "cannot open .*unable to open",
        text / "below": "cannot open .*(Not a directory|File exists)",
    }.items():
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(VerdictStoreError, match=says):
            VerdictStore(path)
        assert not path.is_file() or path.read_bytes() == before


def test_each_verdict_is_on_the_disk_before_the_next_request(store: VerdictStore) -> None:
    # Of the file: a write-ahead log. Of a connection: each commit waits for the disk (2, FULL).
    (mode,) = sqlite3.connect(store.path).execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = store._connection.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)
    put(store, 1)
    assert sqlite3.connect(store.path).execute("SELECT count(*) FROM verdicts").fetchone() == (1,)


# --- reading again --------------------------------------------------------------------------------

# As version 1 made it, and what it held of replies: text and verdict.
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


def of_version_1(path: Path, copies: int = 1) -> None:
    with sqlite3.connect(path) as database:
        database.execute(VERSION_1)
        database.execute(f"PRAGMA application_id = {0x43504F76}")
        database.execute("PRAGMA user_version = 1")
        for number in range(copies * len(OLD)):
            text, verdict = OLD[number % len(OLD)]
            question = replace(QUESTION, prompt=f"prompt {number}")
            values = [
                question.key, f"item {number}", verdict, text, "judge-1-2026", 70, 3, 0.25, 0.001,
                "2026-11-21T10:00:00+00:00", question.prompt, "judge-1",
                '{"temperature": 0, "max_tokens": 8}', question.server, "A", "One.", "Two.",
            ]  # fmt: skip
            marks = ", ".join("?" * len(values))
            database.execute(f"INSERT INTO verdicts VALUES ({marks})", values)


def test_a_store_of_version_1_is_brought_up_to_date_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    of_version_1(path)
    for _ in range(2):  # once, and then it stays
        with VerdictStore(path) as store:
            rows = list(store.rows())
            assert [(row["verdict"], row["why"]) for row in rows[:5]] == READ_AGAIN
            # The answers, and beside them the texts as they were.
            assert [row["text"] for row in rows] == ["A", "Perhaps.", "", "B", "", "B\0"]
            assert [json.loads(row["raw"])["content"] for row in rows] == [text for text, _ in OLD]
            assert {row["finish_reason"] for row in rows} == {""}  # nobody knows
            found = store.get([replace(QUESTION, prompt="prompt 3").key])
            [one] = found.values()
            assert (one.verdict, one.usd, one.item) == ("B", 0.001, "item 3")
    assert len(rows) == len(OLD)
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (2,)


def test_what_a_program_of_version_1_still_writes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    of_version_1(path)
    running = sqlite3.connect(path)  # of the old program: it knows the old columns alone
    VerdictStore(path).close()
    with running:
        running.execute(
            "INSERT INTO verdicts (key, item, verdict, text, reply_model, input_tokens, "
            "output_tokens, seconds, usd, asked_at, prompt, model, parameters, server, model_side, "
            "response_a, response_b) SELECT 'new', 'late', 'A', 'Perhaps.', reply_model, 1, 1, "
            "1.0, 1.0, asked_at, prompt, model, parameters, server, 'A', '', '' FROM verdicts "
            "WHERE item = 'item 0'"
        )
    with VerdictStore(path) as store:
        assert store.get(["new"])["new"].why == "unclear"


def open_old(path: Path, barrier: Any) -> None:
    barrier.wait()
    with VerdictStore(path) as store:
        assert [(row["verdict"], row["why"]) for row in store.rows()][:5] == READ_AGAIN


def test_several_processes_bring_a_store_up_to_date_together(tmp_path: Path) -> None:
    path, context = tmp_path / "verdicts.sqlite", multiprocessing.get_context("forkserver")
    of_version_1(path, copies=200)
    barrier = context.Barrier(3)
    openers = [context.Process(target=open_old, args=(path, barrier)) for _ in range(3)]
    for one in openers:
        one.start()
    for one in openers:
        one.join()
    assert [one.exitcode for one in openers] == [0] * 3


def test_a_failure_on_the_way_leaves_the_old_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = tmp_path / "verdicts.sqlite", []

    def fails(text: str) -> Any:
        calls.append(text)
        if len(calls) == 2:
            raise KeyboardInterrupt  # what a kill does to the transaction, too
        return "tie"

    of_version_1(path)
    monkeypatch.setattr(verdict_store, "parse_verdict", fails)
    with pytest.raises(KeyboardInterrupt):
        VerdictStore(path)
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
        assert database.execute("SELECT text, verdict FROM verdicts").fetchall() == OLD


def test_another_parser_reads_what_is_stored_and_nobody_is_asked(
    store: VerdictStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = '{"content": "<think>A?</think>Bee"}'
    put(store, 0, verdict="invalid", why="unclear", text="Bee", raw=raw)
    put(store, 1, verdict="invalid", why="cut", text="Bee", finish_reason="length", raw=raw)
    put(store, 2, verdict="invalid", why="refused", text="", finish_reason="content_filter",
        raw='{"error": {"code": "content_filter"}}')  # fmt: skip
    put(store, 3, verdict="invalid", why="too long", text="", raw='{"error": {}}',
        finish_reason="context_length_exceeded")  # fmt: skip
    monkeypatch.setattr(verdict_store, "parse_verdict", lambda text: {"Bee": "B"}[text])
    with VerdictStore(store.path) as again:  # the same version: nothing is read
        assert [row["verdict"] for row in again.rows()] == ["invalid"] * 4
    monkeypatch.setattr(verdict_store, "PARSER_VERSION", verdict_store.PARSER_VERSION + 1)
    with VerdictStore(store.path) as again:
        found = [(row["verdict"], row["why"], row["text"]) for row in again.rows()]
    assert found == [
        ("B", "", "Bee"), ("invalid", "cut", "Bee"), ("invalid", "refused", ""),
        ("invalid", "too long", ""),
    ]  # fmt: skip


def test_a_kind_of_invalid_verdicts_can_be_forgotten(store: VerdictStore) -> None:
    put(store, 0)
    put(store, 1, verdict="invalid", why="refused")
    put(store, 2, verdict="invalid", why="refused", model="judge-0")
    put(store, 3, verdict="invalid", why="cut")
    assert store.forget("refused", model="judge-1") == 1
    assert [row["item"] for row in store.rows()] == ["item 0", "item 2", "item 3"]
    assert store.forget("refused") == 1 and store.forget("refused") == 0
    assert store.gave_verdicts(replace(QUESTION, prompt="any"))
    assert not store.gave_verdicts(replace(QUESTION, parameters={"temperature": 0}))
    assert not store.gave_verdicts(replace(QUESTION, model="judge-0"))


# --- company --------------------------------------------------------------------------------------


def write_some(path: Path, writer: int, n: int, barrier: Any) -> None:
    barrier.wait()
    with VerdictStore(path) as store:
        for i in range(n):
            put(store, writer * n + i)


def test_four_processes_write_1600_verdicts_into_a_new_file(tmp_path: Path) -> None:
    path, context = tmp_path / "verdicts.sqlite", multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    writers = [
        context.Process(target=write_some, args=(path, writer, 400, barrier)) for writer in range(4)
    ]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert [one.exitcode for one in writers] == [0] * 4
    with VerdictStore(path) as store:
        assert {row["item"] for row in store.rows()} == {f"item {i}" for i in range(1600)}


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
        with VerdictStore(path) as store:
            assert len(list(store.rows())) == 8


def test_a_file_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    outcome: list[object] = []

    def open_it() -> None:
        try:
            with VerdictStore(path) as store:
                outcome.append(list(store.rows()))
        except Exception as error:
            outcome.append(error)

    opening = threading.Thread(target=open_it)
    opening.start()
    time.sleep(0.3)  # long enough to look into the file, which is still empty
    assert not outcome
    other.execute(verdict_store.SCHEMA)
    other.execute(f"PRAGMA application_id = {verdict_store.APPLICATION}")
    other.execute(f"PRAGMA user_version = {verdict_store.VERSION}")
    other.execute("COMMIT")
    other.close()
    opening.join(timeout=60)
    assert outcome == [[]]


def test_threads_share_a_store(store: VerdictStore) -> None:
    def write(thread: int) -> None:
        for i in range(25):
            put(store, thread * 25 + i)
            assert len(store.get([replace(QUESTION, prompt=f"prompt {thread * 25 + i}").key])) == 1

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sum(1 for _ in store.rows()) == 200


# --- kills and full disks -------------------------------------------------------------------------

FILLING = """
import resource, sys
from pathlib import Path
from test_verdict_store import put
from cpo.evaluation.verdict_store import VerdictStore, VerdictStoreError

store = VerdictStore(Path(sys.argv[1]))
for i in range(20):
    put(store, i)
size = Path(sys.argv[1] + "-wal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, resource.RLIM_INFINITY))
try:
    for i in range(20, 10_000):
        put(store, i, text="long " * 1000)
        print(i, flush=True)
except VerdictStoreError as error:
    print(error, file=sys.stderr)
    assert len(list(store.rows())) == i
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    put(store, i)  # there is room again
"""


def test_a_disk_that_fills_up_leaves_old_verdicts_intact(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    stored = int(done.stdout.split()[-1]) + 1
    assert f"cannot write {path}" in done.stderr
    assert f"The {stored} verdicts in it are safe: make room, and run again" in done.stderr
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with VerdictStore(path) as store:
        rows = list(store.rows())
    assert [row["item"] for row in rows] == [f"item {i}" for i in range(stored + 1)]
    assert all(row["text"] == "long " * 1000 for row in rows[20:-1])


N = 400
CONCURRENCY = 4


def judge_all(path: Path, url: str) -> None:
    """What a judge does: asks what the store does not hold, and stores each reply as it comes."""
    questions = [replace(QUESTION, prompt=f"prompt {i}", server=url) for i in range(N)]
    with VerdictStore(path) as store:
        stored = store.get(question.key for question in questions)
        missing = [question for question in questions if question.key not in stored]

        def keep(index: int, reply: Reply) -> None:
            question = missing[index]
            verdict = replace(VERDICT, key=question.key, item=question.prompt, text=reply.text)
            store.put(question, verdict)

        ask_all(
            ChatServer(url, "judge-1", "", concurrency=CONCURRENCY),
            [question.prompt for question in missing],
            keep,
            reply_tokens=1,
            description="",
        )


def test_twenty_kills_lose_only_what_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    path, draw = tmp_path / "verdicts.sqlite", random.Random(0)
    context = multiprocessing.get_context("forkserver")  # which imports once, for all of them
    own = ["cpo.evaluation.chat", "cpo.evaluation.verdict_store"]
    context.set_forkserver_preload(["openai", "pytest", *own])
    asked_again: Counter[str] = Counter()
    kills_at_work = 0
    VerdictStore(path).close()

    def stored() -> set[str]:
        with VerdictStore(path) as store:
            return {row["item"] for row in store.rows()}

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
