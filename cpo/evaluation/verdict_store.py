"""Verdicts of a judge model, each stored the moment it was paid for, in one SQLite file.

Any number of processes may write at once (write-ahead log), and a kill or a full disk loses none
of what was stored. A verdict is found again by all that was asked, so that a second run asks only
for what is missing. Whole replies are stored: where they are to be read otherwise than before, they
are read again when the store is opened, and nobody is asked.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from cpo.evaluation.judge_prompts import PARSER_VERSION, Verdict, parse_verdict
from cpo.evaluation.replies import FAULTS, read_message

APPLICATION = 0x43504F76  # "CPOv": tells a store from the databases of other programs
VERSION = 2
WAIT = 60.0  # seconds for another process to finish writing
INVALID_KINDS = ("unclear", *FAULTS)  # why a verdict is invalid: the words, or the reply

SCHEMA = """
CREATE TABLE verdicts (
    key TEXT PRIMARY KEY, item TEXT NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('A', 'B', 'tie', 'invalid')),
    text TEXT NOT NULL, reply_model TEXT NOT NULL, input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, seconds REAL NOT NULL, usd REAL NOT NULL,
    asked_at TEXT NOT NULL, prompt TEXT NOT NULL, model TEXT NOT NULL, parameters TEXT NOT NULL,
    server TEXT NOT NULL, model_side TEXT NOT NULL,
    response_a TEXT NOT NULL, response_b TEXT NOT NULL,
    why TEXT NOT NULL DEFAULT '', finish_reason TEXT NOT NULL DEFAULT '',
    raw TEXT NOT NULL DEFAULT '', parser INTEGER NOT NULL DEFAULT 1
)"""
INDEX = "CREATE INDEX IF NOT EXISTS verdicts_by_parser ON verdicts (parser)"
# The columns that version 1 has not, as `ALTER TABLE` takes them.
SINCE_VERSION_2 = (
    "why TEXT NOT NULL DEFAULT ''", "finish_reason TEXT NOT NULL DEFAULT ''",
    "raw TEXT NOT NULL DEFAULT ''", "parser INTEGER NOT NULL DEFAULT 1",
)  # fmt: skip


class VerdictStoreError(RuntimeError):
    """The store cannot be read or written; the message says where, what is safe, what to do."""


@dataclass(frozen=True)
class Question:
    """All that was asked of a judge; two that differ in anything are two questions.

    `prompt` is the whole text that is sent, `server` its address, `model_side` the side on which
    the model's response was shown.
    """

    prompt: str
    model: str
    parameters: Mapping[str, float | int | str]
    server: str
    model_side: Literal["A", "B"]
    response_a: str
    response_b: str

    @cached_property
    def key(self) -> str:
        """The SHA-256 of all fields, in hexadecimal."""
        text = json.dumps(self.plain(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def plain(self) -> dict[str, Any]:
        """All fields as JSON takes them; a temperature of 0.0 is one of 0."""
        parameters = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in self.parameters.items()
        }
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "parameters": parameters
        }


@dataclass(frozen=True)
class StoredVerdict:
    """What a judge said of a question, and what it took.

    `item` is the prompt's id, `text` the answer, `model` the one that the reply names. Seconds,
    USD, and `asked_at` in UTC. A reply that is no verdict is stored, as "invalid": it was paid for;
    `why` is then one of `INVALID_KINDS`, else "". `finish_reason` is the server's, "" where it is
    not known, and `raw` the whole message as JSON, or the error with which this prompt alone was
    refused. A request that failed is not stored.
    """

    key: str
    item: str
    verdict: Verdict
    text: str
    model: str
    input_tokens: int
    output_tokens: int
    seconds: float
    usd: float
    asked_at: str
    why: str = ""
    finish_reason: str = ""
    raw: str = ""


def read_verdict(text: str, fault: str) -> tuple[Verdict, str]:
    """The verdict in an answer, and why it is invalid: a reply with a fault never is a verdict."""
    verdict = "invalid" if fault else parse_verdict(text)
    return verdict, fault or ("unclear" if verdict == "invalid" else "")


# Two models are named: `model` is the one that was asked for, `reply_model` what the reply says.
REPLIED = tuple({"model": "reply_model"}.get(one.name, one.name) for one in fields(StoredVerdict))
ASKED = tuple(one.name for one in fields(Question))


class VerdictStore:
    """The verdicts in the file `path`, which is made where it is missing. Threads may share it.

    Raises:
        VerdictStoreError: here and in every method, where the file is no store, or cannot be read
            or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # One connection for all threads: between two, SQLite waits by polling.
        self._lock = Lock()
        with self._explained("open"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._connect()
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def get(self, keys: Iterable[str]) -> dict[str, StoredVerdict]:
        """What is stored of the questions with these keys."""
        wanted = json.dumps(list(keys))
        columns = ", ".join(REPLIED)
        query = f"SELECT {columns} FROM verdicts WHERE key IN (SELECT value FROM json_each(?))"
        with self._explained("read"), self._lock:
            rows = self._connection.execute(query, [wanted]).fetchall()
        return {row[0]: StoredVerdict(*row) for row in rows}

    def put(self, question: Question, verdict: StoredVerdict) -> None:
        """Stores a verdict; it is on the disk when this returns. The first of a question stands."""
        if verdict.key != question.key:
            raise VerdictStoreError(f"{verdict.item}: its verdict is of another question")
        asked = question.plain()
        values = [*astuple(verdict), *(asked[name] for name in ASKED)]
        values[len(REPLIED) + ASKED.index("parameters")] = json.dumps(asked["parameters"])
        values.append(PARSER_VERSION)
        columns = ", ".join((*REPLIED, *ASKED, "parser"))
        places = ", ".join("?" * len(values))
        # Not INSERT OR IGNORE, which would drop a verdict of a wrong kind without a word.
        query = f"INSERT INTO verdicts ({columns}) VALUES ({places}) ON CONFLICT (key) DO NOTHING"
        with self._explained("write"), self._lock:
            self._connection.execute(query, values)

    def gave_verdicts(self, question: Question) -> bool:
        """Whether the same model with the same parameters has given a verdict to any question."""
        asked = question.plain()
        query = """
            SELECT EXISTS (SELECT 1 FROM verdicts WHERE model = ? AND server = ? AND parameters = ?
                AND verdict <> 'invalid')"""
        values = [question.model, question.server, json.dumps(asked["parameters"])]
        with self._explained("read"), self._lock:
            return bool(self._connection.execute(query, values).fetchone()[0])

    def forget(self, why: str, **filters: str) -> int:
        """Removes the invalid verdicts of a kind, so that they are asked for again; how many."""
        query = f"DELETE FROM verdicts {_where({'why': why, **filters})}"
        with self._explained("write"), self._lock:
            return self._connection.execute(query, [why, *filters.values()]).rowcount

    def rows(self, **filters: str) -> Iterator[dict[str, Any]]:
        """Every verdict with all that was asked, oldest first; `rows(verdict="invalid")` some."""
        query = f"SELECT {', '.join(REPLIED + ASKED)} FROM verdicts {_where(filters)}"
        with self._explained("read"), closing(self._connect()) as connection:
            for values in connection.execute(f"{query} ORDER BY rowid", [*filters.values()]):
                row = dict(zip(REPLIED + ASKED, values, strict=True))
                yield row | {"parameters": json.loads(row["parameters"])}

    def summary(self, **filters: str) -> list[dict[str, Any]]:
        """For each server and model asked, what was said, and what it took.

        Keys: server, model, verdicts (how many), A, B, tie, invalid, each of `INVALID_KINDS`,
        input_tokens, output_tokens, tokens (both), usd, first, last (dates).
        """
        kinds = ", ".join(f"sum(why = '{kind}') AS \"{kind}\"" for kind in INVALID_KINDS)
        query = f"""
            SELECT server, model, count(*) AS verdicts, sum(verdict = 'A') AS A,
                sum(verdict = 'B') AS B, sum(verdict = 'tie') AS tie,
                sum(verdict = 'invalid') AS invalid, {kinds}, sum(input_tokens) AS input_tokens,
                sum(output_tokens) AS output_tokens, sum(input_tokens + output_tokens) AS tokens,
                sum(usd) AS usd, min(asked_at) AS first, max(asked_at) AS last
            FROM verdicts {_where(filters)} GROUP BY server, model ORDER BY server, model"""
        with self._explained("read"), self._lock:
            cursor = self._connection.execute(query, [*filters.values()])
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, values, strict=True)) for values in cursor]

    def close(self) -> None:
        """Ends the connection, and folds the log into the file where no other process uses it."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> VerdictStore:
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
        """Makes the table where the file is new, or brings it up to date; refuses a file that is
        something else. Of several processes one does it, and a kill leaves all or nothing of it."""
        db = self._connection
        db.execute("BEGIN IMMEDIATE")
        application, version, tables = (
            db.execute(query).fetchone()[0]
            for query in (
                "PRAGMA application_id",
                "PRAGMA user_version",
                "SELECT count(*) FROM sqlite_master",
            )
        )
        if (application, version, tables) == (0, 0, 0):
            db.execute(SCHEMA)
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {VERSION}")
            application, version = APPLICATION, VERSION
        if (application, version) == (APPLICATION, 1):
            for column in SINCE_VERSION_2:
                db.execute(f"ALTER TABLE verdicts ADD COLUMN {column}")
            db.execute(f"PRAGMA user_version = {VERSION}")
            version = VERSION
        if (application, version) != (APPLICATION, VERSION):
            what = f"is a verdict store of version {version}, which this program does not know"
            if application != APPLICATION:
                what = "is the database of another program"
            raise VerdictStoreError(f"{self.path} {what}: give another path")
        db.execute(INDEX)
        self._read_again()
        db.execute("COMMIT")
        # SQLite does not wait for others with a change of mode, as it does with everything else.
        until = time.monotonic() + WAIT
        while True:
            try:
                db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def _read_again(self) -> None:
        """Replies that an older parser read."""
        db = self._connection
        query = "SELECT key, text, raw, finish_reason FROM verdicts WHERE parser < ?"
        for key, text, raw, finish_reason in db.execute(query, [PARSER_VERSION]).fetchall():
            raw = raw or json.dumps({"content": text})
            message = read_message(json.loads(raw), finish_reason)
            verdict, why = read_verdict(message.text, message.fault)
            db.execute(
                "UPDATE verdicts SET text = ?, raw = ?, verdict = ?, why = ?, parser = ? "
                "WHERE key = ?",
                [message.text, raw, verdict, why, PARSER_VERSION, key],
            )

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            advice = ""
            if doing == "open":
                advice = ". Is it a verdict store, in a folder that may be written to?"
            elif doing == "write" and isinstance(error, sqlite3.OperationalError):
                with suppress(sqlite3.Error), self._lock:
                    n = self._connection.execute("SELECT count(*) FROM verdicts").fetchone()[0]
                    advice = f". The {n:,} verdicts in it are safe: make room, and run again; "
                    advice += "they are not asked for again"
            raise VerdictStoreError(f"cannot {doing} {self.path}: {error}{advice}") from error


def _where(filters: Mapping[str, str]) -> str:
    if unknown := sorted(set(filters) - set(REPLIED + ASKED)):
        known = ", ".join(REPLIED + ASKED)
        raise VerdictStoreError(f"verdicts have no column '{unknown[0]}'; they have {known}")
    return "WHERE " + " AND ".join(["1", *(f"{name} = ?" for name in filters)])
