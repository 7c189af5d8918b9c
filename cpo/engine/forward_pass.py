"""Hidden states and logits before each continuation token, as fast as the model allows.

Two shortcuts save most of a step: the vocabulary head sees only the positions needed, and a prefix
is computed once for all its continuations, which take its keys and values from a cache or stand
beside it in one row (`packed_groups`). Both bypass whatever else the model's `forward` does: a cap
or scale on the logits, attention that counts cache slots. So each model is compared once with
`model(...).logits`, and uses only the shortcuts that agree.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from cpo.engine.fused import fuse
from cpo.engine.packed_groups import packed_states

# How the continuations of a prefix share it: its keys and values in a cache, one row, not at all.
Sharing = Literal["cached", "packed", "repeated"]

# Rows run together: at most this many tokens with padding, the shortest at least this share of the
# longest. Sizes affect speed, not values.
PART_TOKENS = 8192
PART_SPREAD = 0.7
LOGITS_PART_TOKENS = 1024  # if every token has logits for the whole vocabulary
# Passes over the cache of fewer tokens than this, on average, are slower on a processor than one
# row a group. Measured: with passes of 200 tokens (two groups of Dolly's lengths) the rows are 1.5
# times as fast, with passes of 900 as fast, and with all lengths equal 0.7 times.
SMALL_PASS_TOKENS = 512

# Configuration names of a factor on the logits (or its inverse), and of a cap c, as in c
# tanh(logits / c). The comparison decides which of them a model applies, and how.
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")
# Rotary frequencies that depend on the longest row of a batch.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")

# Two computations of the same logits differ by rounding, by less than this share of the largest.
# That is about 2,000 units in its last place in fp32, which many models use for norms and attention
# even in float64.
ROUNDING = 2.4e-4


class ModelError(ValueError):
    """A model that cannot be scored as a causal language model."""


@dataclass(frozen=True)
class ForwardPass:
    """Which shortcuts give a model's own logits.

    Attributes:
        base_and_head: running base model and vocabulary head apart. Otherwise the whole model runs,
            and its logits `[N, V]` replace hidden states `[N, H]` everywhere.
        scale, cap: logits are `cap tanh(scale head(states) / cap)`, or without a cap `scale
            head(states)`.
        shares_prefix: continuations may continue from their prefix's keys and values, with padding
            between the two.
        packs: continuations may stand in one row with their prefix, under a mask.
        window: the most tokens, padding included, that may share, or stand in one row; None for any
            number.
        pads: rows of different lengths may share a batch.
        one_pass: every batch takes exactly one forward pass, of whatever lengths: processes that
            hold parts of one model must make equally many.
    """

    base_and_head: bool
    shares_prefix: bool
    scale: float = 1.0
    cap: float | None = None
    packs: bool = False
    window: int | None = None
    pads: bool = True
    one_pass: bool = False

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

    def sharing(
        self, model: Any, width: int, row: int = 0, lengths: Tensor | None = None
    ) -> Sharing:
        """How continuations share their prefix best, of the ways that the model allows.

        Warns if gradient checkpointing leaves nothing but repeating it: transformers then drops the
        cache silently.

        Args:
            model: the model, whose mode decides whether layers are recomputed.
            width: tokens of prefix, continuation and padding together.
            row: tokens of the longest row of a prefix and all its continuations, if there is more
                than one.
            lengths: tokens of each continuation to run, `[R]`, for the choice by speed; without
                them one row is taken only where a cache cannot be.
        """
        fits = self.window is None or width <= self.window
        # A window may count the places in a row, across other continuations.
        packs = self.packs and (self.window is None or max(row, width) <= self.window)
        checkpointed = model.training and is_checkpointed(model)
        if self.shares_prefix and fits and not checkpointed and not self.one_pass:
            return "packed" if packs and self._in_small_passes(lengths) else "cached"
        if packs:
            return "packed"
        if self.shares_prefix and checkpointed:
            what = "gradient checkpointing drops the key/value cache"
            warnings.warn(f"{what}: the prefix is repeated for every continuation", stacklevel=2)
        return "repeated"

    def sharing_in(self, model: Any, prefix_mask: Tensor, mask: Tensor, by_length: bool) -> Sharing:
        """`sharing` in a batch of groups, with masks `[B, P]` and `[B, K, L]`; the lengths decide
        which way is faster only if `by_length`."""
        lengths = (mask.sum(-1) - 1).clamp_(min=0)
        row = int((prefix_mask.sum(-1) + lengths.sum(-1)).max())
        width = prefix_mask.shape[-1] + mask.shape[-1]
        return self.sharing(model, width, row, lengths.flatten() if by_length else None)

    def _in_small_passes(self, lengths: Tensor | None) -> bool:
        if lengths is None or lengths.device.type != "cpu":  # not measured on a GPU
            return False
        passes = sum(1 for _ in of_like_length(lengths, self))
        return passes > 1 and int(lengths.sum()) < SMALL_PASS_TOKENS * passes


def score_in_one_pass(scorer: Any) -> None:
    """Let a `GroupScorer` take exactly one forward pass for every batch, as processes must that
    hold parts of one model."""
    scorer.tokens_at_once = None
    scorer.forward_pass = replace(scorer.forward_pass, one_pass=True)


def is_checkpointed(model: Any) -> bool:
    """Whether any module of the model recomputes its activations in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def checkpoint_layers(model: Any) -> None:
    """Recompute each layer's activations in the backward pass, by transformers' own checkpoints."""
    # Renamed in transformers 5.23.
    name = "activation_checkpointing_enable"
    getattr(model, name, model.gradient_checkpointing_enable)({"use_reentrant": False})


