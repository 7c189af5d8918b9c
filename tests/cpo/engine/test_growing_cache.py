"""The cache that grows in place holds what transformers' own holds."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from cpo.engine import growing_cache
from cpo.engine.growing_cache import GrowingLayer

BEAMS = 2


def states(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, rows, 3, tokens, 4)
    return keys, values


@given(
    st.lists(st.sampled_from(["token", "tokens", "finish", "reorder"]), max_size=20), st.integers(0)
)
def test_it_holds_what_transformers_own_layer_holds(steps, seed):
    torch.manual_seed(seed % 1000)
    prefix = [part.repeat_interleave(BEAMS, 0) for part in states(3, 5)]
    layers = [DynamicLayer(), GrowingLayer()]
    for layer in layers:
        layer.update(*prefix)
    for step in steps:
        rows = layers[0].keys.shape[0]
        if step in ("token", "tokens"):
            new = states(rows, 1 if step == "token" else growing_cache.ROOM)
            shown = [layer.update(*new) for layer in layers]
            assert all(map(torch.equal, *shown))
        elif step == "finish" and rows > BEAMS:
            for layer in layers:
                layer.batch_select_indices(torch.arange(BEAMS, rows))
        elif step == "reorder":  # within the beams of a prompt
            first = torch.arange(0, rows, BEAMS).repeat_interleave(BEAMS)
            order = first + torch.randint(BEAMS, (rows,))
            for layer in layers:
                layer.reorder_cache(order)
        assert torch.equal(layers[0].keys, layers[1].keys)
        assert torch.equal(layers[0].values, layers[1].values)
        assert layers[0].get_seq_length() == layers[1].get_seq_length()


def test_a_token_is_written_without_copying_the_others():
    layer = GrowingLayer()
    layer.update(*states(2, 5))
    place = layer.keys.data_ptr()
    for _ in range(growing_cache.ROOM):
        layer.update(*states(2, 1))
        assert layer.keys.data_ptr() == place
    layer.update(*states(2, 1))
    assert layer.keys.data_ptr() != place


def test_memory_taken_beforehand_keeps_heads_and_dtypes():
    keys, values = states(2, 5)
    like = DynamicLayer()
    like.update(keys.bfloat16(), values.bfloat16())
    layer = GrowingLayer.of_zeros(like, rows=7, tokens=9, dtype=torch.bfloat16)
    assert layer.keys.shape == layer.values.shape == (7, 3, 9, 4)
    assert layer.keys.dtype == torch.bfloat16 and not layer.keys.any()
    # What is written is rounded to the memory's dtype.
    new = states(7, 1)
    kept, _ = layer.update(*new)
    assert torch.equal(kept[:, :, 9:], new[0].bfloat16())


def test_a_layer_that_was_reset_knows_its_new_prefix():
    layers = [DynamicLayer(), GrowingLayer()]
    first, second, token = states(2, 5), states(2, 2), states(2, 3)
    for layer in layers:
        layer.update(*(part[:1].expand(2, -1, -1, -1) for part in first))
        layer.reset()
        layer.update(*(part[:1].expand(2, -1, -1, -1) for part in second))
        layer.update(*token)
        layer.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(layers[0].keys, layers[1].keys)
