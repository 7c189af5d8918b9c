"""Hidden states and logits before each token of a continuation, as fast as the model allows.

Two shortcuts save most of a step: the vocabulary head sees only the positions that are asked for,
and the keys and values of a prefix serve all its continuations. Both reach into the model and leave
out whatever else its `forward` does: a cap or a scale on the logits, attention that counts cache
slots. So each model is compared once with `model(...).logits`, and takes the shortcuts that agree.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache, DynamicLayer

# Rows that are run together: their tokens with padding, and how short the shortest may be, as a
# share of the longest. Sizes change speed, not values.
PART_TOKENS = 8192
PART_SPREAD = 0.7
LOGITS_PART_TOKENS = 1024  # where each token comes with logits for the whole vocabulary

# What a configuration calls a factor of the logits (or its inverse), and a cap c of them, as in
# c tanh(logits / c). The comparison tells which of them a model applies, and how.
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")
# Rotary frequencies that depend on the longest row of a batch.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")

# Two ways to the same logits differ by rounding, by less than this share of the largest: some 2,000
# units in its last place in fp32, in which many models compute norms and attention even in float64.
ROUNDING = 2.4e-4


class ModelError(ValueError):
    """A model that cannot be scored as a causal language model; the message says why."""


@dataclass(frozen=True)
class ForwardPass:
    """Which shortcuts give a model's own logits.

    Attributes:
        base_and_head: the base model and the vocabulary head do. Otherwise the whole model runs,
            and its logits `[N, V]` take the place of hidden states `[N, H]` everywhere.
        scale, cap: logits are `cap tanh(scale head(states) / cap)`, without a cap
            `scale head(states)`.
        shares_prefix: continuations may go on from the keys and values of their prefix, with
            padding between the two.
        window: up to so many tokens, padding counted; None for any number.
        pads: rows of different lengths may stand in one batch.
    """

    base_and_head: bool
    shares_prefix: bool
    scale: float = 1.0
    cap: float | None = None
    window: int | None = None
    pads: bool = True

    def logits(self, model: Any, states: Tensor) -> Tensor:
        """`[..., V]` of hidden states `[..., H]`, in the dtype of the head's weights."""
        if not self.base_and_head:
            return states
        head = model.get_output_embeddings()
        dtype = head.weight.dtype
        logits = head(states.to(dtype)).to(dtype)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()

    def may_share(self, model: Any, width: int) -> bool:
        """Whether `width` tokens, prefix, continuation and padding, may go through the cache; warns
        where gradient checkpointing forbids it, which drops the cache in transformers without a
        word."""
        if self.shares_prefix and model.training and is_checkpointed(model):
            what = "gradient checkpointing drops the key/value cache"
            warnings.warn(f"{what}: the prefix is repeated for every continuation", stacklevel=2)
            return False
        return self.shares_prefix and (self.window is None or width <= self.window)


