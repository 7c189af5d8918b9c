"""A prefix and its continuations in one row: layouts by hand, parity with plain repetition."""

import dataclasses
import warnings

import pytest
import torch
from models import ARCHITECTURES, EOS, VOCABULARY, tiny_model
from test_scoring import candidates, float64_norms, gradients  # noqa: F401
from transformers import GPTNeoConfig, GPTNeoForCausalLM, MistralConfig, MistralForCausalLM

from cpo.engine.forward_pass import checkpoint_layers, score_in_one_pass
from cpo.engine.packed_groups import PADDING, attention_mask, pack
from cpo.scoring import Group, GroupScorer, collate_groups, score_groups, sequence_logps


def packed(groups: list[Group]) -> tuple[torch.Tensor, ...]:
    batch = collate_groups(groups)
    prefix_ids, prefix_mask = batch["prefix_ids"], batch["prefix_mask"]
    if not prefix_mask.all():  # padded on the left, and moved to the right as the scorer does
        order = (~prefix_mask).to(torch.uint8).argsort(dim=-1, stable=True)
        prefix_ids, prefix_mask = (rows.gather(-1, order) for rows in (prefix_ids, prefix_mask))
    return pack(prefix_ids, prefix_mask, batch["continuation_ids"], batch["continuation_mask"])


def test_a_row_holds_the_prefix_once_and_no_last_token():
    # Prefix 5 6; y_1 = 11 12 13 enters with 11 12, y_2 = 21 with nothing, y_3 = 31 32 with 31.
    # The second group is shorter: its prefix 7, y_1 = 41 42 with 41; y_2 and y_3 are empty.
    groups = [Group([5, 6], [[11, 12, 13], [21], [31, 32]]), Group([7], [[41, 42], [], []])]
    ids, parts, positions, before = packed(groups)
    assert ids.tolist() == [[5, 6, 11, 12, 31], [7, 41, 0, 0, 0]]
    assert parts.tolist() == [[0, 0, 1, 1, 3], [0, 1, PADDING, PADDING, PADDING]]
    assert positions.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    # 11, 21 and 31 follow the prefix's last token, at 1; 12 and 13 the tokens at 2 and 3; 32 that
    # at 4. In the second row, 41 follows the token at 5 + 0, and 42 that at 5 + 1.
    assert before.tolist() == [1, 2, 3, 1, 1, 4, 5, 6]


def test_a_token_sees_the_prefix_and_its_own_continuation():
    sees = attention_mask(torch.tensor([[0, 0, 1, 2, 2, PADDING]]))[0, 0].int()
    assert sees.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],  # padding sees itself, so that its softmax is a number
    ]
    added = attention_mask(torch.tensor([[0, 1]]), torch.float32)[0, 0]
    assert added.tolist() == [[0.0, torch.finfo(torch.float32).min], [0.0, 0.0]]


def run(model, batch, weights, packs: bool, checkpointed: bool) -> list[torch.Tensor]:
    """Token log-probabilities, and gradients of their weighted sum."""
    model.zero_grad()
    scorer = GroupScorer(model, share_prefix=packs)
    if packs:  # whatever else it could do
        scorer.forward_pass = dataclasses.replace(scorer.forward_pass, one_pass=True)
        assert scorer.forward_pass.sharing(model, 40) == "packed"
    if checkpointed:
        checkpoint_layers(model)
        scorer.train()
    logps = scorer.token_logps(**batch)
    (logps * weights).sum().backward()
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False
    return [logps.detach(), *gradients(model)]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_gradients_are_those_of_a_repeated_prefix(
    architecture,
    attention,
    checkpointed,
    float64_norms,  # noqa: F811
):
    model = tiny_model(architecture).double()
    model.set_attn_implementation(attention)
    generator = torch.Generator().manual_seed(0)
    truths = [[*range(2, 9), EOS], [5, EOS], list(range(10, 33))]
    # The longest row has more tokens than the model has positions, 64.
    batch = collate_groups(
        [
            Group(list(range(3, 3 + width)), candidates(12, truth, generator))
            for width, truth in zip((2, 11, 5), truths, strict=True)
        ]
    )
    weights = torch.randn(batch["continuation_mask"].shape, generator=generator).double()
    in_one_row = run(model, batch, weights, True, checkpointed)
    repeated = run(model, batch, weights, False, False)
    assert in_one_row[0].dtype == torch.float64
    # Plain attention takes its softmax in fp32, whatever the dtype.
    bound = 1e-9 if attention == "sdpa" else 1e-5
    for one, other in zip(in_one_row, repeated, strict=True):
        torch.testing.assert_close(one, other, atol=bound, rtol=bound)


