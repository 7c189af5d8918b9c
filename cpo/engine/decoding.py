"""Decoding loops: one with a key/value cache per prefix, and transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cpo.engine.forward_pass import ModelError, forward_pass_of, same_logits, select_rows

# Finished rows leave the batch once at most this share is still active: removing rows copies the
# cache of the rest.
ACTIVE_SHARE = 0.8


def decode_top_k(
    model: Any,
    prefixes: list[Sequence[int]],
    per_prefix: int,
    max_new_tokens: int,
    eos_token_id: int,
    never: Sequence[int],
    top_k: int,
    generator: torch.Generator,
) -> Tensor:
    """Ids `[B x per_prefix, max_new_tokens]`, drawn among the `top_k` most probable; EOS fills the
    rest after the first EOS.

    A prefix is computed once for all its continuations, and finished ones leave the batch.
    """
    device, forward_pass = model.device, forward_pass_of(model)
    position = torch.tensor([len(prefix) for prefix in prefixes], device=device)
    width = max(map(len, prefixes))
    ids = torch.tensor([[*ids, *[eos_token_id] * (width - len(ids))] for ids in prefixes])
    output = model.base_model(input_ids=ids.to(device), use_cache=True)
    states = output.last_hidden_state[torch.arange(len(prefixes), device=device), position - 1]
    # From here on, rows are continuations; `row` numbers those still in the batch.
    row = torch.arange(len(prefixes) * per_prefix, device=device)
    states = states.repeat_interleave(per_prefix, 0)
    position = position.repeat_interleave(per_prefix, 0)
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
        active = int(alive.sum())
        if active == 0 or step + 1 == max_new_tokens:
            break
        if active <= ACTIVE_SHARE * len(row):
            kept = alive.nonzero()[:, 0]
            row, token, position, mask = row[kept], token[kept], position[kept], mask[kept]
            alive, cache = alive[kept], select_rows(cache, kept)
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


def decode_by_transformers(
    model: Any,
    prefixes: list[Sequence[int]],
    per_prefix: int,
    max_new_tokens: int,
    eos_token_id: int,
    never: Sequence[int],
    options: dict[str, Any],
) -> Tensor:
    """As `decode_top_k`, by any decoding method of transformers."""
    width = max(map(len, prefixes))
    ids = [[*[eos_token_id] * (width - len(prefix)), *prefix] for prefix in prefixes]
    mask = [[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes]
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


_PADS_LEFT: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def pads_left(model: Any) -> bool:
    """Whether `generate` gives the same logits for a left-padded prefix as for the prefix alone.

    Compares two steps with the model's own forward pass, once per model.

    Raises:
        ModelError: even without padding, `generate` disagrees with the model's forward pass.
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
    except Exception as error:  # exception types vary by architecture
        raise ModelError(f"{refusal}fails ({type(error).__name__}: {error})") from error
    if not same_logits(steps, model(input_ids=ids).logits[0, -2:]):
        raise ModelError(f"{refusal}gives logits that differ from its forward pass")
    try:
        return same_logits(two_steps(padded, mask)[1], steps)
    except Exception:
        return False
