"""A fused GELU: the same values, gradients and files; less kept for the backward pass."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.activations import NewGELUActivation

from cpo.engine.forward_pass import forward_pass_of
from cpo.engine.fused_gelu import fuse_gelu


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
    fuse_gelu(fused)
    assert sum(isinstance(module, nn.GELU) for module in fused.modules()) == 2
    # `gelu_fast` writes sqrt(2 / pi) with ten digits.
    torch.testing.assert_close(
        loss_and_gradients(fused), loss_and_gradients(model), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("activation", ["gelu", "relu", "quick_gelu"])
def test_other_activations_stay(activation):
    model = small_gpt2(activation)
    before = [type(module) for module in model.modules()]
    fuse_gelu(model)
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
    fuse_gelu(model)
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
