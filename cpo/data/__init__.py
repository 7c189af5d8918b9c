"""Data: instruction pairs and articles, loaded to one shape, and turned into token ids once.

Every loader ends in `Example` or `Article`, with a `LoadReport` that counts and names each row left
out. Splits are ordered by the content of the rows, so that copies of a data set in another file,
format or row order are split alike.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEMPLATE = "### Instruction:\n{instruction}\n\n### Context:\n{context}\n\n### Response:\n"
TEMPLATE_WITHOUT_CONTEXT = TEMPLATE.replace("### Context:\n{context}\n\n", "")
END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"
FORMATS = (".jsonl", ".jsonl.gz", ".parquet")
SPLITS = ("train", "validation", "test")
FEWEST_ROWS = 8  # below that, train, validation and test mean nothing
FEWEST_ARTICLE_TOKENS = 8
HUB_ARTICLES = 20_000

OnBadRow = Literal["drop", "refuse"]
Task = Literal["instructions", "articles"]
PairColumn = Literal["instruction", "context", "response", "category", "id", "split"]
ArticleColumn = Literal["text", "title", "id", "split"]


class DataError(ValueError):
    """Data that cannot be used; the message says where, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and its ground truth as rendered text.

    `source` is the row as loaded: a dict with instruction, context, response and category (Dolly,
    own files), or the world's own example.
    """

    id: str
    prefix: str
    continuation: str
    category: str
    source: Any = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Article:
    """One article; `source` is the row as loaded, or the world's own article."""

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


@dataclass
class LoadReport:
    """What one stage read and dropped, and what is worth knowing of the rows it kept.

    `dropped` and `noted` map a reason to the rows' ids or places. Reports of the same stage (the
    splits of a task) add up with `+`; those of loading and of tokenising stay apart.
    """

    what: str
    read: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    noted: dict[str, list[str]] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Rows read and not dropped."""
        return self.read - sum(map(len, self.dropped.values()))

    def drop(self, reason: str, row: str) -> None:
        """Count one row as dropped."""
        self.dropped.setdefault(reason, []).append(row)

    def note(self, what: str, row: str) -> None:
        """Count something about a row that stays."""
        self.noted.setdefault(what, []).append(row)

    def __add__(self, other: LoadReport) -> LoadReport:
        what = self.what if self.what == other.what else f"{self.what}, {other.what}"
        total = LoadReport(what, self.read + other.read)
        for report in (self, other):
            for reason, rows in report.dropped.items():
                total.dropped.setdefault(reason, []).extend(rows)
            for reason, rows in report.noted.items():
                total.noted.setdefault(reason, []).extend(rows)
        return total

    def summary(self, names: int = 5) -> str:
        """A line in all and one for every reason, with the first `names` rows it befell."""
        lines = [f"{self.what}: {self.read:,} read, {self.kept:,} kept."]
        for verb, part in (("Dropped", self.dropped), ("Noted", self.noted)):
            for reason, rows in part.items():
                more = ", ..." if len(rows) > names else ""
                lines.append(f"{verb} {len(rows):,}: {reason} ({', '.join(rows[:names])}{more}).")
        return "\n".join(lines)


_Item = TypeVar("_Item", Example, Article)


@dataclass(frozen=True)
class _Task(Generic[_Item]):
    """Three disjoint splits; `content_hash` is of their rows, whatever file they came from."""

    name: str
    train: tuple[_Item, ...]
    validation: tuple[_Item, ...]
    test: tuple[_Item, ...]
    report: LoadReport = field(compare=False)
    content_hash: str


class InstructionTask(_Task[Example]):
    """Prompts and responses."""


class ArticleTask(_Task[Article]):
    """Articles: what a base model is pretrained on, and what it continues."""


def render_prefix(instruction: str, context: str) -> str:
    """The prompt as the model reads it: `TEMPLATE`, its context block only where there is one."""
    if context.strip():
        return TEMPLATE.format(instruction=instruction, context=context)
    return TEMPLATE_WITHOUT_CONTEXT.format(instruction=instruction)


def content_hash(rows: Iterable[Example | Article]) -> str:
    """SHA-256 over the canonical JSON of the rows, in their order; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for row in rows:
        if isinstance(row, Example):
            values = [row.id, row.prefix, row.continuation, row.category]
        else:
            values = [row.id, row.title, row.text]
        digest.update(_canonical(values) + b"\n")
    return digest.hexdigest()


