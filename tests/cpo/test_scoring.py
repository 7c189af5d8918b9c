"""The scorer against the plain version, which runs unpadded sequences one at a time."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from models import ARCHITECTURES, EOS, VOCABULARY, tiny_model
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from cpo.engine import forward_pass
from cpo.engine.forward_pass import left_aligned
from cpo.scoring import Group, GroupScorer, collate_groups, sequence_logps


def ragged_groups(seed: int = 0) -> list[Group]:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (count,), generator=generator).tolist()

    return [
        Group(ids(3), [ids(4), ids(1), ids(7)]),
        Group(ids(9), [ids(2), [], ids(5)]),
        Group(ids(1), [[*ids(3), EOS], ids(6), [*ids(2), EOS, *ids(1)]]),
    ]


def test_the_plain_version_is_a_sum_of_the_models_own_log_probabilities():
    model, prefix, continuation = tiny_model("gpt2").eval(), [3, 4, 5], [7, 9, EOS]
    expected = 0.0
    for number, token in enumerate(continuation):
        before = torch.tensor([[*prefix, *continuation[:number]]])
        expected += float(model(before).logits[0, -1].log_softmax(-1)[token])
    logps = sequence_logps(model, prefix, [continuation, [], [8]])
    assert logps.shape == (3,) and logps.dtype == torch.float32 and logps[1] == 0
    assert float(logps[0]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_plain_version(architecture):
    model = tiny_model(architecture).eval()
    groups = ragged_groups()
    scorer = GroupScorer(model)
    logps = scorer(**collate_groups(groups))
    expected = torch.stack(
        [sequence_logps(model, group.prefix_ids, group.continuations) for group in groups]
    )
    assert logps.dtype == torch.float32 and logps.shape == (3, 3)
    torch.testing.assert_close(logps, expected, atol=2e-5, rtol=1e-5)
    lists = [group.prefix_ids for group in groups], [group.continuations for group in groups]
    assert torch.equal(scorer.score(*lists), logps)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_is_off_even_in_training_mode(architecture):
    scorer = GroupScorer(tiny_model(architecture, dropout=0.5)).train()
    batch = collate_groups(ragged_groups())
    with torch.no_grad():
        torch.testing.assert_close(scorer(**batch), scorer(**batch), atol=0, rtol=0)


def candidates(k: int, truth: list[int], generator: torch.Generator) -> list[list[int]]:
    """The truth, truncations of it (one to its full length), and free ones; one is empty."""

    def ids(count: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (count,), generator=generator).tolist()

    cut = [[*truth[:length], EOS] for length in range(1, len(truth) - 1)]
    alike = [*truth[:-1], truth[-1] % (VOCABULARY - 1) + 1]
    free = [ids(count) for count in (1, 12, 5, 3, 7)]
    return [truth, *[*cut[:1], [], free[0], alike, *free[1:], *cut[1:], *free] * 3][:k]


@pytest.fixture
def float64_norms(monkeypatch):
    """Transformers' RMSNorm computes in fp32 whatever it is given."""
    monkeypatch.setattr(
        LlamaRMSNorm,
        "forward",
        lambda norm, x: F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon),
    )


