"""Scoring and sampling against a model's own logits, one row at a time, over many architectures."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from architectures import CONFIGURATIONS, VOCABULARY, toy_model
from torch import Tensor
from transformers import GPT2LMHeadModel

from cpo.engine.forward_pass import ModelError, forward_pass_of
from cpo.evaluation.metrics import last_token_features
from cpo.generation import generate, ids_without_token
from cpo.scoring import Group, GroupScorer, collate_groups

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# The others compute some of attention, norms or states in fp32 whatever the model's dtype is.
IN_FLOAT64 = ["gpt2", "openai-gpt", "opt"]


def random_ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (count,), generator=generator).tolist()


def ragged_groups() -> list[Group]:
    lengths = ((3, (4, 1, 7)), (19, (2, 0, 5)), (1, (3, 6, 2)))
    return [
        Group(random_ids(prefix, row), [random_ids(n, 10 * row + n) for n in continuations])
        for row, (prefix, continuations) in enumerate(lengths)
    ]


@torch.no_grad()
def own_logps(model: Any, group: Group) -> list[float]:
    """Sums of log pi(token | before), each row alone, by `model(...).logits`."""
    sums = []
    for continuation in group.continuations:
        ids = torch.tensor([[*group.prefix_ids, *continuation]])
        logps = model(ids).logits[0].double().log_softmax(-1)
        start = len(group.prefix_ids) - 1
        sums.append(sum(float(logps[start + i, id_]) for i, id_ in enumerate(continuation)))
    return sums


@pytest.mark.parametrize("architecture", CONFIGURATIONS)
@pytest.mark.parametrize("share_prefix", [True, False])
def test_scores_are_those_of_the_models_own_logits(architecture, share_prefix):
    model = toy_model(architecture)
    groups = ragged_groups()
    expected = torch.tensor([own_logps(model, group) for group in groups], dtype=torch.float64)
    scorer = GroupScorer(model, share_prefix=share_prefix).train()
    scores = scorer(**collate_groups(groups))
    tolerance = 1e-9 if architecture in IN_FLOAT64 else 2e-5
    torch.testing.assert_close(scores.detach(), expected, atol=tolerance, rtol=tolerance)
    # Random dropout, jitter or skipped layers would differ from pass to pass.
    assert torch.equal(scorer(**collate_groups(groups)), scores)
    scores.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("architecture", CONFIGURATIONS)
def test_gradients_are_those_of_the_models_own_loss(architecture):
    model = toy_model(architecture)
    group = Group(random_ids(5, 0), [random_ids(6, 1)])
    ids = torch.tensor([[*group.prefix_ids, *group.continuations[0]]])

    def gradients(loss: Tensor) -> list[Tensor]:
        model.zero_grad()
        loss.backward()
        return [
            parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
        ]

    own_loss = F.cross_entropy(model(ids).logits[0, 4:-1].double(), ids[0, 5:])
    own = gradients(own_loss)
    loss = -GroupScorer(model)(**collate_groups([group])).sum() / 6
    tolerance = 1e-9 if architecture in IN_FLOAT64 else 1e-4
    torch.testing.assert_close(loss.double(), own_loss.double(), atol=tolerance, rtol=tolerance)
    scale = max(float(gradient.abs().max()) for gradient in own)
    for gradient, expected in zip(gradients(loss), own, strict=True):
        torch.testing.assert_close(gradient, expected, atol=tolerance * scale, rtol=tolerance)


@pytest.mark.parametrize("architecture", CONFIGURATIONS)
def test_samples_follow_the_models_own_logits(architecture):
    model = toy_model(architecture)
    prefixes = [random_ids(3, 0), random_ids(12, 1)]
    count = 600
    drawn = generate(
        model, prefixes, eos_token_id=1, max_new_tokens=2, per_prefix=count, batch=2 * count,
        do_sample=True, top_k=3,
    )  # fmt: skip
    greedy = generate(model, prefixes, eos_token_id=1, max_new_tokens=6)
    for prefix, samples, (best,) in zip(prefixes, drawn, greedy, strict=True):
        with torch.no_grad():
            top = model(torch.tensor([prefix])).logits[0, -1].topk(3)
            for length, token in enumerate(best):
                logits = model(torch.tensor([[*prefix, *best[:length]]])).logits[0, -1]
                assert token == int(logits.argmax())
        for token, chance in zip(
            top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True
        ):
            share = sum(ids[0] == token for ids in samples) / count
            assert abs(share - chance) <= 4.5 * (chance * (1 - chance) / count) ** 0.5 + 1e-9


class Unmasked(GPT2LMHeadModel):
    """Its own forward pass, and so `generate`, sees padding as tokens."""

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return super().forward(input_ids)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Tensor]:
        return {"input_ids": input_ids}


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "top_p": 1e-6}])
@pytest.mark.parametrize("architecture", ["gpt2", "granite", "gpt_neo", "mamba"])
def test_generate_is_given_no_padding_that_it_cannot_see_through(architecture, options):
    model = toy_model(architecture)
    if architecture == "gpt2":
        model.__class__ = Unmasked
    prefixes = [random_ids(n, n) for n in (3, 12, 3, 7)]
    asked = {"eos_token_id": 1, "max_new_tokens": 4, **options}
    alone = [generate(model, [prefix], **asked)[0] for prefix in prefixes]
    assert generate(model, prefixes, batch=4, **asked) == alone


def test_local_attention_that_counts_cache_slots_is_right_beyond_its_window(monkeypatch):
    model = toy_model("gpt_neo", window_size=24)
    group = [
        Group(random_ids(40, 0), [[5, 6, 7], [8, 9]]),
        Group(random_ids(4, 1), [[3, 4], [2, 9, 9]]),
    ]
    expected = torch.tensor([own_logps(model, one) for one in group], dtype=torch.float64)
    scorer = GroupScorer(model)
    assert scorer.forward_pass.shares_prefix and scorer.forward_pass.window == 24
    torch.testing.assert_close(scorer(**collate_groups(group)), expected, atol=1e-5, rtol=1e-5)
    # Within its window, the prefix is shared.
    monkeypatch.setattr("cpo.engine.forward_pass.SMALL_PASS_TOKENS", 0)
    calls = []
    model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs["use_cache"]), with_kwargs=True
    )
    scorer(**collate_groups(group[1:]))
    assert calls[0] is True


def test_a_cap_is_not_missed_on_the_small_logits_of_a_new_model():
    model = toy_model("gemma2", initializer_range=1e-4, final_logit_softcapping=30.0)
    assert forward_pass_of(model).cap == 30.0


@pytest.mark.parametrize("name", ["logit_scale", "final_logit_softcapping"])
def test_what_a_configuration_names_and_the_model_does_not_apply_is_not_applied(name):
    forward_pass = forward_pass_of(toy_model("llama", **{name: 0.5}))
    assert (forward_pass.base_and_head, forward_pass.scale, forward_pass.cap) == (True, 1.0, None)


class Shifted(GPT2LMHeadModel):
    """Does to its logits what no configuration tells of."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.linspace(0, 3, VOCABULARY)
        return output