# --- Loading --------------------------------------------------------------------------------------


def load_instructions(
    source: str,
    path: str | Path | None = None,
    *,
    seed: int,
    validation_rows: int = 512,
    test_prompts: int = 1000,
    train_rows: int | None = None,
    on_bad_row: OnBadRow = "drop",
    columns: Mapping[PairColumn, str] = MappingProxyType({}),
) -> InstructionTask:
    """Instruction pairs from Dolly, a file of one's own, or a registered corpus (`SOURCES`).

    * a registered corpus, such as the embedded `world` of `cpo_suite`: split as it says.
    * `dolly`: a local `.jsonl`, `.jsonl.gz` or `.parquet` file, or a folder that holds
      `databricks-dolly-15k.*`, there or in `dolly/`; without a path, the hub's. A seeded half
      trains: 7,505 of 15,011 rows.
    * `jsonl`: such a file with instruction and response, and if wanted context, category, id, and
      split (train, validation or test, in all rows or in none; without it, a seeded half trains).
      `columns` maps these names to the file's own, as in `{"context": "input"}`. Other columns are
      noted in the report.

    `validation_rows` further test rows, beside the `test_prompts` judged ones, serve as validation.
    Rows with the same prompt, exact duplicates among them, never lie on both sides of a seeded
    split, and a prompt is judged once; duplicates are kept in training and counted.

    Raises:
        DataError: no such file, too few rows, a column that by its name holds what would be left
            out, or, with `on_bad_row="refuse"`, a bad row. It says what was read until then.
    """
    parts, report = _load(
        _INSTRUCTIONS, source, path, seed, validation_rows, test_prompts, None, on_bad_row, columns
    )
    train, validation, test = (tuple(map(_example, part)) for part in parts)
    with _counts_of(report):
        if train_rows is not None and train_rows > len(train):
            raise DataError(f"{train_rows:,} training rows asked for, {source} has {len(train):,}")
    train = train[:train_rows]
    digest = _digest([content_hash(part) for part in (train, validation, test)])
    return InstructionTask(source, train, validation, test, report, digest)


def load_articles(
    source: str,
    path: str | Path | None = None,
    *,
    seed: int,
    validation_articles: int = 64,
    test_articles: int = 1000,
    limit: int | None = None,
    on_bad_row: OnBadRow = "drop",
    columns: Mapping[ArticleColumn, str] = MappingProxyType({}),
) -> ArticleTask:
    """Articles from Wikipedia, a file of one's own, or a registered corpus (`SOURCES`).

    `wikipedia` is a local `.jsonl`, `.jsonl.gz` or `.parquet` file with id, title and text, or a
    folder that holds `articles.*`, there or in `wikipedia/`; without a path, the hub's
    wikimedia/wikipedia 20231101.en, its first 20,000 articles. An own file (`jsonl`) needs text
    alone; id, title and split are used where present, and `columns` maps these names to the file's
    own, as in `{"text": "body"}`. `limit` takes the first articles only.

    Raises:
        DataError: as `load_instructions`.
    """
    sizes = (validation_articles, test_articles, limit)
    parts, report = _load(_ARTICLES, source, path, seed, *sizes, on_bad_row, columns)
    train, validation, test = (tuple(map(_article, part)) for part in parts)
    digest = _digest([content_hash(part) for part in (train, validation, test)])
    return ArticleTask(source, train, validation, test, report, digest)


# --- Token ids ------------------------------------------------------------------------------------


