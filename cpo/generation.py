"""Decoding: continuations of tokenised prefixes.

Greedy and top-k decoding run here, from one pass over each prefix, for models that share a prefix
(`forward_pass`); everything else is transformers' own `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cpo.engine.forward_pass import (
    ForwardPass,
    ModelError,
    forward_pass_of,
    same_logits,
    select_rows,
)
from cpo.engine.processes import process_count, shared_out
from cpo.engine.progress import progress_bar
from cpo.plan import stream_seed

# Finished rows leave the batch when no more than this share of it is still going on: leaving copies
# the cache of those who stay.
KEPT_ROWS = 0.8


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
        max_new_tokens: the bound; a continuation that reaches it has no EOS.
        batch: sequences decoded together, `per_prefix` copies counted.
        seed: seeds sampling, each batch by itself: with the same batch size the same continuations
            come out, wherever its batches are decoded.
        lengths: a guess at each continuation's length; alike ones are decoded together, so that
            few wait for a long neighbour.
        never: ids that are not drawn, such as rows of the embedding that no token stands for.
        decoding: arguments of `generate`: do_sample, top_k, top_p, temperature, num_beams.

    Returns:
        For each prefix, in the order given, `per_prefix` lists of ids. EOS is the last id where the
        model emitted it, and is never added where it did not.

    Raises:
        ValueError: a prefix is empty, or with `max_new_tokens` does not fit the model's positions.
        ModelError: the model's logits depend on later tokens, or `generate` has others.
    """
    _check_lengths(model, prefixes, max_new_tokens)
    # top_k is named even when unused: transformers' default of 50 would apply to every sampling.
    options = {
        "do_sample": False,
        "top_k": 0,
        **{k: v for k, v in decoding.items() if v is not None},
    }
    if not options["do_sample"]:
        options = {key: options[key] for key in ("do_sample", "num_beams") if key in options}
    model.eval()
    forward_pass = forward_pass_of(model)
    width = max(map(len, prefixes), default=0) + max_new_tokens
    shares_prefix = forward_pass.may_share(model, width)
    top_k = _top_k_of(options) if shares_prefix else None
    guess = lengths or [0] * len(prefixes)
    order = sorted(range(len(prefixes)), key=lambda row: (guess[row], len(prefixes[row])))
    rows_together = max(1, batch // per_prefix)
    starts = list(range(0, len(order), rows_together))
    if top_k is None and not _pads_left(model):
        order.sort(key=lambda row: len(prefixes[row]))
        starts = _starts_of_equal([len(prefixes[row]) for row in order], rows_together)
    ends = dict(zip(starts, [*starts[1:], len(order)], strict=True))

    def continuations_of(start: int) -> list[list[int]]:
        together = [prefixes[row] for row in order[start : ends[start]]]
        asked = model, together, per_prefix, max_new_tokens, eos_token_id, never
        batch_seed = stream_seed(seed, start)
        if top_k is None:
            torch.manual_seed(batch_seed)
            ids = _by_transformers(*asked, options)
        else:
            generator = torch.Generator(model.device).manual_seed(batch_seed)
            ids = _top_k(*asked, forward_pass, top_k, generator)
        bar.update(len(together) * process_count())
        return [up_to_eos(row, eos_token_id) for row in ids.tolist()]

    with (
        progress_bar(len(prefixes), description, "prompt") as bar,
        torch.inference_mode(),
        torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        batches = shared_out(starts, continuations_of)
    in_order = [continuation for batch_ids in batches for continuation in batch_ids]
    found: list[list[list[int]]] = [[] for _ in prefixes]
    for place, row in enumerate(order):
        found[row] = in_order[place * per_prefix : (place + 1) * per_prefix]
    return found


def _top_k_of(options: dict[str, Any]) -> int | None:
    """How many tokens a step chooses among, 1 if greedy; None if it is not that simple."""
    others = {name: options.get(name) for name in options.keys() - {"do_sample", "top_k"}}
    if any(value != 1 for value in others.values()):  # beams, top-p, another temperature
        return None
    return (options["top_k"] or None) if options["do_sample"] else 1


def _top_k(
    model: Any,
    prefixes: list[Sequence[int]],
    per_prefix: int,
    max_new_tokens: int,
    eos_token_id: int,
    never: Sequence[int],
    forward_pass: ForwardPass,
    top_k: int,
    generator: torch.Generator,
) -> Tensor:
    """`[B x per_prefix, max_new_tokens]` ids, drawn among the `top_k` most probable; EOS to the end
    after an EOS.

    A prefix is computed once for all its continuations, and a finished one leaves the batch.
    """
    device = model.device
    position = torch.tensor([len(one) for one in prefixes], device=device)
    width = max(map(len, prefixes))
    ids = torch.tensor([[*one, *[eos_token_id] * (width - len(one))] for one in prefixes])
    output = model.base_model(input_ids=ids.to(device), use_cache=True)
    states = output.last_hidden_state[torch.arange(len(prefixes), device=device), position - 1]
    # From here on a row is a continuation; `row` says which, for those still in the batch.
    row = torch.arange(len(prefixes) * per_prefix, device=device)
    states, position = (one.repeat_interleave(per_prefix, 0) for one in (states, position))
    mask = (torch.arange(width, device=device) < position[:, None]).long()
    cache = select_rows(output.past_key_values, row // per_prefix)
    drawn = torch.full((len(row), max_new_tokens), eos_token_id, device=device)
    alive = torch.ones_like(row, dtype=torch.bool)
    for step in range(max_new_tokens):
        logits = forward_pass.logits(model, states).float()
        if never:
            logits[:, never] = -torch.inf
        best = logits.topk(top_k)
        choice = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
        token = best.indices.gather(-1, choice)[:, 0].masked_fill(~alive, eos_token_id)
        drawn[row, step] = token
        alive = token != eos_token_id
        going_on = int(alive.sum())
        if going_on == 0 or step + 1 == max_new_tokens:
            break
        if going_on <= KEPT_ROWS * len(row):
            kept = alive.nonzero()[:, 0]
            row, token, position, mask, alive = (
                one[kept] for one in (row, token, position, mask, alive)
            )
            cache = select_rows(cache, kept)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], -1)
        states = model.base_model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        position = position + 1
    return drawn


def _by_transformers(
    model: Any,
    prefixes: list[Sequence[int]],
    per_prefix: int,
    max_new_tokens: int,
    eos_token_id: int,
    never: Sequence[int],
    options: dict[str, Any],
) -> Tensor:
    """What `_top_k` returns, by any of transformers' decoding methods."""
    width = max(map(len, prefixes))
    padding = [width - len(one) for one in prefixes]
    ids = [[eos_token_id] * pad + list(one) for pad, one in zip(padding, prefixes, strict=True)]
    mask = [[0] * pad + [1] * (width - pad) for pad in padding]
    output = model.generate(
        torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=max_new_tokens,
        num_return_sequences=per_prefix,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
        suppress_tokens=list(never) or None,
        **options,
    )
    return output[:, width:]


def _starts_of_equal(lengths: Sequence[int], most: int) -> list[int]:
    """Where batches begin that hold at most so many rows, of one length each; `lengths` rise."""
    starts: list[int] = []
    for row, length in enumerate(lengths):
        if not starts or length != lengths[starts[-1]] or row - starts[-1] == most:
            starts.append(row)
    return starts


_PADS_LEFT: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def _pads_left(model: Any) -> bool:
    """Whether `generate` answers to a prefix with padding before it as to the prefix alone.

    Two steps of it are compared with the model's own forward pass, once per model.

    Raises:
        ModelError: without padding it does not follow the model's own forward pass, either.
    """
    if model not in _PADS_LEFT:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            _PADS_LEFT[model] = _compare_generate(model)
    return _PADS_LEFT[model]


def _compare_generate(model: Any) -> bool:
    generator = torch.Generator().manual_seed(1)
    entries = model.config.get_text_config().vocab_size
    prefix = torch.randint(entries, (1, 3), generator=generator).to(model.device)
    padded = torch.cat([prefix[:, :1].expand(-1, 2), prefix], -1)
    mask = torch.ones_like(padded).index_fill_(1, torch.tensor([0, 1], device=model.device), 0)

    def two_steps(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The sequence without its last token, `[1, T + 1]`, and two logits, `[2, V]`."""
        output = model.generate(
            ids, attention_mask=mask, min_new_tokens=2, max_new_tokens=2, do_sample=False,
            num_beams=1, pad_token_id=0, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        return output.sequences[:, :-1], torch.cat(output.logits)

    refusal = f"{type(model).__name__} cannot be sampled from: its `generate` "
    try:
        ids, steps = two_steps(prefix, torch.ones_like(prefix))
    except Exception as error:  # as many kinds as there are architectures
        raise ModelError(f"{refusal}fails ({type(error).__name__}: {error})") from error
    if not same_logits(steps, model(input_ids=ids).logits[0, -2:]):
        raise ModelError(f"{refusal}gives other logits than its forward pass")
    try:
        return same_logits(two_steps(padded, mask)[1], steps)
    except Exception:
        return False


def _check_lengths(model: Any, prefixes: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, prefixes), default=1)
    if not all(map(len, prefixes)):
        raise ValueError("an empty prefix cannot be continued")
    if limit is not None and longest + max_new_tokens > limit:
        raise ValueError(
            f"a prefix of {longest} tokens and {max_new_tokens} new ones exceed the model's "
            f"{limit} positions: drop long prefixes or lower max_new_tokens"
        )


def ids_without_token(model: Any, tokenizer: Any) -> list[int]:
    """Ids that a model can emit and no token of the tokenizer has, such as rows that only pad its
    embedding to a round size."""
    known = set(tokenizer.get_vocab().values())
    return [
        token for token in range(model.config.get_text_config().vocab_size) if token not in known
    ]


def up_to_eos(ids: Sequence[int], eos_token_id: int) -> list[int]:
    """The ids up to and including the first EOS; all of them where there is none."""
    ids = list(ids)
    return ids[: ids.index(eos_token_id) + 1] if eos_token_id in ids else ids