def test_checkpointing_packs_by_itself_and_without_a_warning():
    model = tiny_model("llama").train()
    checkpoint_layers(model)
    group = Group([3, 4], [[5, 6], [7, 8, 9]])
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer = GroupScorer(model)
        model.base_model.register_forward_hook(
            lambda module, args, kwargs, output: rows.append(kwargs["input_ids"].shape),
            with_kwargs=True,
        )
        found = scorer(**collate_groups([group]))
    assert rows == [(1, 2 + 1 + 2)]
    expected = sequence_logps(model.eval(), group.prefix_ids, group.continuations)
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_checkpointed_layers_run_in_bf16_too(share_prefix):
    model = tiny_model("llama")
    checkpoint_layers(model)
    scorer = GroupScorer(model, "bf16", share_prefix=share_prefix)
    scorer(**collate_groups([Group([3, 4], [[5, 6], [7, 8, 9]])])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def windowed(architecture: str, window: int):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "vocab_size": 64, "initializer_range": 0.3}
    if architecture == "mistral":
        return MistralForCausalLM(
            MistralConfig(
                **shape,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=64,
                sliding_window=window,
            )
        )
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            **shape,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=window,
            max_position_embeddings=64,
        )
    )


@pytest.mark.filterwarnings("ignore:.*cannot be shared")
@pytest.mark.filterwarnings("ignore:.*attention mask")
@pytest.mark.parametrize("architecture", ["mistral", "gpt_neo"])
@pytest.mark.parametrize("window", [8, 25, 40])
@pytest.mark.parametrize("in_one_pass", [True, False])
def test_a_sliding_window_is_kept_to_or_the_prefix_repeated(architecture, window, in_one_pass):
    model = windowed(architecture, window).eval()
    scorer = GroupScorer(model)
    if in_one_pass:
        score_in_one_pass(scorer)
        assert scorer.forward_pass.sharing(model, window + 1) == "repeated"
        assert scorer.forward_pass.sharing(model, window, row=window + 1) == "repeated"
    # Of two ragged groups, a prefix and one continuation have 19 tokens at most, all six 41 and 20.
    groups = [
        Group(
            list(range(2, 12)), [list(range(3, 12)), *([20 + k, *range(30, 35)] for k in range(5))]
        ),
        Group([5, 6], [[7 + k, 8, 9, 10] for k in range(6)]),
    ]
    for logps, group in zip(scorer(**collate_groups(groups)), groups, strict=True):
        expected = sequence_logps(model, group.prefix_ids, group.continuations)
        torch.testing.assert_close(logps, expected, atol=1e-4, rtol=1e-4)


def test_in_bf16_policy_and_reference_are_scored_the_same_way():
    """The ways differ by rounding. A choice by the lengths in a batch would make some log-ratios
    differ from 0 where the weights are the same."""
    torch.manual_seed(0)
    model = tiny_model("llama").eval()
    groups = [
        Group([3, 4, 5], [torch.randint(1, VOCABULARY, (n,)).tolist() for n in lengths])
        for lengths in ([9, 2, 14], [3, 3, 3], [20, 1, 6], [2, 17, 17])
    ]

    def scored(micro_batch: int, in_one_pass: bool) -> torch.Tensor:
        return score_groups(model, groups, "bf16", micro_batch, "", in_one_pass=in_one_pass)

    passes = scored(4, True), scored(4, False)
    assert not torch.equal(*passes)
    for in_one_pass, together in zip((True, False), passes, strict=True):
        scorer = GroupScorer(model, "bf16")
        if in_one_pass:
            score_in_one_pass(scorer)
        with torch.no_grad():
            torch.testing.assert_close(scorer(**collate_groups(groups)), together, rtol=0, atol=0)
        # In other batches, by less than between the ways.
        alone = (scored(1, in_one_pass) - together).abs().mean()
        assert alone < (passes[0] - passes[1]).abs().mean() / 2


def test_one_pass_is_one_whatever_the_lengths():
    model = tiny_model("gpt2").eval()
    passes = []
    scorer = GroupScorer(model)
    scorer.forward_pass = dataclasses.replace(scorer.forward_pass, one_pass=True)
    model.base_model.register_forward_hook(lambda *_: passes.append(1))
    long, short = list(range(3, 40)), [5]
    for groups in (
        [Group([3], [long, short, []])],
        [Group([3, 4], [[], []])],  # nothing to score
        [Group([3], [long]), Group(long, [short])],  # K = 1
        [Group([3], [[]])],
    ):
        passes.clear()
        logps = scorer(**collate_groups(groups))
        assert passes == [1]
        for row, group in zip(logps, groups, strict=True):
            expected = sequence_logps(model, group.prefix_ids, group.continuations)
            passes.pop()
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)
            passes.append(1)