def is_checkpointed(model: Any) -> bool:
    """Whether any module of the model computes its activations again in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


# --- States before tokens -------------------------------------------------------------------------


def states_before_tokens(
    model: Any,
    forward_pass: ForwardPass,
    prefix_ids: Tensor,
    prefix_mask: Tensor,
    continuation_ids: Tensor,
    mask: Tensor,
    share_prefix: bool,
) -> Tensor:
    """The state that expects each continuation token in `mask`, `[N, H]`: the last hidden state at
    the position before it, or logits `[N, V]` where `forward_pass` has no base model.

    Args:
        prefix_ids, prefix_mask: `[B, P]` int64 and bool, padded on the right, none empty.
        continuation_ids, mask: `[B, K, L]` int64 and bool, padded on the right.
        share_prefix: a prefix is computed once for all its continuations.
    """
    states = _shared_prefix if share_prefix else _repeated_prefix
    return states(model, forward_pass, prefix_ids, prefix_mask, continuation_ids, mask)


def _repeated_prefix(
    model: Any,
    forward_pass: ForwardPass,
    prefix_ids: Tensor,
    prefix_mask: Tensor,
    continuation_ids: Tensor,
    mask: Tensor,
) -> Tensor:
    """Every continuation carries its own copy of the prefix."""
    k = mask.shape[1]
    none = torch.zeros_like(prefix_mask)
    ids = torch.cat([prefix_ids.repeat_interleave(k, 0), continuation_ids.flatten(0, 1)], -1)
    given = torch.cat([prefix_mask.repeat_interleave(k, 0), mask.flatten(0, 1)], -1)
    asked = torch.cat([none.repeat_interleave(k, 0), mask.flatten(0, 1)], -1)
    # Padding goes to the right end. A causal model never looks right, so no attention mask and no
    # position ids are needed, for any architecture.
    ids, given, asked = left_aligned(ids, given, asked)
    asked = asked[:, 1:]  # the state at t predicts token t + 1; a prefix is never empty
    pool, place, filled = [], torch.zeros_like(asked, dtype=torch.long), 0
    for rows, longest in _of_like_length(given.sum(-1) * asked.any(-1), forward_pass):
        states = _run(model, forward_pass, ids[rows, :longest])
        here = asked[rows, : longest - 1]
        pool.append(states[:, :-1][here])
        place[rows, : longest - 1] = filled + here.flatten().cumsum(0).view_as(here) - 1
        filled += len(pool[-1])
    if not pool:  # every continuation is empty
        return model.get_input_embeddings().weight[:0]
    return torch.cat(pool).index_select(0, place[asked])


def _run(model: Any, forward_pass: ForwardPass, ids: Tensor) -> Tensor:
    """Hidden states `[R, T, H]` of rows without a cache, or logits `[R, T, V]`."""
    if forward_pass.base_and_head:
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    options = {"use_cache": False} if _takes(model, "use_cache") else {}
    logits: Tensor = model(input_ids=ids, **options).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def last_hidden_states(model: Any, ids: Tensor) -> Tensor:
    """`[R, T, H]`, of rows `[R, T]` without a cache."""
    if forward_pass_of(model).base_and_head:
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return model(input_ids=ids, output_hidden_states=True).hidden_states[-1]


def _shared_prefix(
    model: Any,
    forward_pass: ForwardPass,
    prefix_ids: Tensor,
    prefix_mask: Tensor,
    continuation_ids: Tensor,
    mask: Tensor,
) -> Tensor:
    """The prefix once; its keys and values, selected by row, serve all its continuations."""
    batch, k, width = mask.shape
    prefix = model.base_model(input_ids=prefix_ids, use_cache=True)
    lengths = prefix_mask.sum(-1)
    ids, asked = continuation_ids.flatten(0, 1), mask.flatten(0, 1)
    group = torch.arange(batch, device=ids.device).repeat_interleave(k)
    # Where to look for the state before each token: before the first, the prefix's last.
    pool = [prefix.last_hidden_state[torch.arange(batch, device=ids.device), lengths - 1]]
    place = group[:, None].expand(-1, width).clone()
    filled = batch
    # Nothing follows a last token.
    for rows, longest in _of_like_length(asked.sum(-1) - 1, forward_pass):
        fed = asked[rows, 1 : 1 + longest]
        owner = group[rows]
        states = model.base_model(
            input_ids=ids[rows, :longest],
            attention_mask=torch.cat([prefix_mask[owner], fed], -1).long(),
            position_ids=lengths[owner, None] + torch.arange(longest, device=ids.device),
            past_key_values=select_rows(prefix.past_key_values, owner),
            use_cache=True,
        ).last_hidden_state[fed]
        pool.append(states)
        place[rows, 1 : 1 + longest] = filled + fed.flatten().cumsum(0).view_as(fed) - 1
        filled += len(states)
    return torch.cat(pool).index_select(0, place[asked])


def left_aligned(ids: Tensor, mask: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The rows with their padding moved to the right end; order within a row is kept."""
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
    return tuple(rows.gather(-1, order) for rows in (ids, mask, *others))


def _of_like_length(lengths: Tensor, forward_pass: ForwardPass) -> Iterator[tuple[Tensor, int]]:
    """Rows of a like length together, longest first, with the longest length; without empty ones.

    A part holds at most `PART_TOKENS` tokens and no row shorter than `PART_SPREAD` of its longest.
    """
    tokens = PART_TOKENS if forward_pass.base_and_head else LOGITS_PART_TOKENS
    spread = PART_SPREAD if forward_pass.pads else 1.0
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    start = 0
    while start < len(sizes) and sizes[start] > 0:
        end = start + 1
        while (
            end < len(sizes)
            and sizes[end] >= max(1, spread * sizes[start])
            and (end + 1 - start) * sizes[start] <= tokens
        ):
            end += 1
        yield order[start:end], sizes[start]
        start = end


