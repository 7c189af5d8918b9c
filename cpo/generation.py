"""Decoding: continuations of tokenised prefixes.

Greedy decoding and sampling compute each prefix once, for models that can share it
(`engine.forward_pass`); all else uses transformers' `generate` (`engine.decoding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any

import torch

from cpo.engine.decoding import decode_by_transformers, decode_token_by_token, pads_left
from cpo.engine.forward_pass import forward_pass_of
from cpo.engine.next_token import NextToken
from cpo.engine.processes import process_count, shared_out
from cpo.engine.progress import progress_bar
from cpo.plan import stream_seed


def generate(
    model: Any,
    prefixes: Sequence[Sequence[int]],
    *,
    eos_token_id: int,
    max_new_tokens: int,
    per_prefix: int = 1,
    batch: int = 128,
    seed: int = 0,
    precision: str = "fp32",
    lengths: Sequence[int] | None = None,
    never: Sequence[int] = (),
    description: str = "generating",
    **decoding: Any,
) -> list[list[list[int]]]:
    """`per_prefix` continuations of each prefix.

    Args:
        model: a causal language model in evaluation mode.
        prefixes: N prefixes as token ids.
        max_new_tokens: the length bound; a continuation that reaches it may have no EOS.
        batch: sequences decoded together, `per_prefix` copies or beams counted.
        seed: seeds each batch separately: at the same batch size, the continuations do not depend
            on which process decodes a batch.
        lengths: each continuation's expected length; similar ones are decoded together, so that few
            wait for a long neighbour.
        never: ids never drawn, such as embedding rows without a token.
        decoding: arguments of `generate`: do_sample, top_k, top_p, temperature, num_beams.

    Returns:
        For each prefix, in input order, `per_prefix` lists of ids. EOS is the last id where the
        model emitted it, and is never added.

    Raises:
        ValueError: a prefix is empty, or with `max_new_tokens` does not fit the model's positions.
        ModelError: the model's logits depend on later tokens, or `generate` gives different ones.
    """
    width = _checked_width(model, prefixes, max_new_tokens)
    model.eval()
    options = _options(decoding)
    shares = forward_pass_of(model).sharing(model, width) == "cached"
    next_token = NextToken.of(options) if shares else None
    batches = _batches(
        [len(prefix) for prefix in prefixes],
        lengths or [0] * len(prefixes),
        max(1, batch // max(per_prefix, options.get("num_beams", 1))),
        of_equal_length=next_token is None and not pads_left(model),
    )

    def decoded(start: int) -> list[list[int]]:
        together = [prefixes[row] for row in batches[start]]
        arguments = model, together, per_prefix, max_new_tokens, eos_token_id, never
        batch_seed = stream_seed(seed, start)
        if next_token is None:
            torch.manual_seed(batch_seed)
            ids = decode_by_transformers(*arguments, options)
        else:
            generator = torch.Generator(model.device).manual_seed(batch_seed)
            ids = decode_token_by_token(*arguments, next_token, generator)
        bar.update(len(together) * process_count())
        return [up_to_eos(row, eos_token_id) for row in ids.tolist()]

    with (
        progress_bar(len(prefixes), description, "prompt") as bar,
        torch.inference_mode(),
        torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        results = shared_out(list(batches), decoded)
    continuations: list[list[list[int]]] = [[] for _ in prefixes]
    for rows, ids in zip(batches.values(), results, strict=True):
        for number, row in enumerate(rows):
            continuations[row] = ids[number * per_prefix : (number + 1) * per_prefix]
    return continuations


def _options(decoding: dict[str, Any]) -> dict[str, Any]:
    """The arguments of transformers' `generate`; greedy decoding takes only the beams."""
    # top_k is set even when unused: transformers' default of 50 would apply to all sampling.
    options = {"do_sample": False, "top_k": 0}
    options |= {name: value for name, value in decoding.items() if value is not None}
    if not options["do_sample"]:
        return {name: options[name] for name in ("do_sample", "num_beams") if name in options}
    return options


def _batches(
    prefix_lengths: Sequence[int], guesses: Sequence[int], size: int, of_equal_length: bool
) -> dict[int, list[int]]:
    """Rows to decode together, at most `size`, keyed by the number of rows before them."""
    rows = sorted(range(len(prefix_lengths)), key=lambda row: (guesses[row], prefix_lengths[row]))
    runs = [rows]
    if of_equal_length:
        rows.sort(key=prefix_lengths.__getitem__)
        runs = [list(run) for _, run in groupby(rows, key=prefix_lengths.__getitem__)]
    parts = [run[start : start + size] for run in runs for start in range(0, len(run), size)]
    return dict(zip(accumulate(map(len, parts), initial=0), parts, strict=False))


def _checked_width(model: Any, prefixes: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """The length in tokens of the longest possible sequence."""
    if not all(map(len, prefixes)):
        raise ValueError("an empty prefix cannot be continued")
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, prefixes), default=0)
    if limit is not None and longest + max_new_tokens > limit:
        raise ValueError(
            f"a prefix of {longest} tokens and {max_new_tokens} new ones exceed the model's "
            f"{limit} positions: drop long prefixes or lower max_new_tokens"
        )
    return longest + max_new_tokens


def ids_without_token(model: Any, tokenizer: Any) -> list[int]:
    """Ids that a model can emit but its tokenizer lacks, such as rows that pad the embedding to a
    round size."""
    known = set(tokenizer.get_vocab().values())
    return sorted(set(range(model.config.get_text_config().vocab_size)) - known)


def up_to_eos(ids: Sequence[int], eos_token_id: int) -> list[int]:
    """The ids up to and including the first EOS; all of them if there is none."""
    ids = list(ids)
    return ids[: ids.index(eos_token_id) + 1] if eos_token_id in ids else ids
