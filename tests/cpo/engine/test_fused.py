"""Fused GELUs and norms: the same values, gradients and files."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.activations import NewGELUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from cpo.engine.forward_pass import forward_pass_of
from cpo.engine.fused import FusedRMSNorm, fuse


def small_gpt2(activation: str) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2,
        activation_function=activation,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def loss_and_gradients(model: GPT2LMHeadModel) -> list[torch.Tensor]:
    ids = torch.arange(12).view(2, 6)
    loss = model(input_ids=ids, labels=ids).loss
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast"])
def test_values_and_gradients_are_those_of_the_plain_one(activation):
    model = small_gpt2(activation).double()
    fused = copy.deepcopy(model)
    fuse(fused)
    assert sum(isinstance(module, nn.GELU) for module in fused.modules()) == 2
    # `gelu_fast` writes sqrt(2 / pi) with ten digits.
    torch.testing.assert_close(
        loss_and_gradients(fused), loss_and_gradients(model), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("activation", ["gelu", "relu", "quick_gelu"])
def test_other_activations_stay(activation):
    model = small_gpt2(activation)
    before = [type(module) for module in model.modules()]
    fuse(model)
    assert [type(module) for module in model.modules()] == before


def test_a_gelu_of_others_or_with_hooks_stays():
    class Doubled(NewGELUActivation):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model = small_gpt2("gelu_new")
    first, second = model.transformer.h
    first.mlp.act = Doubled()
    seen = []
    second.mlp.act.register_forward_hook(lambda *arguments: seen.append(arguments))
    before = loss_and_gradients(model)
    fuse(model)
    torch.testing.assert_close(loss_and_gradients(model), before, rtol=0, atol=0)
    assert len(seen) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_keeps_its_shortcuts(dtype):
    forward_pass = forward_pass_of(small_gpt2("gelu_new").to(dtype))
    assert forward_pass == forward_pass_of(small_gpt2("gelu").to(dtype))
    assert forward_pass.shares_prefix


def test_a_compared_model_is_fused_and_saved_as_it_was(tmp_path):
    model = small_gpt2("gelu_new")
    forward_pass_of(model)
    assert not any(isinstance(module, NewGELUActivation) for module in model.modules())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert any(isinstance(module, NewGELUActivation) for module in loaded.modules())
    assert loaded.config.activation_function == "gelu_new"
    torch.testing.assert_close(loss_and_gradients(loaded), loss_and_gradients(model))


NORMED = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def small_normed(architecture: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config_class, model_class = NORMED[architecture]
    config = config_class(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, head_dim=8,
    )  # fmt: skip
    model = model_class(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.normal_(1, 0.2)
    return model


@pytest.mark.parametrize("architecture", NORMED)
def test_norms_keep_values_gradients_and_names_of_weights(architecture):
    model = small_normed(architecture)
    fused = copy.deepcopy(model)
    fuse(fused)
    norms = 9 if architecture == "qwen3" else 5  # two a layer, and the last; keys and queries
    assert sum(isinstance(module, FusedRMSNorm) for module in fused.modules()) == norms
    torch.testing.assert_close(
        loss_and_gradients(fused), loss_and_gradients(model), rtol=1e-4, atol=1e-6
    )
    assert fused.state_dict().keys() == model.state_dict().keys()


def test_a_norms_gradient_is_that_of_the_formula():
    torch.manual_seed(0)
    norm = FusedRMSNorm(LlamaRMSNorm(5, eps=0.1))
    norm.weight.data.normal_(1, 0.2)
    states, slopes = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5)
    exact, weight = states.detach().double().requires_grad_(), norm.weight.detach().double()
    weight.requires_grad_()
    expected = exact / (exact.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight
    torch.testing.assert_close(norm(states), expected.float())
    (norm(states) * slopes).sum().backward()
    (expected * slopes).sum().backward()
    torch.testing.assert_close(states.grad, exact.grad.float())
    torch.testing.assert_close(norm.weight.grad, weight.grad.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_norm_of_other_precision_computes_as_before(dtype):
    plain = LlamaRMSNorm(8).to(dtype)
    states = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(FusedRMSNorm(plain)(states), plain(states))


def test_a_norm_takes_what_autocast_gives_it():
    plain = LlamaRMSNorm(8)
    states = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        for given in (states, states.bfloat16()):  # residuals, and a product
            expected = plain(given)
            fused = FusedRMSNorm(plain)(given)
            assert fused.dtype == expected.dtype
            torch.testing.assert_close(fused, expected)


def test_a_norm_with_hooks_stays_and_a_fused_model_is_saved_as_it_was(tmp_path):
    model = small_normed("llama")
    seen = []
    model.model.norm.register_forward_hook(lambda *arguments: seen.append(arguments))
    before = loss_and_gradients(model)
    forward_pass_of(model)
    assert type(model.model.norm) is LlamaRMSNorm and seen
    assert isinstance(model.model.layers[0].input_layernorm, FusedRMSNorm)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loss_and_gradients(loaded), before)


def test_a_norm_is_not_differentiated_twice():
    norm = FusedRMSNorm(LlamaRMSNorm(4))
    states = torch.randn(2, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(norm(states).square().sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
