"""The next token: transformers' own distribution, for every temperature, top-k and top-p."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cpo.engine import next_token
from cpo.engine.next_token import NextToken


def spread(how: NextToken, logits: torch.Tensor) -> torch.Tensor:
    """The distribution that `how` draws from, `[R, V]`."""
    probabilities, ids = how.candidates(logits)
    spread = torch.zeros_like(logits).scatter(-1, ids, probabilities)
    return spread / spread.sum(-1, keepdim=True)


@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.1, 1.0, 6.0]),
    top_k=st.sampled_from([None, 2, 9, 300, 1000]),
    top_p=st.sampled_from([0.05, 0.5, 0.93, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_the_distribution_is_that_of_transformers(seed, scale, top_k, top_p, temperature):
    logits = scale * torch.randn(3, 300, generator=torch.Generator().manual_seed(seed))
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        warped = TopKLogitsWarper(top_k)(None, warped)
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(None, warped)
    ours = spread(NextToken(top_k, top_p, temperature), logits)
    torch.testing.assert_close(ours, warped.softmax(-1), rtol=1e-4, atol=1e-6)


def test_a_nucleus_by_hand():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    # Best first: .5, .25, .15, .1, with .0, .5, .75 and .9 before each. Under p = .8, entries stay
    # as long as less than .8 is before them: three, with .9 together.
    ours = spread(NextToken(top_p=0.8), logits)
    torch.testing.assert_close(ours, torch.tensor([[0.0, 5 / 9, 1.5 / 9, 2.5 / 9]]))
    # Of the two best, 2/3 and 1/3, the first alone holds .6.
    ours = spread(NextToken(top_k=2, top_p=0.6), logits)
    torch.testing.assert_close(ours, torch.tensor([[0.0, 1.0, 0.0, 0.0]]))


def test_few_entries_are_sorted_where_they_hold_the_mass(monkeypatch):
    monkeypatch.setattr(next_token, "CANDIDATES", 4)
    peaked = torch.full((2, 100), -5.0)
    peaked[:, 7] = 8.0
    assert NextToken(top_p=0.9).candidates(peaked)[1].shape == (2, 4)
    flat = torch.cat([peaked, torch.zeros(1, 100)])  # one row needs all
    assert NextToken(top_p=0.99).candidates(flat)[1].shape == (3, 100)
    torch.testing.assert_close(spread(NextToken(top_p=0.9), flat)[0], peaked[0].softmax(-1).round())


def test_draws_follow_the_distribution_and_the_generator():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log().expand(20_000, 4)
    how = NextToken(top_p=0.8)
    drawn = how.draw(logits, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    # Four standard errors of a share are at most 4 / sqrt(4 x 20,000) = .014.
    torch.testing.assert_close(
        shares, torch.tensor([0.0, 5 / 9, 1.5 / 9, 2.5 / 9]), atol=0.014, rtol=0
    )
    assert torch.equal(drawn, how.draw(logits, torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, how.draw(logits, torch.Generator().manual_seed(1)))
    assert NextToken(top_k=1).draw(logits, torch.Generator()).unique().tolist() == [1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"do_sample": False}, NextToken(top_k=1)),
        ({"do_sample": False, "num_beams": 1}, NextToken(top_k=1)),
        ({"do_sample": False, "num_beams": 4}, None),
        ({"do_sample": True, "top_k": 0}, NextToken()),
        ({"do_sample": True, "top_k": 50, "num_beams": 1}, NextToken(50)),
        (
            {"do_sample": True, "top_k": 0, "top_p": 0.9, "temperature": 0.7},
            NextToken(None, 0.9, 0.7),
        ),
        ({"do_sample": True, "top_k": 0, "typical_p": 0.9}, None),
        ({"do_sample": True, "top_k": 0, "repetition_penalty": 1.2}, None),
        ({"do_sample": True, "top_k": 0, "no_repeat_ngram_size": 1}, None),  # 1 is no default
        # transformers refuses these, and says why.
        ({"do_sample": True, "top_k": 0, "top_p": 1.5}, None),
        ({"do_sample": True, "top_k": 0, "temperature": 0.0}, None),
        ({"do_sample": True, "top_k": -1}, None),
    ],
)
def test_other_methods_are_left_to_transformers(options, expected):
    assert NextToken.of(options) == expected
