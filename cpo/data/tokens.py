"""Token ids: each text tokenised once, separately, with BOS and EOS where a model expects them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cpo.data.examples import Article, DataError, Example, LoadReport, TokenizedExample

END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"
FEWEST_ARTICLE_TOKENS = 8
PREFIX_SHARE = 0.15  # of an article's tokens, section 5


def tokenize(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prefix_tokens: int,
    max_continuation_tokens: int,
    over_long: Literal["drop", "refuse", "truncate"] = "drop",
) -> tuple[list[TokenizedExample], LoadReport]:
    """Prefix and continuation as ids, tokenised once and separately, so no token spans both.

    BOS starts the prefix if the tokenizer adds one itself (Llama), and EOS ends the continuation;
    the limits include both. With `truncate`, an over-long continuation is cut and has no EOS. A
    prefix is never cut: its example is dropped. Text that spells a special token stays text.

    Raises:
        DataError: the tokenizer has no EOS, or, with `over_long="refuse"`, the first bad example;
            the message says how many fitted before it.
    """
    bos, eos = _bos_and_eos(tokenizer)
    report = LoadReport("tokenised examples", origin="tokenising")
    if over_long == "refuse":
        limits = f"{max_prefix_tokens} and {max_continuation_tokens} tokens"
        report.remedy = f"The limits are {limits}: shorten it, raise the limit, or set over_long."
    kept = []
    prefixes = encode([example.prefix for example in examples], tokenizer)
    continuations = encode([example.continuation for example in examples], tokenizer)
    for example, prefix, continuation in zip(examples, prefixes, continuations, strict=True):
        report.read += 1
        prefix_ids, continuation_ids = (*bos, *prefix), (*continuation, eos)
        has_eos = len(continuation_ids) <= max_continuation_tokens
        if not continuation:
            report.drop("no token in the continuation", example.id)
        elif len(prefix_ids) > max_prefix_tokens:
            report.drop("over-long prefix", example.id)
        elif not has_eos and over_long != "truncate":
            report.drop("over-long continuation", example.id)
        else:
            if not has_eos:
                report.note("continuation truncated, without EOS", example.id)
            continuation_ids = continuation_ids[:max_continuation_tokens]
            kept.append(TokenizedExample(example.id, prefix_ids, continuation_ids, has_eos))
    return kept, report


def tokenize_articles(
    articles: Sequence[Article], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[list[TokenizedExample], LoadReport]:
    """Articles as prefix and continuation: the first 15 % of the tokens and the rest (section 5).

    An article longer than `max_tokens`, BOS and EOS included, is capped and has no EOS. The 15 %
    are of the capped article without BOS and EOS, rounded, at least one token.

    Raises:
        DataError: the tokenizer has no EOS, or `max_tokens` leaves fewer than 8 tokens.
    """
    bos, eos = _bos_and_eos(tokenizer)
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
        has_eos = len(ids) < room
        if not has_eos:
            report.note(f"capped to {max_tokens} tokens, without EOS", article.id)
        length = min(len(ids), room)
        cut = min(max(1, round(PREFIX_SHARE * length)), length - 1)
        continuation_ids = (*ids[cut:], eos)[: room - cut]  # without EOS where the cap cuts it off
        kept.append(TokenizedExample(article.id, (*bos, *ids[:cut]), continuation_ids, has_eos))
    return kept, report


def pack_articles(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_tokens: int
) -> Tensor:
    """Texts, each followed by EOS, concatenated and cut into blocks `[N, block_tokens]`, int64.

    The last, partial block is dropped.

    Raises:
        DataError: the tokenizer has no EOS, or the texts do not fill one block.
    """
    _, eos = _bos_and_eos(tokenizer)
    pieces = [torch.empty(0, dtype=torch.long)]
    # A thousand at a time: Python lists of ids take several times the memory of tensors.
    for start in range(0, len(texts), 1000):
        ids = encode(texts[start : start + 1000], tokenizer)
        pieces += [torch.tensor([*text_ids, eos]) for text_ids in ids]
    stream = torch.cat(pieces)
    blocks = len(stream) // block_tokens
    if blocks == 0:
        raise DataError(
            f"{len(stream):,} tokens of {len(texts):,} texts do not fill one block of "
            f"{block_tokens}: give more text or smaller blocks"
        )
    return stream[: blocks * block_tokens].view(blocks, block_tokens)


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of each text alone: special tokens are neither added nor parsed from the text."""
    if not texts:
        return []
    settings = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return tokenizer(list(texts), **settings)["input_ids"]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` entries, deterministic in the texts.

    `<|endoftext|>` is EOS and BOS, `<|pad|>` only padding. The tokenizer adds no BOS itself, and
    decoding restores any text exactly.

    Raises:
        ValueError: `vocab_size` cannot hold the 256 bytes and the 2 special tokens.
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


def _bos_and_eos(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], int]:
    """The BOS id as a tuple, empty if the tokenizer adds none itself; and the EOS id."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no EOS token, so a model could not learn to stop: set its eos_token"
        )
    first_id = tokenizer("a")["input_ids"][:1]
    bos = tuple(first_id) if first_id == [tokenizer.bos_token_id] else ()
    return bos, int(tokenizer.eos_token_id)
