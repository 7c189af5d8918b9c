"""Decoding: continuations of tokenised prefixes, by transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cpo.progress import progress_bar


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
    description: str = "generating",
    **decoding: Any,
) -> list[list[list[int]]]:
    """`per_prefix` continuations of each prefix.

    Args:
        model: a causal language model in evaluation mode.
        prefixes: N prefixes as token ids.
        max_new_tokens: the bound; a continuation that reaches it has no EOS.
        batch: sequences decoded together, `per_prefix` copies counted.
        seed: seeds sampling; with the same batch size the same continuations come out.
        lengths: a guess at each continuation's length; alike ones are decoded together, so that
            few wait for a long neighbour.
        decoding: arguments of `generate`: do_sample, top_k, top_p, temperature, num_beams.

    Returns:
        For each prefix, in the order given, `per_prefix` lists of ids. EOS is the last id where the
        model emitted it, and is never added where it did not.

    Raises:
        ValueError: a prefix is empty, or with `max_new_tokens` does not fit the model's positions.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, prefixes), default=1)
    if not all(map(len, prefixes)):
        raise ValueError("an empty prefix cannot be continued")
    if limit is not None and longest + max_new_tokens > limit:
        raise ValueError(
            f"a prefix of {longest} tokens and {max_new_tokens} new ones exceed the model's "
            f"{limit} positions: drop long prefixes or lower max_new_tokens"
        )
    # top_k is named even when unused: transformers' default of 50 would apply to every sampling.
    options = {
        "do_sample": False,
        "top_k": 0,
        **{k: v for k, v in decoding.items() if v is not None},
    }
    if not options["do_sample"]:
        options = {key: options[key] for key in ("do_sample", "num_beams") if key in options}
    guess = lengths or [0] * len(prefixes)
    order = sorted(range(len(prefixes)), key=lambda row: (guess[row], len(prefixes[row])))
    rows_together = max(1, batch // per_prefix)
    found: list[list[list[int]]] = [[] for _ in prefixes]
    model.eval()
    torch.manual_seed(seed)
    device = model.device
    with progress_bar(len(prefixes), description, "prompt") as bar, torch.inference_mode():
        for start in range(0, len(order), rows_together):
            rows = order[start : start + rows_together]
            width = max(len(prefixes[row]) for row in rows)
            ids = torch.tensor(
                [[eos_token_id] * (width - len(prefixes[r])) + list(prefixes[r]) for r in rows]
            )
            mask = torch.tensor(
                [[0] * (width - len(prefixes[r])) + [1] * len(prefixes[r]) for r in rows]
            )
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                output = model.generate(
                    ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=max_new_tokens,
                    num_return_sequences=per_prefix,
                    eos_token_id=eos_token_id,
                    pad_token_id=eos_token_id,
                    use_cache=True,
                    **options,
                )
            for index, continuation in enumerate(output[:, width:].tolist()):
                found[rows[index // per_prefix]].append(up_to_eos(continuation, eos_token_id))
            bar.update(len(rows))
    return found


def up_to_eos(ids: Sequence[int], eos_token_id: int) -> list[int]:
    """The ids up to and including the first EOS; all of them where there is none."""
    ids = list(ids)
    return ids[: ids.index(eos_token_id) + 1] if eos_token_id in ids else ids