# --- States before tokens -------------------------------------------------------------------------


def states_before_tokens(
    model: Any,
    forward_pass: ForwardPass,
    prefix_ids: Tensor,
    prefix_mask: Tensor,
    continuation_ids: Tensor,
    mask: Tensor,
    sharing: Sharing,
) -> Tensor:
    """The state that predicts each continuation token in `mask`, `[N, H]`: the last hidden state at
    the position before it, or logits `[N, V]` without `base_and_head`.

    Args:
        prefix_ids, prefix_mask: `[B, P]` int64 and bool, padded on the right, none empty.
        continuation_ids, mask: `[B, K, L]` int64 and bool, padded on the right.
        sharing: how the continuations share their prefix.
    """
    if sharing == "packed":
        return packed_states(model, prefix_ids, prefix_mask, continuation_ids, mask)
    share_prefix = sharing == "cached"
    batch = torch.arange(len(mask), device=mask.device)
    group = batch.repeat_interleave(mask.shape[1])
    ids, wanted = continuation_ids.flatten(0, 1), mask.flatten(0, 1)
    if share_prefix:
        prefix = model.base_model(input_ids=prefix_ids, use_cache=True)
        ends = prefix_mask.sum(-1)
        lengths = wanted.sum(-1) - 1  # nothing follows a last token
    else:
        own = torch.cat([prefix_mask[group], wanted], -1)
        ids = torch.cat([prefix_ids[group], ids], -1)
        wanted = torch.cat([torch.zeros_like(prefix_mask)[group], wanted], -1)
        # Padding moves to the right end. A causal model never looks right, so no architecture needs
        # an attention mask or position ids.
        ids, own, wanted = left_aligned(ids, own, wanted)
        lengths = own.sum(-1) * wanted.any(-1)

    number = wanted.flatten().cumsum(0).view_as(wanted) - 1  # a token's index in the result
    states, numbers = [], []
    if share_prefix:  # its prefix's last state predicts a first token
        last = prefix.last_hidden_state[batch, ends - 1]
        states.append(last.index_select(0, group[wanted[:, 0]]))
        numbers.append(number[:, 0][wanted[:, 0]])
    for rows, longest in of_like_length(lengths, forward_pass):
        expected = wanted[rows, 1 : 1 + longest]  # token t + 1, by the state at t
        if share_prefix:
            owner = group[rows]
            hidden = model.base_model(
                input_ids=ids[rows, :longest],
                attention_mask=torch.cat([prefix_mask[owner], expected], -1).long(),
                position_ids=ends[owner, None] + torch.arange(longest, device=mask.device),
                past_key_values=select_rows(prefix.past_key_values, owner),
                use_cache=True,
            ).last_hidden_state
        else:
            hidden = _run(model, forward_pass, ids[rows, :longest])[:, : expected.shape[-1]]
        states.append(hidden[expected])
        numbers.append(number[rows, 1 : 1 + longest][expected])
    if not states:  # every continuation is empty
        return model.get_input_embeddings().weight[:0]
    return torch.cat(states).index_select(0, torch.cat(numbers).argsort())


def _run(model: Any, forward_pass: ForwardPass, ids: Tensor) -> Tensor:
    """Hidden states `[R, T, H]` of rows without a cache, or logits `[R, T, V]`."""
    if forward_pass.base_and_head:
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    options = {"use_cache": False} if _takes(model, "use_cache") else {}
    logits: Tensor = model(input_ids=ids, **options).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def last_hidden_states(model: Any, ids: Tensor) -> Tensor:
    """Last hidden states `[R, T, H]` of rows `[R, T]`, without a cache."""
    forward_pass = forward_pass_of(model)
    if forward_pass.base_and_head:
        return _run(model, forward_pass, ids)
    return model(input_ids=ids, output_hidden_states=True).hidden_states[-1]


