"""Decoding loops: one with a key/value cache per prefix, and transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from cpo.engine.forward_pass import (
    ForwardPass,
    ModelError,
    forward_pass_of,
    of_like_length,
    same_logits,
)
from cpo.engine.growing_cache import GrowingLayer
from cpo.engine.next_token import NextToken

# Finished rows leave the batch once at most this share is still active: removing rows copies the
# cache of the rest.
ACTIVE_SHARE = 0.8


def decode_token_by_token(
    model: Any,
    prefixes: list[Sequence[int]],
    per_prefix: int,
    max_new_tokens: int,
    eos_token_id: int,
    never: Sequence[int],
    next_token: NextToken,
    generator: torch.Generator,
) -> Tensor:
    """Ids `[B x per_prefix, max_new_tokens]`, each row by its own next tokens; EOS fills the rest
    after the first EOS.

    A prefix is computed once for all its continuations, and finished ones leave the batch.
    """
    device, forward_pass = model.device, forward_pass_of(model)
    position = torch.tensor([len(prefix) for prefix in prefixes], device=device)
    width = max(map(len, prefixes))
    ids = torch.tensor([[*ids, *[eos_token_id] * (width - len(ids))] for ids in prefixes])
    states, cache = _computed_prefixes(model, forward_pass, ids.to(device), position, per_prefix)
    # From here on, rows are continuations; `row` numbers those still in the batch.
    row = torch.arange(len(prefixes) * per_prefix, device=device)
    position = position.repeat_interleave(per_prefix, 0)
    mask = (torch.arange(width, device=device) < position[:, None]).long()
    drawn = torch.full((len(row), max_new_tokens), eos_token_id, device=device)
    alive = torch.ones_like(row, dtype=torch.bool)
    for step in range(max_new_tokens):
        logits = forward_pass.logits(model, states).float()
        if never:
            logits[:, never] = -torch.inf
        token = next_token.draw(logits, generator).masked_fill(~alive, eos_token_id)
        drawn[row, step] = token
        alive = token != eos_token_id
        active = int(alive.sum())
        if active == 0 or step + 1 == max_new_tokens:
            break
        if active <= ACTIVE_SHARE * len(row):
            kept = alive.nonzero()[:, 0]
            row, token, position, mask = row[kept], token[kept], position[kept], mask[kept]
            alive = alive[kept]
            cache.batch_select_indices(kept)
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


def _computed_prefixes(
    model: Any, forward_pass: ForwardPass, ids: Tensor, lengths: Tensor, copies: int
) -> tuple[Tensor, Cache]:
    """The last hidden state of each prefix `[B x copies, H]`, and a cache of as many rows, in which
    prefixes are padded on the right.

    Prefixes of similar length run together: few positions are padding, and activations stay small.
    """
    device = ids.device
    autocast = torch.is_autocast_enabled(device.type)
    states, layers = ids.new_empty(0), list[Any]()
    for rows, longest in of_like_length(lengths, forward_pass):
        output = model.base_model(input_ids=ids[rows, :longest], use_cache=True)
        own: list[Any] = output.past_key_values.layers
        part = torch.arange(len(rows), device=device)
        last = output.last_hidden_state[part, lengths[rows] - 1].repeat_interleave(copies, 0)
        del output
        if not layers:
            # Attention rounds to this dtype anyway (`select_rows`).
            dtype = torch.get_autocast_dtype(device.type) if autocast else own[0].keys.dtype
            shape = len(ids) * copies, ids.shape[1]
            layers = [GrowingLayer.of_zeros(layer, *shape, dtype) for layer in own]
            states = last.new_empty(len(ids) * copies, last.shape[-1])
        to = (rows[:, None] * copies + torch.arange(copies, device=device)).flatten()
        states[to] = last
        for layer in layers:
            filled = own.pop(0)  # freed as soon as it is copied
            layer.keys[to, :, :longest] = filled.keys.repeat_interleave(copies, 0).to(dtype)
            layer.values[to, :, :longest] = filled.values.repeat_interleave(copies, 0).to(dtype)
    return states, Cache(layers=layers)


def decode_by_transformers(
    model: Any,
    prefixes: list[Sequence[int]],
    per_prefix: int,
    max_new_tokens: int,
    eos_token_id: int,
    never: Sequence[int],
    options: dict[str, Any],
) -> Tensor:
    """As `decode_token_by_token`, by any decoding method of transformers."""
    width = max(map(len, prefixes))
    ids = [[*[eos_token_id] * (width - len(prefix)), *prefix] for prefix in prefixes]
    mask = [[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes]
    cache = {}
    if forward_pass_of(model).shares_prefix and _generate_of(model).grows:
        cache["past_key_values"] = Cache(layer_class_to_replicate=GrowingLayer)
    output = model.generate(
        torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=max_new_tokens,
        num_return_sequences=per_prefix,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
        suppress_tokens=list(never) or None,
        **cache,
        **options,
    )
    return output[:, width:]


@dataclass(frozen=True)
class Generate:
    """What a model's `generate` gives its own logits with.

    Attributes:
        pads_left: a prefix with padding on its left.
        grows: a cache that grows in place.
    """

    pads_left: bool
    grows: bool


_COMPARED: WeakKeyDictionary[Any, Generate] = WeakKeyDictionary()


def pads_left(model: Any) -> bool:
    """Whether `generate` gives the same logits for a left-padded prefix as for the prefix alone.

    Raises:
        ModelError: as `_generate_of`.
    """
    return _generate_of(model).pads_left


def _generate_of(model: Any) -> Generate:
    """Compares two steps of `generate` with the model's own forward pass, once per model.

    Raises:
        ModelError: even without padding, `generate` disagrees with the model's forward pass.
    """
    if model not in _COMPARED:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            _COMPARED[model] = _compare_generate(model)
    return _COMPARED[model]


def _compare_generate(model: Any) -> Generate:
    generator = torch.Generator().manual_seed(1)
    entries = model.config.get_text_config().vocab_size
    prefix = torch.randint(entries, (1, 3), generator=generator).to(model.device)
    padded = torch.cat([prefix[:, :1].expand(-1, 2), prefix], -1)
    mask = torch.ones_like(padded).index_fill_(1, torch.tensor([0, 1], device=model.device), 0)

    def two_steps(ids: Tensor, mask: Tensor, **cache: Cache) -> tuple[Tensor, Tensor]:
        """The sequence without its last token, `[1, T + 1]`, and two logits, `[2, V]`."""
        output = model.generate(
            ids, attention_mask=mask, min_new_tokens=2, max_new_tokens=2, do_sample=False,
            num_beams=1, pad_token_id=0, return_dict_in_generate=True, output_logits=True,
            **cache,
        )  # fmt: skip
        return output.sequences[:, :-1], torch.cat(output.logits)

    refusal = f"{type(model).__name__} cannot be sampled from: its `generate` "
    try:
        ids, steps = two_steps(prefix, torch.ones_like(prefix))
    except Exception as error:  # exception types vary by architecture
        raise ModelError(f"{refusal}fails ({type(error).__name__}: {error})") from error
    if not same_logits(steps, model(input_ids=ids).logits[0, -2:]):
        raise ModelError(f"{refusal}gives logits that differ from its forward pass")

    def agrees(ids: Tensor, mask: Tensor, **cache: Cache) -> bool:
        try:
            return same_logits(two_steps(ids, mask, **cache)[1], steps)
        except Exception:
            return False

    grows = Cache(layer_class_to_replicate=GrowingLayer)
    return Generate(
        agrees(padded, mask), agrees(prefix, torch.ones_like(prefix), past_key_values=grows)
    )