def select_rows(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A cache with these rows of another one, which stays as it is; differentiable.

    By `index_select`, as everywhere where a row may be taken several times: on a processor, the
    gradient of plain indexing adds up in whatever order its threads come, and two equal trainings
    would end in different weights.
    """
    selected = copy.copy(cache)
    selected.layers = [_SelectedRows(layer, rows) for layer in cache.layers]
    return selected


class _SelectedRows(DynamicLayer):
    """Rows of another layer's keys and values, kept in the dtype in which attention takes them.

    Rotary embeddings leave keys in fp32 under autocast, and transformers keeps values in the dtype
    of the keys. Attention rounds both in any case: rounded here, they are the same, half as large.
    Selected before they are rounded, since gradients of a row that serves several times add up in
    the dtype that it has then.
    """

    def __init__(self, layer: Any, rows: Tensor) -> None:
        super().__init__()
        device = rows.device.type
        autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if autocast else layer.keys.dtype
        self.keys, self.values = (
            states.index_select(0, rows).to(self.dtype) for states in (layer.keys, layer.values)
        )
        self.device, self.is_initialized = rows.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        rounded = key_states.to(self.dtype), value_states.to(self.dtype)
        return super().update(*rounded, *args, **kwargs)


# --- The comparison -------------------------------------------------------------------------------

_COMPARED: WeakKeyDictionary[Any, ForwardPass] = WeakKeyDictionary()


def forward_pass_of(model: Any) -> ForwardPass:
    """The shortcuts that a transformers causal language model may take, by one comparison.

    Two ragged groups are run each way, without autocast and without dropout, and compared with the
    logits of each row alone. What disagrees beyond rounding is not used, with a warning; the result
    is kept for as long as the model is.

    Raises:
        ModelError: the model has no forward pass of its own, its logits are not numbers, or they
            depend on later tokens.
    """
    if model not in _COMPARED:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
                _COMPARED[model] = _compare(model)
        finally:
            for module, mode in modes:
                module.training = mode
    return _COMPARED[model]


def same_logits(logits: Tensor, expected: Tensor) -> bool:
    """Whether two ways to the same logits differ by no more than rounding."""
    bound = ROUNDING * float(expected.abs().max())
    return logits.shape == expected.shape and float((logits - expected).abs().max()) <= bound


def _compare(model: Any) -> ForwardPass:
    name = type(model).__name__
    config = model.config.get_text_config()
    prefixes, continuations = _trial_rows(model, config)
    rows = [
        torch.cat([prefix, continuation])
        for prefix, group in zip(prefixes, continuations, strict=True)
        for continuation in group
    ]
    starts = [len(prefix) - 1 for prefix in prefixes for _ in continuations[0]]
    whole = ForwardPass(False, False)

    def alone(row: Tensor) -> Tensor:
        return _run(model, whole, row[None])[0]

    try:
        logits = [alone(row) for row in rows]
        own = torch.cat([row[start:-1] for row, start in zip(logits, starts, strict=True)])
        shortened = alone(rows[0][: starts[0] + 1])[-1]
    except Exception as error:  # as many kinds as there are architectures
        reason = f"its forward pass fails on {len(rows[0])} tokens ({_words(error)})"
        raise ModelError(f"{name} cannot be scored: {reason}") from error
    if not own.isfinite().all():
        raise ModelError(f"{name} cannot be scored: its logits are not finite numbers")
    if not same_logits(shortened, own[0]):
        what = "its logits depend on later tokens, so it is no causal language model as configured"
        raise ModelError(f"{name} cannot be scored: {what} (is_decoder, for an encoder?)")

    tensors = _padded(prefixes, continuations)

    def problem(shortcut: ForwardPass, what: str, instead: str) -> str:
        """Why a shortcut may not be taken, "" where it agrees."""
        try:
            states = states_before_tokens(model, shortcut, *tensors, shortcut.shares_prefix)
            if same_logits(shortcut.logits(model, states), own):
                return ""
            reason = "gives other logits"
        except Exception as error:
            reason = f"fails ({_words(error)})"
        return f"{name}: {what} {reason}, so {instead}"

    if _length_dependent(config):
        whole = replace(whole, pads=False)
    elif complaint := problem(whole, "a batch of ragged rows", "only equal lengths run together"):
        whole = replace(whole, pads=False)
        warnings.warn(complaint, stacklevel=2)
    if type(model.get_output_embeddings()) is not torch.nn.Linear:
        warnings.warn(f"{name} has no linear head: its full forward pass is used", stacklevel=2)
        return whole
    parts = [
        replace(whole, base_and_head=True, scale=scale, cap=cap)
        for cap, scale in product(_caps(config), _scales(config))
    ]
    what, instead = "its base model and head", "its full forward pass is used, which is slower"
    for shortcut in parts:
        if not (complaint := problem(shortcut, what, instead)):
            break
    else:
        warnings.warn(complaint, stacklevel=2)
        return whole
    shared = replace(shortcut, shares_prefix=True, window=_window(config))
    instead = "the prefix is repeated for every continuation, which is slower"
    complaint = _obstacle(model, shared)
    if complaint:
        complaint = f"{name} {complaint}, so {instead}"
    elif not (complaint := problem(shared, "going on from its key/value cache", instead)):
        return shared
    warnings.warn(complaint, stacklevel=2)
    return shortcut


def _trial_rows(model: Any, config: Any) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Two prefixes, and two continuations of each, of random tokens and four different lengths."""
    positions = getattr(config, "max_position_embeddings", None) or 64
    prefix_lengths, lengths = (9, 4), ((5, 2), (3, 6))
    if positions < 16:
        prefix_lengths, lengths = (2, 1), ((2, 1), (1, 2))
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> Tensor:
        drawn = torch.randint(config.vocab_size, (count,), generator=generator)
        return drawn.to(model.device)

    return [ids(count) for count in prefix_lengths], [[ids(n) for n in pair] for pair in lengths]


def _padded(
    prefixes: list[Tensor], continuations: list[list[Tensor]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prefixes `[B, P]` with their mask, continuations `[B, K, L]` with theirs."""
    flat = [continuation for group in continuations for continuation in group]
    ids, masks = [], []
    for rows in (prefixes, flat):
        ids.append(pad_sequence(rows, batch_first=True))
        ones = [torch.ones_like(row, dtype=torch.bool) for row in rows]
        masks.append(pad_sequence(ones, batch_first=True))
    shape = len(continuations), len(continuations[0]), -1
    return ids[0], masks[0], ids[1].view(shape), masks[1].view(shape)


def _obstacle(model: Any, forward_pass: ForwardPass) -> str:
    """What in a model's make forbids going on from a plain key/value cache; "" if nothing does."""
    if not forward_pass.pads:
        return "does not see through padding"
    if not _takes(model.base_model, "position_ids"):
        return "takes no position ids"
    layers = DynamicCache(config=model.base_model.config).layers
    if any(type(layer) is not DynamicLayer for layer in layers):
        return "keeps more than keys and values in its cache"
    return ""


def _takes(module: Any, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters


def _numbers(config: Any, names: tuple[str, ...]) -> list[float]:
    values = [getattr(config, name, None) for name in names]
    return [value for value in values if isinstance(value, (int, float)) and value > 0]


def _scales(config: Any) -> list[float]:
    return [1.0, *(factor for value in _numbers(config, SCALES) for factor in (value, 1 / value))]


def _caps(config: Any) -> list[float | None]:
    """A cap that is named comes first: on the small logits of a new model it would not be missed,
    and on those of a trained one it would."""
    return [*_numbers(config, CAPS), None]


def _window(config: Any) -> int | None:
    """The shortest stretch within which attention is local, where it may count cache slots."""
    return min((int(value) for value in _numbers(config, WINDOWS)), default=None)


def _length_dependent(config: Any) -> bool:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    kinds = {kind.get("rope_type", kind.get("type")) for kind in nested}
    return bool(kinds & set(LENGTH_DEPENDENT_ROPE))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