def tokenize(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prefix_tokens: int,
    max_continuation_tokens: int,
    max_total_tokens: int | None = None,
    over_long: Literal["drop", "refuse", "truncate"] = "drop",
) -> tuple[list[TokenizedExample], LoadReport]:
    """Prefix and continuation as ids, each tokenised once and apart, so that no boundary can move.

    BOS leads the prefix where the tokenizer adds one itself (Llama) and EOS ends the continuation;
    the limits include them. With `truncate` an over-long continuation is cut and left without EOS;
    a prefix is never cut, and its example is dropped. Text that spells a special token stays text.

    Raises:
        DataError: the tokenizer has no EOS, or, with `over_long="refuse"`, the first bad example,
            and how many fitted before it.
    """
    bos, eos = _bos(tokenizer), _eos(tokenizer)
    report = LoadReport("tokenised examples")
    kept = []
    prefixes = encode([example.prefix for example in examples], tokenizer)
    continuations = encode([example.continuation for example in examples], tokenizer)
    for example, prefix, continuation in zip(examples, prefixes, continuations, strict=True):
        report.read += 1
        prefix_ids, continuation_ids = (*bos, *prefix), (*continuation, eos)
        room = max_continuation_tokens
        if max_total_tokens is not None:
            room = min(room, max_total_tokens - len(prefix_ids))
        has_eos = len(continuation_ids) <= room
        reason = None
        if not continuation:
            reason = "no token in the continuation"
        elif len(prefix_ids) > max_prefix_tokens:
            reason = "over-long prefix"
        elif not has_eos and over_long == "truncate" and room > 0:
            report.note("continuation truncated, without EOS", example.id)
            continuation_ids = continuation_ids[:room]
        elif not has_eos:
            own = len(continuation_ids) > max_continuation_tokens and over_long != "truncate"
            reason = "over-long continuation" if own else "over-long total"
        if reason is None:
            kept.append(TokenizedExample(example.id, prefix_ids, continuation_ids, has_eos))
            continue
        report.drop(reason, example.id)
        if over_long == "refuse":
            raise DataError(
                f"example {example.id}: {reason}. It has {len(prefix_ids)} + "
                f"{len(continuation_ids)} tokens; the limits are "
                f"{max_prefix_tokens} + {max_continuation_tokens}"
                + (f" and {max_total_tokens} in all" if max_total_tokens is not None else "")
                + ". Shorten it, raise the limit, or set over_long to drop or truncate.\n"
                + report.summary()
            )
    return kept, report


