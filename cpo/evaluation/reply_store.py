"""Replies of chat models, each stored the moment it was paid for, in one SQLite file.

Any number of processes may write at once (write-ahead log), and a kill or a full disk loses none
of what was stored. A reply is found again by all that was asked, so that a second run asks only for
what is missing. Replies are stored whole, and read anew whenever they are used.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from filelock import FileLock

from cpo.evaluation.chat import AGAIN, ChatServer, ask_all
from cpo.evaluation.replies import Reply

STORE = "replies.sqlite"  # of every judge and writer
VERDICTS = "verdicts.sqlite"  # the file that earlier versions kept a judge's replies in
VERSION = 1
WAIT = 60.0  # seconds for another process to finish writing

SCHEMA = """
CREATE TABLE replies (
    key TEXT PRIMARY KEY, purpose TEXT NOT NULL, item TEXT NOT NULL, asked TEXT NOT NULL,
    raw TEXT NOT NULL, finish_reason TEXT NOT NULL, model TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    usd REAL NOT NULL, asked_at TEXT NOT NULL
)"""
# The first version of `VERDICTS` kept the answer alone, without the message.
TAKE_OVER = """
INSERT INTO replies
SELECT key, 'verdict', item, json_object(
    'model', model, 'model_side', model_side, 'parameters', json(parameters), 'prompt', prompt,
    'response_a', response_a, 'response_b', response_b, 'server', server
), {}, reply_model, input_tokens, output_tokens, seconds, usd, asked_at
FROM old.verdicts ORDER BY rowid"""


class ReplyStoreError(RuntimeError):
    """The store cannot be read or written; the message says where, what is safe, what to do."""


@dataclass(frozen=True)
class Question:
    """A question to a chat model. `asked` is all that determines its reply, in plain types: what
    `ChatServer.question` gives, and what the prompt was made of. `purpose`, as "verdict", and
    `item`, an example's id, are for the record alone."""

    purpose: str
    item: str
    asked: Mapping[str, Any]

    @cached_property
    def text(self) -> str:
        """`asked` as JSON, equal for equal questions."""
        return json.dumps(self.asked, sort_keys=True, separators=(",", ":"))

    @cached_property
    def key(self) -> str:
        """The SHA-256 of all that is asked, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class ReplyStore:
    """The replies in the file `path`, which is made where it is missing. Threads may share it.

    Raises:
        ReplyStoreError: here and in every method, where the file is no store, or cannot be read or
            written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # One connection for all threads: between two, SQLite waits by polling.
        self._lock = Lock()
        with self._explained("open"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock")):
                self._connection = self._connect()
                try:
                    self._prepare()
                except BaseException:
                    self._connection.close()
                    raise

    def get(self, keys: Iterable[str]) -> dict[str, Reply]:
        """What is stored of the questions with these keys."""
        query = "SELECT * FROM replies WHERE key IN (SELECT value FROM json_each(?))"
        with self._explained("read"), self._lock:
            rows = self._connection.execute(query, [json.dumps(list(keys))]).fetchall()
        return {key: Reply(*reply) for key, _, _, _, *reply in rows}

    def put(self, question: Question, reply: Reply) -> None:
        """Stores a reply; it is on the disk when this returns. The first to a question stands."""
        row = (question.key, question.purpose, question.item, question.text, *astuple(reply))
        places = ", ".join("?" * len(row))
        query = f"INSERT INTO replies VALUES ({places}) ON CONFLICT (key) DO NOTHING"
        with self._explained("write"), self._lock:
            self._connection.execute(query, row)

    def forget(self, keys: Iterable[str]) -> None:
        """Removes the replies to the questions with these keys, so that they are asked again."""
        query = "DELETE FROM replies WHERE key IN (SELECT value FROM json_each(?))"
        with self._explained("write"), self._lock:
            self._connection.execute(query, [json.dumps(list(keys))])

    def rows(self, purpose: str) -> Iterator[tuple[Question, Reply]]:
        """Every question for a purpose with its reply, oldest first."""
        query = "SELECT * FROM replies WHERE purpose = ? ORDER BY rowid"
        with self._explained("read"), closing(self._connect()) as connection:
            for _, _, item, asked, *reply in connection.execute(query, [purpose]):
                yield Question(purpose, item, json.loads(asked)), Reply(*reply)

    def close(self) -> None:
        """Ends the connection, and folds the log into the file where no other process uses it."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> ReplyStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _connect(self) -> sqlite3.Connection:
        # Without `isolation_level`, each statement is a transaction, committed when it returns.
        connection = sqlite3.connect(
            self.path, timeout=WAIT, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self) -> None:
        """Makes the table where the file is new, with the verdicts of earlier versions beside it,
        and refuses a file that is something else. A kill leaves all or nothing of it."""
        db = self._connection
        [version] = db.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if (version, "replies" in tables) == (VERSION, True):
            return
        if version or tables:
            raise ReplyStoreError(
                f"{self.path} is the database of another program, or a store of replies of version "
                f"{version}, which this program does not know: give another path"
            )
        db.execute("PRAGMA journal_mode = WAL")
        verdicts = self.path.with_name(VERDICTS)
        if verdicts.is_file():
            db.execute("ATTACH ? AS old", [str(verdicts)])
        db.execute("BEGIN IMMEDIATE")
        db.execute(SCHEMA)
        if verdicts.is_file():
            db.create_function("message", 1, lambda text: json.dumps({"content": text}))
            [old] = db.execute("PRAGMA old.user_version").fetchone()
            message = "message(text), ''"
            if old > 1:
                message = "iif(raw = '', message(text), raw), finish_reason"
            db.execute(TAKE_OVER.format(message))
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            advice = ""
            if doing == "open":
                advice = ". Is it a store of replies, in a folder that may be written to?"
            elif doing == "write" and isinstance(error, sqlite3.OperationalError):
                with suppress(sqlite3.Error), self._lock:
                    [n] = self._connection.execute("SELECT count(*) FROM replies").fetchone()
                    advice = f". The {n:,} replies in it are safe: make room, and run again; "
                    advice += "they are not asked for again"
            raise ReplyStoreError(f"cannot {doing} {self.path}: {error}{advice}") from error


def replies_to(
    questions: Sequence[Question],
    server: ChatServer,
    path: Path,
    fault_of: Callable[[Question, Reply], str],
    *,
    again: Container[str] = (),
    reply_tokens: int,
    description: str,
) -> list[Reply]:
    """The reply to each question, in their order; the store's, or asked for and stored as it comes.

    Where none of the first replies is of use, the rest is not asked; but a model that was of use
    to any of these questions goes on, and one that was to others is stopped only by what other
    parameters mend: replies that are cut or empty.

    Args:
        questions: of one purpose, model and parameters.
        path: of the store.
        fault_of: why a reply is of no use, "" where it is of use.
        again: faults with which a question is asked once more before the reply is stored.
        reply_tokens: the longest reply expected where the parameters do not say, for the estimate.
        description: of the progress bar.

    Raises:
        ChatError, ReplyStoreError: what was answered before is kept.
    """
    by_key = {question.key: question for question in questions}
    asked_again: set[str] = set()
    with ReplyStore(path) as store:
        stored = store.get(by_key)
        missing = [question for key, question in by_key.items() if key not in stored]
        goes_on = any(not fault_of(by_key[key], reply) for key, reply in stored.items())
        known = bool(missing) and any(
            server.question(question.asked["prompt"]).items() <= question.asked.items()
            and not fault_of(question, reply)
            for question, reply in store.rows(missing[0].purpose)
        )

        def keep(index: int, reply: Reply) -> str:
            question = missing[index]
            fault = fault_of(question, reply)
            if fault in again and question.key not in asked_again:
                asked_again.add(question.key)
                return AGAIN
            store.put(question, reply)
            tolerated = goes_on or (known and fault not in ("cut", "empty"))
            return "" if tolerated else fault

        ask_all(
            server,
            [question.asked["prompt"] for question in missing],
            keep,
            reply_tokens=server.reply_tokens(reply_tokens),
            description=description,
        )
        stored = store.get(by_key)
    return [stored[question.key] for question in questions]
