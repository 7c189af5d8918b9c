"""Examples and articles, as text and as ids, and the hashes that name their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and its ground truth as rendered text.

    `source` is the row as loaded: a dict with instruction, context, response and category, or the
    own object of a registered corpus.
    """

    id: str
    prefix: str
    continuation: str
    category: str
    source: Any = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Article:
    """One article; `source` is the row as loaded, or the own object of a registered corpus."""

    id: str
    title: str
    text: str
    source: Any = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """Ids of a prefix and of its continuation, whose last id is EOS when `has_eos`."""

    id: str
    prefix_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    has_eos: bool


def render_prefix(instruction: str, context: str) -> str:
    """The prompt as the model reads it, with a context block only where there is a context."""
    block = f"### Context:\n{context}\n\n" if context.strip() else ""
    return f"### Instruction:\n{instruction}\n\n{block}### Response:\n"


def content_hash(rows: Iterable[Example | Article]) -> str:
    """SHA-256 over the canonical JSON of the rows, in their order; 64 hexadecimal digits."""
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