def test_an_unknown_change_of_the_logits_is_seen_and_the_full_forward_pass_used_once_said():
    model = toy_model("gpt2")
    model.__class__ = Shifted
    with pytest.warns(UserWarning, match="base model and head gives other logits, so its full"):
        scorer = GroupScorer(model)
    groups = ragged_groups()
    expected = torch.tensor([own_logps(model, group) for group in groups], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = GroupScorer(model, "bf16")(**collate_groups(groups))  # log-ratios want fp32 logits
        torch.testing.assert_close(scores, expected, atol=1e-9, rtol=1e-9)
        logits = scorer.next_token_logits(**collate_groups([Group([3, 4], [[5, 6]])]))
        torch.testing.assert_close(logits, model(torch.tensor([[3, 4, 5]])).logits[0, 1:])


def test_what_is_no_causal_language_model_is_refused():
    with pytest.raises(
        ModelError, match="BertLMHeadModel cannot be scored: its logits depend on later"
    ):
        GroupScorer(toy_model("bert"))
    broken = toy_model("llama")
    broken.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(
        ModelError, match="LlamaForCausalLM cannot be scored: its logits are not finite"
    ):
        generate(broken, [[3]], eos_token_id=1, max_new_tokens=1)


def test_a_generate_with_logits_of_its_own_is_refused():
    # Roberta counts positions from its padding id, and `generate` from 0.
    model = toy_model("roberta", torch.float32, is_decoder=True)
    with pytest.raises(ModelError, match="`generate` gives logits that differ from its forward"):
        generate(model, [[3, 4]], eos_token_id=2, max_new_tokens=2)


def test_the_comparison_leaves_modes_and_random_numbers_as_they_were():
    model = toy_model("gpt2").train()
    model.transformer.h[0].eval()
    state = torch.get_rng_state()
    assert forward_pass_of(model) is forward_pass_of(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not model.transformer.h[0].training


@pytest.mark.parametrize("architecture", ["llama4_text", "openai-gpt", "mamba"])
def test_features_need_no_base_model_that_tells_its_last_hidden_state(architecture):
    model = toy_model(architecture, torch.float32)
    features = last_token_features(model, [[3, 4, 5], [6]])
    with torch.no_grad():
        alone = model(torch.tensor([[6]]), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(torch.tensor(features[1]), alone[0, -1], atol=1e-5, rtol=1e-4)


class Tokens:
    """A tokenizer that knows the first 60 of 64 ids, but for one."""

    def get_vocab(self) -> dict[str, int]:
        return {str(id_): id_ for id_ in range(60) if id_ != 7}


@pytest.mark.parametrize("options", [{"top_k": 50}, {"top_p": 0.999}], ids=["ours", "transformers"])
def test_ids_that_no_token_has_are_never_drawn(options):
    model = toy_model("llama", torch.float32)
    never = ids_without_token(model, Tokens())
    assert never == [7, 60, 61, 62, 63]
    model.lm_head.weight.data *= 0.01  # nearly uniform: of 600 tokens, some 47 would be of the five
    ask = {"eos_token_id": 1, "max_new_tokens": 6, "per_prefix": 100, "do_sample": True, **options}
    drawn = generate(model, [[3, 4]], never=never, **ask)[0]
    assert not {id_ for ids in drawn for id_ in ids} & set(never)
    assert {id_ for ids in generate(model, [[3, 4]], **ask)[0] for id_ in ids} & set(never)