def tokenize_articles(
    articles: Sequence[Article],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prefix_fraction: float = 0.15,
    max_tokens: int,
) -> tuple[list[TokenizedExample], LoadReport]:
    """Articles as prefix and continuation: the first 15 % of the tokens and the rest (section 5).

    An article that does not fit `max_tokens`, BOS and EOS included, is capped and has no EOS. The
    share is of the capped article's own tokens, BOS and EOS apart, rounded, and at least one token.

    Raises:
        DataError: the tokenizer has no EOS, or `max_tokens` leaves fewer than 8 tokens.
        ValueError: `prefix_fraction` is not strictly between 0 and 1.
    """
    if not 0 < prefix_fraction < 1:
        raise ValueError(f"prefix_fraction is {prefix_fraction}: it lies between 0 and 1")
    bos, eos = _bos(tokenizer), _eos(tokenizer)
    room = max_tokens - len(bos)
    if room < FEWEST_ARTICLE_TOKENS:
        least = FEWEST_ARTICLE_TOKENS + len(bos)
        raise DataError(f"max_tokens is {max_tokens}: raise it to {least} or more")
    report = LoadReport("tokenised articles", read=len(articles))
    kept = []
    encoded = encode([article.text for article in articles], tokenizer)
    for article, ids in zip(articles, encoded, strict=True):
        if len(ids) < FEWEST_ARTICLE_TOKENS:
            report.drop(f"fewer than {FEWEST_ARTICLE_TOKENS} tokens", article.id)
            continue
        has_eos = len(ids) + 1 <= room
        if not has_eos:
            report.note(f"capped to {max_tokens} tokens, without EOS", article.id)
        ids = ids[:room]
        cut = min(max(1, round(prefix_fraction * len(ids))), len(ids) - 1)
        ending = (eos,) if has_eos else ()
        kept.append(
            TokenizedExample(article.id, (*bos, *ids[:cut]), (*ids[cut:], *ending), has_eos)
        )
    return kept, report


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` entries, the same for the same texts.

    `<|endoftext|>` is EOS and BOS, `<|pad|>` is padding and nothing else. It adds no BOS by itself,
    and decoding gives back any text exactly.

    Raises:
        ValueError: `vocab_size` has no room for the 256 bytes and the 2 special tokens.
    """
    if vocab_size < 258:
        raise ValueError(f"vocab_size is {vocab_size}: 256 bytes and 2 special tokens need 258")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )


def pack_articles(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, block_tokens: int
) -> Tensor:
    """Texts, each ended by EOS, in one stream cut into blocks `[N, block_tokens]`, int64.

    The last, partial block is dropped.

    Raises:
        DataError: the tokenizer has no EOS, or the texts do not fill one block.
    """
    eos = _eos(tokenizer)
    pieces = [torch.empty(0, dtype=torch.long)]
    remaining, read = iter(texts), 0
    # By the thousand: Python's lists of ids take several times the memory of the tensor.
    while chunk := list(islice(remaining, 1000)):
        ids = [one for text_ids in encode(chunk, tokenizer) for one in (*text_ids, eos)]
        pieces.append(torch.tensor(ids, dtype=torch.long))
        read += len(chunk)
    stream = torch.cat(pieces)
    blocks = len(stream) // block_tokens
    if blocks == 0:
        raise DataError(
            f"{len(stream):,} tokens of {read:,} texts do not fill one block of {block_tokens}: "
            "give more text or smaller blocks"
        )
    return stream[: blocks * block_tokens].view(blocks, block_tokens)


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of each text alone: no special token is added, and none is read out of the text."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )
    return encoded["input_ids"]


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no EOS token, so a model could not learn to stop: set its eos_token"
        )
    return int(tokenizer.eos_token_id)


def _bos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The BOS id, in a tuple, where the tokenizer adds one by itself; else an empty tuple."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    dressed = tokenizer("a")["input_ids"]
    adds_bos = dressed[:1] == [tokenizer.bos_token_id] and plain[:1] != dressed[:1]
    return tuple(dressed[:1]) if adds_bos else ()


# --- Rows and splits ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """What sets instruction pairs and articles apart: columns, and where the public set lies."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    # Names that others give to a column, for that of which a row holds nothing else.
    aliases: dict[str, str]
    prompt: tuple[str, ...]  # rows equal in these stay on one side of a split
    public: str
    file_stem: str
    hub: tuple[str, str | None]
    train_share: float | None  # None: all but validation and test

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)


_INSTRUCTIONS = _Kind(
    "instructions",
    required=("instruction", "response"),
    optional=("context", "category"),
    aliases={
        "input": "context",
        "prompt": "instruction",
        "question": "instruction",
        "output": "response",
        "completion": "response",
        "answer": "response",
    },
    prompt=("instruction", "context"),
    public="dolly",
    file_stem="databricks-dolly-15k",
    hub=("databricks/databricks-dolly-15k", None),
    train_share=0.5,
)
_ARTICLES = _Kind(
    "articles",
    required=("text",),
    optional=("title",),
    aliases={"content": "text", "body": "text"},
    prompt=("text",),
    public="wikipedia",
    file_stem="articles",
    hub=("wikimedia/wikipedia", "20231101.en"),
    train_share=None,
)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that passed the checks; `split` is what the source says, if it does."""

    id: str
    prompt_digest: str
    split: str | None
    source: Any

    def value(self, name: str) -> str:
        return self.source[name] if isinstance(self.source, dict) else getattr(self.source, name)


# Where a row stands ("line 7"), and the row or, for one that is no JSON object, what is wrong.
_PlacedRows = Iterator[tuple[str, dict[str, Any] | str]]
_Parts = tuple[list[_Row], list[_Row], list[_Row]]


def _example(row: _Row) -> Example:
    prefix = render_prefix(row.value("instruction"), row.value("context"))
    return Example(row.id, prefix, row.value("response"), row.value("category"), row.source)


def _article(row: _Row) -> Article:
    return Article(row.id, row.value("title"), row.value("text"), row.source)


# Corpora of objects, by name: (path or None) -> pairs and articles, each item with the columns, id
# and split as attributes.
SOURCES: dict[str, Callable[[Any], tuple[Sequence[Any], Sequence[Any]]]] = {}


def _load(
    kind: _Kind,
    source: str,
    path: str | Path | None,
    seed: int,
    validation_rows: int,
    test_rows: int,
    limit: int | None,
    on_bad_row: OnBadRow,
    columns: Mapping[Any, str],
) -> tuple[_Parts, LoadReport]:
    """The train, validation and test rows of a source."""
    report = LoadReport(f"{source} {kind.name}")
    if columns and source != "jsonl":
        raise DataError(f"{kind.name}.columns goes with the source jsonl, not with {source}")
    if source in SOURCES:
        pairs, articles = SOURCES[source](path)
        items = pairs if kind is _INSTRUCTIONS else articles
        report.read = len(items[:limit])
        rows = [
            _Row(item.id, _digest([getattr(item, name) for name in kind.prompt]), item.split, item)
            for item in items[:limit]
        ]
    else:
        if source not in ("jsonl", kind.public):
            known = ", ".join((*SOURCES, kind.public))
            raise DataError(f"unknown source '{source}': {known} or jsonl")
        if path is not None:
            file = Path(path)
            if file.is_dir() and source == kind.public:
                file = _find(file, kind)
            placed, origin = _read(file), str(file)
        elif source == "jsonl":
            raise DataError(f"the source jsonl needs a path: a file {', '.join(FORMATS)}")
        else:
            if kind is _ARTICLES and limit is None:
                limit = HUB_ARTICLES
            placed, origin = _hub_rows(*kind.hub, streaming=limit is not None), kind.hub[0]
        placed = _counted(islice(placed, limit), report)
        # A public set's rows are named by content where its copies carry no ids: the same in each.
        named = source != "dolly"
        with _counts_of(report):
            if source == "jsonl":
                placed = _renamed(kind, placed, origin, columns, report)
            rows = _checked(kind, placed, origin, named, report, on_bad_row)
    with _counts_of(report):
        parts = _split(rows, kind.train_share, seed, validation_rows, test_rows, report)
    return parts, report


@contextmanager
def _counts_of(report: LoadReport) -> Iterator[None]:
    """A `DataError` raised within says what had been read."""
    try:
        yield
    except DataError as error:
        counts = f"\n{report.summary()}" if report.read else ""
        raise DataError(f"{error}{counts}") from error.__cause__


def _counted(placed: _PlacedRows, report: LoadReport) -> _PlacedRows:
    """The rows, counted, with nothing in place of NaN: so pandas writes a missing cell."""
    for place, row in placed:
        report.read += 1
        if isinstance(row, dict):
            row = {name: None if value != value else value for name, value in row.items()}
        yield place, row


def _renamed(
    kind: _Kind,
    placed: _PlacedRows,
    origin: str,
    columns: Mapping[str, str],
    report: LoadReport,
) -> _PlacedRows:
    """A user's rows under our names; what else they hold is noted.

    Raises:
        DataError: what would be left out is by its column's name what is missing, or no row has a
            column of `columns`.
    """
    read = {name: columns.get(name, name) for name in (*kind.columns, "id", "split")}
    unseen = set(columns.values())
    for place, row in placed:
        if isinstance(row, str):
            yield place, row
            continue
        unseen -= row.keys()
        ours = {name: row.get(column) for name, column in read.items()}
        meant: dict[str, str] = {}
        for column in sorted(row.keys() - set(read.values())):
            if _is_empty(row[column]):
                continue
            report.note(f"column {column}, not used", place)
            name = column.strip().lower()
            name = kind.aliases.get(name, name)
            if name in kind.columns and name not in columns and _is_empty(ours[name]):
                meant.setdefault(name, column)
        if meant:
            lacking = " and ".join(meant.values())
            setting = yaml.safe_dump(
                {**columns, **meant},
                default_flow_style=True,
                sort_keys=False,
                allow_unicode=True,
                width=1000,
            )
            raise DataError(
                f"{origin}, {place}: what stands under {lacking} would be left out. If it is what "
                f"its name says, give `{kind.name}` in the profile the setting "
                f"`columns: {setting.strip()}`; else take it out of the file."
            )
        yield place, row | {name: ours[name] for name in columns}
    if unseen:
        raise DataError(
            f"{origin}: no row has {' or '.join(sorted(unseen))}, which `{kind.name}.columns` names"
        )


def _is_empty(value: Any) -> bool:
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


def _checked(
    kind: _Kind,
    placed: Iterable[tuple[str, dict[str, Any] | str]],
    origin: str,
    named: bool,
    report: LoadReport,
    on_bad_row: OnBadRow,
) -> list[_Row]:
    """Rows with text in every required field; the others are counted in the report, or refused.

    `named` says whether the columns id and split count.
    """
    rows: list[_Row] = []
    ids: set[str] = set()
    copies: Counter[str] = Counter()
    places_without_split = []
    for place, row in placed:
        if isinstance(row, dict) and isinstance(row.get("id"), float) and row["id"].is_integer():
            row["id"] = int(row["id"])  # pandas makes floats of a column in which one is missing
        problem = row if isinstance(row, str) else _problem(kind, row, named)
        identity = None
        if isinstance(row, dict) and named and row.get("id") is not None:
            identity = str(row["id"])
            place = f"{place}, id {identity}"
            if problem is None and identity in ids:
                problem = "duplicate id"
        if isinstance(row, str) or problem is not None:
            report.drop(str(problem), place)
            if on_bad_row == "refuse":
                raise DataError(
                    f"{origin}, {place}: {problem}. Mend the row, or set on_bad_row to drop to "
                    "leave such rows out (they are counted)."
                )
            continue
        source = row | {name: row.get(name) or "" for name in kind.columns}
        digest = _digest([source[name] for name in kind.columns])
        copies[digest] += 1
        if copies[digest] > 1:
            report.note("exact duplicate of another row", place)
        if identity is None:
            identity = digest[:16] + (f"-{copies[digest]}" if copies[digest] > 1 else "")
        ids.add(identity)
        split = row.get("split") if named else None
        if split is None:
            places_without_split.append(place)
        rows.append(_Row(identity, _digest([source[name] for name in kind.prompt]), split, source))
    if 0 < len(places_without_split) < len(rows):
        raise DataError(
            f"{origin}, {places_without_split[0]}: no split, though other rows have one. Give "
            "every row a split (train, validation or test), or none."
        )
    if len(rows) < FEWEST_ROWS:
        raise DataError(f"{origin}: too few usable rows, at least {FEWEST_ROWS} are needed.")
    return rows


def _problem(kind: _Kind, row: dict[str, Any], named: bool) -> str | None:
    """What is wrong with a row, in the words of the report, or None."""
    for name in kind.columns:
        value = row.get(name)
        if value is None and name in kind.required:
            return f"missing field {name}"
        if value is None:
            continue
        if not isinstance(value, str):
            return f"malformed: field {name} is no text"
        if not value.strip() and name in kind.required:
            return f"empty {name}"
        if not value.isascii() and re.search("[\ud800-\udfff]", value):
            return f"malformed: field {name} holds half a surrogate pair"
    if named and not isinstance(row.get("id"), (str, int, type(None))):
        return "malformed: field id is neither text nor a whole number"
    if named and row.get("split") not in (*SPLITS, None):
        return "malformed: field split is not train, validation or test"
    return None


def _split(
    rows: Sequence[_Row],
    train_share: float | None,
    seed: int,
    validation_rows: int,
    test_rows: int,
    report: LoadReport,
) -> _Parts:
    """Train, validation and test rows: as the rows say, or seeded with equal prompts on one side.

    The order is that of a hash of seed and prompt, the same for every copy of the data. Test rows
    are taken from the front of the held-out prompts, one for each, and validation rows from their
    end, so that neither changes with the number of the other.
    """

    def grouped(split: str | None) -> list[list[_Row]]:
        def order(row: _Row) -> tuple[str, str]:
            return hashlib.sha256(f"{seed}:{row.prompt_digest}".encode()).hexdigest(), row.id

        ordered = sorted((row for row in rows if row.split == split), key=order)
        return [list(group) for _, group in groupby(ordered, key=lambda row: row.prompt_digest)]

    validation: list[_Row] = []
    if rows[0].split is None:
        if train_share is not None:
            held_out_rows = len(rows) - int(train_share * len(rows))
        else:
            held_out_rows = min(test_rows + validation_rows, len(rows) // 2)
        train, rest = _take(grouped(None), len(rows) - held_out_rows)
    else:
        train, rest = _take(grouped("train"), len(rows))[0], grouped("test")
        validation, _ = _take(grouped("validation"), validation_rows)
        trained = {row.prompt_digest for row in train}
        for row in (row for group in rest for row in group if row.prompt_digest in trained):
            report.note("test prompt that is also a training prompt, as the file splits", row.id)
    asked = test_rows + (0 if validation else validation_rows)
    if asked > len(rest):
        what = f"{len(rest):,} held-out prompts, {asked:,} asked for: shared in proportion"
        test_rows = max(1, len(rest) * test_rows // asked)
        validation_rows = len(rest) - test_rows
        report.note(what, f"{test_rows:,} for test")
    test = [group[0] for group in rest[:test_rows]]
    for row in (row for group in rest[:test_rows] for row in group[1:]):
        report.note("further response to a test prompt, left out of the test", row.id)
    if not validation:
        validation, _ = _take(rest[: test_rows - 1 : -1], validation_rows)
    for part, name in ((train, "training"), (validation, "validation"), (test, "test")):
        if not part:
            raise DataError(
                f"{report.what}: no {name} row is left by the split. Give more rows with different "
                "prompts, or ask for fewer held-out ones."
            )
    return train, validation, test


def _take(groups: Iterable[list[_Row]], count: int) -> tuple[list[_Row], list[list[_Row]]]:
    """The first groups that fit into `count` rows, whole, and the other groups."""
    taken: list[_Row] = []
    rest = []
    for group in groups:
        if len(taken) + len(group) <= count:
            taken.extend(group)
        else:
            rest.append(group)
    return taken, rest


# --- Files and the hub ----------------------------------------------------------------------------


def _find(folder: Path, kind: _Kind) -> Path:
    for place in (folder / kind.public, folder):
        for suffix in FORMATS:
            if (file := place / f"{kind.file_stem}{suffix}").is_file():
                return file
    raise DataError(
        f"no {kind.file_stem} as {', '.join(FORMATS)} in {folder} or {folder / kind.public}: put "
        "a copy there, or give the file itself"
    )


def _read(file: Path) -> _PlacedRows:
    """The rows of a file, each with its place; the format goes by the name."""
    if not file.is_file():
        raise DataError(f"no file {file}: check the path; it is to end in {', '.join(FORMATS)}")
    if not file.name.endswith(FORMATS):
        raise DataError(f"{file} is none of the formats that are read: {', '.join(FORMATS)}")
    return _read_parquet(file) if file.name.endswith(".parquet") else _read_lines(file)


def _read_lines(file: Path) -> _PlacedRows:
    try:
        with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"line {number}", _parse(line, "utf-8-sig" if number == 1 else "utf-8")
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{file} is a damaged gzip file ({error}): fetch it again") from error


def _parse(line: bytes, encoding: str) -> dict[str, Any] | str:
    try:
        row = json.loads(line.decode(encoding))
    except ValueError:
        return "malformed: no JSON in UTF-8"
    return row if isinstance(row, dict) else "malformed: no JSON object"


def _read_parquet(file: Path) -> _PlacedRows:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(file).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is no readable parquet file ({error}): fetch it again") from error


def _hub_rows(name: str, config: str | None, streaming: bool) -> _PlacedRows:
    """The train split of a data set on the hub."""
    try:
        from datasets import load_dataset

        rows = load_dataset(name, config, split="train", streaming=streaming)
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", dict(row)
    except Exception as error:  # the hub's client raises many kinds; to a user all mean the same
        raise DataError(
            f"{name} could not be had from the hub ({type(error).__name__}: {error}). Without a "
            "connection, give the path of a local copy."
        ) from error


def _digest(values: Sequence[str]) -> str:
    return hashlib.sha256(_canonical(values)).hexdigest()


def _canonical(values: Sequence[str]) -> bytes:
    return json.dumps(values, ensure_ascii=True, separators=(",", ":")).encode()
