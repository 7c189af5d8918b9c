"""Store of chat model replies in one SQLite file; each is written as soon as it is paid for.

Any number of processes may write at once (write-ahead log). A kill or a full disk loses no stored
reply. The key is a hash of the whole question, so a second run asks only for missing replies.
Replies are stored raw and parsed at every use.
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

STORE = "replies.sqlite"  # for every judge and writer
VERDICTS = "verdicts.sqlite"  # the store of judges' replies in earlier versions
SCHEMA_VERSION = 1
WAIT = 60.0  # seconds to wait for another process to finish writing

SCHEMA = """
CREATE TABLE replies (
    key TEXT PRIMARY KEY, purpose TEXT NOT NULL, item TEXT NOT NULL, asked TEXT NOT NULL,
    raw TEXT NOT NULL, finish_reason TEXT NOT NULL, model TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    usd REAL NOT NULL, asked_at TEXT NOT NULL
)"""
# The first version of `VERDICTS` stored only the answer, not the message.
TAKE_OVER = """
INSERT INTO replies
SELECT key, 'verdict', item, json_object(
    'model', model, 'model_side', model_side, 'parameters', json(parameters), 'prompt', prompt,
    'response_a', response_a, 'response_b', response_b, 'server', server
), {}, reply_model, input_tokens, output_tokens, seconds, usd, asked_at
FROM old.verdicts ORDER BY rowid"""


class ReplyStoreError(RuntimeError):
    """The store cannot be read or written. The message gives the path and the remedy."""


@dataclass(frozen=True)
class Question:
    """A question to a chat model.

    `asked` holds all that determines the reply, in plain types: `ChatServer.question` and the parts
    of the prompt. `purpose` ("verdict") and `item`, an example's id, are only recorded.
    """

    purpose: str
    item: str
    asked: Mapping[str, Any]

    @cached_property
    def text(self) -> str:
        """`asked` as JSON, equal for equal questions."""
        return json.dumps(self.asked, sort_keys=True, separators=(",", ":"))

    @cached_property
    def key(self) -> str:
        """SHA-256 of `text`, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class ReplyStore:
    """The replies in the file `path`, created if missing. Threads may share a store.

    Raises:
        ReplyStoreError: here and in every method, if the file is no store or cannot be read or
            written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # One connection for all threads: with several, SQLite waits by polling.
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
        """Stored replies to the questions with these keys."""
        query = "SELECT * FROM replies WHERE key IN (SELECT value FROM json_each(?))"
        with self._explained("read"), self._lock:
            rows = self._connection.execute(query, [json.dumps(list(keys))]).fetchall()
        return {key: Reply(*reply) for key, _, _, _, *reply in rows}

    def put(self, question: Question, reply: Reply) -> None:
        """Write a reply to disk. The first reply to a question is never replaced."""
        row = (question.key, question.purpose, question.item, question.text, *astuple(reply))
        values = ", ".join("?" * len(row))
        query = f"INSERT INTO replies VALUES ({values}) ON CONFLICT (key) DO NOTHING"
        with self._explained("write"), self._lock:
            self._connection.execute(query, row)

    def forget(self, keys: Iterable[str]) -> None:
        """Remove the replies to the questions with these keys; the next run asks them again."""
        query = "DELETE FROM replies WHERE key IN (SELECT value FROM json_each(?))"
        with self._explained("write"), self._lock:
            self._connection.execute(query, [json.dumps(list(keys))])

    def rows(self, purpose: str) -> Iterator[tuple[Question, Reply]]:
        """All questions of a purpose with their replies, oldest first."""
        query = "SELECT * FROM replies WHERE purpose = ? ORDER BY rowid"
        with self._explained("read"), closing(self._connect()) as connection:
            for _, _, item, asked, *reply in connection.execute(query, [purpose]):
                yield Question(purpose, item, json.loads(asked)), Reply(*reply)

    def close(self) -> None:
        """Close the connection; the last process to do so merges the log into the file."""
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
        """Create the table of a new file and import the verdicts of earlier versions, atomically.

        Any other file is refused.
        """
        db = self._connection
        [version] = db.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if (version, "replies" in tables) == (SCHEMA_VERSION, True):
            return
        if version or tables:
            raise ReplyStoreError(
                f"{self.path} is the database of another program, or a reply store of the unknown "
                f"version {version}: give another path"
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
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            advice = ""
            if doing == "open":
                advice = ". Is it a reply store in a writable folder?"
            elif doing == "write" and isinstance(error, sqlite3.OperationalError):
                with suppress(sqlite3.Error), self._lock:
                    [n] = self._connection.execute("SELECT count(*) FROM replies").fetchone()
                    advice = f". The {n:,} stored replies are safe: free some space and run again"
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
    """The replies to all questions, in their order; missing ones are asked and stored.

    If all of the first replies are unusable, the run stops. It continues if the store has a usable
    reply to any of these questions. If it has one to other questions, only replies that are cut or
    empty, which other parameters may fix, stop the run.

    Args:
        questions: of one purpose, model and parameters.
        path: of the store.
        fault_of: why a reply is unusable, "" if it is usable.
        again: faults after which a question is asked once more before its reply is stored.
        reply_tokens: the longest reply expected if no parameter limits it, for the estimate.
        description: label of the progress bar.

    Raises:
        ChatError, ReplyStoreError: earlier replies stay in the store.
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