@pytest.fixture
def from_cache(monkeypatch):
    """Continuations take their prefix from the cache, however small the passes."""
    monkeypatch.setattr(forward_pass, "SMALL_PASS_TOKENS", 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("k", [1, 2, 3, 5, 12, 16])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("small_pass", [0, 10**6])  # from the cache, and in one row
def test_a_shared_prefix_gives_the_values_and_gradients_of_a_repeated_one(
    architecture, k, side, small_pass, float64_norms, monkeypatch
):
    monkeypatch.setattr(forward_pass, "SMALL_PASS_TOKENS", small_pass)
    model = tiny_model(architecture).double()
    generator = torch.Generator().manual_seed(k)
    truths = [[*range(2, 9), EOS], [5, EOS], list(range(10, 23))]
    batch = collate_groups(
        [
            Group(list(range(3, 3 + width)), candidates(k, truth, generator))
            for width, truth in zip((2, 11, 5), truths, strict=True)
        ]
    )
    if side == "right":
        batch["prefix_ids"], batch["prefix_mask"] = left_aligned(
            batch["prefix_ids"], batch["prefix_mask"]
        )
    weights = torch.randn(batch["continuation_mask"].shape, generator=generator).double()

    def run(share_prefix: bool) -> list[torch.Tensor]:
        model.zero_grad()
        scorer = GroupScorer(model, share_prefix=share_prefix)
        logps = scorer.token_logps(**batch)
        (logps * weights).sum().backward()
        return [logps.detach(), *gradients(model)]

    shared, repeated = run(True), run(False)
    assert shared[0].dtype == torch.float64
    for one, other in zip(shared, repeated, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
    assert shared[0][~batch["continuation_mask"]].eq(0).all()  # nothing on padding


def gradients(model) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_give_the_values_and_gradients_of_the_whole(
    architecture, share_prefix, float64_norms
):
    model = tiny_model(architecture).double()
    generator = torch.Generator().manual_seed(0)
    batch = collate_groups(
        [
            Group(list(range(3, 3 + width)), candidates(12, truth, generator))
            for width, truth in ((2, [*range(2, 9), EOS]), (11, [*range(5, 30)]))
        ]
    )
    weights = torch.randn(2, 12, generator=generator).double()

    def run(tokens_at_once: int | None) -> tuple[int, list[torch.Tensor]]:
        model.zero_grad()
        scorer = GroupScorer(model, share_prefix=share_prefix, tokens_at_once=tokens_at_once)
        logps = scorer(**batch)
        (logps * weights).sum().backward()
        given = batch["prefix_mask"], batch["continuation_ids"], batch["continuation_mask"]
        return len(scorer._parts(*given)), [logps.detach(), *gradients(model)]

    count, whole = run(None)
    assert count == 1
    for tokens_at_once in (1, 50, 70):
        count, parts = run(tokens_at_once)
        assert count > 1
        for one, other in zip(parts, whole, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_parts_hold_the_tokens_they_may_and_truncations_stay_with_their_truth():
    truth = [*range(2, 12), EOS]  # 11 tokens
    others = [[30 + i] * 9 for i in range(4)]
    group = Group([3, 4, 5], [truth, others[0], [2, 3, EOS], *others[1:], [2, EOS]])
    batch = collate_groups([group])
    given = batch["prefix_mask"], batch["continuation_ids"], batch["continuation_mask"]

    def parts(tokens_at_once: int) -> list[list[int]]:
        scorer = GroupScorer(tiny_model("llama"), tokens_at_once=tokens_at_once)
        return [one.tolist() for one in scorer._parts(*given)]

    # 3 tokens of the prefix in each part; the truncations, columns 2 and 6, take none.
    assert parts(3 + 11 + 9) == [[0, 2, 6, 1], [3, 4], [5]]
    assert parts(3 + 11 + 9 - 1) == [[0, 2, 6], [1, 3], [4, 5]]
    assert parts(1) == [[0, 2, 6], [1], [3], [4], [5]]


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="one thread adds up in one order")
def test_gradients_of_rows_taken_several_times_are_the_same_bit_for_bit():
    keys = torch.randn(500, 2, 4, 8, requires_grad=True)
    cache = DynamicCache()
    cache.update(keys, keys, 0)
    rows = torch.randint(0, 500, (6000,))
    weights = torch.randn(6000, 2, 4, 8)

    def gradient() -> torch.Tensor:
        (only,) = torch.autograd.grad(
            (forward_pass.select_rows(cache, rows).layers[0].keys * weights).sum(),
            keys,
            retain_graph=True,
        )
        return only

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(8))
    selected = forward_pass.select_rows(cache, rows)
    assert torch.equal(selected.layers[0].values, keys[rows])
    assert cache.layers[0].keys.shape[0] == 500  # the cache selected from stays as it is


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keys_rounded_once_are_those_that_attention_rounds(architecture, from_cache, monkeypatch):
    model = tiny_model(architecture)
    batch = collate_groups([Group([3, 4, 5, 6], [[2, 3, EOS], [7, 8, 9, EOS], [2, 5, EOS]])])
    kept = []
    update = DynamicLayer.update

    def watched(layer, *states, **options):
        result = update(layer, *states, **options)
        if layer.keys.shape[-2] > 4:  # more than the prefix
            kept.append(layer.keys.dtype)
        return result

    def unrounded(cache, rows):
        selected = copy.deepcopy(cache)
        selected.batch_select_indices(rows)
        return selected

    scorer = GroupScorer(model, "bf16")
    monkeypatch.setattr(DynamicLayer, "update", watched)
    with torch.inference_mode():
        found = scorer(**batch)
        assert set(kept) == {torch.bfloat16}
        monkeypatch.setattr(forward_pass, "select_rows", unrounded)
        torch.testing.assert_close(found, scorer(**batch), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prefix_is_computed_once_and_truncations_never(architecture, from_cache, monkeypatch):
    model = tiny_model(architecture)
    truth = [*range(2, 9), EOS]
    group = Group([3, 4, 5, 6], [truth, [2, 3, EOS], [2, EOS], [9, 10, 11]])
    scorer = GroupScorer(model)  # compared with the model's own logits here, once
    tokens = []
    model.base_model.register_forward_hook(
        lambda module, args, kwargs, output: tokens.append(kwargs["input_ids"].numel()),
        with_kwargs=True,
    )
    scorer(**collate_groups([group]))
    # 4 of the prefix; of a continuation all but its last token: 7 of the truth, 2 of the last one.
    assert tokens == [4, 7, 2]
    tokens.clear()
    monkeypatch.setattr(forward_pass, "SMALL_PASS_TOKENS", 512)
    scorer(**collate_groups([group]))
    assert tokens == [4 + 7 + 2]  # in one row, since two passes of 4.5 tokens each are small


def test_a_checkpointed_model_that_cannot_pack_repeats_the_prefix_and_says_so():
    model = tiny_model("llama").train()
    model.gradient_checkpointing_enable()
    batch = collate_groups(ragged_groups())
    scorer = GroupScorer(model)
    scorer.forward_pass = dataclasses.replace(scorer.forward_pass, packs=False)
    with pytest.warns(UserWarning, match="gradient checkpointing drops the key/value cache"):
        found = scorer(**batch)
    torch.testing.assert_close(found, GroupScorer(model, share_prefix=False)(**batch))


@pytest.mark.parametrize("k", [1, 3])
def test_empty_continuations_score_zero_even_without_any_other(k):
    batch = collate_groups([Group([1, 2], [[]] * k)])
    assert GroupScorer(tiny_model("gpt2"))(**batch).tolist() == [[0.0] * k]


def test_next_token_logits_are_those_before_each_token():
    model = tiny_model("gpt2").eval()
    group = ragged_groups()[0]
    only = Group(group.prefix_ids, [group.continuations[0]])
    logits = GroupScorer(model).next_token_logits(**collate_groups([only]))
    ids = torch.tensor([[*only.prefix_ids, *only.continuations[0]]])
    expected = model(ids).logits[0, len(only.prefix_ids) - 1 : -1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


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
