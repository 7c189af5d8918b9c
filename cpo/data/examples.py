"""Examples and articles as text and as token ids, their hashes, and the report of dropped rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and its ground truth as rendered text.

    `source` is the row as loaded: a dict with instruction, context, response and category, or a
    registered corpus's own object.
    """

    id: str
    prefix: str
    continuation: str
    category: str
    source: Any = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Article:
    """One article; `source` is the row as loaded, or a registered corpus's own object."""

    id: str
    title: str
    text: str
    source: Any = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """Token ids of a prefix and its continuation; the last id is EOS if `has_eos`."""

    id: str
    prefix_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    has_eos: bool


def render_prefix(instruction: str, context: str) -> str:
    """The prompt as the model reads it; it has a context block only if there is a context."""
    block = f"### Context:\n{context}\n\n" if context.strip() else ""
    return f"### Instruction:\n{instruction}\n\n{block}### Response:\n"


def content_hash(rows: Iterable[Example | Article]) -> str:
    """SHA-256 over the canonical JSON of the rows, in order; 64 hexadecimal digits."""
    content = hashlib.sha256()
    for row in rows:
        texts = [getattr(row, field.name) for field in fields(row) if field.compare]
        content.update(_canonical(texts) + b"\n")
    return content.hexdigest()


def digest(texts: Sequence[str]) -> str:
    """SHA-256 over the canonical JSON of texts; 64 hexadecimal digits."""
    return hashlib.sha256(_canonical(texts)).hexdigest()


def _canonical(texts: Sequence[str]) -> bytes:
    return json.dumps(texts, separators=(",", ":")).encode()


class DataError(ValueError):
    """Data that cannot be used; the message says where, what is wrong and what to do."""


@dataclass
class LoadReport:
    """Row counts of one stage; `dropped` and `noted` map a reason to row ids or positions.

    `origin` begins every error message. If `remedy` says what to do about a bad row, the first bad
    row raises instead of being dropped.
    """

    what: str
    origin: str = ""
    remedy: str = ""
    read: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    noted: dict[str, list[str]] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Rows read and not dropped."""
        return self.read - sum(map(len, self.dropped.values()))

    def drop(self, reason: str, row: str) -> None:
        """Count a row as dropped.

        Raises:
            DataError: `remedy` is set.
        """
        self.dropped.setdefault(reason, []).append(row)
        if self.remedy:
            raise self.refusal(f"{row}: {reason}. {self.remedy}")

    def note(self, reason: str, row: str) -> None:
        """Count a remark on a row that is kept."""
        self.noted.setdefault(reason, []).append(row)

    def refusal(self, message: str) -> DataError:
        """The error to raise: location, problem, and what was read so far."""
        counts = f"\n{self.summary()}" if self.read else ""
        return DataError(f"{self.origin}: {message}{counts}")

    def summary(self, names: int = 5) -> str:
        """A line of totals, then one per reason with the first `names` rows it applies to."""
        lines = [f"{self.what}: {self.read:,} read, {self.kept:,} kept."]
        for verb, rows_by_reason in (("Dropped", self.dropped), ("Noted", self.noted)):
            for reason, rows in rows_by_reason.items():
                more = ", ..." if len(rows) > names else ""
                lines.append(f"{verb} {len(rows):,}: {reason} ({', '.join(rows[:names])}{more}).")
        return "\n".join(lines)