def left_aligned(ids: Tensor, mask: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The rows with padding moved to the right end; order within a row is kept."""
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
    return tuple(rows.gather(-1, order) for rows in (ids, mask, *others))


def of_like_length(lengths: Tensor, forward_pass: ForwardPass) -> Iterator[tuple[Tensor, int]]:
    """Rows grouped by similar length, longest first, each group with its longest length; no empty
    rows.

    A part holds at most `PART_TOKENS` tokens and no row shorter than `PART_SPREAD` of its longest.
    With `one_pass`, all rows are one part, the empty ones too.
    """
    if forward_pass.one_pass:
        yield torch.arange(len(lengths), device=lengths.device), max(1, int(lengths.max()))
        return
    tokens = PART_TOKENS if forward_pass.base_and_head else LOGITS_PART_TOKENS
    spread = PART_SPREAD if forward_pass.pads else 1.0
    order = lengths.argsort(descending=True, stable=True)
    sizes = [size for size in lengths[order].tolist() if size > 0]
    start = 0
    while start < len(sizes):
        longest, end = sizes[start], start + 1
        limit = min(len(sizes), start + tokens // longest)
        while end < limit and sizes[end] >= spread * longest:
            end += 1
        yield order[start:end], longest
        start = end


def select_rows(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A cache with the given rows of another, which stays unchanged; differentiable.

    Uses `index_select`, as wherever a row may be taken several times: on a CPU, the gradient of
    plain indexing sums in thread order, so two equal trainings would end in different weights.
    """
    selected = copy.copy(cache)
    selected.layers = [_SelectedRows(layer, rows) for layer in cache.layers]
    return selected


class _SelectedRows(DynamicLayer):
    """Rows of another layer's keys and values, in the dtype that attention uses.

    Under autocast, rotary embeddings leave keys in fp32, and transformers keeps values in the keys'
    dtype. Attention rounds both anyway: rounding here gives the same values at half the size. Rows
    are selected before rounding, since the gradients of a reused row sum in the dtype it then has.
    """

    def __init__(self, layer: Any, rows: Tensor) -> None:
        super().__init__()
        device = rows.device.type
        autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if autocast else layer.keys.dtype
        self.keys, self.values = (
            _selected(states, rows).to(self.dtype) for states in (layer.keys, layer.values)
        )
        self.device, self.is_initialized = rows.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        rounded = key_states.to(self.dtype), value_states.to(self.dtype)
        return super().update(*rounded, *args, **kwargs)


def _selected(states: Tensor, rows: Tensor) -> Tensor:
    """Rows of keys or values. Attention's gradient has heads and positions swapped in memory; on a
    CPU the sum over reused rows takes several times as long as first putting them in order."""
    selected = states.index_select(0, rows)
    if selected.requires_grad and selected.device.type == "cpu":
        selected.register_hook(Tensor.contiguous)
    return selected


# --- The comparison -------------------------------------------------------------------------------

_COMPARED: WeakKeyDictionary[Any, ForwardPass] = WeakKeyDictionary()


def forward_pass_of(model: Any) -> ForwardPass:
    """The shortcuts that a transformers causal language model may take, by one comparison.

    Two ragged groups are run with each shortcut, without autocast or dropout, and compared with the
    logits of each row alone. A shortcut that disagrees beyond rounding is not used, with a warning.
    The result is kept as long as the model. The model's own GELUs and norms are replaced (`fused`).

    Raises:
        ModelError: the model's forward pass fails, or its logits are not finite or depend on later
            tokens.
    """
    if model not in _COMPARED:
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
                _COMPARED[model] = _compare(model)
        finally:
            for module, mode in modes.items():
                module.training = mode
    return _COMPARED[model]


def same_logits(logits: Tensor, expected: Tensor) -> bool:
    """Whether two computations of the same logits differ only by rounding."""
    bound = ROUNDING * float(expected.abs().max())
    return logits.shape == expected.shape and float((logits - expected).abs().max()) <= bound


def _compare(model: Any) -> ForwardPass:
    config = model.config.get_text_config()
    groups: Any = _trial_groups(model, config)
    own = _own_logits(model, groups)
    fuse(model)  # before the comparisons, which cover it

    def fault(shortcut: ForwardPass, sharing: Sharing = "repeated") -> str:
        """Why a shortcut cannot be used; "" if it gives the model's own logits."""
        try:
            arguments = (model, shortcut, *groups, sharing)
            states = states_before_tokens(*arguments)
            agrees = same_logits(shortcut.logits(model, states), own)
        except Exception as error:  # exception types vary by architecture
            return f"fails ({_summary(error)})"
        return "" if agrees else "gives other logits"

    def warn(what: str, instead: str) -> None:
        warnings.warn(f"{type(model).__name__}: {what}, so {instead}", stacklevel=4)

    whole = ForwardPass(False, False, pads=not _length_dependent(config))
    if whole.pads and (what := fault(whole)):
        whole = replace(whole, pads=False)
        warn(f"a batch of ragged rows {what}", "only equal lengths run together")
    if type(model.get_output_embeddings()) is not torch.nn.Linear:
        warn("it has no linear head", "its full forward pass is used, which is slower")
        return whole
    factors = _positive(config, SCALES)
    scales = [1.0, *(scale for factor in factors for scale in (factor, 1 / factor))]
    # A configured cap is tried first: leaving it out goes unnoticed on a new model's small logits,
    # but not on a trained model's.
    for cap, scale in product([*_positive(config, CAPS), None], scales):
        split = replace(whole, base_and_head=True, scale=scale, cap=cap)
        if not (what := fault(split)):
            break
    else:
        warn(f"its base model and head {what}", "its full forward pass is used, which is slower")
        return whole
    # Local attention may count cache slots.
    window = min(map(int, _positive(config, WINDOWS)), default=None)
    takes_positions = split.pads and _takes(model.base_model, "position_ids")
    packs = takes_positions and not fault(split, "packed")
    split = replace(split, packs=packs, window=window)
    shared = replace(split, shares_prefix=True)
    if what := _obstacle(model, shared) or fault(shared, "cached"):
        what = f"its key/value cache cannot be shared by continuations, since it {what}"
        instead = "they stand in one row with it" if packs else "the prefix is repeated for each"
        warn(what, f"{instead}, which is slower")
        return split
    return shared


def _trial_groups(model: Any, config: Any) -> list[Tensor]:
    """Two prefixes `[2, P]` with two continuations each `[2, 2, L]`: random tokens, four different
    lengths, at most 15 tokens a row; each tensor is followed by its mask."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for lengths in (torch.tensor([9, 4]), torch.tensor([[5, 2], [3, 6]])):
        mask = torch.arange(int(lengths.max())) < lengths[..., None]
        ids = torch.randint(config.vocab_size, mask.shape, generator=generator) * mask
        tensors += [ids.to(model.device), mask.to(model.device)]
    return tensors


def _own_logits(model: Any, groups: list[Tensor]) -> Tensor:
    """The model's logits before each continuation token, `[N, V]`, every row run alone.

    Raises:
        ModelError: as `forward_pass_of`.
    """
    refusal = f"{type(model).__name__} cannot be scored: its"
    whole = ForwardPass(False, False)
    prefix_ids, prefix_mask, ids, mask = groups
    rows = []
    try:
        for row, column in product(range(2), range(2)):
            prefix = prefix_ids[row][prefix_mask[row]]
            sequence = torch.cat([prefix, ids[row, column][mask[row, column]]])
            rows.append(_run(model, whole, sequence[None])[0, len(prefix) - 1 : -1])
        without_later_tokens = _run(model, whole, prefix_ids[:1])[0, -1]
    except Exception as error:  # exception types vary by architecture
        raise ModelError(f"{refusal} forward pass fails ({_summary(error)})") from error
    own = torch.cat(rows)
    if not own.isfinite().all():
        raise ModelError(f"{refusal} logits are not finite numbers")
    if not same_logits(without_later_tokens, own[0]):
        raise ModelError(
            f"{refusal} logits depend on later tokens, so it is no causal language model as "
            "configured (is_decoder, for an encoder?)"
        )
    return own


def _obstacle(model: Any, forward_pass: ForwardPass) -> str:
    """What in a model's design rules out continuing from a plain key/value cache; "" if nothing."""
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


def _positive(config: Any, names: tuple[str, ...]) -> list[float]:
    """The positive numbers among a configuration's attributes with these names."""
    values = [getattr(config, name, None) for name in names]
    return [value for value in values if isinstance(value, (int, float)) and value > 0]


def _length_dependent(config: Any) -> bool:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    kinds = {kind.get("rope_type", kind.get("type")) for kind in nested}
    return bool(kinds & set(LENGTH_DEPENDENT_ROPE))


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
