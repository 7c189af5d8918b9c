"""The scorer against a plain loop over unpadded sequences."""

import pytest
import torch
from models import ARCHITECTURES, EOS, VOCABULARY, tiny_model

from cpo import logprobs
from cpo.logprobs import Group, GroupScorer, collate_groups


def ragged_groups(seed: int = 0) -> list[Group]:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (count,), generator=generator).tolist()

    return [
        Group(ids(3), [ids(4), ids(1), ids(7)]),
        Group(ids(9), [ids(2), [], ids(5)]),
        Group(ids(1), [[*ids(3), EOS], ids(6), [*ids(2), EOS, *ids(1)]]),
    ]


def plain_logps(model, group: Group) -> list[float]:
    """One sequence at a time, no padding, transformers' own logits."""
    found = []
    for continuation in group.continuations:
        ids = torch.tensor([[*group.prefix_ids, *continuation]])
        with torch.no_grad():
            logps = model(ids).logits[0].log_softmax(-1)
        start = len(group.prefix_ids)
        found.append(
            sum(float(logps[start + i - 1, token]) for i, token in enumerate(continuation))
        )
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_a_plain_loop(architecture):
    model = tiny_model(architecture).eval()
    groups = ragged_groups()
    found = GroupScorer(model)(**collate_groups(groups))
    expected = torch.tensor([plain_logps(model, group) for group in groups])
    assert found.dtype == torch.float32 and found.shape == (3, 3)
    torch.testing.assert_close(found.detach(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_is_off_even_in_training_mode(architecture):
    scorer = GroupScorer(tiny_model(architecture, dropout=0.5)).train()
    batch = collate_groups(ragged_groups())
    with torch.no_grad():
        torch.testing.assert_close(scorer(**batch), scorer(**batch), atol=0, rtol=0)


def test_token_logps_sum_up_and_give_eos_before_every_token():
    model = tiny_model("llama").eval()
    groups = ragged_groups()
    batch = collate_groups(groups)
    scorer = GroupScorer(model)
    tokens, eos = scorer.token_logps(**batch, eos_token_id=EOS)
    torch.testing.assert_close(tokens.sum(-1), scorer(**batch))
    # A truncation after two tokens, scored by itself, is their partial sum plus EOS at the third.
    group = groups[0]
    cut = Group(group.prefix_ids, [[*group.continuations[2][:2], EOS]])
    expected = plain_logps(model, cut)[0]
    assert float(tokens[0, 2, :2].sum() + eos[0, 2, 2]) == pytest.approx(expected, abs=1e-4)
    assert tokens[0, 1, 1:].eq(0).all()  # nothing on padding


def test_next_token_logits_are_those_before_each_token():
    model = tiny_model("gpt2").eval()
    group = ragged_groups()[0]
    only = Group(group.prefix_ids, [group.continuations[0]])
    logits = GroupScorer(model).next_token_logits(**collate_groups([only]))
    ids = torch.tensor([[*only.prefix_ids, *only.continuations[0]]])
    expected = model(ids).logits[0, len(only.prefix_ids) - 1 : -1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_chunked_head_gives_the_same_values_and_gradients(monkeypatch):
    batch = collate_groups(ragged_groups())

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model = tiny_model("gpt2")
        scorer = GroupScorer(model)
        logps = scorer(**batch)
        (logps * torch.arange(9.0).view(3, 3)).sum().backward()
        return logps.detach(), [parameter.grad for parameter in model.parameters()]

    whole = run()
    monkeypatch.setattr(logprobs, "HEAD_CHUNK", 3)
    chunked = run()
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=1e-4)


def test_bf16_is_close_and_its_sums_are_fp32():
    model = tiny_model("llama").eval()
    batch = collate_groups(ragged_groups())
    exact, rough = GroupScorer(model)(**batch), GroupScorer(model, "bf16")(**batch)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=1.0, rtol=0.05)


def test_bad_groups_are_refused():
    with pytest.raises(ValueError, match="same K"):
        collate_groups([Group([1], [[2]]), Group([1], [[2], [3]])])
    with pytest.raises(ValueError, match="empty prefix"):
        collate_groups([Group([], [[2]])])
